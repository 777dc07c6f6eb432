"""Settings: every number has bounds, declared at its field, and nothing gets past them."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import math
import os
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import hypothesis
import micro
import numpy as np
import pytest
import typer
from hypothesis import strategies as st

import mvader_jax
from mvader_jax.bounds import Bound
from mvader_jax.cli.main import main
from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.errors import UserError
from mvader_jax.lora.config import LoraConfig
from mvader_jax.models.clip_text import ClipTextConfig
from mvader_jax.models.decoder import AdaptersConfig
from mvader_jax.plan.request import Request
from mvader_jax.sampling.settings import StaticSettings
from mvader_jax.scores.score import Scoring
from mvader_jax.settings import Checked, Choice, convert, from_dict, override, to_dict, type_hints
from mvader_jax.train.config import Group, load_config
from mvader_jax.web import server
from mvader_jax.web.asked import Asked, Part, Region, Slider, Words

#: One of each class that has no defaults, or none that stand by themselves.
STAGE = micro.train_config().stages["diffusion"]
EXAMPLES: dict[str, Any] = {
    "Group": Group("unet/.*", 1e-3),
    "Stage": STAGE,
    "TrainConfig": micro.train_config(),
    "AdaptersConfig": AdaptersConfig(16),
    "LoraConfig": LoraConfig(4, "attn"),
    "SMagmaConfig": micro.MODEL.s_magma,
    "Scoring": Scoring(("clip",), clip="tiny"),
    "Request": Request("configs/tiny.py", "v5e:2x2"),
    "StaticSettings": StaticSettings("ddim", 50, (8, 8)),
    "Words": Words("red"),
    "Region": Region(box=(0.0, 0.0, 1.0, 1.0)),
    "Part": Part("red"),
    "Slider": Slider("parts", (1.0,)),
    "_Attending": server._Attending(Asked(), "run", 0, 0),
}
ENDINGS = ("Config", "Settings", "Options", "Request")
#: Dataclasses so named that hold no number of a person's: a source's own config as it is read, and paths.
NOT_SETTINGS = {
    ("mvader_jax.convert.settings", "Settings"),
    ("mvader_jax.convert.kinds.base", "Options"),
    ("mvader_jax.sampling.batch.requests", "Request"),
}
#: Fields that take a number below 0.
SIGNED = {
    *(f"MeshConfig.{axis}" for axis in ("replica", "data", "fsdp", "tensor")),
    "Request.effort",
    "SamplingSettings.guidance_scale",
}


def so_named() -> set[tuple[str, str]]:
    """(module, class) of the dataclasses that are called settings, by the package's text."""
    names = set()
    root = Path(mvader_jax.__file__).parent
    for path in root.rglob("*.py"):
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef) or not node.name.endswith(ENDINGS):
                continue
            if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
                names.add((module, node.name))
    return names


for module, _ in so_named():
    importlib.import_module(module)


def checked_classes() -> list[type[Checked]]:
    def below(cls: type[Checked]) -> Iterator[type[Checked]]:
        for sub in cls.__subclasses__():
            yield sub
            yield from below(sub)

    made = {cls for cls in below(Checked) if dataclasses.is_dataclass(cls)}
    # What several kinds share is no kind, and holds no settings of a person's.
    shared = {cls for cls in made if issubclass(cls, Choice) and cls not in cls.kinds.values()}
    found = {cls for cls in made - shared if cls.__module__.startswith("mvader_jax.")}
    return sorted(found, key=lambda cls: (cls.__module__, cls.__name__))


def numbers(hint: Any, bounds: tuple[Bound, ...] = ()) -> Iterator[tuple[type, tuple[Bound, ...]]]:
    """Every int or float in a type, with its bounds."""
    if typing.get_origin(hint) is Annotated:
        bare, *notes = typing.get_args(hint)
        yield from numbers(bare, (*bounds, *(note for note in notes if isinstance(note, Bound))))
    elif hint in (int, float):
        yield hint, bounds
    else:
        for part in typing.get_args(hint):
            yield from numbers(part, bounds if type(None) in typing.get_args(hint) else ())


#: (class, field): everything with a number in it.
NUMERIC = [
    (cls, name)
    for cls in checked_classes()
    for name, hint in type_hints(cls).items()
    if any(True for _ in numbers(hint))
]


def example(cls: type[Checked]) -> Any:
    return EXAMPLES[cls.__name__] if cls.__name__ in EXAMPLES else cls()


def test_every_class_of_settings_is_checked() -> None:
    checked = {(cls.__module__, cls.__name__) for cls in checked_classes()}
    assert so_named() - checked - NOT_SETTINGS == set()


@pytest.mark.parametrize(("cls", "name"), NUMERIC, ids=lambda x: getattr(x, "__name__", x))
def test_every_number_has_bounds(cls: type[Checked], name: str) -> None:
    """A number of which none is senseless says so with `any_number`, and why."""
    assert all(bounds for _, bounds in numbers(type_hints(cls)[name]))


WILD = st.one_of(
    st.integers(),
    st.integers(-3, 3),
    st.floats(),
    st.floats(-2, 2),
    st.sampled_from([2**31 - 1, 2**31, 2**32, 10**400, -(10**400), 1e-320, 1e39, 0.99999999999, 1 - 2**-24]),
    st.sampled_from([True, False, None, "", "1", "nan", "x", {}, {"a": 1}]),
)
VALUES = st.one_of(WILD, st.lists(WILD, max_size=4), st.lists(st.lists(WILD, max_size=2), max_size=2))


@pytest.mark.parametrize(("cls", "name"), NUMERIC, ids=lambda x: getattr(x, "__name__", x))
@hypothesis.settings(
    max_examples=int(os.environ.get("MVADER_EXAMPLES", "25")),
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # other tests run beside it
)
@hypothesis.given(value=VALUES)
def test_a_wild_number_is_refused_in_a_sentence_or_kept_as_it_is(
    cls: type[Checked], name: str, value: Any
) -> None:
    # People write seeds as text, "0:16", which Python's call reads and a file of settings does not.
    hypothesis.assume(not (cls.__name__ == "SamplingSettings" and name == "seed" and isinstance(value, str)))
    given = example(cls)
    outcomes: list[Any] = []
    for make in (
        lambda: dataclasses.replace(given, **{name: value}),
        lambda: override(given, [f"{name}={json.dumps(value)}"]),
        lambda: from_dict(cls, {**to_dict(given), name: value}),
    ):
        try:
            outcomes.append(getattr(make(), name))
        except UserError as error:
            outcomes.append(UserError)
            said = str(error)
            hypothesis.note(said)
            short = bool(said) and "\n" not in said and len(said) < 400
    assert outcomes[0] is not UserError or short
    assert outcomes[1] == outcomes[0] == outcomes[2]
    if outcomes[0] is UserError:
        return
    assert as_floats(to_dict(outcomes[0])) == as_floats(value), "what is accepted is kept"
    for number in leaves(outcomes[0]):
        assert math.isfinite(np.float32(number))
        assert not isinstance(number, int) or abs(number) < 2**32
        allowed = f"{cls.__name__}.{name}" in SIGNED or "any finite number" in words(cls, name)
        assert number >= 0 or allowed


def as_floats(value: Any) -> Any:
    """A whole number of a field of floats is kept as the float next to it."""
    return json.loads(json.dumps(value), parse_int=float)


def leaves(value: Any) -> Iterator[float]:
    if isinstance(value, tuple):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, (int, float)):
        yield value


def words(cls: type[Checked], name: str) -> str:
    return " ".join(b.accepted for _, bounds in numbers(type_hints(cls)[name]) for b in bounds)


SENSELESS = """
steps=0 batch_size=0 batch_size=-8 log_every=0 save_every=0 validate_every=-1 accumulate=0
accumulate=-1 keep=0 keep=-1 keep_every=-1 seed=-1 seed=4294967296 objective.dropout=1.5 objective.dropout=NaN
objective.timestep_bias=0.5 objective.timestep_bias=NaN row_groups=-1 sample_every=-1
sample_steps=0 sample_guidance=NaN sample_guidance=Infinity max_loss_ratio=-1 max_loss_ratio=0.5
max_bad_updates=-1 steps=99999999999 optimizer.b1=1 optimizer.b2=-0.1 optimizer.b2=0.99999999999
optimizer.eps=0 optimizer.eps=1e-60 optimizer.weight_decay=-1 optimizer.clip_norm=-1
optimizer.clip_norm=NaN optimizer.warmup_steps=-1 optimizer.decay_steps=-1
optimizer.final_fraction=2 optimizer.ema_decay=1.5 optimizer.ema_decay=1 optimizer.ema_decay=NaN
data.source.num_records=0 data.source.num_records=-1 data.image_size=0 objective.caption_length=0 objective.p_image=1.1
objective.p_interleaved=-1 objective.interleaved_images=0 objective.interleaved_length=-1 data.flip=2 data.source.omit=2
data.source.parallel=2 data.seed=-1 data.threads=0 data.threads=1000000 data.workers=-1
data.workers=1000000 data.bad_limit=-1
data.aspect_buckets=[[0,8]] groups.unet.learning_rate=-1 groups.unet.learning_rate=NaN
groups.unet.learning_rate=1e300 groups.unet.parameters=unet/(
"""


@pytest.mark.parametrize("text", SENSELESS.split())
def test_what_was_accepted_or_failed_late_is_refused_at_once(text: str) -> None:
    field = text.partition("=")[0]
    with pytest.raises(UserError, match=rf"^{field}(\[\d\])* is .*; (accepted|expected)"):
        override(STAGE, [text])


def test_settings_of_other_objectives_have_bounds_too() -> None:
    for objective, text in (("contrastive", "similarity_scale=0"), ("vae", "kl_weight=-1")):
        with pytest.raises(UserError, match=rf"^objective.{text[:8]}.* is .*; accepted"):
            override(STAGE, [f"objective={objective}", f"objective.{text}"])


def test_numbers_at_the_edge_are_accepted() -> None:
    stage = override(
        STAGE,
        [
            *(
                "steps=1",
                "keep=1",
                "seed=4294967295",
                "objective.dropout=1",
                "max_loss_ratio=0",
                "max_bad_updates=0",
            ),
            *("optimizer.clip_norm=0", "optimizer.ema_decay=0", "data.workers=0", "data.bad_limit=0"),
            *("groups.unet.learning_rate=0", "data.flip=1", "objective.p_image=0", "accumulate=1"),
        ],
    )
    assert (stage.seed, stage.objective.dropout, stage.data.flip) == (2**32 - 1, 1.0, 1.0)


def test_code_is_checked_as_overrides_are() -> None:
    with pytest.raises(UserError, match=r"^Stage.steps is 0; accepted: 1 to 2147483647$"):
        dataclasses.replace(STAGE, steps=0)
    with pytest.raises(UserError, match=r"^Stage.dtype is 'float16'; accepted: float32, bfloat16$"):
        dataclasses.replace(STAGE, dtype="float16")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^Group.parameters is '\('; accepted: a regular expression"):
        Group("(", 1e-3)
    with pytest.raises(UserError, match=r"VAEConfig.norm_groups is 0"):
        dataclasses.replace(micro.MODEL.vae, norm_groups=0)  # type: ignore[type-var]
    # What NumPy counted is a number too, and a list is what a tuple says.
    assert dataclasses.replace(STAGE, steps=np.int64(3), init=["tiny"]).init == ("tiny",)  # type: ignore[arg-type]
    assert hash(dataclasses.replace(ClipTextConfig(), norm_eps=np.float32(1e-5)))


def test_thousands_of_digits_or_brackets_are_one_short_sentence() -> None:
    for text in ("steps=" + "9" * 5000, "steps=" + "[" * 100_000, "groups.unet.learning_rate=" + "9" * 400):
        with pytest.raises(UserError) as caught:
            override(STAGE, [text])
        assert len(str(caught.value)) < 200


def test_a_config_file_out_of_bounds_names_the_field(tmp_path: Path) -> None:
    path = tmp_path / "config.py"
    path.write_text("import micro\n\ndef get_config():\n    return micro.train_config(steps=0)\n")
    with pytest.raises(UserError, match=r"Stage.steps is 0"):
        load_config(path)


def test_functions_have_types_with_bounds_too() -> None:
    def command(steps: Annotated[int | None, Bound(lambda x: x > 0, "some")] = None) -> None: ...

    assert list(inspect.signature(command).parameters) == list(type_hints(command))[:1]
    hint = type_hints(command)["steps"]
    assert convert(hint, None, "--steps") is None
    with pytest.raises(UserError, match=r"^--steps is 0; accepted: some$"):
        convert(hint, 0, "--steps")


def commands() -> dict[str, Any]:
    from mvader_jax.cli import data, register

    app = typer.Typer()
    register(app)
    return {
        c.callback.__name__: c.callback for c in (*app.registered_commands, *data.app.registered_commands)
    }


#: Flags that go into settings as they are, where their bounds stand.
INTO_SETTINGS = {
    *(f"build.{name}" for name in type_hints(FilterConfig)),
    *(f"sample.{n}" for n in ("negative_strength", "num_images", "seed", "steps", "guidance_scale")),
    *(f"sample.{name}" for name in ("height", "width", "eta", "reuse")),
    *("demo.num_images", "demo.seed", "demo.steps"),
    *(f"figure.{name}" for name in ("strength", "seed", "steps", "guidance_scale")),
    *(f"evaluate.{name}" for name in ("count", "steps", "guidance_scale", "reuse", "seed", "batch")),
}


def test_every_number_on_the_command_line_has_bounds() -> None:
    bare = [
        f"{name}.{parameter}"
        for name, command in commands().items()
        for parameter, hint in type_hints(command).items()
        if parameter != "return" and not all(bounds for _, bounds in numbers(hint))
    ]
    assert [name for name in bare if name not in INTO_SETTINGS] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "configs/tiny.py", "--profile=-1"], "--profile is -1; accepted: 0 to 2147483647"),
        (
            ["data", "encode", "configs/tiny.py", "scenes", "out", "--shard-size", "0"],
            "--shard-size is 0; acc",
        ),
        (
            ["data", "encode", "configs/tiny.py", "scenes", "out", "--batch-size=-4"],
            "--batch-size is -4; acc",
        ),
        (["data", "build", "scenes", "9", "out", "--workers=-1"], "--workers is -1; accepted: 0 to 1024"),
        (
            ["data", "build", "scenes", "9", "out", "--max-aspect", "nan"],
            "max_aspect is nan; expected a finite",
        ),
        (
            ["data", "build", "scenes", "9", "out", "--max-watermark", "2"],
            "max_watermark is 2.0; accepted: 0 to",
        ),
        (["data", "scenes", "out", "--count", "0"], "--count is 0; accepted"),
        (["data", "scenes", "out", "--seed=-1"], "--seed is -1; accepted"),
        (["data", "bench", "out", "--seconds", "nan"], "--seconds is nan; expected a finite number"),
        (["data", "bench", "out", "--seconds", "inf"], "--seconds is inf; expected a finite number"),
        (["data", "bench", "out", "--needed", "-1"], "--needed is -1.0; accepted: more than 0"),
        (["data", "describe", "out", "--count", "0"], "--count is 0; accepted"),
        (["bundle", "out", "--seed", str(2**32)], "--seed is 4294967296; accepted"),
        (["plan", "configs/tiny.py", "--effort", "nan"], "--effort is nan; expected a finite number"),
        (["plan", "configs/tiny.py", "--compiled=-1"], "--compiled is -1; accepted"),
        (
            ["train", "configs/tiny.py", "stages.diffusion.keep=0"],
            "stages.diffusion.keep is 0; accepted: 1 to",
        ),
    ],
)
def test_flags_out_of_bounds_are_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(Path(__file__).parents[1] / "configs")
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("mvader: ") and message in said and "\n" not in said
    assert {path.name for path in tmp_path.iterdir()} == {"configs"}

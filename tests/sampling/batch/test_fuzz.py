"""Files of prompts of every kind: each line is drawn or told, whatever stands in it, and nothing is a traceback.

Reading, planning, laying out and writing are real; only the device's part is a stub.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
from hypothesis import strategies as st

from mvader_jax.condition import Condition, PromptBatch
from mvader_jax.data.scenes.world import render, scene_at
from mvader_jax.errors import UserError
from mvader_jax.images.png import save_png
from mvader_jax.sampling.batch.requests import read_requests
from mvader_jax.sampling.batch.run import Report, sample_all
from mvader_jax.sampling.generate import Draws
from mvader_jax.sampling.manifest import read_rows
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import NAMES, StaticSettings


class Instant(Pipeline):
    """Draws black at once, and embeds prompts as zeros of the right shape."""

    def generate(self, draws: Draws, static: StaticSettings) -> tuple[jax.Array, jax.Array]:
        count = len(draws.seeds)
        assert all(
            np.isfinite(x).all() for x in jax.tree.leaves((draws.guidance_scale, draws.negative_strength))
        )
        assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(draws.prompt))
        return jnp.zeros((count, 8, 8, 3), jnp.uint8), jnp.ones(count, bool)

    def embed_batch(self, batch: PromptBatch) -> Condition:
        rows, length = batch.token_ids.shape
        return Condition(np.zeros((rows, length, 32), np.float32), batch.condition_log_weights)

    def features(self, pixels: np.ndarray) -> jax.Array:
        encoder = self.model.image_encoder
        assert encoder is not None
        return jnp.zeros((len(pixels), encoder.num_tokens, encoder.token_width))


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Instant(micro.bundle(micro.NANO))


WILD: Any = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.sampled_from(
            [2**31, 2**32, 10**30, 10**400, -1, 0, 1e39, 1e-320, "", " ", "both", "ddim", "a.png"]
        ),
        st.text(st.characters(codec=None), max_size=6),  # type: ignore[arg-type]
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["text", "image", "weight", "box", "mask", "x"]), inner, max_size=3),
    ),
    max_leaves=6,
)
WEIGHT = st.one_of(st.just(1), st.floats(0, 4), st.sampled_from([0, 1e-300, 1e300, 3.4e38]), WILD)
TEXTS = st.one_of(
    st.sampled_from(
        ["a red circle", "in blue", "rød ● 赤", "a" * 2000, "a red circle " * 40, "photo.jgp", "\0"]
    ),
    st.text(max_size=20),
)
FILES = [
    "a.png",
    "b.png",
    "cut.png",
    "notes",
    "folder",
    "nowhere.png",
    "../a.png",
    "n\0.png",
    "\ud83d.png",
    "",
]
REGION: Any = st.one_of(
    st.fixed_dictionaries({"box": st.lists(st.floats(-0.5, 1.5), min_size=3, max_size=4), "weight": WEIGHT}),
    st.fixed_dictionaries({"mask": st.sampled_from(FILES), "weight": WEIGHT}),
    WILD,
)
ELEMENT: Any = st.one_of(
    TEXTS,
    st.fixed_dictionaries(
        {"text": TEXTS}, optional={"weight": WEIGHT, "spans": st.dictionaries(TEXTS, WEIGHT)}
    ),
    st.fixed_dictionaries(
        {"image": st.sampled_from(FILES)},
        optional={"weight": WEIGHT, "regions": st.lists(REGION, max_size=2)},
    ),
    WILD,
)
PROMPT: Any = st.one_of(TEXTS, ELEMENT, st.lists(ELEMENT, max_size=3))
GOOD = {
    "seed": st.one_of(
        st.integers(0, 2**32 - 1), st.lists(st.integers(0, 9), min_size=1, max_size=3), st.just("4:6,1")
    ),
    "steps": st.integers(1, 60),
    "guidance_scale": st.floats(-10, 10),
    "sampler": st.sampled_from(["plms", "ddim", "euler"]),
    "site": st.sampled_from(["both", "decoder", "cross_attention"]),
    "balance": st.one_of(st.booleans(), st.just("attention")),
    "negative_strength": st.floats(0, 3),
    "height": st.sampled_from([8, 16, 64]),
    "width": st.sampled_from([8, 16, 64]),
    "eta": st.floats(0, 1),
    "long_prompts": st.sampled_from(["cut", "refuse"]),
    "strength": st.floats(0, 1),
    "guidance_interval": st.one_of(st.lists(st.floats(0, 9), min_size=2, max_size=2), st.just("0.3,5")),
    "reuse": st.integers(1, 4),
}
OBJECT: Any = st.fixed_dictionaries(
    {},
    optional={
        "prompt": PROMPT,
        "negative": PROMPT,
        "id": st.one_of(st.sampled_from(["a", "b", "a.b", "../x", "holiday"]), WILD),
        # A file may well ask for a million pictures.
        "num_images": st.one_of(st.integers(1, 3), WILD.filter(lambda x: not isinstance(x, int) or x < 4)),
        "x": WILD,
        "init_image": st.one_of(st.sampled_from(FILES), WILD),
        **{name: st.one_of(GOOD[name], WILD) for name in NAMES},
    },
)
#: Mostly whole lines with one prompt and a few settings, so that a good part of them is drawn.
SAID: Any = st.one_of(
    st.sampled_from(["a red circle", "rød ● 赤", "in blue"]),
    st.fixed_dictionaries(
        {"text": st.just("a red hat")},
        optional={"weight": st.floats(0, 9), "spans": st.just({"red": 2})},
    ),
    st.fixed_dictionaries(
        {"image": st.sampled_from(["a.png", "b.png"])}, optional={"weight": st.floats(0, 9)}
    ),
)
LIKELY: Any = st.builds(
    lambda prompt, settings, more: {"prompt": prompt, **settings, **more},
    st.lists(SAID, min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(sorted(GOOD)), st.none(), max_size=2).flatmap(
        lambda names: st.fixed_dictionaries({name: GOOD[name] for name in names})
    ),
    st.sampled_from(
        [
            *({}, {}, {"negative": "a blue cross"}, {"num_images": 3}, {"negative": [{"image": "b.png"}]}),
            *({"init_image": "a.png"}, {"init_image": "b.png", "strength": 0.3}),
        ]
    ),
)


def as_line(value: Any, ascii_only: bool) -> bytes:
    text = json.dumps(value, ensure_ascii=ascii_only)
    return text.encode("utf-8", "surrogatepass").replace(b"\n", b" ").replace(b"\r", b" ")


LINE = st.one_of(
    st.builds(as_line, LIKELY, st.booleans()),
    st.builds(as_line, LIKELY, st.booleans()),
    st.builds(as_line, OBJECT, st.booleans()),
    st.builds(lambda line, at: line[:at], st.builds(as_line, OBJECT, st.booleans()), st.integers(0, 60)),
    st.binary(max_size=12).map(lambda data: data.replace(b"\n", b"").replace(b"\r", b"")),
    st.sampled_from(
        [b"", b"  ", b"{}", b"[]", b"null", b"[" * 5000, b'{"prompt": "a", "prompt": "b"}', b"\xef\xbb\xbf{}"]
    ),
)


def draw(pipe: Pipeline, path: Path, out: Path) -> Report:
    requests, problems = read_requests(path)
    return sample_all(pipe, requests, problems, out, size=4)


def check(pipe: Pipeline, lines: list[bytes]) -> tuple[int, int]:
    """(lines drawn, lines told) of a file of these lines; they are all that are not blank."""
    asked = {number for number, line in enumerate(lines, 1) if line.strip()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, picture in enumerate(("a.png", "b.png")):
            save_png(folder / picture, render(scene_at(0, number)))
        (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:300])
        (folder / "notes").write_text("words")
        (folder / "folder").mkdir()
        before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        path = folder / "p.jsonl"
        path.write_bytes(b"\n".join(lines))
        if not asked:
            with pytest.raises(UserError, match="hold no line"):
                draw(pipe, path, folder / "out")
            return 0, 0
        report = draw(pipe, path, folder / "out")
        told = {problem.line for problem in report.problems}
        assert all("\n" not in problem.reason for problem in report.problems)
        requests, _ = read_requests(path)
        drawn = {request.line for request in requests} - told
        assert drawn | told == asked and not drawn & told
        names = {r.file(index) for r in requests if r.line in drawn for index in range(r.count)}
        assert names == {file.name for file in (folder / "out").glob("*.png")}
        assert sorted(row["file"] for row in read_rows(folder / "out")) == sorted(names)
        assert report.drawn == len(names)
        # Again there is nothing to do, and the same to tell.
        again = draw(pipe, path, folder / "out")
        assert (again.drawn, again.present) == (0, len(names))
        assert {problem.line for problem in again.problems} == told
        assert all(file.read_bytes() == data for file, data in before.items())
        return len(drawn), len(told)


QUIET = {"deadline": None, "database": None, "suppress_health_check": list(hypothesis.HealthCheck)}


@hypothesis.settings(max_examples=60, derandomize=True, **QUIET)
@hypothesis.given(lines=st.lists(LINE, max_size=6))
def test_every_line_is_drawn_or_told(pipe: Pipeline, lines: list[bytes]) -> None:
    check(pipe, lines)


@pytest.mark.slow
def test_every_line_is_drawn_or_told_for_long(pipe: Pipeline) -> None:
    counts = np.zeros(3, int)

    @hypothesis.settings(max_examples=12_000, **QUIET)
    @hypothesis.given(lines=st.lists(LINE, max_size=6))
    def run(lines: list[bytes]) -> None:
        drawn, told = check(pipe, lines)
        counts[:] += (1, drawn, told)

    try:
        run()
    finally:
        print(f"{counts[0]} files: {counts[1]} lines drawn, {counts[2]} told")
    assert counts[1] > 100 and counts[2] > 100

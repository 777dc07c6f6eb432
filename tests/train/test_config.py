"""A config file of a person's own, with the mistakes that people make: one sentence each."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import ROOT, blocks, text_of

from mvader_jax.errors import UserError
from mvader_jax.train.config import load_config

EXAMPLE = next(block.text for block in blocks(text_of("docs/configs.md")))
GROUPS = 'groups={"cross_attention": Group("unet/.*/attn2/.*", 1e-4), "unet": Group("unet/.*", 1e-5)}'
STAGE = 'TrainConfig("mine", stages={"diffusion": stage})'


@pytest.mark.parametrize(
    ("text", "instead", "said"),
    [
        ("steps=1_000", "stepps=1_000", r"line 8: .* argument 'stepps'; did you mean 'steps'\?$"),
        (", 1e-5)", ", learningrate=1)", r"'learningrate'; did you mean 'learning_rate'\?$"),
        ("batch_size=32", "batch_size=32, dropout=0.1", r"it has moved to objective\.dropout$"),
        ('init=("tiny",)', 'init="tiny"', r"Stage.init is 'tiny'; expected several, as in \('tiny',\)$"),
        ('(("data/mine",))', '("data/mine")', r"Records.paths is 'data/mine'; expected several, as in"),
        (GROUPS, 'groups=Group("unet/.*", 1e-5)', r"expected Groups by their names, as \{name: \.\.\.\}$"),
        ("1e-4)", '"fast")', "Group.learning_rate is 'fast'; expected float"),
        (
            "Diffusion(caption_length=22)",
            '"difusion"',
            "'difusion'; accepted: vae, captioning, contrastive, diff",
        ),
        ("return Train", "Train", r"get_config\(\) returned NoneType, not a TrainConfig"),
        ("get_config()", "get_confg()", r"defines no get_config\(\)"),
        ('"mine"', '""', "TrainConfig.name is ''; accepted: a directory's name, without /"),
        ('"mine"', '"../mine"', r"TrainConfig.name is '\.\./mine'; accepted: a directory's name"),
        ('"diffusion": stage', '"a/b": stage', "a name of TrainConfig.stages is 'a/b'; accepted"),
        (STAGE, STAGE[:-1] + ", modell=3)", r"line \d+: .*'modell'; did you mean 'model'\?$"),
        (STAGE, 'TrainConfig("mine", stage)', "expected the fields of ModelConfig"),
        ("return", "return return", "line 16: invalid syntax"),
    ],
)
def test_a_mistake_is_one_sentence(text: str, instead: str, said: str, tmp_path: Path) -> None:
    assert text in EXAMPLE
    file = tmp_path / "mine.py"
    file.write_text(EXAMPLE.replace(text, instead), encoding="utf-8")
    with pytest.raises(UserError, match=said) as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


def test_what_is_no_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match=r"mine\.py: source code .* null bytes"):
        load_config(tmp_path / "mine.py")
    with pytest.raises(UserError, match=r"no config '.*docs'"):
        load_config(ROOT / "docs")


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("model.unet.num_heads=3", r"cannot set 'model\.unet\.num_heads': model\.unet is none"),
        ("stages.diffusion.steps.x=3", r"stages\.diffusion\.steps holds no settings"),
        ("stages.diffusion.init=tiny", "expected several, as in"),
        ("name=", "name is ''; accepted"),
        ("stages.diffusion.groups=3", "expected Groups by their names"),
        ("stages.diffusion.groups.unet={}", "missing 2 required positional arguments"),
    ],
)
def test_overrides_that_cannot_be(assignment: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(EXAMPLE, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        load_config(tmp_path / "mine.py", [assignment])

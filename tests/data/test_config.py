"""Where the settings of a data source stand now, and how those of an earlier version are read."""

import dataclasses

import micro
import pytest

from mvader_jax.data.config import DataConfig
from mvader_jax.data.sources import Pairs, Records, Scenes
from mvader_jax.data.sources.open import open_pairs, open_pictures
from mvader_jax.errors import UserError
from mvader_jax.settings import from_dict, modern, override, to_dict
from mvader_jax.train.config import load_config
from mvader_jax.train.sizes import sized

#: What a checkpoint of before says of its data (the settings of the source; the others are the defaults).
BEFORE = {
    "source": "scenes",
    "paths": [],
    "weights": [],
    "num_records": 64,
    "languages": ["en", "de"],
    "omit": 0.3,
    "parallel": 0.0,
    "image_size": 64,
}


@pytest.mark.parametrize(
    ("assignment", "instead"),
    [
        ("num_records=9", "source.num_records=9"),
        ('paths=["a"]', 'source.paths=["a"]'),
        ("omit=0.1", "source.omit=0.1"),
    ],
)
def test_overrides_of_before_say_where_the_setting_stands_now(assignment, instead):
    with pytest.raises(UserError) as caught:
        override(DataConfig(), [assignment])
    assert str(caught.value).endswith(f"has moved; write {instead}")


def test_a_setting_that_the_source_does_not_have_cannot_be_given():
    with pytest.raises(UserError, match=r"unknown key 'paths' in 'source.paths' \(scenes\)"):
        override(DataConfig(), ['source.paths=["/no/such/folder"]'])
    with pytest.raises(UserError, match=r"unknown key 'num_records' .* \(records\)"):
        override(DataConfig(Records(("a",))), ["source.num_records=3"])
    changed = override(DataConfig(), ["source=pairs", 'source.paths=["a.jsonl"]'])
    assert changed.source == Pairs(("a.jsonl",))

    with pytest.raises(UserError, match=r"^source\.weights\[1\] is inf; expected a finite number"):
        override(DataConfig(Records(("a", "b"))), ["source.weights=[1, Infinity]"])


def test_what_a_run_of_before_recorded_is_read():
    now = modern(DataConfig, BEFORE)
    assert from_dict(DataConfig, now) == DataConfig(Scenes(64, omit=0.3))
    records = modern(DataConfig, {**BEFORE, "source": "records", "paths": ["a"]})
    assert from_dict(DataConfig, records) == DataConfig(Records(("a",)))
    config = DataConfig(Pairs(("x",), (1.0,)), seed=4)
    assert modern(DataConfig, to_dict(config)) == to_dict(config)
    assert dataclasses.replace(from_dict(DataConfig, to_dict(config)), seed=0) != config


def test_a_size_that_the_model_does_not_draw_is_refused():
    assert sized(DataConfig(), micro.NANO).image_size == 8
    assert sized(DataConfig(image_size=8), micro.NANO).image_size == 8
    with pytest.raises(UserError, match=r"data\.image_size is 7, but the model draws 8 pixels"):
        sized(DataConfig(image_size=7), micro.NANO)
    vae_alone = dataclasses.replace(micro.NANO, unet=None)
    assert sized(DataConfig(image_size=7), vae_alone).image_size == 7


@pytest.mark.parametrize("setting", [{"flip": 0.5}, {"crop": "random"}])
def test_settings_of_pictures_are_refused_where_there_are_none(setting):
    with pytest.raises(UserError, match="are of pictures, and pairs of texts have none"):
        open_pairs(DataConfig(Pairs(("a.jsonl",)), **setting), "train")
    with pytest.raises(UserError, match="crop='random' changes nothing"):
        open_pictures(DataConfig(crop="random"), "train")
    with pytest.raises(UserError, match="data of source 'pairs' has none"):
        open_pictures(DataConfig(Pairs(("a.jsonl",))), "train")
    with pytest.raises(UserError, match="'records' needs paths"):
        open_pictures(DataConfig(Records()), "train")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "DataConfig(paths=('a',))",
            r"line 4: DataConfig\.__init__.* 'paths'; it has moved to source\.paths$",
        ),
        ("DataConfig(p_image=0.1)", r"'p_image'; it has moved to objective\.p_image$"),
        ("import mvader_jax.nothing", r"line 4: No module named 'mvader_jax\.nothing'$"),
        ("DataConfig(seed=-1)", r"^DataConfig\.seed is -1"),
        ("1 / 0", "line 4: division by zero$"),
        ("(", "line 4: "),
    ],
)
def test_a_config_file_that_cannot_be_run_is_one_sentence(tmp_path, text, said):
    file = tmp_path / "config.py"
    file.write_text(f"from mvader_jax.data.config import DataConfig\n\ndef get_config():\n    {text}\n")
    with pytest.raises(UserError, match=said):
        load_config(file)

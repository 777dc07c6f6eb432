"""Where the settings of a data source stand now, and how those of an earlier version are read."""

import dataclasses

import pytest

from mvader_jax.data.config import DataConfig
from mvader_jax.data.sources import Pairs, Records, Scenes
from mvader_jax.errors import UserError
from mvader_jax.settings import from_dict, modern, override, to_dict

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

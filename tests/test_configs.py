"""The paper's experiments, pinned: what trains, how many parameters, at which rate, and tables 1 and 2."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from mvader_jax.models.components import abstract_components
from mvader_jax.models.unet import cross_attention_paths
from mvader_jax.train.config import Stage, TrainConfig, load_config
from mvader_jax.train.objectives import Captioning, Contrastive, Diffusion
from mvader_jax.train.optim.optimizer import learning_rate
from mvader_jax.train.start import needed_components
from mvader_jax.train.state import partition

CONFIGS = Path(__file__).parents[1] / "configs"
PAPER = ("open_v1", "open_v2", "luminous_v1", "luminous_v2")
STAGES = [
    (name, stage)
    for name in PAPER
    for stage in ("captioning", "contrastive", "diffusion")
    if (stage != "captioning" or name.endswith("v2"))
]

#: {config: {stage: {group: (parameters that train, peak learning rate)}}}, from the papers' tables and
#: the public models' sizes, none of it computed by this project.
#: UNet of Stable Diffusion 1.4: 859,520,964, of which 19,169,280 are the old to_k and to_v.
UNET = 859_520_964 - 19_169_280
#: MAGMA's prefix: a linear layer from 3072 and a LayerNorm.
PREFIX = {4096: 3072 * 4096 + 3 * 4096, 5120: 3072 * 5120 + 3 * 5120}
ENCODER = 136_202_640
LUMINOUS_BIASES = 40 * (2 * 5120 + 4 * 5120 + 20480 + 5120) + 5120
LUMINOUS_ADAPTERS = 2 * 40 * (2 * 5120 * 640 + 640 + 5120)
TRAINS = {
    "open_v1": {
        "contrastive": {"biases": (692_224, 3.2e-4)},
        "diffusion": {
            "cross_attention": (102_236_160, 5e-4),
            "unet": (UNET, 5e-5),
            "biases": (692_224, 5e-5),
        },
    },
    "open_v2": {
        "captioning": {"adapters": (235_024_384 + PREFIX[4096], 8e-4), "encoder": (ENCODER, 2e-6)},
        "contrastive": {"biases": (692_224, 3.2e-4)},
        "diffusion": {"cross_attention": (102_236_160, 1e-4), "unet": (UNET, 5e-5)},
    },
    "luminous_v1": {
        "contrastive": {"biases": (LUMINOUS_BIASES, 3.2e-4)},
        "diffusion": {
            "cross_attention": (127_795_200, 5e-4),
            "unet": (UNET, 5e-5),
            "biases": (LUMINOUS_BIASES, 5e-5),
        },
    },
    "luminous_v2": {
        "captioning": {"adapters": (LUMINOUS_ADAPTERS + PREFIX[5120], 8e-4), "encoder": (ENCODER, 2e-6)},
        "contrastive": {"biases": (LUMINOUS_BIASES, 3.2e-4)},
        "diffusion": {"cross_attention": (127_795_200, 1e-4), "unet": (UNET, 5e-5)},
    },
}


@functools.cache
def config(name: str) -> TrainConfig:
    return load_config(CONFIGS / f"{name}.py")


@functools.cache
def split(name: str, stage_name: str) -> tuple[dict[str, int], dict[str, str]]:
    """({path of a frozen leaf: its size}, {path of a trained leaf: its group})."""
    loaded = config(name)
    stage = loaded.stages[stage_name]
    model = stage.objective.stage_model(loaded.model)
    shapes, _ = abstract_components(model, needed_components(model, stage))
    _, frozen, groups = partition(shapes, {g: group.parameters for g, group in stage.groups.items()})
    return {path: leaf.size for path, leaf in flatten_dict(frozen, sep="/").items()}, groups


@functools.cache
def sizes(name: str, stage_name: str) -> dict[str, int]:
    loaded = config(name)
    shapes, _ = abstract_components(loaded.model, needed_components(loaded.model, loaded.stages[stage_name]))
    return {path: leaf.size for path, leaf in flatten_dict(shapes, sep="/").items()}


@pytest.mark.parametrize(("name", "stage_name"), STAGES)
def test_exactly_these_parameters_train_at_these_rates(name: str, stage_name: str) -> None:
    stage = config(name).stages[stage_name]
    _, groups = split(name, stage_name)
    count: dict[str, int] = {}
    for path, group in groups.items():
        count[group] = count.get(group, 0) + sizes(name, stage_name)[path]
    found = {group: (count[group], stage.groups[group].learning_rate) for group in count}
    assert found == TRAINS[name][stage_name]


@pytest.mark.parametrize("name", PAPER)
def test_tables_1_and_2(name: str) -> None:
    stage = config(name).stages["diffusion"]
    first = name.endswith("v1")
    assert stage.steps == (54_000 if first else 60_000)
    assert stage.groups["cross_attention"].learning_rate == (0.0005 if first else 0.0001)
    assert stage.groups["unet"].learning_rate == 5e-5
    assert stage.batch_size == 2048
    assert isinstance(stage.objective, Diffusion)
    assert stage.objective.dropout == (0.05 if first else 0.1)
    assert stage.objective.p_image == 0.2
    assert (config(name).model.adapters is None) == first
    frozen, groups = split(name, "diffusion")
    trained = {path.split("/")[0] for path in groups}
    assert trained == ({"unet", "biases"} if first else {"unet"})
    assert "unet" not in {path.split("/")[0] for path in frozen}
    assert ("adapters" in {path.split("/")[0] for path in frozen}) == (not first)
    # The language model itself never trains (paper section 3.1).
    assert not any(path.startswith("decoder/") for path in groups)


@pytest.mark.parametrize("name", PAPER)
def test_the_fast_rate_is_for_the_new_cross_attention_alone(name: str) -> None:
    _, groups = split(name, "diffusion")
    unet = config(name).model.unet
    assert unet is not None
    expected = {
        f"unet/{path}/{matrix}/kernel" for path in cross_attention_paths(unet) for matrix in ("to_k", "to_v")
    }
    assert len(expected) == 32
    assert {path for path, group in groups.items() if group == "cross_attention"} == expected


@pytest.mark.parametrize("name", PAPER)
def test_the_diffusion_stage_is_as_stable_diffusion_where_the_paper_is_silent(name: str) -> None:
    stage = config(name).stages["diffusion"]
    o = stage.optimizer
    assert (o.b1, o.b2, o.weight_decay, o.ema_decay) == (0.9, 0.999, 1e-2, 0.9999)
    assert isinstance(stage.objective, Diffusion)
    assert stage.objective.caption_length == 77
    assert stage.data.image_size == 512
    assert stage.frozen_dtype == stage.dtype == "bfloat16"
    assert stage.objective.null == "empty"


@pytest.mark.parametrize("name", [name for name in PAPER if name.endswith("v2")])
def test_captioning_is_magmas(name: str) -> None:
    stage = config(name).stages["captioning"]
    o = stage.optimizer
    assert stage.objective == Captioning(images=True, caption_length=77)
    assert (stage.batch_size, stage.steps) == (256, 150_000)
    assert (o.b1, o.b2, o.weight_decay, o.clip_norm, o.warmup_steps) == (0.9, 0.95, 0.0, 1.0, 100)
    assert (o.decay, o.decay_steps) == ("linear", 300_000)
    # Half-way down after half of the 300,000 steps.
    assert float(learning_rate(o, 8e-4, stage.steps)(150_050)) == pytest.approx(4e-4, rel=1e-3)


@pytest.mark.parametrize("name", PAPER)
def test_contrastive_is_sgpts(name: str) -> None:
    stage = config(name).stages["contrastive"]
    o = stage.optimizer
    assert stage.objective == Contrastive(caption_length=75, similarity_scale=20.0)
    assert stage.batch_size == 1024
    assert stage.accumulate == 1  # negatives are the whole batch's
    assert stage.steps == 550 == 563_648 // 1024
    assert (o.warmup_steps, o.decay, o.clip_norm) == (55, "linear", 1.0)
    rate: optax.Schedule = learning_rate(o, 3.2e-4, stage.steps)
    assert float(rate(54)) == pytest.approx(3.2e-4) and float(rate(550)) == pytest.approx(0.0, abs=1e-9)


def test_the_open_model_is_the_public_one() -> None:
    model = config("open_v2").model
    assert model.decoder is not None and model.image_encoder is not None
    assert (model.decoder.num_layers, model.decoder.width, model.decoder.vocab_size) == (28, 4096, 50258)
    assert model.image_encoder.num_tokens == 144
    assert (
        sum(n for p, n in sizes("open_v2", "diffusion").items() if p.startswith("adapters/")) == 235_024_384
    )
    assert sum(n for p, n in sizes("open_v2", "diffusion").items() if p.startswith("vae/")) == 83_653_863
    first = config("open_v1").model
    assert first == dataclasses.replace(model, adapters=None)


def test_luminous_has_the_paper_s_13_billion() -> None:
    decoder = sum(n for p, n in sizes("luminous_v2", "diffusion").items() if p.startswith("decoder/"))
    embeddings = 2 * 128_000 * 5120
    assert decoder - embeddings == pytest.approx(12.58e9, rel=2e-3)
    model = config("luminous_v2").model
    assert model.decoder is not None and model.unet is not None and model.image_prefix is not None
    assert model.unet.cross_attention_dim == model.image_prefix.width == model.decoder.width == 5120
    assert "inferred" in (type(model.decoder).luminous_13b.__doc__ or "")
    assert "inferred" in (CONFIGS / "luminous_v2.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("groups", [8, 16, 64, 256])
def test_one_in_five_rows_is_an_image_whatever_the_mesh(groups: int) -> None:
    """Tokens of a step: images and captions each at their own length, not all at 144."""
    stage: Stage = config("open_v2").stages["diffusion"]
    assert isinstance(stage.objective, Diffusion)
    layout = stage.objective.layout(stage.batch_size // groups)
    tokens = groups * (layout.image_rows * 144 + layout.text_rows * 77)
    exact = stage.batch_size * (0.2 * 144 + 0.8 * 77)
    assert exact <= tokens <= exact + groups * (144 + 77)


@pytest.mark.parametrize("name", PAPER)
def test_its_docstring_says_how_to_start_it(name: str) -> None:
    text = (CONFIGS / f"{name}.py").read_text(encoding="utf-8")
    assert f"mvader train configs/{name}.py" in text.split('"""')[1]


def test_a_misspelt_setting_is_an_error() -> None:
    from mvader_jax.errors import UserError

    with pytest.raises(UserError, match="batch_size"):
        load_config(CONFIGS / "open_v2.py", ["stages.diffusion.batchsize=4"])


def test_nothing_is_computed() -> None:
    """The shapes of 14 billion parameters come without a number of them."""
    shapes, _ = abstract_components(config("luminous_v2").model, ["decoder"])
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
    assert all(np.dtype(leaf.dtype) == np.float32 for leaf in jax.tree.leaves(shapes))

"""Factors train in place of weights: what moves, what is written, and what is refused."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jobs import run_job

from mvader_jax.convert.lora.files import read_lora
from mvader_jax.errors import UserError
from mvader_jax.lora.config import LoraConfig
from mvader_jax.lora.factors import Factors, kernels
from mvader_jax.models.components import abstract_components
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.sampling.lora import Applied, Loras
from mvader_jax.storage.bundle import Bundle, load_bundle, save_bundle
from mvader_jax.train.assemble import assemble, split
from mvader_jax.train.config import Group, Stage, TrainConfig
from mvader_jax.train.loop import train
from mvader_jax.train.lora import LORA, applied, with_factors
from mvader_jax.train.optim.optimizer import OptimizerConfig
from mvader_jax.train.snapshot import Snapshot, load_snapshot

ATTENTION = r"attn.*/to_[qkvo].*"


FACTORS = {"decoder": {"rank": 3, "targets": "layers", "alpha": 6.0, "rank_dropout": 0.25}}
USUAL = {"steps": 4, "batch_size": 4, "save_every": 2, "validate_every": 0}


def config_of(init: Path, **changes: Any) -> TrainConfig:
    """The decoder learns captions by factors alone."""
    lora = {name: LoraConfig(**given) for name, given in FACTORS.items()}
    config = micro.language_config(str(init), **USUAL)
    stage = dataclasses.replace(
        config.stages["language"], lora=lora, groups={"lora": Group("lora/.*", 1e-2)}, **changes
    )
    return dataclasses.replace(config, stages={"language": stage})


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "init"
    save_bundle(path, micro.bundle(micro.NANO, "decoder"))
    return path


@pytest.fixture(scope="module")
def run(init: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    assert train(config_of(init), "language", workdir, one(), quiet=True) == 0
    return workdir / "language"


def one() -> Any:
    return make_mesh(MeshConfig(), jax.devices()[:1])


def leaves(bundle: Bundle) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(bundle.components, sep="/").items()}


def test_the_result_is_the_base_changed_by_the_file(init: Path, run: Path) -> None:
    base, result = load_bundle(init), load_bundle(run / "bundle")
    before, after = leaves(base), leaves(result)
    targeted = {f"decoder/{path}" for path in kernels(base.components["decoder"]) if "layers" in path}
    assert {path for path in before if not np.array_equal(before[path], after[path])} == targeted
    again = leaves(Loras(base).with_files([Applied(run / "lora.safetensors")]))
    for path, leaf in after.items():
        np.testing.assert_allclose(again[path], leaf, rtol=1e-6, atol=1e-7)
    lora, name = read_lora(run / "lora.safetensors", base.model)
    assert name == "mvader" and all(
        factors.scale.tolist() == [1.0] for factors in lora.weights["decoder"].values()
    )
    assert "trained" in result.records["decoder"]


def test_a_run_that_was_ended_goes_on_to_the_same_bits(init: Path, run: Path, tmp_path: Path) -> None:
    class Ended(Exception):
        pass

    def end(step: int) -> None:
        if step == 3:
            raise Ended

    with pytest.raises(Ended):
        train(config_of(init), "language", tmp_path, one(), quiet=True, on_step=end)
    assert train(config_of(init), "language", tmp_path, one(), quiet=True) == 0
    files = [(place / "lora.safetensors").read_bytes() for place in (run, tmp_path / "language")]
    assert files[0] == files[1]
    # A checkpoint holds the factors, and any of them is a bundle.
    snapshot = load_snapshot(Snapshot.of(run), mesh=one())
    expected = leaves(load_bundle(run / "bundle"))
    for path, leaf in leaves(snapshot).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_bits(init: Path, run: Path, tmp_path: Path) -> None:
    options = {"init": str(init), "changes": USUAL, "lora": FACTORS, "sigkill_at": [0, 3]}
    [(code, _, error)] = run_job(1, 1, [str(tmp_path), "language", "data=1"], options)
    assert code == -signal.SIGKILL, error[-3000:]
    assert not (tmp_path / "language" / "lora.safetensors").exists()
    assert (tmp_path / "language" / "checkpoints" / "2").is_dir()
    assert train(config_of(init), "language", tmp_path, one(), quiet=True) == 0
    files = [(place / "lora.safetensors").read_bytes() for place in (run, tmp_path / "language")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_two_processes_train_the_same_factors(init: Path, tmp_path: Path) -> None:
    """Each holds half of every weight and of its factors; the first writes the file."""
    changes = {"row_groups": 4, "optimizer": {"eps": 1e-4, "ema_decay": 0.9}}
    alone, job = tmp_path / "alone", tmp_path / "job"
    given = {**changes, "optimizer": OptimizerConfig(**changes["optimizer"])}
    assert train(config_of(init, **given), "language", alone, one(), quiet=True) == 0
    options = {"init": str(init), "changes": {**USUAL, **changes}, "lora": FACTORS}
    ends = run_job(2, 1, [str(job), "language", "fsdp=2"], options)
    assert [code for code, _, _ in ends] == [0, 0], ends[0][2][-3000:]
    same_factors(*(read_factors(init, place) for place in (alone, job)))


def read_factors(init: Path, workdir: Path) -> Mapping[str, Factors]:
    lora, _ = read_lora(workdir / "language" / "lora.safetensors", load_bundle(init).model)
    return lora.weights["decoder"]


def same_factors(ours: Mapping[str, Factors], theirs: Mapping[str, Factors]) -> None:
    """Trained ones, but for sums in another order."""
    assert any(np.abs(factors.up).max() > 1e-3 for factors in ours.values())
    for path, factors in ours.items():
        for mine, other in ((factors.down, theirs[path].down), (factors.up, theirs[path].up)):
            np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-5, err_msg=path)


def test_a_mesh_trains_the_same_factors(init: Path, tmp_path: Path) -> None:
    """Weights over fsdp and tensor, their factors beside them: gathered, they are those of one device."""
    found = []
    for name, mesh in {
        "one": one(),
        "mesh": make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4]),
    }.items():
        config = config_of(init, row_groups=4, optimizer=OptimizerConfig(eps=1e-4, ema_decay=0.9))
        assert train(config, "language", tmp_path / name, mesh, quiet=True) == 0
        found.append(read_factors(init, tmp_path / name))
    same_factors(*found)


def unet_stage(**changes: Any) -> tuple[Stage, dict[str, Any]]:
    """A stage of diffusion, and the shapes of its UNet."""
    stage = micro.train_config().stages["diffusion"]
    lora = {"unet": LoraConfig(rank=2, targets=f"{ATTENTION}|conv1")}
    given = {"lora": lora, "groups": {"lora": Group("lora/unet/.*", 1e-4)}, **changes}
    shapes, _ = abstract_components(micro.MODEL, ["unet", "vae", "decoder"])
    return dataclasses.replace(stage, **given), shapes


def test_only_factors_have_an_optimizer_and_they_lie_as_their_weights_do() -> None:
    stage, shapes = unet_stage(dtype="bfloat16", frozen_dtype="bfloat16")
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    assembly, trainable, frozen = assemble(micro.MODEL, shapes, stage, mesh, None)
    flat = flatten_dict(trainable, sep="/")
    place = "lora/unet/mid_block/attentions_0/transformer_blocks_0/attn1/to_out_0/kernel"
    assert set(trainable) == {LORA} and all(leaf.dtype == jnp.float32 for leaf in flat.values())
    assert flat[f"{place}/down"].shape == (32, 2) and flat[f"{place}/up"].shape == (2, 32)
    conv = "lora/unet/down_blocks_0/resnets_0/conv1/kernel"
    assert flat[f"{conv}/down"].shape == (3, 3, 16, 2) and flat[f"{conv}/up"].shape == (2, 16)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(frozen)} == {"bfloat16"}
    shardings = flatten_dict(assembly.shardings.trainable, sep="/")
    # The table's: heads over tensor, the width over fsdp, channels in over fsdp, out over tensor.
    assert tuple(shardings[f"{place}/down"].spec) == ("tensor", None)
    assert tuple(shardings[f"{place}/up"].spec) == (None, "fsdp")
    assert tuple(shardings[f"{conv}/down"].spec) == (None, None, "fsdp", None)
    assert tuple(shardings[f"{conv}/up"].spec) == (None, "tensor")
    state = assembly.abstract_state(trainable, frozen)
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    assert moments == pytest.approx(2 * sum(leaf.size for leaf in flat.values()), rel=0.01)


def test_fresh_factors_change_nothing_and_dropout_leaves_ranks_out() -> None:
    components = {"a": {"dense": {"kernel": jnp.ones((6, 5))}, "conv": {"kernel": jnp.ones((3, 3, 4, 8))}}}
    settings = {"a": LoraConfig(rank=4, targets=".", alpha=2.0, rank_dropout=0.5)}
    whole = with_factors(components, settings, seed=3)
    same = with_factors(components, settings, seed=3)
    assert jax.tree.all(jax.tree.map(np.array_equal, whole, same))
    factors = flatten_dict(whole[LORA], sep="/")
    assert 0.3 < np.abs(factors["a/dense/kernel/down"]).max() <= 6**-0.5
    fresh = applied(whole, settings)
    assert set(fresh) == {"a"} and jax.tree.all(jax.tree.map(np.array_equal, fresh, components))
    ones = {path: np.ones_like(leaf) if path.endswith("up") else leaf for path, leaf in factors.items()}
    whole[LORA] = unflatten_dict(ones, sep="/")
    plain = applied(whole, settings)["a"]["dense"]["kernel"]
    np.testing.assert_allclose(plain, 1 + 0.5 * ones["a/dense/kernel/down"] @ np.ones((4, 5)), rtol=1e-5)
    drawn = [applied(whole, settings, jax.random.key(i))["a"]["dense"]["kernel"] for i in range(300)]
    assert len({np.asarray(one).tobytes() for one in drawn}) > 8
    np.testing.assert_allclose(np.mean(drawn, axis=0), plain, atol=0.12)


def refused(match: str, **changes: Any) -> None:
    stage, shapes = unet_stage(**changes)
    with pytest.raises(UserError, match=match):
        split(shapes, stage)


def test_what_does_nothing_is_refused() -> None:
    refused("found in no path", lora={"unet": LoraConfig(2, "to_x")})
    refused(
        r"rank is 17, more than the weight of .* has, \[16, 16\]", lora={"unet": LoraConfig(17, ATTENTION)}
    )
    refused("lora names 'text_encoder'; the stage computes with", lora={"text_encoder": LoraConfig(2, ".")})
    refused("no group trains the factors of unet/", groups={"vae": Group("vae/.*", 1e-4)})
    both = {"unet": Group("unet/.*/to_q/kernel", 1e-4), "lora": Group("lora/.*", 1e-4)}
    refused("group 'unet' trains unet/.*, which lora changes by its factors", groups=both)
    refused("trainable group 'lora' .* matches no parameter", lora={})
    refused(
        "frozen_dtype int8 is for a decoder that stays as it is",
        lora={"decoder": LoraConfig(2, "layers")},
        groups={"lora": Group("lora/.*", 1e-4)},
        frozen_dtype="int8",
    )
    for wrong in (
        {"rank": 0, "targets": "a"},
        {"rank": 1, "targets": "("},
        {"rank": 1, "targets": "a", "alpha": -1},
    ):
        with pytest.raises(UserError):
            unet_stage(lora={"unet": wrong})


def test_settings_may_be_written_as_plain_values() -> None:
    stage, shapes = unet_stage(lora={"unet": {"rank": 2, "alpha": 4, "targets": ATTENTION}})
    assert stage.lora["unet"] == LoraConfig(2, ATTENTION, 4.0)
    trainable, _, groups = split(shapes, stage)
    assert set(trainable) == {LORA} and set(groups.values()) == {"lora"}

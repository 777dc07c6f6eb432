"""Where a stage starts: the words of a small world grow by what it is trained on, and what learnt from it is left out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import micro

from mvader_jax.lora.config import LoraConfig
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.prompt.tokenizer import Tokenizer
from mvader_jax.storage.bundle import save_bundle, verify
from mvader_jax.storage.bundle_config import read_config
from mvader_jax.train.config import Group
from mvader_jax.train.loop import train
from mvader_jax.train.objectives import Distillation
from mvader_jax.train.snapshot import Snapshot, write_snapshot
from mvader_jax.train.start import gather_start


def test_words_grow_by_a_stage_s_captions(tmp_path: Path) -> None:
    bundle = micro.bundle(micro.NANO, "decoder")
    assert bundle.tokenizer is not None
    for name, words in (("small", frozenset({"hat"})), ("open", None)):
        tokenizer = Tokenizer(bundle.tokenizer.backend, bundle.tokenizer.config, words)
        save_bundle(tmp_path / name, dataclasses.replace(bundle, tokenizer=tokenizer))
        config = micro.language_config(str(tmp_path / name))
        start = gather_start(config, config.stages["language"], tmp_path, make_mesh(MeshConfig(data=-1)))
        assert start.bundle.tokenizer is not None
        known = start.bundle.tokenizer.words
        assert known is None if words is None else known is not None and {"hat", "circle", "kreis"} <= known


def test_a_student_of_the_unet_that_trains_is_left_out(tmp_path: Path) -> None:
    """It would draw what its teacher drew before."""
    plain = micro.bundle(micro.NANO)
    model = Distillation(time_cond_proj_dim=8, original_steps=20).extended(plain.model)
    student = micro.bundle(model, "unet_fast").components
    save_bundle(
        tmp_path / "both",
        dataclasses.replace(plain, model=model, components={**plain.components, **student}),
    )
    config = micro.nano_config()
    save_bundle(tmp_path / "other", micro.bundle(micro.NANO, "unet"))
    both, other = str(tmp_path / "both"), str(tmp_path / "other")
    said = ("unet_fast is left out: it learnt from another unet",)
    lora = {"unet": LoraConfig(rank=2, targets="to_q")}
    for name, parameters, changes, left, kept in (
        ("diffusion", "unet/.*", {"init": (both,)}, said, False),
        ("diffusion", "unet/conv_in/kernel", {"init": (both,)}, said, False),
        ("diffusion", "lora/.*", {"init": (both,), "lora": lora}, said, False),
        ("vae", "vae/.*", {"init": (both,)}, (), True),
        ("vae", "vae/.*", {"init": (both, other)}, (), False),
        ("vae", "vae/.*", {"init": (other, both)}, (), True),
    ):
        groups = {"trains": Group(parameters, 1e-3)}
        stage = dataclasses.replace(config.stages[name], groups=groups, **changes)
        start = gather_start(config, stage, tmp_path, make_mesh(MeshConfig(data=-1)))
        assert start.notes == left and ("unet_fast" in start.unused) == kept


def test_a_student_that_init_holds_is_taught_on_and_that_is_said(tmp_path: Path) -> None:
    plain = micro.bundle(micro.NANO)
    objective = Distillation(time_cond_proj_dim=8, original_steps=20)
    student = micro.bundle(objective.extended(plain.model), "unet_fast").components
    save_bundle(tmp_path / "teacher", plain)
    save_bundle(
        tmp_path / "both",
        dataclasses.replace(
            plain, model=objective.extended(plain.model), components={**plain.components, **student}
        ),
    )
    config = micro.nano_config()
    said = f"unet_fast is taught on, from {tmp_path}/both/unet_fast"
    for name, notes in (("both", (said,)), ("teacher", ())):
        stage = dataclasses.replace(
            config.stages["diffusion"],
            objective=objective,
            init=(str(tmp_path / name),),
            groups={"unet_fast": Group("unet_fast/.*", 1e-3)},
        )
        start = gather_start(config, stage, tmp_path, make_mesh(MeshConfig(data=-1)))
        assert start.notes == notes and ("unet_fast" in start.fresh) == (not notes)


def test_what_does_not_train_goes_on_as_it_was_stored(tmp_path: Path) -> None:
    """In its own dtype, whatever the stage computes in: another hash would refuse the data that it encoded."""
    bundle = micro.bundle(micro.NANO)
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), bundle.components)
    save_bundle(tmp_path / "halves", dataclasses.replace(bundle, components=halves))
    config = micro.nano_config(init=(str(tmp_path / "halves"),), dtype="float32", steps=1, save_every=1)
    mesh = make_mesh(MeshConfig(data=-1))
    assert train(config, "diffusion", tmp_path, mesh, quiet=True) == 0
    write_snapshot(Snapshot.of(tmp_path / "diffusion"), tmp_path / "out")
    before = read_config(tmp_path / "halves")["components"]
    for result in (tmp_path / "diffusion" / "bundle", tmp_path / "out"):
        after = read_config(result)["components"]
        assert after.keys() == before.keys()
        assert {name for name in after if after[name] != before[name]} == {"unet"}
        assert after["unet"]["dtypes"] == ["float32"]
        verify(result)

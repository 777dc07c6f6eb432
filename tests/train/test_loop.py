"""The training loop on the smallest model: every stage in turn, any mesh, and back after a stop."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import micro
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mvader_jax.data.config import DataConfig
from mvader_jax.data.sources import Pairs
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.errors import UserError
from mvader_jax.images.png import read_png_metadata
from mvader_jax.parallel.mesh import MeshConfig, make_global, make_mesh
from mvader_jax.prompt.elements import Text
from mvader_jax.storage.bundle import Bundle, load_bundle, save_bundle
from mvader_jax.storage.checkpoint import Checkpoints
from mvader_jax.train.config import Group, TrainConfig, load_config
from mvader_jax.train.job import Diverged
from mvader_jax.train.loop import PREEMPTED, train
from mvader_jax.train.optim.optimizer import OptimizerConfig
from mvader_jax.train.origin import changes
from mvader_jax.train.run import build_run, data_loader
from mvader_jax.train.samples import SampleGrid, check_samples, chosen_prompts
from mvader_jax.train.state import partition


def one_device() -> Any:
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory in which the stages before diffusion are 'finished' with random weights."""
    path = tmp_path_factory.mktemp("run")
    for stage in ("vae", "language", "captioning", "contrastive"):
        save_bundle(path / stage / "bundle", micro.bundle(micro.NANO))
    return path


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Grows by one whenever XLA compiles a program."""
    events: list[str] = []

    def note(event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield events
    jax.monitoring.unregister_event_duration_listener(note)


def config_for(stage: str, **changes: Any) -> TrainConfig:
    config = micro.nano_config()
    return dataclasses.replace(
        config, stages={**config.stages, stage: dataclasses.replace(config.stages[stage], **changes)}
    )


def final(workdir: Path, stage: str) -> dict[str, np.ndarray]:
    bundle = load_bundle(workdir / stage / "bundle")
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(bundle.components, sep="/").items()}


@pytest.mark.parametrize("stage", ["captioning", "contrastive"])
def test_a_stage_trains_its_own_groups_only(stage: str, workdir: Path, tmp_path: Path) -> None:
    for name in ("language", "captioning"):
        if name != stage:
            (tmp_path / name).mkdir()
            os.symlink(workdir / name / "bundle", tmp_path / name / "bundle")
    config = config_for(stage, steps=2)
    assert train(config, stage, tmp_path, one_device(), quiet=True) == 0
    trained = {"captioning": "adapters", "contrastive": "biases"}[stage]
    after = final(tmp_path, stage)
    records = [json.loads(line) for line in (tmp_path / stage / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(record["loss"]) for record in records if "loss" in record)
    assert any("validation/loss" in record for record in records)
    before = {
        path: np.asarray(leaf)
        for path, leaf in flatten_dict(micro.bundle(micro.NANO).components, sep="/").items()
    }
    changed = {path.split("/")[0] for path in after if not np.array_equal(after[path], before[path])}
    assert trained in changed
    assert not changed - {"captioning": {"adapters", "image_prefix"}, "contrastive": {"biases"}}[stage]


@pytest.mark.parametrize("muon", [(), ("head",)])
def test_stopped_and_started_again_is_bitwise_the_undisturbed_run(
    workdir: Path, tmp_path: Path, muon: tuple[str, ...]
) -> None:
    ends = []
    config = micro.language_config(
        str(workdir / "language" / "bundle"), optimizer=OptimizerConfig(warmup_steps=2, muon=muon)
    )
    if muon:
        groups = {"head": Group("decoder/lm_head/kernel", 0.02), **config.stages["language"].groups}
        stage = dataclasses.replace(config.stages["language"], groups=groups)
        config = dataclasses.replace(config, stages={"language": stage})
    for name in ("whole", "stopped"):
        root = tmp_path / name
        if name == "stopped":
            # The notice of preemption arrives while the first part runs.
            calls = []

            def notice(number: int, calls: list[int] = calls) -> None:
                calls.append(number)
                if len(calls) == 3:
                    os.kill(os.getpid(), signal.SIGTERM)

            assert train(config, "language", root, one_device(), quiet=True, on_step=notice) == PREEMPTED
            assert len(calls) < config.stages["language"].steps
            assert not (root / "language" / "bundle").exists()
        assert train(config, "language", root, one_device(), quiet=True) == 0
        ends.append(final(root, "language"))
    assert ends[0].keys() == ends[1].keys()
    for path in ends[0]:
        np.testing.assert_array_equal(ends[0][path], ends[1][path], err_msg=path)


def spoilt(workdir: Path, rate: float, **changes: Any) -> TrainConfig:
    """A run whose first update throws the parameters far away."""
    config = micro.language_config(str(workdir / "language" / "bundle"), **changes)
    stage = dataclasses.replace(config.stages["language"], groups={"decoder": Group("decoder/.*", rate)})
    return dataclasses.replace(config, stages={"language": stage})


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(workdir: Path, tmp_path: Path) -> None:
    adam = OptimizerConfig(warmup_steps=0)
    config = spoilt(workdir, 1e38, optimizer=adam, save_every=100)
    with pytest.raises(
        Diverged, match=r"at step 2 the loss is nan, which is not finite.*max_bad_updates is 0"
    ):
        train(config, "language", tmp_path, one_device(), quiet=True)
    assert Checkpoints(tmp_path / "language" / "checkpoints").latest() == 2
    # Allowed to, the run skips such updates to its end; the count goes with the checkpoint.
    config = spoilt(workdir, 1e38, optimizer=adam, max_bad_updates=4)
    with pytest.raises(Diverged, match="bad update number 5"):
        train(config, "language", tmp_path, one_device(), quiet=True)
    config = spoilt(workdir, 1e38, optimizer=adam, max_bad_updates=50, steps=8)
    assert train(config, "language", tmp_path, one_device(), quiet=True) == 0


def test_an_exploding_loss_stops_the_run(workdir: Path, tmp_path: Path) -> None:
    config = spoilt(workdir, 30.0, optimizer=OptimizerConfig(warmup_steps=0), max_loss_ratio=2.0)
    with pytest.raises(Diverged, match=r"at step 2 the loss is \d+.*, far from its mean of \d"):
        train(config, "language", tmp_path, one_device(), quiet=True)


def test_what_changed_since_the_checkpoint_is_said(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = micro.language_config(str(workdir / "language" / "bundle"), steps=2)
    assert train(config, "language", tmp_path, one_device(), quiet=True) == 0
    fewer = micro.language_config(str(workdir / "language" / "bundle"), steps=1)
    with pytest.raises(UserError, match=r"step 2 is saved in .*, but steps is 1; accepted: 2 or more"):
        train(fewer, "language", tmp_path, one_device(), quiet=True)
    init = tmp_path / "other"
    other = micro.bundle(micro.NANO, "decoder")
    other.components["decoder"]["ln_f"]["bias"] += 1.0
    save_bundle(init, other)
    config = micro.language_config(str(init), steps=3, batch_size=4)
    assert train(config, "language", tmp_path, one_device()) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "going on from step 2 of 3" in said
    assert "since that step was saved stage.batch_size changed from 8 to 4" in said
    assert "the decoder that the stage starts from was replaced by another" in said


def test_settings_that_came_and_went_are_changes_too() -> None:
    config = {"model": {"width": 8}, "stages": {"vae": {"steps": 3, "groups": {"all": {"rate": 0.1}}}}}
    old = {"config": config, "stage": "vae", "start": {}}
    later = {"model": {"width": 8}, "stages": {"vae": {"steps": 3, "posterior": "mean", "groups": {}}}}
    assert changes(old, old) == []
    assert changes(old, {**old, "config": later}) == [
        "stage.groups.all.rate, which was 0.1, is gone",
        "stage.objective.posterior is new: mean",
    ]


def test_a_diffusion_run_is_watched(workdir: Path, tmp_path: Path) -> None:
    """Losses by modality and quarter, norms, rates, throughput, validation, a grid of pictures, a profile."""
    for name in ("vae", "contrastive"):
        (tmp_path / name).mkdir()
        os.symlink(workdir / name / "bundle", tmp_path / name / "bundle")
    config = config_for(
        "diffusion", steps=4, log_every=4, sample_every=4, sample_steps=2, frozen_dtype="bfloat16"
    )
    draw = SampleGrid()
    assert train(config, "diffusion", tmp_path, one_device(), quiet=True, profile=1, on_sample=draw) == 0
    run = tmp_path / "diffusion"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = {name: value for record in records for name, value in record.items()}
    for name in (
        *("loss", "loss_image", "loss_text", "image_rows", "bad_updates"),
        *(
            f"{what}/{group}"
            for what in ("gradient_norm", "learning_rate")
            for group in ("cross_attention", "unet")
        ),
        *("images_per_second", "model_tflops_per_second", "host_memory_gib"),
        *("validation/loss", "validation/loss_text"),
    ):
        assert np.isfinite(seen[name]), name
    assert any(name.startswith("loss_quarter") for name in seen)
    pictures = json.loads(read_png_metadata(run / "samples" / "0000004.png")["pictures"])
    assert len(pictures) == 8 and sum("[picture" in text for text in pictures) == 4
    assert list((run / "profile").rglob("*.xplane.pb"))
    assert list((run / "tensorboard").iterdir())
    # What trains is kept whole; what does not was there in half the bytes, and goes on as it was stored.
    kept = load_bundle(run / "bundle").components
    dtypes = {name: {str(leaf.dtype) for leaf in jax.tree.leaves(tree)} for name, tree in kept.items()}
    assert dtypes["unet"] == dtypes["decoder"] == {"float32"}


def test_prompts_of_ones_own(tmp_path: Path) -> None:
    stage = config_for("diffusion", sample_prompts=("a red hat", "in blue | text:a cat@0.3")).stages[
        "diffusion"
    ]
    (first, _), (second, label) = chosen_prompts(stage)
    assert first.elements == (Text("a red hat"),)
    assert second.elements == (Text("in blue"), Text("a cat", 0.3)) and label.startswith("in blue")


def test_a_mesh_changes_neither_loss_nor_parameters(workdir: Path, compilations: list[str]) -> None:
    """One group under Muon and whitened, the other under AdamW; test_meshes.py has every objective and mesh under
    AdamW."""
    outcomes = []
    # The same groups of rows everywhere: what is drawn for a row must not depend on the mesh.
    for mesh in (
        make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)),
        make_mesh(MeshConfig(fsdp=4), jax.devices()[:4]),
    ):
        config = micro.nano_config(
            row_groups=8,
            optimizer=OptimizerConfig(warmup_steps=2, muon=("cross_attention",), whiten=("cross_attention",)),
        )
        run = build_run(config, config.stage("diffusion"), workdir, mesh)
        kernel = run.state.trainable["unet"]["mid_block"]["resnets_0"]["conv1"]["kernel"]
        fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
        assert kernel.addressable_shards[0].data.shape == (3, 3, 16 // fsdp, 16 // tensor)
        moments = jax.tree_util.tree_leaves_with_path(run.state.opt_state)
        names = ("mu", "mid_block", "conv1", "kernel")
        found = [x for path, x in moments if all(name in jax.tree_util.keystr(path) for name in names)]
        assert len(found) == 2 and {x.sharding for x in found} == {kernel.sharding}
        loader, state, losses = data_loader(run, "train"), run.state, []
        compiled: list[int] = []
        with jax.set_mesh(mesh):
            for _ in range(3):
                state, metrics = run.step(state, make_global(next(loader), mesh))
                losses.append(float(metrics["loss"][0]))
                compiled.append(len(compilations))
        assert compiled[1:] == [compiled[0]] * 2, "a later step compiled again"
        outcomes.append((losses, jax.tree.map(np.asarray, state.trainable)))
    np.testing.assert_allclose(outcomes[0][0], outcomes[1][0], rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), outcomes[0][1], outcomes[1][1])


def test_a_group_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match="matches no parameter"):
        partition({"unet": {"conv": {"kernel": np.zeros(3)}}}, {"typo": "unet/konv/.*"})


def test_configs_load_and_overrides_are_checked() -> None:
    config = load_config("configs/tiny.py", ["stages.vae.steps=7", "stages.diffusion.objective.p_image=0.5"])
    assert config.stages["vae"].steps == 7
    assert config.stages["diffusion"].objective.p_image == 0.5
    assert config.stages["contrastive"].groups == {"biases": Group("biases/.*", 4e-3)}
    with pytest.raises(UserError, match="did you mean 'steps'"):
        load_config("configs/tiny.py", ["stages.vae.stepps=7"])
    with pytest.raises(UserError, match="expected int"):
        load_config("configs/tiny.py", ["stages.vae.steps=many"])
    with pytest.raises(UserError, match="no config 'configs/none"):
        load_config("configs/none.py")
    with pytest.raises(UserError, match="unknown stage 'difusion'"):
        config.stage("difusion")


def test_most_pairs_damaged_stops_the_run_and_the_first_is_told(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """18 of 20 pairs cannot be used: a line at the first, and an end before many steps."""
    good = {"query": "a red cup", "positive": "a cup in red", "negatives": ["a blue cup"]}
    lines = [json.dumps(good if i in (0, 7) else {**good, "negatives": []}) for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    data = DataConfig(Pairs((str(tmp_path / "pairs.jsonl"),)), threads=1)
    (tmp_path / "captioning").mkdir()
    os.symlink(workdir / "captioning" / "bundle", tmp_path / "captioning" / "bundle")
    config = config_for("contrastive", data=data, steps=50)
    with pytest.raises(
        UserError, match=r"\d+ of the 19 records of a data set are damaged, more than bad_share"
    ):
        train(config, "contrastive", tmp_path, one_device())
    # Where they are few, the run says the first and counts them.
    allowed = dataclasses.replace(data, bad_share=1.0)
    config = config_for("contrastive", data=allowed, steps=2, log_every=1)
    assert train(config, "contrastive", tmp_path, one_device()) == 0
    said = capsys.readouterr().err
    assert said.count("a damaged record is passed over: record") >= 1 and "it has no negatives" in said
    assert " damaged records were passed over: " in said
    records = [json.loads(s) for s in (tmp_path / "contrastive" / "metrics.jsonl").read_text().splitlines()]
    assert [r["damaged_records"] for r in records if "damaged_records" in r][-1] > 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_prompts": ("a cat | nowhere.png",)}, "nowhere.png"),
        ({"sample_steps": 500}, "steps is 500; accepted are 1 to 100"),
    ],
)
def test_pictures_that_cannot_be_drawn_are_refused_before_the_first_step(
    workdir: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    for name in ("vae", "contrastive"):
        (tmp_path / name).mkdir()
        os.symlink(workdir / name / "bundle", tmp_path / name / "bundle")
    config = config_for("diffusion", sample_every=4, **changes)
    schedule = ScheduleConfig(num_train_steps=100)
    bundle = Bundle(dataclasses.replace(config.model, schedule=schedule), {})
    with pytest.raises(UserError, match=message):
        check_samples(config.stages["diffusion"], bundle)
    if "sample_prompts" in changes:
        with pytest.raises(UserError, match=message):
            train(config, "diffusion", tmp_path, one_device(), quiet=True)
        assert not (tmp_path / "diffusion" / "metrics.jsonl").exists()

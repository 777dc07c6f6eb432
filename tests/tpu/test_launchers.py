"""The launchers: clean by shellcheck, their commands as Google's tools take them, mistakes in one sentence."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TPU = ROOT / "tpu"
PODS = tomllib.loads((TPU / "pods.toml").read_text(encoding="utf-8"))
VM = ["--name", "mv", "--project", "p", "--zone", "z", "--image", "img", "--bucket", "b", "--dry-run"]
GKE = ["--cluster", "c", "--project", "p", "--zone", "z", "--image", "img", "--bucket", "b", "--dry-run"]


def bash(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # The scripts call python3: this one, which has tomllib.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(TPU / script), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, **environment},
    )


def commands(script: str, *arguments: str) -> list[list[str]]:
    done = bash(script, *arguments)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_shellcheck_has_nothing_to_say() -> None:
    scripts = sorted(TPU.glob("*.sh"))
    assert len(scripts) == 4
    done = subprocess.run(
        [str(Path(sys.executable).parent / "shellcheck"), "-x", *map(str, scripts)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout


def test_a_queued_resource_is_asked_for() -> None:
    (words,) = commands("launch.sh", "create", "--pod", "v5e-256", *VM, "--spot")
    assert words[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "mv"]
    assert option(words, "--accelerator-type") == "v5litepod-256"
    assert option(words, "--runtime-version") == "v2-alpha-tpuv5-lite"
    assert option(words, "--node-id") == "mv" and "--spot" in words


def test_two_slices_are_one_request_of_two_nodes() -> None:
    (words,) = commands("launch.sh", "create", "--pod", "2xv5e-256", *VM)
    assert option(words, "--node-count") == "2" and option(words, "--node-prefix") == "mv"
    assert "--spot" not in words and "--node-id" not in words
    started = commands("launch.sh", "train", "--pod", "2xv5e-256", *VM)
    assert [words[5] for words in started] == ["mv-0", "mv-1"]


def test_training_starts_on_every_host() -> None:
    (words,) = commands("launch.sh", "train", "--pod", "v4-32", *VM, "--config", "configs/open_v1.py")
    assert "--worker=all" in words
    inside = shlex.split(option(words, "--command"))
    assert "TPU_TYPE=v4-32" in inside and "BUCKET=b" in inside
    assert inside[-5:] == ["bash", "tpu/run.sh", "configs/open_v1.py", "--stage", "diffusion"]
    old = commands("launch.sh", "train", "--pod", "v4-32", *VM, "--objective", "vae")
    assert shlex.split(option(old[0], "--command"))[-2:] == ["--stage", "vae"]
    assert "--privileged" in inside and "--net=host" in inside


@pytest.mark.parametrize("command", ["status", "logs", "stop", "delete"])
def test_every_other_command_is_google_s(command: str) -> None:
    (words,) = commands("launch.sh", command, "--pod", "v5e-64", *VM)
    assert words[:3] == ["gcloud", "compute", "tpus"]
    assert option(words, "--project") == "p" and option(words, "--zone") == "z"


def test_xpk_gets_the_slices_and_restarts() -> None:
    (words,) = commands("launch_gke.sh", "train", "--pod", "2xv5e-256", *GKE, "--restarts", "7")
    assert words[:3] == ["xpk", "workload", "create"]
    assert option(words, "--tpu-type") == "v5litepod-256" and option(words, "--num-slices") == "2"
    assert option(words, "--max-restarts") == "7"
    assert option(words, "--command").startswith("TPU_TYPE=v5e-256 SLICES=2 BUCKET=b bash tpu/run.sh")
    (words,) = commands("launch_gke.sh", "create", "--pod", "v6e-256", *GKE)
    assert words[:3] == ["xpk", "cluster", "create"] and "--on-demand" in words


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("launch.sh", ["fly"], "unknown command 'fly'; accepted: create, status, train, logs, stop, delete"),
        ("launch.sh", ["create", "--name", "mv"], "--project is missing"),
        ("launch.sh", ["create", "--colour", "red"], "unknown option '--colour'"),
        ("launch.sh", ["create", "--pod"], "--pod needs a value"),
        ("launch.sh", ["create", *VM, "--pod", "v5e-255"], "unknown pod 'v5e-255'; known: v4-8"),
        (
            "launch_gke.sh",
            ["train", "--cluster", "c", "--project", "p", "--zone", "z", "--pod", "v4-8"],
            "--image",
        ),
        ("run.sh", ["--stage", "vae"], "name a config first"),
        ("run.sh", ["configs/open_v2.py"], "unknown pod 'v5e-255'; known: v4-8"),
    ],
)
def test_a_mistake_is_one_sentence_and_code_2(script: str, arguments: list[str], message: str) -> None:
    done = bash(script, *arguments, TPU_TYPE="v5e-255")
    assert done.returncode == 2 and not done.stdout
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_run_starts_mvader_with_the_pod_s_mesh(tmp_path: Path) -> None:
    """With a `mvader` that prints its arguments: the mesh is the table's, a SIGTERM would reach it (exec)."""
    fake = tmp_path / "mvader"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\necho "$LIBTPU_INIT_ARGS"\necho "$PPID"\nexit 75\n')
    fake.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = bash("run.sh", "configs/open_v2.py", "--quiet", PATH=path, TPU_TYPE="v5e-256", SLICES="2")
    mesh, microbatches = PODS["2xv5e-256"]["meshes"]["open_v2"]
    *words, flags, parent = done.stdout.splitlines()
    assert words == [
        "train",
        "configs/open_v2.py",
        f"stages.diffusion.accumulate={microbatches}",
        "--mesh",
        mesh,
        "--quiet",
    ]
    assert "--xla_tpu_enable_async_collective_fusion=true" in flags
    assert int(parent) == os.getpid()
    assert done.returncode == 75
    # What a person says comes last, and wins.
    own = ["--mesh", "fsdp=2,data=2", "stages.diffusion.accumulate=2"]
    done = bash("run.sh", "configs/open_v2.py", *own, PATH=path, TPU_TYPE="v4-8")
    pod = ["stages.diffusion.accumulate=16", "--mesh", "fsdp=4"]
    assert done.stdout.splitlines()[:-2] == ["train", "configs/open_v2.py", *pod, *own]
    # A config that the table does not know keeps its own microbatches.
    done = bash("run.sh", "mine.py", PATH=path, TPU_TYPE="v5e-256", SLICES="2")
    assert done.stdout.splitlines()[:-2] == ["train", "mine.py", "--mesh", "replica=2,fsdp=-1"]
    done = bash("run.sh", "mine.py", PATH=path, TPU_TYPE="")
    assert done.stdout.splitlines()[:-2] == ["train", "mine.py"]


@pytest.mark.parametrize("pod", sorted(PODS))
def test_every_mesh_makes_up_its_pod(pod: str) -> None:
    from mvader_jax.parallel.mesh import parse_mesh
    from mvader_jax.parallel.pods import parse_topology

    row = PODS[pod]
    topology = parse_topology(row["topology"], row["slices"])
    assert set(row["meshes"]) == {"open_v2", "luminous_v2"}
    for mesh, microbatches in row["meshes"].values():
        resolved = parse_mesh(mesh).resolve(topology.chips * topology.chip.cores)
        assert 2048 % (resolved.replica * resolved.data * resolved.fsdp * microbatches) == 0
        assert resolved.replica == row["slices"]


def test_docker_installs_no_torch_and_no_cuda() -> None:
    text = (TPU / "Dockerfile").read_text(encoding="utf-8")
    assert "'.[tpu,data]'" in text
    assert "torch" not in text and "[test]" not in text and "convert" not in text

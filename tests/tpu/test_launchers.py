"""The launchers: clean by shellcheck, their commands as Google's tools take them, mistakes in one sentence."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TPU = ROOT / "tpu"
VM = ["--name", "mv", "--project", "p", "--zone", "z", "--image", "img", "--bucket", "b", "--dry-run"]
GKE = ["--cluster", "c", "--project", "p", "--zone", "z", "--image", "img", "--bucket", "b", "--dry-run"]


def bash(
    script: str, *arguments: str, cwd: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    # The scripts call python3: this one, which has tomllib.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(TPU / script), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, **environment},
        cwd=cwd,
    )


def commands(script: str, *arguments: str) -> list[list[str]]:
    done = bash(script, *arguments)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_shellcheck_has_nothing_to_say() -> None:
    scripts = sorted((*TPU.glob("*.sh"), *(ROOT / "tests").glob("*.sh")))
    assert len(scripts) == 6
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


@pytest.mark.parametrize(
    ("pod", "machine"),
    [
        ("v5e-1", ["--accelerator-type", "v5litepod-1"]),
        ("v5litepod-16", ["--accelerator-type", "v5litepod-16"]),
        ("v5e:16x16", ["--accelerator-type", "v5litepod-256"]),
        ("v4-16", ["--accelerator-type", "v4-16"]),
        ("tpu7x-8", ["--accelerator-type", "tpu7x-8"]),
        ("v5p:4x4x16", ["--type", "v5p", "--topology", "4x4x16"]),
    ],
)
def test_any_pod_is_asked_for_by_google_s_name(pod: str, machine: list[str]) -> None:
    (words,) = commands("launch.sh", "create", "--pod", pod, *VM)
    at = words.index("--runtime-version")
    assert words[at - len(machine) : at] == machine
    (words,) = commands("launch_gke.sh", "create", "--pod", pod, *GKE)
    assert option(words, "--tpu-type") == (machine[1] if len(machine) == 2 else "v5p-4x4x16")


#: A job as it is launched, and what mvader is told on every host.
JOBS = [
    (
        ["train", "--config", "configs/open_v1.py", "stages.diffusion.remat=none", "--", "--mesh", "fsdp=64"],
        [
            "train",
            "configs/open_v1.py",
            "--stage",
            "diffusion",
            "stages.diffusion.remat=none",
            "--mesh",
            "fsdp=64",
        ],
    ),
    (
        ["train", "--stage", "vae", 'stages.vae.data.precomputed=["data/encoded"]'],
        ["train", "configs/open_v2.py", "--stage", "vae", 'stages.vae.data.precomputed=["data/encoded"]'],
    ),
    (
        ["encode", "data/laion", "data/encoded", "--", "--part", "latents"],
        [
            "encode",
            "configs/open_v2.py",
            "--stage",
            "diffusion",
            "data/laion",
            "data/encoded",
            "--part",
            "latents",
        ],
    ),
    (
        ["sample", "--", "a red hat", "--bundle", "runs/x/diffusion", "--mesh", "data=4,fsdp=4"],
        ["sample", "a red hat", "--bundle", "runs/x/diffusion", "--mesh", "data=4,fsdp=4"],
    ),
]


@pytest.mark.parametrize(("words", "told"), JOBS)
def test_a_job_starts_on_every_host_with_what_it_was_told(words: list[str], told: list[str]) -> None:
    (found,) = commands("launch.sh", words[0], "--pod", "v4-32", *VM, *words[1:])
    assert "--worker=all" in found
    inside = shlex.split(option(found, "--command"))
    assert "TPU_TYPE=v4-32" in inside and "BUCKET=b" in inside
    assert inside[inside.index("img") :] == ["img", "bash", "tpu/run.sh", *told]
    assert "--privileged" in inside and "--net=host" in inside
    (found,) = commands("launch_gke.sh", words[0], "--pod", "v4-32", *GKE, *words[1:])
    assert shlex.split(option(found, "--command")) == [
        "TPU_TYPE=v4-32",
        "BUCKET=b",
        "bash",
        "tpu/run.sh",
        *told,
    ]


def test_the_old_name_of_a_stage_is_taken() -> None:
    old = commands("launch.sh", "train", "--pod", "v4-32", *VM, "--objective", "vae")
    assert shlex.split(option(old[0], "--command"))[-2:] == ["--stage", "vae"]


def test_an_image_of_google_s_registry_is_pulled_by_who_may() -> None:
    image = ["--image", "europe-west4-docker.pkg.dev/p/mvader/mvader"]
    (words,) = commands("launch.sh", "train", "--pod", "v5e-8", *VM, *image)
    first = option(words, "--command").split(";")[0]
    assert shlex.split(first)[:5] == [
        "sudo",
        "gcloud",
        "auth",
        "configure-docker",
        "europe-west4-docker.pkg.dev",
    ]
    (words,) = commands("launch.sh", "train", "--pod", "v5e-8", *VM)
    assert "configure-docker" not in option(words, "--command")


@pytest.mark.parametrize(
    ("script", "tool", "where"), [("launch.sh", "gcloud", VM), ("launch_gke.sh", "xpk", GKE)]
)
def test_google_s_tool_is_run(script: str, tool: str, where: list[str], tmp_path: Path) -> None:
    """With a tool that writes its arguments down and ends with 3: the launcher runs it, and ends as it does."""
    fake = tmp_path / tool
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" {tool} "$@" > "{tmp_path}/told"\nexit 3\n')
    fake.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    for words in (["train", "a.b=1"], ["stop"], ["delete"]):
        dry = [*words[:1], "--pod", "v5e-8", *where, *words[1:]]
        wet = [word for word in dry if word != "--dry-run"]
        assert bash(script, *wet, PATH=path).returncode == 3
        assert [(tmp_path / "told").read_text().splitlines()] == commands(script, *dry)


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
    assert option(words, "--command").startswith("TPU_TYPE=2xv5e-256 BUCKET=b bash tpu/run.sh")
    (words,) = commands("launch_gke.sh", "create", "--pod", "v6e-256", *GKE)
    assert words[:3] == ["xpk", "cluster", "create"] and "--on-demand" in words


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("launch.sh", ["fly"], "unknown command 'fly'; accepted: create, status, encode, train, sample"),
        ("launch.sh", ["create", "--name", "mv"], "--project is missing"),
        ("launch.sh", ["create", "--colour", "red"], "unknown option '--colour'"),
        ("launch.sh", ["create", "--pod"], "--pod needs a value"),
        (
            "launch.sh",
            ["create", *VM, "--pod", "v5e-255"],
            "there is no slice v5e-255; accepted: v5e-1, v5e-4",
        ),
        ("launch_gke.sh", ["create", *GKE, "--pod", "big"], "'big' is no pod; accepted: Google's name"),
        ("launch.sh", ["create", *VM, "--pod", "v5e:4x2"], "there is no slice v5e:4x2; accepted: v5e-1"),
        ("launch.sh", ["create", *VM, "--pod", "v5e-8", "a.b=1"], "'a.b=1' does nothing for create"),
        ("launch.sh", ["train", *VM, "--pod", "v5e-8", "--mesh", "data=8"], "mvader's own stand behind --"),
        (
            "launch.sh",
            ["encode", *VM, "--pod", "v5e-8", "data/laion"],
            "encode needs a data set and a folder",
        ),
        (
            "launch.sh",
            ["sample", *VM, "--pod", "v5e-8", "a hat"],
            "sample on 8 chips needs a --mesh behind --",
        ),
        ("launch.sh", ["sample", *VM, "--pod", "v5e-1", "--stage", "x"], "--stage do nothing for sample"),
        (
            "launch_gke.sh",
            ["train", "--cluster", "c", "--project", "p", "--zone", "z", "--pod", "v4-8"],
            "--image",
        ),
        ("run.sh", ["--stage", "vae"], "name a config first"),
        ("run.sh", ["encode"], "name a config first"),
    ],
)
def test_a_mistake_is_one_sentence_and_code_2(script: str, arguments: list[str], message: str) -> None:
    done = bash(script, *arguments, TPU_TYPE="v5e-255")
    assert done.returncode == 2 and not done.stdout
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "configs/open_v2.py", "--quiet"], ["train", "CONFIG", "--quiet"]),
        (["configs/open_v2.py", "--mesh", "fsdp=2"], ["train", "CONFIG", "--mesh", "fsdp=2"]),
        (["encode", "configs/open_v2.py", "a", "b"], ["data", "encode", "CONFIG", "a", "b"]),
        (["train", "open_v2"], ["train", "open_v2"]),
        (["sample", "a hat", "--mesh", "data=2"], ["sample", "a hat", "--mesh", "data=2"]),
    ],
)
def test_run_starts_mvader(words: list[str], told: list[str], tmp_path: Path) -> None:
    """With a `mvader` that prints its arguments: a SIGTERM would reach it (exec), its exit code is the host's."""
    fake = tmp_path / "mvader"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\necho "$PPID"\nexit 75\n')
    fake.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = bash("run.sh", *words, PATH=path, TPU_TYPE="2xv5e-256", cwd=str(ROOT))
    *found, parent = done.stdout.splitlines()
    assert found == [word.replace("CONFIG", str(ROOT / "configs" / "open_v2.py")) for word in told]
    assert int(parent) == os.getpid() and done.returncode == 75


def test_every_variable_has_its_reason() -> None:
    lines = (TPU / "env.sh").read_text(encoding="utf-8").splitlines()
    set_at = [n for n, line in enumerate(lines) if "export " in line]
    assert set_at and all(lines[n - 1].startswith("#") for n in set_at)


def test_the_pods_are_listed_on_a_machine_without_packages() -> None:
    done = subprocess.run([sys.executable, "-S", str(TPU / "pods.py")], capture_output=True, text=True)
    assert "v5e: v5e-1, v5e-4, v5e-8, " in done.stdout and not done.stderr


def test_docker_installs_no_torch_and_no_cuda() -> None:
    text = (TPU / "Dockerfile").read_text(encoding="utf-8")
    assert "'.[tpu,data]'" in text
    assert "torch" not in text and "[test]" not in text and "convert" not in text

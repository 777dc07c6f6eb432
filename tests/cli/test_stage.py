"""Stages are named by `--stage`; `--objective`, its name before, still works and says so."""

from __future__ import annotations

import pytest

from mvader_jax.cli._stage import chosen_stage
from mvader_jax.cli.main import main
from mvader_jax.errors import UserError


def test_the_old_spelling_works_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen_stage(None, None) == "diffusion" and chosen_stage("vae", None) == "vae"
    assert capsys.readouterr().err == ""
    assert chosen_stage(None, "vae") == "vae"
    assert capsys.readouterr().err == "mvader: --objective is now --stage\n"
    with pytest.raises(UserError, match="name the stage once"):
        chosen_stage("vae", "vae")


@pytest.mark.parametrize("command", [["train"], ["plan"], ["data", "encode"]])
@pytest.mark.parametrize("option", ["--stage", "--objective"])
def test_every_command_takes_both(
    command: list[str], option: str, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    rest = ["scenes", f"{tmp_path}/out"] if "encode" in command else []
    with pytest.raises(SystemExit) as done:
        main([*command, "configs/tiny.py", *rest, option, "difusion"])
    assert done.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mvader")]
    assert "unknown stage 'difusion' in config 'tiny'; did you mean 'diffusion'?" in lines[-1]
    assert lines[:-1] == (["mvader: --objective is now --stage"] if option == "--objective" else [])

"""The command line: a mistake is one sentence on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from mvader_jax.cli import main as cli
from mvader_jax.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample"], "Missing"),
        (["sample", "red", "--bogus"], "--bogus"),
        (["nonsense"], "nonsense"),
        (["sample", "missing.png"], "'missing.png' does not exist"),
        (["sample", ""], "empty"),
        (["sample", "red@-1"], "at least 0"),
        (["sample", "red@nan"], "finite"),
        (["sample", "red", "--steps", "0"], "1 to 1000"),
        (["sample", "red", "--seed", "-1"], "seed is -1"),
        (["sample", "red", "--site", "nowhere"], "accepted: decoder"),
        (["sample", "red", "--dtype", "int8"], "accepted: float32"),
        (["sample", "red", "--bundle", "nope"], "no bundle 'nope'"),
        (["train", "nofile.py"], "no config 'nofile.py': it is neither a file nor one of emoji, "),
        (["train", "configs/tiny.py", "stages.vae.step=3"], "did you mean 'steps'"),
    ],
)
def test_mistakes(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    if arguments[0] == "sample":
        arguments = [*arguments, "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in error and "Traceback" not in error
    assert error.startswith("mvader: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "mvader: interrupted\n"), (signal.SIGTERM, "")])
def test_a_signal_ends_a_command_and_cleans_up(monkeypatch, capsys, number, said):
    cleaned, left = [], []

    def leave(code: int) -> None:
        left.append(code)
        raise SystemExit(code)

    class Command:
        registered_commands = (None,)

        def __call__(self, **_) -> None:
            try:
                signal.raise_signal(number)
            finally:
                cleaned.append(number)

    before = signal.getsignal(number)
    monkeypatch.setattr(cli, "app", Command())
    monkeypatch.setattr(cli.os, "_exit", leave)
    with pytest.raises(SystemExit):
        cli.main([])
    # At once: a thread of XLA's that still compiled crashed in the interpreter's end.
    assert left == [128 + number] and capsys.readouterr().err == said
    assert signal.getsignal(number) == before and cleaned == [number]

"""The `mvader` command: names the commands, and turns a user's mistake into one sentence and exit code 2."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Annotated, Any

import typer

from mvader_jax import __version__
from mvader_jax.cli.streams import lasting_streams, notices, to_nowhere
from mvader_jax.errors import UserError

#: The base of typer's own complaints about a command line: BadParameter < UsageError < this.
_CommandLineError: Any = typer.BadParameter.__mro__[2]

#: Which extra of pyproject.toml brings a package that only some commands need.
_EXTRAS = {
    **dict.fromkeys(("array_record", "pyarrow", "simplejpeg", "tensorflow_datasets"), "data"),
    "torch": "convert",
    "huggingface_hub": "hub",
    "gradio": "web",
}

app = typer.Typer(
    name="mvader",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _versions(wanted: bool) -> None:
    if wanted:
        jax, python = importlib.metadata.version("jax"), sys.version.split()[0]
        print(f"mvader {__version__}, JAX {jax}, Python {python}")
        raise typer.Exit


@app.callback()
def mvader(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_versions, is_eager=True, help="Show versions and exit."),
    ] = False,
) -> None:
    """M-VADER: images from any sequence of texts and images."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; never shows a traceback for what the user can mend."""
    # XLA's C++ start-up chatter is not for a person at a terminal; an explicit setting wins.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Files have the names that people gave them, in UTF-8 or not, and are told.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    from mvader_jax.cli import register

    if not app.registered_commands:
        register(app)
    signals: list[int] = []
    with lasting_streams(), _at_once(signals):
        try:
            with interruptible(signals), notices():
                code = app(args=arguments, prog_name="mvader", standalone_mode=False)
            sys.stdout.flush()
        except BrokenPipeError:
            # Whoever read our output has enough (`| head`); click, where it notices, ends with the same code.
            to_nowhere(sys.stdout)
            sys.exit(1)
        except (Exception, KeyboardInterrupt) as error:
            sentence, code = explained(error)
            if not sentence:
                raise
            if sentence.startswith("Usage:"):  # a group without a command is answered by its help
                print(sentence, file=sys.stderr)
            else:  # one line, whatever a library's own words hold: a log is searched by lines
                print("mvader:", *map(str.strip, sentence.splitlines()), file=sys.stderr)
        sys.exit(code if isinstance(code, int) else 0)


@contextlib.contextmanager
def _at_once(signals: Sequence[int]) -> Iterator[None]:
    """Ends the process where a signal ended the command: what XLA still compiles in threads of its own does not outlive
    the interpreter, which would crash."""
    try:
        yield
    except SystemExit as end:
        if signals:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        raise


def explained(error: BaseException) -> tuple[str, int]:
    """(one sentence, exit code) for what the user can mend; ("", 1) for a fault of ours, to be shown whole."""
    if isinstance(error, _CommandLineError):
        return error.format_message(), error.exit_code
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return "interrupted", 128 + signal.SIGINT
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").split(".")[0]
        extra = _EXTRAS.get(package)
        return (
            f"this needs {package}, of the {extra} extra: pip install 'mvader-jax[{extra}]'" if extra else "",
            2,
        )
    if isinstance(error, OSError) and error.strerror:
        names = " -> ".join(repr(name) for name in (error.filename, error.filename2) if name)
        return f"{names}: {error.strerror}" if names else error.strerror, 2
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED: Out of memory" in str(error):
        # Of the host, as NumPy says it, or of a device, as XLA does.
        what = (str(error).strip().splitlines() or ["this machine has no more"])[0]
        return f"not enough memory: {what}", 2
    if _raised_in(error, "jax/_src/config.py"):
        return f"JAX cannot start: {error}", 2
    if _raised_in(error, "jax/_src/xla_bridge.py"):
        asked = os.environ.get("JAX_PLATFORMS")
        why = (str(error).splitlines() or ["there is none of them here"])[0]
        return f"JAX finds no devices{f' for JAX_PLATFORMS={asked}' if asked else ''}: {why}", 2
    return "", 1


def _raised_in(error: BaseException, file: str) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.endswith(file)


@contextlib.contextmanager
def interruptible(signals: list[int]) -> Iterator[None]:
    """Lets Ctrl-C, and SIGTERM without a word, end a command so that what is half written is removed.

    signals: where their numbers go. Commands that save before they stop (train, sample with a file) set handlers of
    their own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        if _importing(frame):
            # Nothing has been written, and a library may make another error of what is raised in it.
            if number == signal.SIGINT:
                os.write(2, b"mvader: interrupted\n")
            os._exit(128 + number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    main()

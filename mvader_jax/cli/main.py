"""The `mvader` command: names the commands, and turns a user's mistake into one sentence and exit code 2."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import typer

from mvader_jax.errors import UserError

#: The base of typer's own complaints about a command line: BadParameter < UsageError < this.
_CommandLineError: Any = typer.BadParameter.__mro__[2]

#: Which extra of pyproject.toml brings a package that only some commands need.
_EXTRAS = {
    **dict.fromkeys(("array_record", "pyarrow", "simplejpeg", "tensorflow_datasets"), "data"),
    "torch": "convert",
    "huggingface_hub": "hub",
}

app = typer.Typer(
    name="mvader",
    help="M-VADER: images from any sequence of texts and images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; never shows a traceback for what the user can mend."""
    # XLA's C++ start-up chatter is not for a person at a terminal; an explicit setting wins.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from mvader_jax.cli import register

    if not app.registered_commands:
        register(app)
    try:
        with interruptible():
            code = app(args=arguments, standalone_mode=False)
    except _CommandLineError as error:
        _fail(error.format_message(), error.exit_code)
    except UserError as error:
        _fail(str(error), 2)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _EXTRAS:
            raise
        extra = _EXTRAS[package]
        _fail(f"this needs {package}, of the {extra} extra: pip install 'mvader-jax[{extra}]'", 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    else:
        sys.exit(code if isinstance(code, int) else 0)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Lets SIGTERM end a command as Ctrl-C does, so that what is half written is removed.

    Commands that save before they stop (train, sample with a file) set a handler of their own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, code: int) -> None:
    print(f"mvader: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()

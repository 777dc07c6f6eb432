"""The commands, a file each: argument parsing and printing, no logic. Heavy imports wait for the call."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Hooks every command into the application."""
    from mvader_jax.cli.sample import demo, sample
    from mvader_jax.cli.train import train

    app.command()(sample)
    app.command()(demo)
    app.command()(train)

"""The commands, a file each: argument parsing and printing, no logic. Heavy imports wait for the call."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Hooks every command into the application."""
    from mvader_jax.cli.bundle import bundle
    from mvader_jax.cli.convert import convert
    from mvader_jax.cli.data import app as data
    from mvader_jax.cli.demo import demo
    from mvader_jax.cli.evaluate import evaluate
    from mvader_jax.cli.export import export
    from mvader_jax.cli.figure import figure
    from mvader_jax.cli.plan import plan
    from mvader_jax.cli.sample import sample
    from mvader_jax.cli.samplers import samplers
    from mvader_jax.cli.train import train

    app.command()(demo)
    app.command()(sample)
    app.command()(samplers)
    app.command()(train)
    app.command()(convert)
    app.command()(bundle)
    app.command()(export)
    app.command()(figure)
    app.command()(plan)
    app.command()(evaluate)
    app.add_typer(data)

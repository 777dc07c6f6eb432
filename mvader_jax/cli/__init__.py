"""The commands, a file each: argument parsing and printing, no logic. Heavy imports wait for the call."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer

from mvader_jax import settings
from mvader_jax.bounds import Bound


def register(app: typer.Typer) -> None:
    """Hooks every command into the application."""
    from mvader_jax.cli.bundle import bundle
    from mvader_jax.cli.configs import configs
    from mvader_jax.cli.convert import convert
    from mvader_jax.cli.data import app as data
    from mvader_jax.cli.demo import demo
    from mvader_jax.cli.evaluate import evaluate
    from mvader_jax.cli.export import export
    from mvader_jax.cli.figure import figure
    from mvader_jax.cli.plan import plan
    from mvader_jax.cli.push import push
    from mvader_jax.cli.sample import sample
    from mvader_jax.cli.samplers import samplers
    from mvader_jax.cli.score import score
    from mvader_jax.cli.show import show
    from mvader_jax.cli.train import train
    from mvader_jax.cli.web import web

    app.command()(demo)
    app.command()(sample)
    app.command()(web)
    app.command()(show)
    app.command()(samplers)
    app.command()(configs)
    app.command()(train)
    app.command()(convert)
    app.command()(bundle)
    app.command()(export)
    app.command()(push)
    app.command()(figure)
    app.command()(plan)
    app.command()(evaluate)
    app.command()(score)
    app.add_typer(data)
    for command in (*app.registered_commands, *data.registered_commands):
        assert command.callback is not None
        command.callback = within_bounds(command.callback)


def within_bounds(command: Callable[..., Any]) -> Callable[..., Any]:
    """`command`, which raises UserError for a flag outside the bounds that its type declares."""
    bounded = {
        name: hint
        for name, hint in settings.type_hints(command).items()
        if typing.get_origin(hint) is Annotated and any(isinstance(n, Bound) for n in hint.__metadata__)
    }

    @functools.wraps(command)
    def checked(**given: Any) -> Any:
        for name, hint in bounded.items():
            if given[name] is not None:
                settings.convert(hint, given[name], f"--{name.replace('_', '-')}")
        return command(**given)

    return checked

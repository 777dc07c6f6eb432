"""`mvader push`."""

from __future__ import annotations

from typing import Annotated

import typer


def push(
    bundle: Annotated[str, typer.Argument(help="name of an embedded bundle, or a directory")],
    repository: Annotated[str, typer.Argument(help="ORG/NAME on the Hugging Face hub")],
    license: Annotated[
        str,
        typer.Option(
            help="of the weights, as the hub names it: apache-2.0, creativeml-openrail-m, other, ..."
        ),
    ] = "",
    private: Annotated[bool, typer.Option("--private", help="make a repository that only you see")] = False,
    revision: Annotated[str | None, typer.Option(help="the branch to write [default: main]")] = None,
) -> None:
    """Put a bundle on the Hugging Face hub, with a model card.

    \b
    Examples:
      mvader push bundles/mine ORG/NAME --license apache-2.0 --private
    """
    from mvader_jax.storage.push import push as run

    print(f"pushed to {run(bundle, repository, license, private=private, revision=revision)}")

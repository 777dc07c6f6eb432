"""Options that several commands take, each declared once."""

from __future__ import annotations

from typing import Annotated

import typer

from mvader_jax.errors import UserError
from mvader_jax.prompt.elements import Balance

Seed = Annotated[int, typer.Option(help="same seed, same pictures")]
Seeds = Annotated[
    str, typer.Option(help="same seed, same pictures; 0:16 (0 to 15) or 0,3,7 draws a picture of each")
]
Steps = Annotated[int, typer.Option(help="sampling steps, 1 to 1000")]
GuidanceScale = Annotated[float, typer.Option(help="classifier-free guidance")]
Sampler = Annotated[str, typer.Option(help="plms is the paper's; mvader samplers lists all")]
GuidanceInterval = Annotated[
    str | None,
    typer.Option(
        help="LOW,HIGH: guidance acts where LOW < sigma <= HIGH alone, as in 0.3,5 [default: everywhere]"
    ),
]
Reuse = Annotated[
    int, typer.Option(help="compute the UNet whole every so many calls, in between its outermost layer alone")
]
Site = Annotated[str, typer.Option(help="where weights act: decoder, cross_attention or both")]
BalanceAttention = Annotated[
    bool,
    typer.Option(
        "--balance-attention",
        help="weights are an element's share of the cross-attention: theta is adjusted until it gets that",
    ),
]
LongPrompts = Annotated[
    str | None,
    typer.Option(
        help="of a prompt too long for the model: cut, refuse, or chunk (CLIP's text tower) [default: cut]"
    ),
]
BundleName = Annotated[
    str,
    typer.Option(help="an embedded bundle, a directory, hf:ORG/NAME, or RUN/STAGE[@STEP] of a training run"),
]
DrawMesh = Annotated[str, typer.Option(help="devices to draw on, as in data=4,fsdp=2 [default: one]")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress shown; problems still are")]


def read_balance(thetas: bool, attention: bool) -> Balance:
    """The setting of --balance and --balance-attention. Raises UserError for both."""
    if thetas and attention:
        raise UserError("--balance and --balance-attention both say what a weight is a share of; give one")
    return "attention" if attention else thetas

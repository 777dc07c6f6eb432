"""Options that several commands take, each declared once."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from mvader_jax.errors import UserError
from mvader_jax.prompt.elements import Balance
from mvader_jax.sampling.settings import FAST, Changes, SamplingSettings

Seed = Annotated[int, typer.Option(help="same seed, same pictures")]
Seeds = Annotated[
    str, typer.Option(help="same seed, same pictures; 0:16 (0 to 15) or 0,3,7 draws a picture of each")
]
FastSteps = Annotated[
    int | None, typer.Option(help="sampling steps, 1 to 1000 [default: 50; with --fast: 4]")
]
GuidanceScale = Annotated[float, typer.Option(help="classifier-free guidance")]
GuidanceInterval = Annotated[
    str | None,
    typer.Option(
        help="LOW,HIGH: guidance acts where LOW < sigma <= HIGH alone, as in 0.3,5 [default: everywhere]"
    ),
]
Reuse = Annotated[
    int, typer.Option(help="compute the UNet whole every so many calls, in between its outermost layer alone")
]
FastSampler = Annotated[
    str | None, typer.Option(help="mvader samplers lists all [default: ddim; with --fast: lcm]")
]
Fast = Annotated[
    bool, typer.Option("--fast", help="draw in few steps, with the UNet that was distilled to them")
]
WaitSteps = Annotated[
    int | None, typer.Option(help="sampling steps, 1 to 1000 [default: 50; with a UNet of few steps 4]")
]
WaitSampler = Annotated[
    str | None, typer.Option(help="mvader samplers lists all [default: ddim; with a UNet of few steps lcm]")
]
#: Of commands that a person waits for.
FastIfThere = Annotated[
    bool | None,
    typer.Option(
        "--fast/--no-fast",
        help="draw with the UNet that was distilled to few steps [default: where the bundle holds one and neither "
        "--steps nor --sampler is given]",
    ),
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
KeptIn = Annotated[
    str | None,
    typer.Option(
        "--frozen-dtype",
        help="what parameters are kept in: float32, bfloat16; int8 or int4: a decoder's matrices as integers "
        "[default: what is computed in]",
    ),
]
Lora = Annotated[
    list[str] | None, typer.Option(help="a LoRA file, its strength a suffix @0.8; may be repeated")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress shown; problems still are")]


def read_balance(thetas: bool, attention: bool) -> Balance:
    """The setting of --balance and --balance-attention. Raises UserError for both."""
    if thetas and attention:
        raise UserError("--balance and --balance-attention both say what a weight is a share of; give one")
    return "attention" if attention else thetas


def chosen_fast(fast: bool | None, bundle: str, *given: Any) -> bool:
    """What `FastIfThere` comes to. given: the options that a person would have left out to have it chosen."""
    if fast is not None:
        return fast
    if any(one is not None for one in given):
        return False
    from mvader_jax.storage.bundle_config import holds_fast

    return holds_fast(bundle)


def sampling_of(fast: bool, **flags: Any) -> SamplingSettings:
    """The settings of flags; of those that are None the defaults, with `fast` the ones of few steps."""
    given = {name: value for name, value in flags.items() if value is not None}
    return SamplingSettings().changed(**cast(Changes, {**(FAST if fast else {}), **given}))

"""How pictures are drawn: one frozen value, from the command line to the compiled program."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, Unpack, cast

from mvader_jax.bounds import (
    Bound,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    between,
)
from mvader_jax.errors import UserError
from mvader_jax.prompt.elements import Balance, LongPrompts, Site, check_balance
from mvader_jax.sampling.seeds import SEED, Seeds, read_seeds
from mvader_jax.settings import Checked, convert, nearest, type_hints

if TYPE_CHECKING:
    from mvader_jax.diffusion.schedule import ScheduleConfig
    from mvader_jax.models.config import ModelConfig

#: How much noise a picture to start from gets where nothing is said.
STRENGTH = 0.6
#: The largest float32, which these numbers are in a program.
_LARGEST = 3.4028234e38
#: A guidance interval that every noise lies in.
ALWAYS = (0.0, _LARGEST)
#: Why the two settings do not go together.
WHOLE_CALLS = (
    "balance attention reads the attention of every call, but reuse computes some in part; leave one out"
)
#: Negative guidance leads away from the prompt.
_FLOAT32 = Bound(lambda x: abs(x) <= _LARGEST, "any finite number of float32")


class Changes(TypedDict, total=False):
    """The fields of `SamplingSettings` as people write them in a call."""

    steps: int
    sampler: str
    guidance_scale: float
    seed: int | str | Iterable[int]
    site: Site | None
    balance: Balance | None
    long_prompts: LongPrompts | None
    negative_strength: float
    height: int | None
    width: int | None
    strength: float | None
    eta: float
    guidance_interval: tuple[float, float] | Sequence[float] | str | None
    reuse: int


#: How a distilled UNet draws where nothing is said.
FAST: Changes = {"steps": 4, "sampler": "lcm"}


@dataclasses.dataclass(frozen=True)
class SamplingSettings(Checked):
    """How a picture is drawn; the defaults are the paper's but for its sampler, `plms`. No JAX is loaded before one is made.

    steps: 1 to 1000, and no more than the model's schedule has. sampler: a name in `SAMPLERS`.
    guidance_scale: of classifier-free guidance. seed: 0 to 2**32 - 1, or several as `seeds.read_seeds` takes them
    (range(16), [0, 3, 7], "0:16"): each then has pictures of its own. Picture number i of a seed is the same
    picture whatever is drawn beside it.
    site: where weights act; balance: whether they are an element's total share, of thetas or of the attention that it
    gets; long_prompts: cut, refuse or chunk (`Prompt`); None takes the prompt's own.
    negative_strength: how far guidance leads away from the negative prompt in place of the null prompt: 0 not
    at all, 1 wholly, more is further.
    height, width: pixels; None takes the model's own.
    strength: how much noise a picture to start from gets: 0 (the picture itself) to 1 (noise alone); None is
    STRENGTH.
    eta: 0 to 1, the share of fresh noise of a stochastic sampler.
    guidance_interval: (low, high): guidance acts where low < sigma <= high, and elsewhere the prompt's half alone is
    computed (Kynkäänniemi et al. 2024). sigma is sqrt((1 - abar) / abar), 0.03 to 14.6 of Stable Diffusion's schedule,
    whatever the sampler and its steps. Also as text, "0.3,5". None: everywhere.
    reuse: the model is computed whole at every so many of its calls; in between its outermost layers alone are, from
    the deep features of the last whole call (DeepCache, Ma et al. 2024). 1: always whole.
    Raises UserError, when it is made, for a value that is not accepted.
    """

    steps: Annotated[int, between(1, 1000)] = 50
    sampler: str = "ddim"
    guidance_scale: Annotated[float, _FLOAT32] = 8.0
    seed: Seeds = SEED
    site: Site | None = None
    balance: Balance | None = None
    long_prompts: LongPrompts | None = None
    negative_strength: Annotated[float, between(0, _LARGEST)] = 1.0
    height: Annotated[int, between(1, 2**16)] | None = None
    width: Annotated[int, between(1, 2**16)] | None = None
    strength: Share | None = None
    eta: Share = 0.0
    guidance_interval: tuple[NonNegativeFloat, PositiveFloat] | None = None
    reuse: Annotated[int, between(1, 1000)] = 1

    def __post_init__(self) -> None:
        from mvader_jax.diffusion.samplers import SAMPLERS

        object.__setattr__(self, "seed", read_seeds(self.seed))
        object.__setattr__(self, "guidance_interval", _interval(self.guidance_interval))
        cls: Any = type(self)
        for name, hint in type_hints(cls).items():
            # By its own name: that is what people write, in a file of prompts as on the command line.
            object.__setattr__(self, name, convert(hint, getattr(self, name), name))
        check_balance(self.balance or False, self.site)
        if self.sampler not in SAMPLERS:
            raise UserError(f"the sampler is {self.sampler!r}; accepted: {', '.join(SAMPLERS)}")
        if self.eta and not SAMPLERS[self.sampler].stochastic:
            stochastic = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.stochastic)
            raise UserError(
                f"eta is {self.eta}, but the sampler {self.sampler} takes none; those that do: {stochastic}"
            )
        if self.reuse > 1 and self.balance == "attention":
            raise UserError(WHOLE_CALLS)
        if self.reuse > self.steps:
            raise UserError(
                f"reuse is {self.reuse}, but there are {self.steps} steps; accepted: 1 to {self.steps}"
            )
        if self.reuse > 1 and not SAMPLERS[self.sampler].walks:
            walking = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.walks)
            raise UserError(
                f"the sampler {self.sampler} reuses nothing between calls; those that can: {walking}"
            )

    @classmethod
    def of(cls, model: ModelConfig) -> SamplingSettings:
        """The defaults for a model: a UNet that was distilled to few steps is drawn with in so many."""
        distilled = model.unet is not None and model.unet.distilled
        return cls().changed(**FAST) if distilled else cls()

    def changed(self, **changes: Unpack[Changes]) -> SamplingSettings:
        """These settings with others in their place. Raises UserError for an unknown name or a bad value."""
        for name in changes:
            if name not in NAMES:
                raise UserError(f"unknown setting {name!r}; {nearest(name, NAMES)}")
        return dataclasses.replace(self, **cast(dict[str, Any], changes))

    def recorded(self) -> dict[str, Any]:
        """JSON values kept with a picture: what always shapes it, and the rest where it is not the default."""
        values = {
            "seed": list(self.seed) if isinstance(self.seed, tuple) else self.seed,
            "guidance_scale": self.guidance_scale,
            "steps": self.steps,
            "sampler": self.sampler,
            "site": self.site or "both",
            "balance": self.balance or False,
            "negative_strength": self.negative_strength,
        }
        for name in ("height", "width", "strength", "eta", "long_prompts", "guidance_interval", "reuse"):
            value = getattr(self, name)
            if value != getattr(SamplingSettings, name):
                values[name] = list(value) if isinstance(value, tuple) else value
        return values

    def numbered(self, num_images: int, first: int = 0) -> list[tuple[int, int]]:
        """(seed, index) of every picture: `num_images` of each seed, from number `first` on.

        Raises UserError for too many."""
        seeds = self.seed if isinstance(self.seed, tuple) else (self.seed,)
        each = image_count(num_images)
        image_count(each * len(seeds))
        first = cast(int, convert(Annotated[int, between(0, 1_000_000)], first, "first"))
        return [(seed, first + index) for seed in seeds for index in range(each)]

    def start(self) -> int:
        """The step at which a run that starts from a picture begins."""
        from mvader_jax.diffusion.samplers import start_at

        return start_at(self.steps, STRENGTH if self.strength is None else self.strength)

    def static(
        self, model: ModelConfig, *, from_image: bool = False, changed: bool = False
    ) -> StaticSettings:
        """What a program of this model is compiled for. from_image: whether sampling starts from a picture; changed:
        whether a LoRA changed the UNet, which may have distilled it.

        Raises UserError for a size, a number of steps or a sampler that the model cannot take.
        """
        from mvader_jax.diffusion.samplers import SAMPLERS
        from mvader_jax.models.vae import VAEConfig

        check_pairing(self, model, changed)
        if model.schedule is not None:
            SAMPLERS[self.sampler].levels(model.schedule, self.steps)
        height, width = image_size(model, self.height, self.width)
        factor = model.require(VAEConfig).multiple
        traced = not from_image or SAMPLERS[self.sampler].walks
        size = (height // factor, width // factor)
        interval = ALWAYS if self.guidance_interval is None else self.guidance_interval
        if model.schedule is not None and self.guidance_interval is not None:
            self._check_interval(model.schedule, interval)
        start = 0 if traced else self.start()
        return StaticSettings(self.sampler, self.steps, size, start, self.eta, interval, self.reuse)

    def _check_interval(self, schedule: ScheduleConfig, interval: tuple[float, float]) -> None:
        from mvader_jax.diffusion.samplers import SAMPLERS
        from mvader_jax.diffusion.savings import guides, sigmas

        levels = SAMPLERS[self.sampler].levels(schedule, self.steps)
        if not guides(levels, interval)[levels.timesteps].any():
            sigma = sigmas(levels)[levels.timesteps]
            raise UserError(
                f"the guidance_interval {interval[0]:g},{interval[1]:g} holds none of the steps, whose sigma is "
                f"{sigma.min():.2g} to {sigma.max():.3g}; for no guidance the guidance_scale is 1"
            )


@dataclasses.dataclass(frozen=True, order=True)
class StaticSettings(Checked):
    """The settings that a compiled program is made for; every other one is an array in `generate.Draws`.

    latent_size: height and width. start: the step at which sampling begins, where it is not traced
    (`Draws.start`). eta, guidance_interval, reuse: see `SamplingSettings`.
    """

    sampler: str
    steps: PositiveInt
    latent_size: tuple[PositiveInt, PositiveInt]
    start: NonNegativeInt = 0
    eta: Share = 0.0
    guidance_interval: tuple[NonNegativeFloat, PositiveFloat] = ALWAYS
    reuse: PositiveInt = 1


def check_pairing(settings: SamplingSettings, model: ModelConfig, changed: bool = False) -> None:
    """Raises UserError where a sampler is for distilled UNets and the model's is none, or the other way round; and for
    what changes guidance from outside, of a UNet that is guided within. changed: by a LoRA, as LCM's, which distils a
    UNet and leaves its guidance outside."""
    from mvader_jax.diffusion.samplers import SAMPLERS

    distilled = model.unet is not None and model.unet.distilled
    fitting = ", ".join(name for name, one in SAMPLERS.items() if one.distilled == distilled)
    if distilled and SAMPLERS[settings.sampler].distilled:
        for name in ("guidance_interval", "reuse"):
            if getattr(settings, name) != getattr(SamplingSettings, name):
                raise UserError(
                    f"{name} does nothing for a UNet that was distilled to few steps; leave it out"
                )
    elif distilled:
        raise UserError(
            f"the sampler is {settings.sampler}, but this UNet was distilled to few steps and is drawn with by "
            f"{fitting} alone"
        )
    elif SAMPLERS[settings.sampler].distilled and not changed:
        beside = "; the bundle has one beside it: draw fast" if model.unet_fast is not None else ""
        raise UserError(
            f"the sampler {settings.sampler} is for UNets that were distilled to few steps, and this one was "
            f"not{beside}; those for it: {fitting}"
        )


NAMES = tuple(field.name for field in dataclasses.fields(SamplingSettings))


def _interval(value: Any) -> Any:
    """LOW,HIGH as text or two numbers, a tuple. Raises UserError where no noise can lie between them."""
    if isinstance(value, str):
        value = [_number(part) for part in value.split(",")]
    if value is not None:
        numbers = isinstance(value, (list, tuple)) and all(isinstance(x, (int, float)) for x in value)
        if not (numbers and len(value) == 2 and 0 <= value[0] < value[1] <= _LARGEST):
            shown = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else repr(value)
            raise UserError(
                f"guidance_interval is {shown}; accepted: LOW,HIGH in sigma, 0 or more and LOW below HIGH, as in 0.3,5"
            )
        value = (float(value[0]), float(value[1]))
    return value


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def image_count(value: Any) -> int:
    """A number of pictures. Raises UserError unless it is 1 to a million."""
    return typing.cast(int, convert(Annotated[int, between(1, 1_000_000)], value, "num_images"))


def image_size(model: ModelConfig, height: int | None = None, width: int | None = None) -> tuple[int, int]:
    """Height and width in pixels, the model's own where None. Raises UserError where they do not divide."""
    from mvader_jax.models.unet import UNetConfig
    from mvader_jax.models.vae import VAEConfig

    unet, vae = model.require(UNetConfig), model.require(VAEConfig)
    own, multiple = unet.sample_size * vae.multiple, vae.multiple * unet.multiple
    size = (own if height is None else height, own if width is None else width)
    for name, value in zip(("height", "width"), size, strict=True):
        if value < multiple or value % multiple:
            raise UserError(f"{name} is {value}; accepted are positive multiples of {multiple}")
    return size

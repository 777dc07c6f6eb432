"""Bundle + prompts + seed -> images, in one compiled program: embed, sample, decode."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

import jax
import PIL.Image
from jax.sharding import Mesh
from jaxtyping import Bool, UInt8

from mvader_jax.bounds import PositiveInt
from mvader_jax.diffusion.samplers import OWN, SAMPLERS
from mvader_jax.errors import UserError
from mvader_jax.models.quantised import kept_in
from mvader_jax.parallel.processes import gather_rows
from mvader_jax.prompt.elements import ImageSource, PromptLike
from mvader_jax.sampling import arguments
from mvader_jax.sampling.attention import Attention
from mvader_jax.sampling.drawing import Drawing
from mvader_jax.sampling.generate import (
    Draws,
    attended,
    generate,
)
from mvader_jax.sampling.lora import Applied, Loras
from mvader_jax.sampling.parts import Parts
from mvader_jax.sampling.pictures import NotFiniteError, Pictures
from mvader_jax.sampling.settings import Changes, SamplingSettings, StaticSettings, image_size
from mvader_jax.sampling.steps import Step, Steps, Watch
from mvader_jax.settings import convert
from mvader_jax.storage.bundle import Bundle, load_bundle, parameter_count
from mvader_jax.storage.bundle_config import is_run
from mvader_jax.storage.programs import Program, compilation_cache

if TYPE_CHECKING:
    from mvader_jax.sampling.batch.given import Given
else:
    Given = Any


class Pipeline(Parts):
    """A bundle ready to draw: `Pipeline.load("tiny")(["a red circle"], num_images=4, seed=0)`."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        dtype: str = "float32",
        mesh: Mesh | None = None,
        loaded: Mapping[str, Any] | None = None,
    ) -> None:
        """dtype: "float32" or "bfloat16", what is computed in; mesh: where the bundle's components are sharded, if
        they are: pictures are then drawn by all of its devices, a batch divided over its batch axes; loaded: what
        pictures say that drew them, as `load` takes it. Raises UserError for another dtype."""
        super().__init__(bundle, dtype=dtype, mesh=mesh)
        self._loaded = {"dtype": dtype, **(loaded or {})}
        fixed: dict[str, Any] = {"model": bundle.model, "dtype": dtype}
        walk = functools.partial(generate, **fixed)
        self.lora: tuple[Applied, ...] = ()
        self._loras: Loras | None = None
        self._generate = Program(walk, "generate", (bundle.model, dtype), **self.placement.by_row(4, 1))
        looking = functools.partial(attended, **fixed)
        self._attended = Program(looking, "attended", (bundle.model, dtype), **self.placement.by_row(4, 1, 4))
        self._steps = Steps(bundle.model, dtype, self.placement)

    @classmethod
    def load(
        cls,
        name: str | Path = "tiny",
        *,
        dtype: str = "float32",
        frozen_dtype: str | None = None,
        mesh: Mesh | None = None,
        raw: bool = False,
        fast: bool | None = False,
        lora: Sequence[str | Path] = (),
        cache: bool = False,
    ) -> Pipeline:
        """Loads a bundle by the name of an embedded one, its directory or hf:ORG/NAME[@REVISION]; or RUN/STAGE[@STEP],
        a checkpoint of a training run, the newest or that of a step.

        frozen_dtype: what the parameters are kept in, `dtype` where it is None; "int8" or "int4": the matrices of the
        decoder's layers as integers with scales, the rest in `dtype`.
        raw: of a run, the parameters themselves in place of their average. fast: draw with the UNet that was distilled
        to few steps, `unet_fast`, in place of the other; None reads both. lora: files to draw with, as `use_lora`
        takes them. cache: call `compilation_cache` first, which changes JAX's settings for the whole process.
        Raises UserError for an unknown or damaged bundle or run, for integers where there is no decoder, and as
        `use_lora`.
        """
        dtype, mesh = arguments.compute_dtype(dtype), arguments.mesh(mesh)
        kept, integers = kept_in(arguments.frozen_dtype(frozen_dtype, dtype), dtype)
        where: dict[str, Any] = {"mesh": mesh, "dtype": kept, "integers": integers}
        if not isinstance(name, (str, Path)):
            raise UserError(f"a bundle is named by {name!r:.80}; expected a string or a path")
        if raw and not is_run(name):
            raise UserError("raw belongs to RUN/STAGE[@STEP]; a bundle has one set of parameters")
        if cache:
            compilation_cache()
        if is_run(name):  # what reads runs lies above this room: it is loaded for them alone
            from mvader_jax.train.snapshot import Snapshot, load_snapshot

            bundle = load_snapshot(Snapshot.of(name, raw=raw), **where)
            bundle = bundle.fast() if fast else bundle
        else:
            bundle = load_bundle(name, fast=fast, **where)
        said = {"bundle": str(name), "frozen_dtype": frozen_dtype, "raw": raw, "fast": fast}
        loaded = {key: value for key, value in said.items() if value}
        pipe = cls(bundle, dtype=dtype, mesh=mesh, loaded=loaded)
        if lora:
            pipe.use_lora(*arguments.listed_files(lora, "lora"))
        return pipe

    def use_lora(self, *files: str | Path) -> None:
        """Draws with these LoRA files from now on, in place of those before: `pipe.use_lora("style.safetensors@0.8")`.

        The number is how strongly one acts, 1 where there is none; without files the bundle is as it was. Another
        strength compiles nothing. Raises UserError for a file that is no LoRA of this bundle's model.
        """
        applied = tuple(Applied.of(file) for file in files)
        if self._loras is None:
            self._loras = Loras(self.bundle)
        self.bundle = self._loras.with_files(applied)
        self.lora = applied

    def __repr__(self) -> str:
        model, mesh = self.model, self.placement.mesh
        size = "" if model.unet is None or model.vae is None else " {} x {},".format(*image_size(model))
        count = sum(parameter_count(tree) for tree in self.bundle.components.values())
        where = "" if mesh is None else f" on {mesh.size} devices"
        return f"Pipeline({model.embedder},{size} {count:,} parameters, {self.dtype}{where})"

    @property
    def defaults(self) -> SamplingSettings:
        """How it draws where nothing is said: as `SamplingSettings`, or in the few steps its UNet was distilled to."""
        return SamplingSettings.of(self.model)

    @property
    def compiled(self) -> int:
        """How many programs that draw pictures this pipeline has compiled: one per shape and `static`."""
        return self._generate.compiled

    @property
    def loaded(self) -> dict[str, Any]:
        """What it was loaded with, as `load` takes it, kept with every picture."""
        return {**self._loaded, **self.recorded_lora}

    @property
    def recorded_lora(self) -> dict[str, list[str]]:
        """The LoRA files that it draws with, for a picture's settings."""
        return {"lora": [one.recorded() for one in self.lora]} if self.lora else {}

    @property
    def shards(self) -> int:
        """The number of devices that a batch of pictures is divided over."""
        return self.placement.shards

    def __call__(
        self,
        prompt: PromptLike | None,
        settings: SamplingSettings | None = None,
        *,
        negative: PromptLike | None = None,
        num_images: int = 1,
        first: int = 0,
        init_image: ImageSource | Sequence[ImageSource] | None = None,
        shares: Sequence[float] | None = None,
        callback: Callable[[Step], object] | None = None,
        callback_every: int = 1,
        progress: bool = False,
        **changes: Unpack[Changes],
    ) -> Pictures:
        """Draws pictures of one prompt: `pipe("a red hat", steps=20, seed=3, num_images=4)`.

        prompt, negative: a string, Text, Image, picture, or a sequence of these (`Prompt.of`); None is
        the null prompt. settings: how to draw (default, `defaults`); changes: its fields by name.
        num_images: pictures of each seed: seed=3, num_images=4 are its numbers 0 to 3; seed=range(16) is number 0 of
        each of 16 seeds, the picture that the seed gives alone. first: the first number: first=3, num_images=1 is 3 alone.
        init_image: a picture to start from, or a list of pictures mixed by `shares` (default: equal ones, and
        they sum to 1): noised to `strength` and denoised from there.
        callback: called with a `Step` (its number, the total, a preview) after every `callback_every` steps; where it
        returns False the drawing ends, and Cancelled is raised. progress: a line on standard error says how far it is.
        Raises UserError for input it cannot take, and NotFiniteError, which holds the good pictures, where
        NaN or infinity arose in others.
        """
        if "init" in changes:  # the name of before
            init_image = cast(Any, changes).pop("init")
        settings = arguments.optional(settings, SamplingSettings, "settings") or self.defaults
        settings = settings.changed(**changes)
        numbered = settings.numbered(num_images, first)
        watch = Watch.of(callback, callback_every, progress, len(numbered))
        self.bundle.need("unet", "vae")
        drawing = arguments.asked(self.model, prompt, settings, negative, init_image, shares)
        pixels, finite = self.generate(
            *arguments.draws(self.bundle, self.placement, drawing, numbered), watch
        )
        return self._pictures(drawing, numbered, pixels, finite)

    def _pictures(
        self, drawing: Drawing, numbered: list[tuple[int, int]], pixels: jax.Array, finite: jax.Array
    ) -> Pictures:
        """What was drawn, each picture with what it was drawn with. Raises NotFiniteError."""
        count = len(numbered)
        pictures = Pictures(PIL.Image.fromarray(image) for image in gather_rows(pixels)[:count])
        for picture, number in zip(pictures, numbered, strict=True):
            picture.info.update(drawing.note(*number, self.loaded))
        whole = gather_rows(finite)
        good = {number: picture for number, picture in enumerate(pictures) if whole[number]}
        if len(good) < count:
            raise NotFiniteError(range(count), good)
        return pictures

    def attend(
        self,
        prompt: PromptLike,
        settings: SamplingSettings | None = None,
        *,
        negative: PromptLike | None = None,
        num_images: int = 1,
        first: int = 0,
        **changes: Unpack[Changes],
    ) -> Attention:
        """Draws pictures as `pipe(...)` does, and tells where in them each element of the prompt was looked at, and how
        much of the attention it got: `pipe.attend(["in green", mv.Image("circle.png")]).sheet()`.

        Arguments and errors as `__call__`; UserError for the null prompt, which has no elements, and for `reuse`.
        """
        settings = (arguments.optional(settings, SamplingSettings, "settings") or self.defaults).changed(
            **changes
        )
        if prompt is None:
            raise UserError("the null prompt has no elements that could be attended to")
        if settings.reuse > 1:
            raise UserError(
                f"attention is seen of every call, but reuse {settings.reuse} computes some in part; leave it out"
            )
        self.bundle.need("unet", "vae")
        drawing = arguments.asked(self.model, prompt, settings, negative)
        numbered = settings.numbered(num_images, first)
        draws, static = arguments.draws(self.bundle, self.placement, drawing, numbered, elements=True)
        keep = SAMPLERS[static.sampler] is OWN.get(static.sampler)
        with self.placement.active():
            placed = self.placement.placed(self.placement.filled(draws))
            pixels, finite, places = self._attended(self.bundle.components, placed, keep=keep, static=static)
        pictures = self._pictures(drawing, numbered, pixels, finite)
        assert drawing.prompt is not None
        elements = drawing.prompt.elements
        return Attention(pictures, elements, gather_rows(places)[: len(numbered), : len(elements)])

    def batch(
        self,
        prompts: Sequence[Given],
        settings: SamplingSettings | None = None,
        *,
        negative: PromptLike | None = None,
        num_images: int = 1,
        batch_size: int = 8,
        progress: bool = False,
        **changes: Unpack[Changes],
    ) -> list[Pictures]:
        """Draws the pictures of many prompts: `pipe.batch(["a red hat", "a blue hat"], steps=20)`, in order.

        prompts: what `__call__` takes; or a dictionary of one and its own settings, {"prompt": ..., "seed": 3}, with
        the keys of a line of a file of prompts. negative, num_images, settings, changes: as `__call__` takes them, for
        prompts that do not say. batch_size: pictures that are drawn together, of prompts of like length; a picture
        is the same whatever is drawn beside it, up to rounding. progress: a line on standard error.
        Raises UserError, which names the prompt, before anything is drawn where its words tell; and NotFiniteError.
        """
        from mvader_jax.sampling.batch.given import draw_all, read_given  # they lie above

        settings = arguments.optional(settings, SamplingSettings, "settings") or self.defaults
        requests = read_given(prompts, settings.changed(**changes), negative, num_images)
        size = convert(PositiveInt, batch_size, "batch_size")
        self.bundle.need("unet", "vae")
        return draw_all(self, requests, size=size, progress=convert(bool, progress, "progress"))

    def generate(
        self, draws: Draws, static: StaticSettings, watch: Watch | None = None
    ) -> tuple[UInt8[jax.Array, "B H W 3"], Bool[jax.Array, " B"]]:
        """Many prompts at once: pictures, and whether each is finite; on the device, computed when they are
        read.

        draws: host arrays; where an entry names no rows, all pictures are made from its one prompt, or each
        from its own. On a mesh every process passes the same arrays, and the result is divided over the batch
        axes; B that does not divide is filled up for the computation. watch: who is told of the steps.
        """
        arguments.instance(draws, Draws, "draws")
        arguments.instance(static, StaticSettings, "static")
        self.bundle.need("unet", "vae")
        count = len(draws.seeds)
        components = self.bundle.components
        with self.placement.active():
            placed = self.placement.placed(self.placement.filled(draws))
            if watch is None:
                keep = SAMPLERS[static.sampler] is OWN.get(static.sampler)
                pixels, finite = self._generate(components, placed, keep=keep, static=static)
        if watch is not None:
            pixels, finite = self._steps.draw(components, placed, static, watch)
        return (pixels, finite) if count == pixels.shape[0] else (pixels[:count], finite[:count])

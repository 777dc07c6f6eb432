"""How a command gets what draws: a bundle or a step of a run, ready on a mesh; and the parts of a prompt."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from mvader_jax.cli._progress import tell
from mvader_jax.errors import UserError

if TYPE_CHECKING:
    from mvader_jax.prompt.elements import Element
    from mvader_jax.sampling.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class Place:
    """What draws, and where to."""

    bundle: str
    dtype: str
    frozen_dtype: str | None
    mesh: str
    out: Path
    quiet: bool
    raw: bool
    fast: bool
    lora: tuple[str, ...] = ()

    def load(self) -> Pipeline:
        return load_pipeline(
            self.bundle,
            dtype=self.dtype,
            frozen_dtype=self.frozen_dtype,
            mesh=self.mesh,
            raw=self.raw,
            fast=self.fast,
            lora=self.lora,
        )


def load_pipeline(
    bundle: str,
    *,
    dtype: str = "float32",
    frozen_dtype: str | None = None,
    mesh: str = "",
    raw: bool = False,
    fast: bool | None = False,
    lora: tuple[str, ...] = (),
) -> Pipeline:
    """A bundle, or a step of a training run, ready to draw on the mesh of a command's `--mesh`.

    Compiled programs are kept on disk. raw: of a run, the parameters themselves; fast: with the few-step UNet, None: it too;
    lora: files that change it, as `Pipeline.use_lora` takes them.
    """
    from mvader_jax.parallel.mesh import open_mesh
    from mvader_jax.parallel.processes import first_process
    from mvader_jax.sampling.lora import Applied
    from mvader_jax.sampling.pipeline import Pipeline
    from mvader_jax.storage.bundle_config import is_run
    from mvader_jax.storage.describe import FRESH, is_fresh

    if raw and not is_run(bundle):
        raise UserError("--raw belongs to RUN/STAGE[@STEP]; a bundle has one set of parameters")
    for file in lora:
        Applied.of(file)  # a wrong name is told before anything is loaded
    where = open_mesh(mesh)
    pipe = Pipeline.load(
        bundle, dtype=dtype, frozen_dtype=frozen_dtype, mesh=where, raw=raw, fast=fast, lora=lora, cache=True
    )
    if is_fresh(pipe.bundle.records) and first_process():
        tell(f"{bundle}: {FRESH}")
    return pipe


def read_parts(parts: list[str]) -> tuple[Element, ...]:
    """The elements, their images read: a file that is none is refused before a model is loaded.

    Words that look like a text without its quotation marks are told.
    """
    from mvader_jax.prompt.parse import loose_words, read_part

    if hint := loose_words(parts):
        tell(f"mvader: {hint}")
    return tuple(read_part(part) for part in parts)

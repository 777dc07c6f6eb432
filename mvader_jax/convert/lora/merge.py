"""LoRA files laid into the weights of a bundle for good, or written again in another format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mvader_jax.convert.lora.files import read_lora, write_lora
from mvader_jax.errors import UserError
from mvader_jax.models.clip_text import ClipTextConfig
from mvader_jax.models.components import outdated
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.sampling.lora import IN_FOLDER, Applied, Loras
from mvader_jax.storage.atomic import whole_directory
from mvader_jax.storage.bundle import carry_over, load_bundle, write_bundle
from mvader_jax.storage.bundle_config import find_bundle, not_ours, read_model

#: The model whose layers a LoRA has where no bundle is named: Stable Diffusion 1.x.
STABLE_DIFFUSION = ModelConfig(
    embedder="clip_text", unet=UNetConfig.sd14(), text_encoder=ClipTextConfig.sd14()
)


def merge_lora(
    base: str | Path, files: Sequence[str | Path], out: Path, *, overwrite: bool = False
) -> tuple[str, ...]:
    """Writes the bundle `out`: `base` with LoRA files, "FILE" or "FILE@0.8", in its weights, in the dtype that they have.

    Components that none changes are linked or copied, but for a `unet_fast` that learnt from a UNet which changes: it is
    left out. Returns notes for the user. Raises UserError as `Pipeline.use_lora`, and where `out` cannot be
    written.
    """
    applied = [Applied.of(file) for file in files]
    path = find_bundle(base)
    model, records = read_model(path)
    touched = {name for one in applied for name in read_lora(one.file, model)[0].components}
    if missing := sorted(touched - records.keys()):
        raise UserError(
            f"a LoRA changes the {' and '.join(missing)}, and {base} has none; it has {', '.join(records)}"
        )
    left = outdated(touched, records)
    bundle = Loras(load_bundle(path, components=sorted(touched))).with_files(applied)
    with whole_directory(out, overwrite=overwrite, not_ours=not_ours, sources=[path]) as work:
        write_bundle(work, bundle)
        carry_over(work, {name: path / name for name in records if name not in {*touched, *left}})
    return tuple(left.values())


def is_file(name: str | Path) -> bool:
    """Whether a name is that of a LoRA file, or of a folder with one, rather than a bundle's."""
    place = Path(name)
    return place.is_file() or (place / IN_FOLDER).is_file()


def export_lora(
    file: str | Path, out: Path, to: str, base: str | Path | None = None, *, overwrite: bool = False
) -> tuple[str, str]:
    """Writes a LoRA file in another format; returns the names of both.

    base: the bundle whose layers it has, Stable Diffusion 1.x where there is none. Raises UserError as `read_lora` and
    `write_lora`.
    """
    model = STABLE_DIFFUSION if base is None else read_model(find_bundle(base))[0]
    lora, found = read_lora(file, model)
    return found, write_lora(out, lora, model, to, overwrite=overwrite)

"""What a bundle is, from its config.json alone: what it can do, how large it is, where each component came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import embedder_kind, embedder_of
from mvader_jax.models.embedders.base import Embedder
from mvader_jax.storage.bundle_config import Record, find_bundle, read_model

#: What is said of a bundle where `is_fresh`.
FRESH = "the UNet's cross-attention is freshly initialised: until it is trained, it draws noise"


@dataclasses.dataclass(frozen=True)
class Description:
    """What a bundle says of itself.

    can: in words. takes: kinds of prompt elements. picture_size: height and width in pixels, and text_length: tokens
    of a prompt; None where the bundle has no such part. nbytes: of its files. components: {name: its record}.
    """

    can: str
    embedder: str
    takes: tuple[str, ...]
    picture_size: tuple[int, int] | None
    text_length: int | None
    parameters: int
    nbytes: int
    components: Mapping[str, Record]

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "components": {k: dict(v) for k, v in self.components.items()}}

    def lines(self, compared: Mapping[str, bool] | None = None) -> list[str]:
        """The same for a terminal. compared: {component: whether its hash was compared}, of those looked at."""
        size = (
            ""
            if self.picture_size is None
            else f", pictures of {self.picture_size[0]} x {self.picture_size[1]}"
        )
        tokens = "" if self.text_length is None else f", prompts of up to {self.text_length:,} tokens"
        reads = f" of {' and '.join(self.takes)}" if self.takes else ""
        found = [
            self.can,
            f"embedder {self.embedder}{reads}{tokens}{size}",
            f"{self.parameters:,} parameters, {size_in_words(self.nbytes)}",
        ]
        for name, record in self.components.items():
            dtypes = ", ".join(record.get("dtypes", ()))
            found.append(f"{name}: {record.get('parameters', 0):,} parameters, {dtypes}")
            found.append(f"  from {origin(record)}")
            if "not_finite" in record:
                found.append(f"  not finite: {', '.join(record['not_finite'])}")
            verified = {None: "", True: ", verified", False: ", nothing to compare with"}[
                (compared or {}).get(name)
            ]
            found.append(f"  sha256 {record.get('sha256', 'unknown')}{verified}")
        return found


def describe(name: str | Path) -> Description:
    """Reads what a bundle says of itself. Raises UserError for an unknown bundle."""
    path = find_bundle(name)
    model, held = read_model(path)
    records = dict(sorted(held.items()))
    reader = embedder_kind(model.embedder).reader
    embedder = embedder_of(model) if reader in records else None
    return Description(
        can=ability(model, records),
        embedder=model.embedder,
        takes=() if embedder is None else _takes(embedder, records),
        picture_size=_picture_size(model) if {"unet", "vae"} <= records.keys() else None,
        text_length=None if embedder is None else embedder.max_positions,
        parameters=sum(record.get("parameters", 0) for record in records.values()),
        nbytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        components=records,
    )


def ability(model: ModelConfig, records: Mapping[str, Record]) -> str:
    """What can be done with components of these records, in words."""
    reader = embedder_kind(model.embedder).reader
    embeds = reader in records and model.tokenizer is not None
    lacks = [name for name in (reader, "unet", "vae") if name not in records]
    if not lacks and embeds:
        return f"will draw noise: {FRESH}" if is_fresh(records) else "draws"
    why = f"it has no {' and no '.join(lacks)}" if lacks else "it has no tokenizer"
    return f"embeds only: {why}" if embeds else f"draws nothing: {why}"


def is_fresh(records: Mapping[str, Record]) -> bool:
    """Whether the UNet's cross-attention was made anew and not trained since."""
    return "fresh" in records.get("unet", {})


def origin(record: Record) -> str:
    """Where a component came from, in words."""
    found = [f"{key} {record[key]}" for key in ("kind", "source") if key in record]
    found += [f"files {', '.join(record['files'])}"] if "files" in record else []
    found += [f"fresh {record['fresh']}"] if "fresh" in record else []
    found += [f"training: {training(record)}"] if "trained" in record else []
    return "; ".join(found) or "training"


def training(record: Record) -> str:
    """What trained a component, in words; of bundles of before, the stage alone."""
    trained = record["trained"]
    if not isinstance(trained, Mapping):
        return f"stage {trained}"
    said = {key: trained.get(key, "unknown") for key in ("stage", "config", "steps", "data", "code")}
    if isinstance(said["steps"], int):
        said["steps"] = f"{said['steps']:,}"
    return "stage {stage} of {config}, {steps} steps on {data}, code {code}".format(**said)


def size_in_words(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def _picture_size(model: ModelConfig) -> tuple[int, int] | None:
    if model.unet is None or model.vae is None:
        return None
    side = model.unet.sample_size * model.vae.multiple
    return side, side


def _takes(embedder: Embedder, records: Mapping[str, Record]) -> tuple[str, ...]:
    of_pictures = [name for name in embedder.components if name.startswith("image_")]
    pictures = embedder.image_encoder is not None and all(name in records for name in of_pictures)
    return ("texts", "pictures") if pictures else ("texts",)

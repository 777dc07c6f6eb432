"""A LoRA file of any format, recognised by what it holds, read and written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mvader_jax.convert.formats.safetensors import write_safetensors
from mvader_jax.convert.lora import own
from mvader_jax.convert.lora.alphas import read_alphas, write_alphas
from mvader_jax.convert.lora.foreign import unread
from mvader_jax.convert.lora.formats import FORMATS, PEFT, Format, reading
from mvader_jax.convert.lora.names import PUBLIC, Layer, layers_of
from mvader_jax.convert.read import open_file
from mvader_jax.convert.tensors import Tensor, Weights, finite, is_float, plain
from mvader_jax.errors import UserError
from mvader_jax.lora.factors import Factors, Lora, factor_shapes
from mvader_jax.models.config import ModelConfig
from mvader_jax.sampling.lora import IN_FOLDER
from mvader_jax.storage.atomic import whole_file


def format_names() -> tuple[str, ...]:
    """What a LoRA can be written as."""
    return (*FORMATS, own.NAME)


def open_lora(path: Path) -> Weights:
    """The tensors of a file, or of the one that diffusers puts into a folder. Raises UserError where there is none."""
    file = path / IN_FOLDER if path.is_dir() else path
    return open_file(file)


def is_lora(weights: Weights) -> bool:
    """Whether these are the tensors of a LoRA file, of a format that is read here."""
    names = weights.tensors
    return own.recognises(names) or any(format.recognises(names) for format in FORMATS.values())


def read_lora(path: str | Path, model: ModelConfig) -> tuple[Lora, str]:
    """(the LoRA, the name of its format). model: what its layers are of.

    Total: every tensor is a factor or an alpha of one of the model's layers. Raises UserError for a file that is none,
    and names what it holds beside: another method, another model, numbers that are not finite.
    """
    file = Path(path)
    weights = open_lora(file)
    try:
        if own.recognises(weights.tensors):
            return own.read(weights, model), own.NAME
        format = next((one for one in FORMATS.values() if one.recognises(weights.tensors)), None)
        if format is None:
            raise UserError(unread(weights.tensors) if weights.tensors else "it holds no tensors")
        return _read(weights, model, format), format.name
    except UserError as error:
        raise UserError(f"{file} cannot be read as a LoRA: {error}") from None


def _read(weights: Weights, model: ModelConfig, format: Format) -> Lora:
    layers, spelled = layers_of(model), reading(format)
    places: dict[str, tuple[Layer, str]] = {}
    for layer in layers:
        names = dict(zip(("down", "up"), spelled.names(layer), strict=True))
        if spelled.alpha is not None:
            names["alpha"] = spelled.alpha(layer)
        places |= {name: (layer, part) for part, name in names.items()}
    found: dict[Layer, dict[str, Tensor]] = {}
    strange = []
    for name, tensor in weights.tensors.items():
        place = places.get(spelled.spelled(name))
        if place is None:
            strange.append(name)
            continue
        parts = found.setdefault(place[0], {})
        if place[1] in parts:
            raise UserError(f"{plain(name)} repeats {plain(parts[place[1]].name)}")
        parts[place[1]] = tensor
    if strange:
        raise UserError(unread(strange))
    ranks = {layer: _rank(layer, parts) for layer, parts in found.items()}
    alphas = (
        read_alphas(weights.metadata, list(found), ranks)
        if spelled.alpha is None
        else {layer: _alpha(parts.get("alpha")) for layer, parts in found.items()}
    )
    lora: dict[str, dict[str, Factors]] = {}
    for (component, path), slices in by_weight(layers).items():
        if any(layer in found for layer in slices):
            lora.setdefault(component, {})[path] = _stacked(slices, found, ranks, alphas)
    return Lora(lora)


def _rank(layer: Layer, parts: Mapping[str, Tensor]) -> int:
    """Raises UserError where a layer's tensors are not all there, or do not fit it or each other."""
    for part in ("down", "up"):
        if part not in parts:
            raise UserError(f"the {part} factor of {layer.name} is missing")
    down, up = parts["down"], parts["up"]
    rank = down.shape[0] if down.shape else 0
    for tensor, shape in zip((down, up), layer.external_shapes(rank), strict=True):
        if tensor.shape != shape or not rank:
            raise UserError(
                f"{plain(tensor.name)} is {list(tensor.shape)} where the model's layer takes {list(shape)}: it is of a "
                "model of other sizes"
            )
        if not is_float(tensor.dtype):
            raise UserError(f"{plain(tensor.name)} is {tensor.dtype}, not floating")
    return rank


def _alpha(tensor: Tensor | None) -> np.ndarray | None:
    if tensor is None:
        return None
    if tensor.shape not in ((), (1,)):
        raise UserError(f"{plain(tensor.name)} is {list(tensor.shape)}; an alpha is one number")
    value = tensor.read()
    if not np.all(np.isfinite(value.astype(np.float64))):
        raise UserError(f"{plain(tensor.name)} is {value}; an alpha is a finite number")
    return value


def _numbers(tensor: Tensor) -> np.ndarray:
    array = tensor.read()
    if not finite(array):
        raise UserError(f"{plain(tensor.name)} holds NaN or infinite numbers")
    return array


def by_weight(layers: Iterable[Layer]) -> dict[tuple[str, str], list[Layer]]:
    """{(component, path): the layers that are its slices, in order}."""
    found: dict[tuple[str, str], list[Layer]] = {}
    for layer in sorted(layers, key=lambda one: (PUBLIC.index(one.component), one.path, one.layer or 0)):
        found.setdefault((layer.component, layer.path), []).append(layer)
    return found


def _stacked(
    slices: Sequence[Layer],
    found: Mapping[Layer, Mapping[str, Tensor]],
    ranks: Mapping[Layer, int],
    alphas: Mapping[Layer, np.ndarray | None],
) -> Factors:
    """The factors of one weight; of those of its slices that a file does not name, zeros of rank 0."""
    here = [layer for layer in slices if layer in found]
    rank = max(ranks[layer] for layer in here)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for layer in slices:
        shapes = factor_shapes(layer.shape, rank)
        if layer not in found:
            like = found[here[0]]
            pairs.append((np.zeros(shapes[0], like["down"].dtype), np.zeros(shapes[1], like["up"].dtype)))
            continue
        down, up = (
            layout.ours(_numbers(found[layer][part]))
            for part, layout in zip(("down", "up"), layer.layouts, strict=True)
        )
        missing = rank - ranks[layer]
        down = np.pad(down, [(0, 0)] * (down.ndim - 1) + [(0, missing)])
        pairs.append((down, np.pad(up, [(0, missing), (0, 0)])))
    down, up = (
        np.stack(arrays) if slices[0].layer is not None else arrays[0] for arrays in zip(*pairs, strict=True)
    )
    return Factors(
        down,
        up,
        tuple(ranks.get(layer, 0) for layer in slices),
        tuple(alphas.get(layer) for layer in slices),
    )


def write_lora(
    file: str | Path, lora: Lora, model: ModelConfig, to: str = "", *, overwrite: bool = False
) -> str:
    """Writes a LoRA of a model's; returns the name of the format.

    to: one of `format_names`; by default PEFT's, where it has a place for every component, and this package's own.
    Raises UserError for another format, and one that has no place for a component.
    """
    beyond = [name for name in lora.components if name not in PUBLIC]
    to = to or (own.NAME if beyond else PEFT.name)
    if to not in format_names():
        raise UserError(f"unknown format {to!r}; accepted: {', '.join(format_names())}")
    if to == own.NAME:
        arrays, metadata = own.arrays(lora), dict[str, str]()
    else:
        if beyond:
            raise UserError(
                f"{to} has no place for the factors of {' and '.join(beyond)}; {own.NAME} has ({' and '.join(PUBLIC)} "
                "are what it holds)"
            )
        arrays, metadata = _external(lora, model, FORMATS[to])
    described = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    with whole_file(file, new=not overwrite) as partial:
        write_safetensors(partial, described, arrays.items(), metadata)
    return to


def _external(lora: Lora, model: ModelConfig, format: Format) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(tensors by their names in the format, its metadata)."""
    arrays: dict[str, np.ndarray] = {}
    ranks: dict[Layer, int] = {}
    alphas: dict[Layer, np.ndarray | None] = {}
    table = by_weight(layers_of(model))
    for component, weights in lora.weights.items():
        for path, factors in weights.items():
            for number, layer in enumerate(table[component, path]):
                rank, alpha = factors.ranks[number], factors.alphas[number]
                if not rank:
                    continue
                ranks[layer], alphas[layer] = rank, alpha
                stacked = layer.layer is not None
                down, up = ((x[number] if stacked else x) for x in (factors.down, factors.up))
                pieces = (down[..., :rank], up[:rank])
                for name, layout, piece in zip(format.names(layer), layer.layouts, pieces, strict=True):
                    arrays[name] = np.ascontiguousarray(layout.external([piece]))
                if format.alpha is not None and alpha is not None:
                    arrays[format.alpha(layer)] = alpha
    # diffusers takes the first name for the way that all are spelled, and turns old words into PEFT's.
    arrays = dict(sorted(arrays.items(), key=lambda item: bool(re.search(r"\.lora_[AB]\.", item[0]))))
    return arrays, {} if format.alpha is not None else write_alphas(alphas, ranks)

"""The layers of a model that a LoRA file can name."""

from __future__ import annotations

import dataclasses
import functools

from mvader_jax.convert.kinds.clip_text import text_links
from mvader_jax.convert.kinds.sd_diffusers import diffusers_name
from mvader_jax.convert.layouts import CONV, LINEAR, POINTWISE, Layout
from mvader_jax.errors import UserError
from mvader_jax.lora.factors import factor_shapes, kernels
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig

Shape = tuple[int, ...]
#: What public files have a place for.
PUBLIC = ("unet", "text_encoder")


@dataclasses.dataclass(frozen=True)
class Layer:
    """A weight, or one slice of a weight that is stacked over layers.

    shape: of the weight or slice; name: in PyTorch's model, after the component, as `unet.mid_block.attentions.0.proj_in`.
    """

    component: str
    path: str
    layer: int | None
    shape: Shape
    name: str

    @property
    def inner(self) -> str:
        """The name within the component."""
        return self.name.partition(".")[2]

    @property
    def layouts(self) -> tuple[Layout, Layout]:
        """(of down, of up) between a file's tensors and ours."""
        return (CONV, POINTWISE) if len(self.shape) == 4 else (LINEAR, LINEAR)

    def external_shapes(self, rank: int) -> tuple[Shape, Shape]:
        """(of down, of up) in a file."""
        (first, second), (down, up) = self.layouts, factor_shapes(self.shape, rank)
        return first.external_shape(down), second.external_shape(up)


def layers_of(model: ModelConfig) -> tuple[Layer, ...]:
    """Every layer of a model that public files have a name for. Raises UserError where there is none."""
    here = tuple(name for name in PUBLIC if getattr(model, name) is not None)
    if not here:
        raise UserError(
            f"this LoRA file is of a {' and a '.join(PUBLIC)}; the model has neither, but {', '.join(model.parts)}"
        )
    return _layers(model, here)


@functools.lru_cache(maxsize=4)
def _layers(model: ModelConfig, components: tuple[str, ...]) -> tuple[Layer, ...]:
    trees, _ = abstract_components(model, components)
    found: list[Layer] = []
    if "unet" in trees:
        for path, leaf in kernels(trees["unet"]).items():
            name = diffusers_name(path).removesuffix(".weight")
            found.append(Layer("unet", path, None, leaf.shape, f"unet.{name}"))
    if "text_encoder" in trees:
        own = kernels(trees["text_encoder"])
        for link in text_links(trees["text_encoder"]):
            if link.path in own:
                shape, name = own[link.path].shape[1:], link.name.removesuffix(".weight")
                found.append(Layer("text_encoder", link.path, link.layer, shape, f"text_encoder.{name}"))
    return tuple(found)

"""FID's InceptionV3: the file of mseitzer/pytorch-fid, `pt_inception-2015-12-05-6726825d.pth`."""

from __future__ import annotations

import re
from typing import Any

from mvader_jax.convert.engine import Skip, SourceMap, links_of
from mvader_jax.convert.kinds.base import Kind, Options, Part, Source, abstract_of
from mvader_jax.convert.layouts import CONV, LINEAR, SAME, Layout
from mvader_jax.convert.settings import Settings, shape_of
from mvader_jax.convert.tensors import Weights
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.inception import InceptionConfig

_SKIPS = (Skip(r".*\.num_batches_tracked", "training counter of a batch norm"),)
_LEAVES = {
    "kernel": "conv.weight",
    "scale": "bn.weight",
    "bias": "bn.bias",
    "mean": "bn.running_mean",
    "var": "bn.running_var",
}
#: Channels of the public network's first convolution.
_FIRST = 32


class Inception(Kind):
    """InceptionV3 by torchvision's names, with the weights and classes of TensorFlow's."""

    name = "inception"
    signs = ((r"Conv2d_1a_3x3\.conv\.weight", r"Mixed_7c\.branch_pool\.conv\.weight", r"fc\.weight"),)

    def read(self, weights: Weights, settings: Settings, options: Options) -> Source:
        if any(name.startswith("AuxLogits.") for name in weights.tensors):
            raise UserError(
                "this is torchvision's own Inception, of other weights and other pools; FID is measured with "
                "pytorch-fid's pt_inception-2015-12-05-6726825d.pth"
            )
        settings.done({})
        first = shape_of(weights.tensors, "Conv2d_1a_3x3.conv.weight", 4)[0]
        classes = shape_of(weights.tensors, "fc.weight", 2)[0]
        if _FIRST % first:
            raise UserError(f"the first convolution has {first} channels, where Inception has {_FIRST}")
        config = InceptionConfig(classes=classes, divisor=_FIRST // first)
        if config.divisor == 1 and classes != InceptionConfig.classes:
            raise UserError(
                f"this Inception has {classes} classes; FID's has {InceptionConfig.classes}, and other weights"
            )
        model = ModelConfig(inception=config)
        abstract = abstract_of(model, "inception")
        return Source(self, (Part(weights, inception_map(abstract["inception"])),), model, abstract)


def inception_map(inception: Any) -> SourceMap:
    """inception: the tree of our component."""

    def rule(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
        module, leaf = path.split("/")
        if module == "fc":
            return (f"fc.{'bias' if leaf == 'bias' else 'weight'}", LINEAR if leaf == "kernel" else SAME, 0)
        module = re.sub(r"^(Mixed_\d[a-e])_", r"\1.", module)
        return f"{module}.{_LEAVES[leaf]}", CONV if leaf == "kernel" else SAME, 0

    return SourceMap("FID's Inception", links_of("inception", inception, rule), _SKIPS)

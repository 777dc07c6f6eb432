"""pytorch-fid beside a torch without torchvision: its own code on stand-ins of the few modules that it takes from there.

torchvision has no build for the CPU torch of the tests. What pytorch-fid takes of it are plain modules, built here
from the architecture (Szegedy et al. 2015, table 1, and the names in FID's own file of weights); the blocks that make
FID's network another than torchvision's, the order of the whole and the formulas are pytorch-fid's.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn

#: What every number of channels but the picture's is divided by.
_divisor = 1


class _Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: Any, stride: int = 1, padding: Any = 0) -> None:
        super().__init__()
        inputs = inputs if inputs == 3 else inputs // _divisor
        outputs //= _divisor
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x)))


_WIDE, _TALL = {"size": (1, 7), "padding": (0, 3)}, {"size": (7, 1), "padding": (3, 0)}


class InceptionA(nn.Module):
    def __init__(self, inputs: int, pool_features: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inputs, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = _Conv(inputs, 48, 1), _Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Conv(inputs, 64, 1)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = _Conv(64, 96, 3, padding=1), _Conv(96, 96, 3, padding=1)
        self.branch_pool = _Conv(inputs, pool_features, 1)


class _Reduction(nn.Module):
    def ends(self, x: torch.Tensor) -> list[torch.Tensor]:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([*self.ends(x), nn.functional.max_pool2d(x, 3, 2)], 1)


class InceptionB(_Reduction):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(inputs, 384, 3, 2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(inputs, 64, 1), _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, 2)

    def ends(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.branch3x3(x), self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))]


class InceptionC(nn.Module):
    def __init__(self, inputs: int, channels_7x7: int) -> None:
        super().__init__()
        inner = channels_7x7
        self.branch1x1 = _Conv(inputs, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = _Conv(inputs, inner, 1), _Conv(inner, inner, **_WIDE)
        self.branch7x7_3 = _Conv(inner, 192, **_TALL)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = _Conv(inputs, inner, 1), _Conv(inner, inner, **_TALL)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = _Conv(inner, inner, **_WIDE), _Conv(inner, inner, **_TALL)
        self.branch7x7dbl_5 = _Conv(inner, 192, **_WIDE)
        self.branch_pool = _Conv(inputs, 192, 1)


class InceptionD(_Reduction):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = _Conv(inputs, 192, 1), _Conv(192, 320, 3, 2)
        self.branch7x7x3_1, self.branch7x7x3_2 = _Conv(inputs, 192, 1), _Conv(192, 192, **_WIDE)
        self.branch7x7x3_3, self.branch7x7x3_4 = _Conv(192, 192, **_TALL), _Conv(192, 192, 3, 2)

    def ends(self, x: torch.Tensor) -> list[torch.Tensor]:
        wide = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return [self.branch3x3_2(self.branch3x3_1(x)), wide]


class InceptionE(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inputs, 320, 1)
        self.branch3x3_1, self.branch3x3dbl_1 = _Conv(inputs, 384, 1), _Conv(inputs, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, padding=1)
        for name in ("branch3x3_2", "branch3x3dbl_3"):
            setattr(self, f"{name}a", _Conv(384, 384, (1, 3), padding=(0, 1)))
            setattr(self, f"{name}b", _Conv(384, 384, (3, 1), padding=(1, 0)))
        self.branch_pool = _Conv(inputs, 192, 1)


class Inception3(nn.Module):
    """The layers by their names; pytorch-fid puts some of its own in their place, and calls them in order."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = _Conv(3, 32, 3, 2), _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = _Conv(64, 80, 1), _Conv(80, 192, 3)
        self.Mixed_6a, self.Mixed_7a = InceptionB(288), InceptionD(768)
        self.fc = nn.Linear(2048 // _divisor, num_classes // _divisor)


def _stand_ins() -> dict[str, ModuleType]:
    names = ("torchvision", "torchvision.models", "torchvision.models.inception", "torchvision.transforms")
    made: dict[str, Any] = {name: ModuleType(name) for name in names}
    made["torchvision"].models, made["torchvision"].__version__ = made["torchvision.models"], "0"
    made["torchvision"].transforms = made["torchvision.transforms"]
    made["torchvision.models"].inception = made["torchvision.models.inception"]
    made["torchvision.models"].inception_v3 = lambda num_classes, **rest: Inception3(num_classes)
    for block in (InceptionA, InceptionC, InceptionE):
        setattr(made["torchvision.models.inception"], block.__name__, block)
    return made


@contextmanager
def _importing() -> Iterator[None]:
    made = _stand_ins()
    sys.modules.update(made)
    try:
        yield
    finally:
        # Nobody else is to find a torchvision.
        for name in made:
            del sys.modules[name]


with _importing():
    inception = importlib.import_module("pytorch_fid.inception")
    fid_score = importlib.import_module("pytorch_fid.fid_score")


def network(divisor: int = 1, seed: int = 0) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """(pytorch-fid's network with random weights, its state as FID's file has it)."""
    global _divisor
    _divisor = divisor
    kept: dict[str, torch.Tensor] = {}
    load = nn.Module.load_state_dict

    def drawn(self: nn.Module, state: Any, *rest: Any, **named: Any) -> Any:
        if state is not None:
            return load(self, state, *rest, **named)
        generator = torch.Generator().manual_seed(seed)
        for name, value in self.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim > 1:
                value.copy_(noise * (2 / value[0].numel()) ** 0.5)
            else:
                value.copy_((1 if name.endswith(("bn.weight", "var")) else 0) + 0.1 * noise)
        kept.update({name: value.clone() for name, value in self.state_dict().items()})
        return None

    before = inception.load_state_dict_from_url
    inception.load_state_dict_from_url = lambda *a, **k: None
    nn.Module.load_state_dict = drawn  # type: ignore[method-assign, assignment]
    try:
        made = inception.InceptionV3().eval()
    finally:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]
        inception.load_state_dict_from_url = before
        _divisor = 1
    return made, kept

"""FID's Inception against pytorch-fid's own, converted from its state dict, on random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import pytorch_fid_here
import torch
from converting import converted

from mvader_jax.convert.engine import external
from mvader_jax.convert.kinds.inception import inception_map
from mvader_jax.errors import UserError
from mvader_jax.models.inception import Inception, InceptionConfig
from mvader_jax.scores.preprocess import RESIZES


def check(tmp_path: Path, divisor: int, sizes: list[tuple[int, int]]) -> None:
    theirs, state = pytorch_fid_here.network(divisor)
    torch.save(state, tmp_path / "pt_inception.pth")
    bundle = converted(tmp_path / "pt_inception.pth", tmp_path / "out")
    config = bundle.model.require(InceptionConfig)
    assert (config.divisor, config.classes) == (divisor, 1008 // divisor)
    run = jax.jit(Inception(config).apply)
    for height, width in sizes:
        pixels = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
        with torch.no_grad():
            expected = theirs(torch.tensor(pixels).permute(0, 3, 1, 2) / 255)[0][..., 0, 0].numpy()
        ours, logits = run(
            {"params": bundle.components["inception"]}, RESIZES["pytorch-fid"].pixels(pixels[0], 299)[None]
        )
        assert np.linalg.norm(ours - expected) <= 2e-5 * np.linalg.norm(expected)
        told = expected @ state["fc.weight"].numpy().T + state["fc.bias"].numpy()
        assert np.linalg.norm(logits - told) <= 2e-5 * np.linalg.norm(told)


def test_features_and_logits(tmp_path: Path) -> None:
    check(tmp_path, 16, [(37, 53), (299, 299), (301, 512)])


@pytest.mark.slow
def test_features_and_logits_of_the_full_size(tmp_path: Path) -> None:
    check(tmp_path, 1, [(64, 97)])


def test_the_map_goes_both_ways(tmp_path: Path) -> None:
    _, state = pytorch_fid_here.network(16)
    torch.save(state, tmp_path / "pt_inception.pth")
    bundle = converted(tmp_path / "pt_inception.pth", tmp_path / "out")
    tree = bundle.components["inception"]

    def read(component: str, path: str, layer: int | None) -> np.ndarray:
        module, leaf = path.split("/")
        return np.asarray(tree[module][leaf])

    back = dict(external(inception_map(tree), {"inception": tree}, read))
    assert set(state) - set(back) == {name for name in state if name.endswith("num_batches_tracked")}
    for name, array in back.items():
        np.testing.assert_array_equal(array, state[name].numpy())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"AuxLogits.fc.weight": torch.zeros(2, 2)}, "torchvision's own Inception"),
        ({"fc.weight": None}, "none of the kinds that are known"),
        ({"Mixed_5b.branch1x1.bn.bias": None}, "missing Mixed_5b.branch1x1.bn.bias"),
        ({"Conv2d_9.conv.weight": torch.zeros(2, 2)}, "unexpected Conv2d_9.conv.weight"),
    ],
)
def test_another_inception_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    state = {**pytorch_fid_here.network(16)[1], **change}
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "pt_inception.pth")
    with pytest.raises(UserError, match=said):
        converted(tmp_path / "pt_inception.pth", tmp_path / "out")

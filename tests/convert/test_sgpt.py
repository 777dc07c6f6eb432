"""SGPT: a finetune of biases alone, of a language model that is named."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
import twins
from converting import convert, converted

from mvader_jax.errors import UserError


@pytest.mark.parametrize("base", ["folder", "half-precision folder", "bundle"])
def test_sgpt_biases(tmp_path: Path, base: str) -> None:
    gptj = twins.gptj()
    if base == "half-precision folder":
        gptj = gptj.half().float()
    state = twins.finetuned(gptj)
    source = twins.save_folder(tmp_path / "sgpt", state, gptj.config.to_dict(), kind="bin", shards=2)
    start = twins.save_folder(tmp_path / "gptj", gptj.state_dict(), gptj.config.to_dict())
    if base == "half-precision folder":
        start = twins.save_folder(tmp_path / "half", gptj.half().state_dict(), gptj.config.to_dict())
    elif base == "bundle":
        convert(start, tmp_path / "base")
        start = tmp_path / "base"
    bundle = converted(source, tmp_path / "out", base=start)
    assert set(bundle.components) == {"biases"}
    leaves = jax.tree_util.tree_flatten_with_path(bundle.components["biases"])[0]
    assert {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves} == {
        "layers/ln_1/bias",
        "layers/mlp/fc_in/bias",
        "layers/mlp/fc_out/bias",
        "ln_f/bias",
    }
    np.testing.assert_array_equal(
        bundle.components["biases"]["layers"]["ln_1"]["bias"][2], state["h.2.ln_1.bias"]
    )


def test_sgpt_that_changed_more_than_biases_is_refused(tmp_path: Path) -> None:
    gptj = twins.gptj()
    start = twins.save_folder(tmp_path / "gptj", gptj.state_dict(), gptj.config.to_dict())
    state = twins.finetuned(gptj, "h.1.mlp.fc_in.weight", "wte.weight")
    source = twins.save_folder(tmp_path / "sgpt", state, gptj.config.to_dict())
    with pytest.raises(UserError, match=r"^2 of \d+ tensors that are no biases differ"):
        convert(source, tmp_path / "out", base=start)
    with pytest.raises(UserError, match="pass --base"):
        convert(source, tmp_path / "out")
    with pytest.raises(UserError, match="--base belongs to finetunes of biases alone"):
        convert(start, tmp_path / "out", base=start)
    assert not (tmp_path / "out").exists()

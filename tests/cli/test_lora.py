"""LoRA files on the command line: what does not go together is one sentence, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mvader_jax.cli.main import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sample a --lora none.safetensors@0.5", "none.safetensors does not exist"),
        ("sample a --lora style.safetensors@much", "the strength of 'style.safetensors@much' is 'much'"),
        (
            "sample a --lora style.safetensors",
            "holds weight, which is no factor of a layer that this model has",
        ),
        ("bundle out --merge-lora style.safetensors", "--base the bundle they change; give both"),
        (
            "bundle out --base tiny",
            "--base alone changes nothing; give --merge-lora, --without, or a component",
        ),
        (
            "bundle out --base tiny --unet tiny --merge-lora style.safetensors",
            "--unet does nothing for --merge-lora",
        ),
        ("bundle out --base tiny --merge-lora style.safetensors", "cannot be read as a LoRA"),
        ("export style.safetensors out --to kohya --dtype float16", "a LoRA file is written as it is"),
        ("export style.safetensors out --to kohya", "cannot be read as a LoRA"),
        ("export tiny out --to diffusers --base tiny", "--base belongs to a LoRA file"),
    ],
)
def test_refused(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"weight": np.ones(2, np.float32)}, "style.safetensors")
    with pytest.raises(SystemExit) as done:
        main([*words.split(), "--quiet"])
    assert done.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("mvader: ") and said in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["style.safetensors"]

"""Every command that writes, told to write to a URL: one sentence that names the mount, and no folder `gs:`."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvader_jax.cli.main import main

TINY = str(Path(__file__).parents[2] / "configs" / "tiny.py")
CHEAP = ["stages.vae.steps=1", "stages.vae.batch_size=8"]


@pytest.mark.parametrize("url", ["gs://b/x", "s3://b/x", "memory://x", "gs://x"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "red", "--out", "URL"],
        ["sample", "--prompts", "lines.jsonl", "--out", "URL"],
        ["demo", "--out", "URL"],
        ["figure", "7", "--out", "URL.png"],
        ["evaluate", "--out", "URL.json"],
        ["score", "pictures", "--reference", "real", "--keep", "URL"],
        ["score", "pictures", "--reference", "real", "--save-stats", "URL.npz"],
        ["plan", TINY, "--topology", "v5e:2x2", "--out", "URL.json"],
        ["train", TINY, *CHEAP, "--stage", "vae", "--workdir", "URL"],
        ["data", "build", "scenes", "4", "URL"],
        ["data", "scenes", "URL", "--count", "2"],
        ["data", "encode", TINY, "scenes", "URL"],
        ["data", "describe", "built", "--sheet", "URL.png"],
        ["export", "tiny", "URL", "--to", "diffusers"],
        ["bundle", "URL", "--unet", "tiny"],
        ["convert", "model.safetensors", "URL"],
        ["sample", "red", "--bundle", "URL"],
        ["bundle", "URL", "--describe"],
        ["export", "URL", "out", "--to", "diffusers"],
    ],
    ids=lambda arguments: " ".join(Path(word).name for word in arguments[:4]),
)
def test_urls(
    arguments: list[str],
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.jsonl").write_text('{"prompt": "a red circle"}\n')
    with pytest.raises(SystemExit) as stopped:
        main([word.replace("URL", url) for word in arguments])
    error = capsys.readouterr().err
    print(error)
    assert stopped.value.code == 2
    assert "is not on this machine's file system: mount" in error
    assert error.startswith("mvader: ") and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["lines.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["plan", TINY, "--topology", "v5e:2x2", "--out", "FILE.json"], "exists already and holds no plan"),
        (["data", "describe", "built", "--sheet", "FILE.png"], "exists already and is no contact_sheet"),
        (["data", "describe", "built", "--sheet", "FILE.tex"], "is no name of a PNG"),
        (["evaluate", "--out", "FILE.json"], "exists already and holds no numbers of an evaluation"),
        (["figure", "7", "--out", "FILE.png"], "exists already and is no figure that mvader drew"),
    ],
)
def test_a_users_file_is_never_replaced(
    arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("FILE", str(tmp_path / "mine")) for word in arguments]
    Path(words[-1]).write_text('{"mine": 1}')
    with pytest.raises(SystemExit) as stopped:
        main(words)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and reason in error and error.count("\n") == 1, error
    assert Path(words[-1]).read_text() == '{"mine": 1}'
    assert len(list(tmp_path.iterdir())) == 1

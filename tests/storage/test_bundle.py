"""Bundles that are not as they were written: one sentence each, from whichever command reads them."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import micro
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mvader_jax.cli.main import main
from mvader_jax.errors import UserError
from mvader_jax.storage.bundle import check_whole, load_bundle, save_bundle, summary, verify
from mvader_jax.storage.bundle_config import ASSETS, not_ours, read_config, write_config
from mvader_jax.storage.reader import Leaf
from mvader_jax.storage.stream import write_component

TINY = ASSETS / "tiny"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same bundle as a training writes it and as a conversion does."""
    folder, made = tmp_path_factory.mktemp("bundles"), micro.bundle(micro.NANO)
    save_bundle(folder / "trained", made)
    converted = folder / "converted"
    records = {}
    for name, tree in made.components.items():
        flat = sorted(flatten_dict(tree, sep="/").items())
        leaves = [
            Leaf(p, x.shape, np.dtype(x.dtype), False, lambda x=x: iter([np.asarray(x)])) for p, x in flat
        ]
        records[name] = write_component(converted / name, leaves)
    assert made.tokenizer is not None
    made.tokenizer.save(converted / "tokenizer")
    write_config(converted, made.model, records)
    return {path.name: path for path in (folder / "trained", converted)}


def largest(component: Path) -> Path:
    """The file with the most numbers."""
    files = [f for f in component.rglob("*") if f.is_file() and not f.name.startswith(("_", ".", "manifest"))]
    return max(files, key=lambda file: file.stat().st_size)


def hole(component: Path) -> None:
    largest(component).unlink()


def cut(component: Path) -> None:
    file = largest(component)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(component: Path) -> None:
    largest(component).write_bytes(b"")


def flipped(component: Path) -> None:
    data = bytearray(largest(component).read_bytes())
    data[len(data) // 2] ^= 0x10
    largest(component).write_bytes(data)


def odd_metadata(component: Path) -> None:
    (component / "_METADATA").write_text('{"tree_metadata": 3}')


def no_arrays(component: Path) -> None:
    for file in (*component.glob("manifest.ocdbt"), *component.glob("*/.zarray")):
        file.unlink()


def gone(component: Path) -> None:
    shutil.rmtree(component)


DAMAGES: dict[Callable[[Path], None], str] = {
    hole: "",
    cut: "",
    empty: "",
    # Where the byte is one of the compressor's own, it is the compressor that notices.
    flipped: "is damaged: its numbers are not those that were written|cannot be read: .*ZSTD",
    odd_metadata: "is not a whole checkpoint",
    no_arrays: "",
    gone: "is missing",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("written", ["trained", "converted"])
def test_damage(
    bundles: dict[str, Path],
    written: str,
    damage: Callable[[Path], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(bundles[written], bundle)
    damage(bundle / "vae")
    for command in (
        ["sample", "red", "--bundle", "BUNDLE", "--out", "out"],
        ["export", "BUNDLE", "out", "--to", "diffusers"],
        ["bundle", "out", "--vae", "BUNDLE"],
        ["bundle", "BUNDLE", "--verify"],
    ):
        with pytest.raises(SystemExit) as stopped:
            main([{"BUNDLE": str(bundle), "out": str(tmp_path / "out")}.get(word, word) for word in command])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and not (tmp_path / "out").exists()
        assert error.startswith("mvader: ") and error.count("\n") == 1 and len(error) < 700, error
        assert f"{bundle / 'vae'}" in error and re.search(DAMAGES[damage], error), error
    # As stages and encodings start: on a mesh, or in another dtype.
    mesh = jax.make_mesh((8,), ("fsdp",))
    ways: list[dict[str, Any]] = [{"mesh": mesh}, {"dtype": "bfloat16"}]
    for options in ways[: 1 if damage is flipped else 2]:
        with pytest.raises(UserError, match=f"{bundle / 'vae'}"):
            load_bundle(bundle, components=["vae"], **options)


def test_a_refusal_is_one_line_whatever_the_libraries_say(bundles: dict[str, Path], tmp_path: Path) -> None:
    """Reads that are under way when orbax gives up complain from threads of their own, until the process ends."""
    commands = []
    for written, bundle in bundles.items():
        for damage in (hole, cut, no_arrays):
            copy = tmp_path / f"{written}-{damage.__name__}"
            shutil.copytree(bundle, copy)
            for component in copy.iterdir():
                if component.is_dir() and component.name != "tokenizer":
                    damage(component)
            for mesh in ([], ["--mesh", "data=2"]):
                out = str(tmp_path / "out")
                commands.append(["sample", "red", "--bundle", str(copy), "--out", out, *mesh])
    program = f"""
from mvader_jax.cli.main import main
for command in {commands}:
    try:
        main(command)
    except SystemExit:
        pass
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stderr.splitlines()
    assert len(lines) == len(commands) and all(line.startswith("mvader: ") for line in lines), done.stderr


def test_of_reads_that_fail_together_one_is_told(
    bundles: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Which of several tasks ends first is a race: so their errors are told to asyncio's log here, as it does."""
    copy = tmp_path / "copy"
    shutil.copytree(next(iter(bundles.values())), copy)
    cut(copy / "vae")
    with pytest.raises(UserError):
        load_bundle(copy, components=["vae"])
    for message, told in (("DATA_LOSS: Error reading 'kernel' in database", False), ("a bug", True)):
        caplog.clear()

        async def fail(message: str = message) -> None:
            raise ValueError(message)

        async def leave() -> None:
            task = asyncio.ensure_future(fail())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            del task

        asyncio.run(leave())
        gc.collect()
        assert bool(caplog.records) == told


def test_files_of_a_large_component_are_counted_unread(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mvader bundle` links what a conversion wrote, gigabytes of it, without reading."""
    monkeypatch.setattr("mvader_jax.storage.bundle._ALWAYS_VERIFIED_BYTES", 0)
    monkeypatch.setattr("mvader_jax.storage.bundle.verify", lambda *_: pytest.fail("it was read"))
    check_whole(bundles["converted"], "vae")
    for damage, reason in ((hole, "is missing"), (cut, "is cut"), (empty, "is cut")):
        copy = tmp_path / damage.__name__
        shutil.copytree(bundles["converted"], copy)
        damage(copy / "vae")
        with pytest.raises(UserError, match=f"vae: .* cannot be read: its file .* {reason}"):
            check_whole(copy, "vae")


def test_verify_says_what_was_compared(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for bundle in (*bundles.values(), TINY):
        compared = verify(bundle)
        assert set(compared) == set(read_config(bundle)["components"]) and all(compared.values())
    data = json.loads((bundles["trained"] / "config.json").read_text())
    copy = tmp_path / "copy"
    shutil.copytree(bundles["trained"], copy)
    del data["components"]["vae"]["sha256"]
    (copy / "config.json").write_text(json.dumps(data))
    with pytest.raises(SystemExit):
        main(["bundle", str(copy), "--verify"])
    out = capsys.readouterr().out
    assert "sha256 unknown, nothing to compare with" in out
    assert out.count(", verified") == len(data["components"]) - 1
    # Several processes used to leave the hash of what a training had started from; now none.
    data["components"]["unet"] |= {"sha256": "0" * 64, "trained": "diffusion"}
    (copy / "config.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="unet is damaged"):
        load_bundle(copy)
    del data["written_by"]
    (copy / "config.json").write_text(json.dumps(data))
    assert "unet" in load_bundle(copy).components and verify(copy)["unet"] is False


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "is of format 2, which this version does not read"),
        ({"format": "1"}, "is not a bundle config of mvader_jax"),
        ({"model": None}, "expected the fields of ModelConfig"),
        ({"stranger": 1}, "unknown key 'stranger'"),
        ({"components": ["vae"]}, "components"),
        ({"components": {"controlnet": {}}}, "unknown component 'controlnet'"),
        ({"components": {"vae": 3}}, "components.vae is 3"),
        (
            {"components": {"vae": {"parameters": "many"}}},
            "components.vae.parameters is 'many'; expected int",
        ),
        ({"components": {"vae": {"dtypes": "float32"}}}, "components.vae.dtypes is 'float32'"),
        ({"components": {"text_encoder": {}}}, "holds text_encoder, but its model has no text_encoder"),
    ],
)
def test_a_malformed_config_is_one_sentence(
    change: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads((TINY / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data | change))
    with pytest.raises(SystemExit) as stopped:
        main(["bundle", str(tmp_path), "--describe"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("mvader: ") and error.count("\n") == 1 and reason in error, error


def _paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    here = [path] if path else []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return here + [found for key, value in items for found in _paths(value, (*path, key))]


CONFIG = json.loads((TINY / "config.json").read_text())
#: Sizes that are accepted are small: a UNet of a billion channels is traced.
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**40), 40),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-3, 20), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(0, 3), max_size=2),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(path=st.sampled_from(_paths(CONFIG)), value=VALUES, how=st.sampled_from(["set", "set", "drop", "add"]))
def test_any_config_loads_or_is_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, path: tuple[Any, ...], value: Any, how: str
) -> None:
    data = json.loads(json.dumps(CONFIG))
    place = data
    for key in path[:-1]:
        place = place[key]
    if how == "drop":
        del place[path[-1]]
    elif how == "add" and isinstance(place, dict):
        place["stranger"] = value
    else:
        place[path[-1]] = value
    bundle = tmp_path_factory.mktemp("bundle")
    for entry in TINY.iterdir():
        if entry.name != "config.json":
            (bundle / entry.name).symlink_to(entry)
    (bundle / "config.json").write_text(json.dumps(data))
    error = ""
    try:
        load_bundle(bundle, components=["vae", "image_prefix"])
    except UserError as refusal:
        error = str(refusal)
    assert "\n" not in error and len(error) < 700


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "no tokenizer"),
        ("", "vocab.json' does not exist"),
        ("{", "is not a tokenizer that can be read"),
        ('{"model": 3}', "is not a tokenizer that can be read"),
    ],
)
def test_a_missing_or_damaged_tokenizer_is_one_sentence(
    text: str | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for entry in TINY.iterdir():
        if entry.name != "tokenizer":
            (bundle / entry.name).symlink_to(entry)
    if text is not None:
        (bundle / "tokenizer").mkdir()
    if text:
        (bundle / "tokenizer" / "tokenizer.json").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main(["sample", "red", "--bundle", str(bundle), "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and reason in error, error
    assert error.startswith("mvader: ") and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_no_file_of_a_bundle_says_where_it_was_made(bundles: dict[str, Path]) -> None:
    here = str(bundles["trained"].parent).encode()
    files = [path for bundle in bundles.values() for path in bundle.rglob("*") if path.is_file()]
    assert len(files) > 50 and not [path for path in files if here in path.read_bytes()]


def test_only_what_this_package_wrote_is_ours(bundles: dict[str, Path], tmp_path: Path) -> None:
    assert [not_ours(path) for path in (*bundles.values(), TINY)] == ["", "", ""]
    model = tmp_path / "hf"
    model.mkdir()
    assert not_ours(model) == ""
    (model / "config.json").write_text('{"architectures": ["GPTJForCausalLM"], "format": 1}')
    assert not_ours(model) == "it holds no bundle that mvader wrote"
    old = {key: value for key, value in CONFIG.items() if key != "written_by"}
    for data, ours in (
        (old, True),
        ({**old, "written_by": "somebody else"}, False),
        ({**old, "format": 2}, False),
        ({**old, "more": 1}, False),
        ({**old, "components": 3}, False),
    ):
        (model / "config.json").write_text(json.dumps(data))
        assert (not_ours(model) == "") is ours, data.keys()
    (model / "config.json").write_text(json.dumps(old))
    (model / "notes.txt").write_text("mine")
    assert not_ours(model) == "beside a bundle it holds notes.txt"


@pytest.mark.parametrize("file", ["unet/notes.txt", "unet/d/photo.png", "tokenizer/my_vocabulary.json"])
def test_a_file_of_the_users_within_a_component_is_not_ours(tmp_path: Path, file: str) -> None:
    bundle = tmp_path / "b"
    shutil.copytree(TINY, bundle)
    (bundle / file).write_text("mine")
    assert not_ours(bundle) == f"beside a bundle it holds {file}"


def test_a_trained_component_does_not_keep_the_hash_of_its_start(tmp_path: Path, monkeypatch: Any) -> None:
    """Several processes cannot hash what none of them holds whole: then nothing is said."""
    made = micro.bundle(micro.NANO, "image_prefix")
    made.records = {"image_prefix": {"sha256": "of the start", "trained": "captioning"}}
    without = {
        key: value for key, value in summary(made.components["image_prefix"]).items() if key != "sha256"
    }
    monkeypatch.setattr("mvader_jax.storage.bundle.summary", lambda tree: without)
    save_bundle(tmp_path / "b", made)
    record = read_config(tmp_path / "b")["components"]["image_prefix"]
    assert "sha256" not in record and record["trained"] == "captioning"

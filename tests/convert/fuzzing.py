"""Mutations of every kind's settings, of safetensors headers and of torch archives.

    python tests/convert/fuzzing.py configs|headers|archives --seconds 600 --seed 0

Whatever is made of a file, it is accepted or refused in one sentence; what is accepted has the numbers that the
format's own library reads. Prints how many of each.
"""

# Run as a script, it finds its neighbours as pytest does.
# ruff: noqa: E402
from __future__ import annotations

import argparse
import collections
import io
import json
import math
import random
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "parity")]

import numpy as np
import torch
import twins
from safetensors.torch import load_file, save_file
from test_sources import save_clip

from mvader_jax.convert.engine import match
from mvader_jax.convert.export import export
from mvader_jax.convert.kinds.base import Options
from mvader_jax.convert.read import open_file
from mvader_jax.convert.sources import open_source
from mvader_jax.errors import UserError

Counts = collections.Counter
#: What a key may be set to; JSON writes NaN and Infinity as Python reads them.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 4, 5, 7, 8, 9, 16, 24, 36, 48, 64, 1000, 10**6, 10**30, -(10**9),
    0.0, 0.5, 1.0, -0.5, 1e-5, 1e300, math.inf, -math.inf, math.nan, "", "x", "16", "é\u2028", "\udcff",
    "linear", "gelu", "silu", [], [0], [8], [16, 24], [16, 24.5], [-1, 2], ["x"], [None], [[1]], {}, {"a": 1},
    {"rope_type": "linear", "factor": 2.0}, ["CrossAttnDownBlock2D", "DownBlock2D"], ["DownBlock2D"], "x" * 3000,
    list(range(500)),
)  # fmt: skip
#: Keys of newer or other models, which may stand in any file.
STRANGE_KEYS = (
    "rope_scaling", "rope_parameters", "timestep_spacing", "thresholding", "shift_factor", "quantization_config",
    "text_config", "adapter_config", "schedule", "hidden_act", "num_attention_heads", "norm_eps", "image_size",
    "n_inner", "scaling_factor", "latents_mean", "_class_name", "model_type", "unknown key", "", "pruned_heads",
)  # fmt: skip


def sources(folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """(name, source, the settings in it that are mutated) of every kind."""
    gptj, neox, text = twins.gptj(), twins.gpt_neox(), twins.clip_text()
    for name, model in (("gptj", gptj), ("gpt-neox", neox), ("clip-text", text)):
        source = twins.save_folder(folder / name, model.state_dict(), model.config.to_dict())
        yield name, source, source / "config.json"
    sgpt = twins.save_folder(folder / "sgpt", twins.finetuned(gptj), gptj.config.to_dict())
    yield "sgpt-biases", sgpt, sgpt / "config.json"
    sd = twins.save_diffusers(folder / "sd", twins.unet(), twins.vae(), text)
    for part in ("unet", "vae", "text_encoder"):
        yield f"diffusers {part}", sd, sd / part / "config.json"
    yield "diffusers scheduler", sd, sd / "scheduler" / "scheduler_config.json"
    yield "diffusers index", sd, sd / "model_index.json"
    magma = twins.save_magma(folder / "magma", twins.magma(1))
    yield "magma", magma, magma.with_name("config.json")
    resnet = save_clip(folder / "clip", twins.clip(), "state dict")
    resnet.with_name("config.json").write_text('{"image_size": 96}')
    yield "clip-resnet", resnet, resnet.with_name("config.json")
    # Through a conversion, which needs sd as it is.
    from converting import convert

    convert(sd, folder / "bundle")
    export(folder / "bundle", folder / "compvis", "compvis")
    yield "compvis", folder / "compvis", folder / "compvis" / "config.json"


def mutated_settings(values: dict[str, Any], rng: random.Random) -> str:
    """JSON of settings with a few keys changed, lost or added; now and then broken text."""
    values = json.loads(json.dumps(values))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        key = rng.choice([*values, *values, *STRANGE_KEYS] or ["x"])
        if rng.random() < 0.1:
            values.pop(key, None)
        else:
            values[key] = rng.choice(VALUES)
    text = json.dumps(values)
    if rng.random() < 0.05:
        place = rng.randrange(len(text))
        text = (
            text[:place]
            + rng.choice(("", "}", "\x00", "[" * 2000, '"'))
            + text[place + rng.choice((0, 1, 5)) :]
        )
    return text


def judged(attempt: Callable[[], None], counts: Counts[str], name: str, what: str) -> bool:
    """Whether an attempt is accepted; a refusal is one sentence. Anything else is a fault."""
    try:
        attempt()
    except UserError as error:
        message = str(error)
        assert "\n" not in message and 10 < len(message) < 1500, (what, message)
        assert "object at 0x" not in message and "Traceback" not in message, (what, message)
        counts[f"{name}: refused"] += 1
        return False
    except (Exception, RecursionError) as error:
        raise AssertionError(f"{name}: {type(error).__name__}: {error}; with {what[:3000]}") from error
    counts[f"{name}: accepted"] += 1
    return True


def fuzz_configs(folder: Path, rng: random.Random, go_on: Callable[[], bool]) -> Counts[str]:
    counts: Counts[str] = collections.Counter()
    cases = list(sources(folder))
    while go_on():
        name, source, file = rng.choice(cases)
        before = file.read_text()
        text = mutated_settings(json.loads(before), rng)
        file.write_bytes(text.encode("utf-8", "surrogatepass"))

        def attempt(source: Path = source) -> None:
            opened = open_source(source, None, Options())
            for part in opened.parts:
                match(part.source_map, part.weights.tensors, opened.abstract)

        try:
            judged(attempt, counts, name, text)
        finally:
            file.write_text(before)
    return counts


def mutated_header(header: dict[str, Any], rng: random.Random) -> Any:
    header = json.loads(json.dumps(header))
    odd = (*VALUES, [3, 2], [0, 24], [24, 48], [0, 1 << 62], "F32", "F8_E4M3", "U16", "C64", "BF16")
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(header) or ["x"])
        entry = header.get(name)
        action = rng.random()
        if action < 0.6 and isinstance(entry, dict) and entry:
            entry[rng.choice([*entry, "dtype", "shape", "data_offsets"])] = rng.choice(odd)
        elif action < 0.75:
            header[name] = rng.choice(odd)
        elif action < 0.85:
            header.pop(name, None)
        else:
            header[rng.choice(("x", "", "__metadata__", "new"))] = rng.choice((entry, *odd))
    return header if rng.random() < 0.97 else rng.choice(VALUES)


def fuzz_headers(folder: Path, rng: random.Random, go_on: Callable[[], bool]) -> Counts[str]:
    counts: Counts[str] = collections.Counter()
    file = folder / "x.safetensors"
    state = {"a": torch.randn(3, 2), "b": torch.randn(4, dtype=torch.float16), "c": torch.arange(3)}
    save_file(state, file, metadata={"format": "pt"})
    original = file.read_bytes()
    (length,) = struct.unpack("<Q", original[:8])
    header = json.loads(original[8 : 8 + length])
    while go_on():
        data = original[8 + length :]
        if rng.random() < 0.6:
            text = json.dumps(mutated_header(header, rng)).encode("utf-8", "surrogatepass")
            claimed = (
                len(text) if rng.random() < 0.9 else rng.choice((0, 7, len(text) + 3, 1 << 40, (1 << 64) - 1))
            )
            content = struct.pack("<Q", claimed) + text + data
        else:
            content = corrupted(original, rng)
        file.write_bytes(content)

        def attempt(content: bytes = content) -> None:
            weights = open_file(file)
            arrays = {name: tensor.read() for name, tensor in weights.tensors.items()}
            try:
                theirs = load_file(file)
            except Exception as error:
                counts[f"accepted, but not by safetensors: {str(error)[:60]}"] += 1
                return
            assert arrays.keys() == theirs.keys(), content[:400]
            for name, array in arrays.items():
                assert array.tobytes() == bits(theirs[name]).tobytes(), (name, content[:400])

        judged(attempt, counts, "safetensors", repr(content[:600]))
    return counts


def bits(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    return np.asarray((tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy())


def corrupted(content: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut out, doubled or cut off."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place = rng.randrange(max(len(data), 1))
        action = rng.random()
        if action < 0.6 and data:
            data[place] = rng.randrange(256)
        elif action < 0.75:
            del data[place : place + rng.choice((1, 8, 64))]
        elif action < 0.9:
            data[place:place] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 4, 30))))
        else:
            del data[place:]
    return bytes(data)


def repacked(content: bytes, rng: random.Random) -> bytes:
    """A zip archive written again: compressed, members lost, doubled, renamed or corrupted."""
    out = io.BytesIO()
    way = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(out, "w", way) as after:
        names = before.namelist()
        rng.shuffle(names) if rng.random() < 0.3 else None
        for name in names:
            data, action = before.read(name), rng.random()
            if action < 0.05:
                continue
            if action < 0.15:
                data = corrupted(data, rng)
            elif action < 0.2:
                name = rng.choice((name + "x", "other/" + name.split("/")[-1], name.split("/")[-1]))
            after.writestr(name, data)
    return out.getvalue()


def archives(folder: Path) -> dict[str, bytes]:
    big = torch.randn(6, 8)
    state = {"a": big, "b": big.T, "half": torch.randn(5).half(), "brain": torch.randn(3).bfloat16()}
    made = {}
    torch.save({"state_dict": state, "epoch": 3}, folder / "new.pt")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    layer = torch.nn.Linear(4, 3)
    torch.jit.save(torch.jit.trace(layer, torch.randn(1, 4)), folder / "script.pt")
    for name in ("new", "old", "script"):
        made[name] = (folder / f"{name}.pt").read_bytes()
    return made


def fuzz_archives(folder: Path, rng: random.Random, go_on: Callable[[], bool]) -> Counts[str]:
    counts: Counts[str] = collections.Counter()
    originals = archives(folder)
    file = folder / "x.pt"
    while go_on():
        name = rng.choice(sorted(originals))
        content = originals[name]
        content = repacked(content, rng) if name != "old" and rng.random() < 0.5 else corrupted(content, rng)
        file.write_bytes(content)

        def attempt(name: str = name) -> None:
            weights = open_file(file)
            arrays = {key: tensor.read() for key, tensor in weights.tensors.items()}
            if name == "script":
                return
            try:
                theirs = torch.load(file, weights_only=True)
            except Exception:
                counts[f"{name}: accepted, but not by torch.load"] += 1
                return
            while isinstance(theirs.get("state_dict"), dict):
                theirs = theirs["state_dict"]
            for key, array in arrays.items():
                if isinstance(theirs.get(key), torch.Tensor):
                    assert array.tobytes() == bits(theirs[key]).tobytes(), key

        judged(attempt, counts, name, repr(content[:300]))
    return counts


FUZZERS: dict[str, Callable[[Path, random.Random, Callable[[], bool]], Counts[str]]] = {
    "configs": fuzz_configs,
    "headers": fuzz_headers,
    "archives": fuzz_archives,
}


def run(what: str, *, seed: int, seconds: float = math.inf, times: float = math.inf) -> Counts[str]:
    """Fuzzes for so long, or so often."""
    done, begun = 0, time.monotonic()

    def go_on() -> bool:
        nonlocal done
        done += 1
        return done <= times and time.monotonic() - begun < seconds

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FUZZERS[what](Path(folder), random.Random(seed), go_on)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=FUZZERS)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    end, seed, total = time.monotonic() + given.seconds, given.seed, Counts()
    while time.monotonic() < end:
        try:
            total += run(given.what, seed=seed, seconds=end - time.monotonic())
        except AssertionError as fault:
            total["FAULTS"] += 1
            print(f"seed {seed}: {str(fault)[:800]}", flush=True)
        seed += 1
    for name, count in sorted(total.items()):
        print(f"{name}: {count:,}")

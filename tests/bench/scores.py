"""Scores beside the programs that others measure with: `parity`, a table of errors; `throughput`, and memory.

    python tests/bench/scores.py parity
    python tests/bench/scores.py throughput --pictures 10000

Random weights of the full size and random pictures. Either program looks at the same files with the same weights in a
process of its own, one after the other. Of each run the first batch, which compiles, is timed apart from the rest, and
neither time holds imports and the reading of weights. pytorch-fid is itself, on stand-ins for what it takes from
torchvision (tests/scores/pytorch_fid_here.py).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "scores")]

import numpy as np  # noqa: E402
import PIL.Image  # noqa: E402


def save_pictures(folder: Path, count: int, side: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
        picture = PIL.Image.fromarray(coarse).resize((side, side), PIL.Image.Resampling.BILINEAR)
        picture.save(folder / f"{number:06d}.png")


def save_weights(folder: Path) -> None:
    """Random weights as pytorch-fid's file has them, and as a bundle."""
    import pytorch_fid_here
    import torch

    from mvader_jax.convert.convert import convert
    from mvader_jax.convert.kinds.base import Options
    from mvader_jax.convert.sources import open_source

    torch.save(pytorch_fid_here.network()[1], folder / "pt_inception.pth")
    source = folder / "pt_inception.pth"
    convert(open_source(source, None, Options()), source, folder / "inception")


def megabytes() -> float:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def ours(folder: Path, batch: int, devices: int) -> dict[str, Any]:
    from mvader_jax.parallel.mesh import open_mesh
    from mvader_jax.scores.features import keeping
    from mvader_jax.scores.formulas import moments
    from mvader_jax.scores.networks import load_judge, open_network, pictures_in

    files = pictures_in(folder / "pictures")
    mesh = open_mesh(f"data={devices}" if devices > 1 else "")
    network = open_network("inception", load_judge("inception", str(folder / "inception"), mesh), mesh)
    began = time.perf_counter()
    np.asarray(network.embed(np.zeros((batch, 299, 299, 3), np.float32)))
    first = time.perf_counter() - began
    memory: list[float] = []
    with keeping(None) as kept:
        began, used = time.perf_counter(), time.process_time()
        rows = kept.features(network, files, batch, lambda done, total: memory.append(megabytes()))
        seconds, cpu = time.perf_counter() - began, time.process_time() - used
        np.save(folder / "ours.npy", rows[:64])
        moments(rows)
    return told(len(files), first, seconds, cpu, memory)


def theirs(folder: Path, batch: int, devices: int) -> dict[str, Any]:
    import pytorch_fid_here
    import torch

    del devices
    network, _ = pytorch_fid_here.network()
    files = sorted((folder / "pictures").glob("*.png"))
    began = time.perf_counter()
    with torch.no_grad():
        network(torch.zeros(batch, 3, 299, 299))
    first = time.perf_counter() - began
    began, used = time.perf_counter(), time.process_time()
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    get = pytorch_fid_here.fid_score.get_activations
    get.__globals__["TF"] = Transforms
    rows = get(files, network, batch, 2048, "cpu", len(os.sched_getaffinity(0)))
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    cpu += resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - children
    np.save(folder / "theirs.npy", rows[:64])
    return told(len(files), first, seconds, cpu, [])


class Transforms:
    """torchvision's ToTensor, for pictures of uint8."""

    class ToTensor:
        def __call__(self, picture: PIL.Image.Image) -> Any:
            import torch

            return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().div(255)


def told(count: int, first: float, seconds: float, cpu: float, memory: list[float]) -> dict[str, Any]:
    """first: seconds of the first batch, before those that are counted."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"count": count, "first": first, "seconds": seconds, "cpu": cpu, "memory": memory, "peak": peak}


def uncached() -> dict[str, str]:
    """An environment in which every program is compiled."""
    return {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}


def throughput(count: int, side: int, batch: int, rounds: int, devices: int) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        save_pictures(folder / "pictures", count, side)
        save_weights(folder)
        found: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
        for _ in range(rounds):
            for who, rows in found.items():
                command = [sys.executable, __file__, "_one", who, str(folder)]
                command += ["--batch", str(batch), "--devices", str(devices)]
                result = subprocess.run(command, check=True, capture_output=True, text=True, env=uncached())
                rows.append(json.loads(result.stdout.splitlines()[-1]))
        a, b = np.load(folder / "ours.npy"), np.load(folder / "theirs.npy")
        print(
            f"{count} pictures of {side} x {side}, batches of {batch}, {len(os.sched_getaffinity(0))} cores"
        )
        print("| | pictures/s | CPU s per picture | first batch, s | MB, peak |")
        print("|---|---|---|---|---|")
        best = {who: min(rows, key=lambda row: row["seconds"]) for who, rows in found.items()}
        for who, row in best.items():
            rate, cpu = row["count"] / row["seconds"], row["cpu"] / row["count"]
            print(f"| {who} | {rate:.3g} | {cpu:.3g} | {row['first']:.1f} | {row['peak']:.0f} |")
        wall, cpu = (best["theirs"][what] / best["ours"][what] for what in ("seconds", "cpu"))
        whole = [best[who]["first"] + best[who]["seconds"] for who in ("theirs", "ours")]
        print(
            f"theirs / ours: {wall:.2f} in time, {cpu:.2f} in CPU time; {whole[0] / whole[1]:.2f} in time with the first"
        )
        memory = best["ours"]["memory"]
        marks = [memory[int(share * (len(memory) - 1))] for share in (0.1, 0.5, 1)]
        print("memory of ours after a tenth, half and all: " + ", ".join(f"{mark:.0f} MB" for mark in marks))
        print(f"features apart: {np.linalg.norm(a - b) / np.linalg.norm(b):.1e}")


def parity() -> None:
    """A row of each comparison: relative error, the norm of the difference over the norm."""
    rows = [("Inception, features", inception_error()), *clip_errors(), ("FID, same features", fid_error())]
    print("| | relative error |\n|---|---|")
    for name, error in rows:
        print(f"| {name} | {error:.1e} |")


def apart(ours: Any, theirs: Any) -> float:
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def inception_error() -> float:
    import pytorch_fid_here
    import torch

    from mvader_jax.scores.networks import load_judge, open_network

    with tempfile.TemporaryDirectory() as made:
        save_weights(Path(made))
        network = open_network("inception", load_judge("inception", f"{made}/inception", None), None)
        reference, _ = pytorch_fid_here.network()
        worst = 0.0
        for size in ((97, 64), (512, 301)):
            picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
            with torch.no_grad():
                expected = reference(torch.tensor(picture).permute(2, 0, 1)[None] / 255)[0][..., 0, 0]
            worst = max(worst, apart(network.embed(network.read(picture)[None]), expected))
        return worst


_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_WIDE = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
#: {name: (pixels per side, the vision tower where it is not a ViT-B's, the text tower likewise)}.
_CLIPS: dict[str, tuple[int, dict[str, int], dict[str, int]]] = {
    "ViT-B/32": (224, {"patch_size": 32}, {}),
    "ViT-B/16": (224, {"patch_size": 16}, {}),
    "ViT-L/14": (224, {"patch_size": 14, **_LARGE}, _WIDE),
    "ViT-L/14-336": (336, {"patch_size": 14, **_LARGE}, _WIDE),
}


def clip_errors() -> list[tuple[str, float]]:
    import jax.numpy as jnp
    import torch
    from transformers import CLIPConfig, CLIPModel

    from mvader_jax.convert.convert import convert
    from mvader_jax.convert.kinds.base import Options
    from mvader_jax.convert.sources import open_source
    from mvader_jax.scores.clip import embed_images, embed_texts
    from mvader_jax.storage.bundle import load_bundle

    found = []
    for name, (size, vision, text) in _CLIPS.items():
        torch.manual_seed(0)
        theirs = CLIPModel(
            CLIPConfig(
                vision_config={"image_size": size, **vision},
                text_config={"eos_token_id": 49407, **text},
                projection_dim=text.get("hidden_size", 512),
            )
        ).eval()
        pixels = torch.randn(2, 3, size, size)
        tokens = torch.tensor([[49406, 320, 736, 49407, 49407], [49406, 320, 1, 2, 49407]])
        with torch.no_grad(), tempfile.TemporaryDirectory() as made:
            theirs.save_pretrained(f"{made}/clip")
            source = Path(made) / "clip"
            convert(open_source(source, None, Options()), source, Path(made) / "bundle")
            bundle = load_bundle(f"{made}/bundle")
            seen = theirs.vision_model(pixels).pooler_output @ theirs.visual_projection.weight.T
            said = theirs.text_model(tokens).pooler_output @ theirs.text_projection.weight.T
        images = embed_images(
            bundle.model, bundle.components, jnp.asarray(pixels.permute(0, 2, 3, 1).numpy())
        )
        texts = embed_texts(bundle.model, bundle.components, jnp.asarray(tokens.numpy(), jnp.int32))
        found.append((f"CLIP {name}, images", apart(images, torch.nn.functional.normalize(seen))))
        found.append((f"CLIP {name}, texts", apart(texts, torch.nn.functional.normalize(said))))
    return found


def fid_error() -> float:
    import pytorch_fid_here

    from mvader_jax.scores.formulas import frechet, moments

    rng = np.random.default_rng(0)
    mix = rng.normal(size=(256, 256)) / 16
    a, b = (np.abs(rng.normal(size=(2000, 256)) @ mix) + shift for shift in (0, 0.1))
    stats = [(x.mean(axis=0), np.cov(x, rowvar=False)) for x in (a, b)]
    expected = pytorch_fid_here.fid_score.calculate_frechet_distance(*stats[0], *stats[1])
    return apart([frechet(moments(a), moments(b))], [expected])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ways = parser.add_subparsers(dest="way", required=True)
    ways.add_parser("parity")
    timed = ways.add_parser("throughput")
    timed.add_argument("--pictures", type=int, default=200)
    timed.add_argument("--side", type=int, default=64)
    timed.add_argument("--batch", type=int, default=50)
    timed.add_argument("--rounds", type=int, default=1)
    timed.add_argument(
        "--devices", type=int, default=1, help="ours on a mesh of so many parts of the processor"
    )
    one = ways.add_parser("_one")
    one.add_argument("who", choices=("ours", "theirs"))
    one.add_argument("folder", type=Path)
    one.add_argument("--batch", type=int, default=50)
    one.add_argument("--devices", type=int, default=1)
    given = parser.parse_args()
    if given.way == "parity":
        parity()
    elif given.way == "throughput":
        throughput(given.pictures, given.side, given.batch, given.rounds, given.devices)
    else:
        way = ours if given.who == "ours" else theirs
        print(json.dumps(way(given.folder, given.batch, given.devices)))


if __name__ == "__main__":
    main()

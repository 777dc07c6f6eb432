"""Makes folders shaped as img2dataset leaves them, with damage of every kind and what must be said of it.

    python tests/data/img2dataset_like.py OUT --images 20000

writes one of tars, pictures of 640 x 512, two in a hundred damaged, and prints what a build must count.

    python tests/data/img2dataset_like.py OUT --encoded 4096

writes records as `mvader data encode` does for pictures of 512 pixels, with random latents.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import io
import json
import pathlib
import struct
import tarfile
import zlib

import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet

#: Kind of damage -> the reason it is counted under; None: it is no damage, the record is kept.
DAMAGE = {
    "truncated": "image truncated or damaged",
    "zero bytes": "image has zero bytes",
    "web page": "image is a web page",
    "bomb": "image is a decompression bomb",
    "noise": "image of no known kind",
    "thin": "sides in a ratio above 20",
    "cmyk": None,
    "grey": None,
    "16 bit": None,
    "animated gif": None,
    "animated webp": None,
    "rotated": None,
    "no caption": "caption missing",
    "empty caption": "caption empty",
    "long caption": "caption longer than 2000 characters",
    "latin-1 caption": "caption is not UTF-8",
    "nan score": "aesthetic score is not a number",
    "low score": "aesthetic score <= 5",
    "watermark": "watermark > 0.5",
    "small": "smaller than 512 x 512",
    "not downloaded": "not downloaded",
    "twice": "key duplicated",
}


@dataclasses.dataclass
class Made:
    """What a correct build of the folder counts: read = written + sum(rejected)."""

    read: int
    rejected: collections.Counter

    @property
    def written(self) -> int:
        return self.read - sum(self.rejected.values())


def jpeg(rng: np.random.Generator, width: int, height: int, quality: int = 90, **options) -> bytes:
    """A picture with about as much in it as a photograph has."""
    coarse = (rng.random((6, 8, 3)) * 255).astype(np.uint8)
    smooth = np.asarray(PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC))
    noisy = np.clip(smooth + rng.normal(0, 8, (height, width, 1)), 0, 255).astype(np.uint8)
    return encode(PIL.Image.fromarray(noisy), "JPEG", quality=quality, **options)


def encode(image: PIL.Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(side: int = 60000) -> bytes:
    """The head of a PNG that would decode to gigabytes."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data)
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def picture(kind: str, rng: np.random.Generator, good: bytes, size: tuple[int, int]) -> bytes:
    width, height = size
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(pixels)
    if kind == "truncated":
        return good[: len(good) * 2 // 3]
    if kind == "zero bytes":
        return b""
    if kind == "web page":
        return b"\n<!DOCTYPE html><html><body>404</body></html>"
    if kind == "bomb":
        return bomb()
    if kind == "noise":
        return rng.bytes(2000)
    if kind == "thin":
        return jpeg(rng, 1, 10000)
    if kind == "cmyk":
        return encode(image.convert("CMYK"), "JPEG")
    if kind == "grey":
        return encode(image.convert("L"), "JPEG")
    if kind == "16 bit":
        wide = rng.integers(0, 65536, (height, width)).astype(np.uint16)
        return encode(PIL.Image.fromarray(wide), "PNG")
    if kind.startswith("animated"):
        frames = [PIL.Image.fromarray(np.roll(pixels, n, 0)) for n in range(3)]
        return encode(frames[0], kind.split()[1].upper(), save_all=True, append_images=frames[1:])
    if kind == "rotated":
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        return jpeg(rng, width, height, exif=exif.tobytes())
    return good


def sample(key: str, kind: str | None, rng: np.random.Generator, good: bytes, size: tuple[int, int]):
    """(row of the table, picture, caption in bytes or None) of one sample."""
    caption: bytes | None = f"a picture of number {int(key)}, größer".encode()
    row = {
        "key": key,
        "url": f"https://example.org/{key}.jpg",
        "status": "success",
        "error_message": None,
        "width": size[0],
        "height": size[1],
        "original_width": 1024,
        "original_height": 768,
        "AESTHETIC_SCORE": 5.0 + float(rng.uniform(0.01, 2)),
        "pwatermark": float(rng.uniform(0, 0.5)),
        "PUNSAFE": 0.01,
    }
    if kind == "no caption":
        caption = None
    elif kind == "empty caption":
        caption = b" \n"
    elif kind == "long caption":
        caption = b"word " * 20000
    elif kind == "latin-1 caption":
        caption = "café".encode("latin-1")
    elif kind == "nan score":
        row["AESTHETIC_SCORE"] = float("nan")
    elif kind == "low score":
        row["AESTHETIC_SCORE"] = 5.0
    elif kind == "watermark":
        row["pwatermark"] = 0.51
    elif kind == "small":
        row["original_height"] = 511
    elif kind == "thin":
        row |= {"original_width": 512, "original_height": 512 * 21}
    elif kind == "not downloaded":
        row |= {"status": "failed_to_download", "error_message": "404"}
    row["caption"] = None if caption is None else caption.decode("utf-8", errors="replace")
    return row, picture(kind or "", rng, good, size), caption


def make(
    root: pathlib.Path,
    *,
    shards: int = 3,
    per_shard: int = 40,
    damage: dict[int, str] | None = None,
    layout: str = "tar",
    size: tuple[int, int] = (50, 37),
    tables: bool = True,
    variety: int = 16,
    seed: int = 0,
) -> Made:
    """damage: number of the sample in the set -> its kind."""
    rng = np.random.default_rng(seed)
    damage = damage or {}
    root.mkdir(parents=True, exist_ok=True)
    pool = [jpeg(rng, *size) for _ in range(variety)]
    made = Made(0, collections.Counter())
    for shard in range(shards):
        samples = []
        for number in range(shard * per_shard, (shard + 1) * per_shard):
            kind = damage.get(number)
            entry = sample(f"{number:09d}", kind, rng, pool[number % variety], size)
            samples.append(entry)
            made.read += 1
            if kind == "twice":
                samples.append(entry)
                made.read += 1
            if kind is not None and DAMAGE[kind] is not None:
                made.rejected[DAMAGE[kind]] += 1
        write_shard(root, f"{shard:05d}", samples, layout, tables)
    return made


def write_shard(root: pathlib.Path, name: str, samples: list, layout: str, tables: bool = True) -> None:
    rows = {row["key"]: row for row, _, _ in samples}
    if layout == "parquet":
        full = [{**row, "jpg": data} for row, data, _ in samples]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(full), root / f"{name}.parquet")
        return
    if tables:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows.values())), root / f"{name}.parquet")
    files = []
    for row, data, caption in samples:
        if row["status"] != "success":
            continue
        files.append((f"{row['key']}.jpg", data))
        if caption is not None:
            files.append((f"{row['key']}.txt", caption))
        files.append((f"{row['key']}.json", json.dumps(row).encode()))
    if layout == "files":
        (root / name).mkdir()
        for file, data in files:
            (root / name / file).write_bytes(data)
        return
    with tarfile.open(root / f"{name}.tar", "w") as tar:
        for file, data in files:
            info = tarfile.TarInfo(file)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def two_in_a_hundred(images: int) -> dict[int, str]:
    """Every fiftieth sample is damaged, every kind in turn."""
    kinds = list(DAMAGE)
    return {number: kinds[number // 50 % len(kinds)] for number in range(25, images, 50)}


def make_encoded(root: pathlib.Path, records: int) -> None:
    """An encoded set of Stable Diffusion's moments at 512 pixels: 64 x 64 x 4, twice."""
    from array_record.python.array_record_module import ArrayRecordWriter

    from mvader_jax.data.sources.encoded import BF16, INFO, EncodedInfo, pack, shard_path

    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    splits = {"train": records, "validation": 1}
    origin = {"source": "records", "path": "nowhere"}
    info = EncodedInfo((2, 64, 64, 4), None, 512, 0, splits, records, origin, {})
    pool = [rng.normal(size=(2, 64, 64, 4)).astype(BF16) for _ in range(64)]
    for split, count in splits.items():
        writer = ArrayRecordWriter(str(shard_path(root, split, 0)), "group_size:1,uncompressed")
        for number in range(count):
            caption = f"a photograph of object number {number}, seen from the side in soft light"
            writer.write(pack(pool[number % len(pool)], None, [caption]))
        writer.close()
    (root / INFO).write_text(json.dumps(info.to_json()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--encoded", type=int, default=0)
    options = parser.parse_args()
    if options.encoded:
        make_encoded(options.out, options.encoded)
        return
    per_shard = 1000
    made = make(
        options.out,
        shards=-(-options.images // per_shard),
        per_shard=per_shard,
        damage=two_in_a_hundred(options.images),
        size=(640, 512),
        variety=256,
    )
    print(f"read     {made.read:>8,}\nwritten  {made.written:>8,}")
    for reason, count in made.rejected.most_common():
        print(f"{count:>17,}  {reason}")


if __name__ == "__main__":
    main()

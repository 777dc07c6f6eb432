"""Files that are no pictures are named as what they are; damaged ones of every format are one sentence."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mvader_jax.errors import UserError
from mvader_jax.images.read import load_image


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            "is a HEIC picture, which cannot be read here; save it as PNG",
        ),
        (b"\0\0\0\x1cftypmif1\0\0\0\0", "is a HEIC picture"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "is a camera's raw picture"),
        (b"\0\0\0\x18ftypisom\0\0\2\0", "is a video"),
        (
            b'<?xml version="1.0"?>\n<!-- a -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
            "is an SVG drawing",
        ),
        (b"<svg width='9'>", "is an SVG drawing"),
        (b"\n<!DOCTYPE html><html>404", "is a web page"),
        (b"\xff\x0a\0\0", "is a JPEG XL picture"),
        (b"%PDF-1.7", "is a PDF document"),
        (b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS"),
        (b"", "is empty"),
        (bytes(900), "holds nothing but zeros"),
        (b"plain words", "is not an image that Pillow can read"),
    ],
)
def test_what_is_no_picture_is_named(start: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(start)
    with pytest.raises(UserError) as raised:
        load_image(tmp_path / "photo.jpg")
    assert said in str(raised.value) and "photo.jpg" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "kind",
    [
        "PNG",
        "JPEG",
        "WEBP",
        "GIF",
        "BMP",
        "TIFF",
        "PPM",
        "ICO",
        "TGA",
        "AVIF",
        "JPEG2000",
        "PCX",
        "SGI",
        "DDS",
    ],
)
def test_damage_is_one_sentence(kind: str) -> None:
    """Cut short, or some bytes changed: read all the same, or refused; never anything else."""
    rng = random.Random(kind)
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (17, 23, 3), np.uint8))
    file = io.BytesIO()
    picture.save(file, kind)
    whole, refused = file.getvalue(), list[str]()
    assert load_image(whole).mode == "RGB"
    for _ in range(60):
        damaged = bytearray(whole)
        if rng.random() < 0.4:
            damaged = damaged[: rng.randrange(len(damaged))]
        else:
            for _ in range(rng.choice([1, 3, 20])):
                damaged[rng.randrange(min(len(damaged), rng.choice([64, len(damaged)])))] = rng.randrange(256)
        try:
            assert load_image(bytes(damaged)).mode == "RGB"
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 3
    assert all("\n" not in said and len(said) < 300 for said in refused)

"""What the networks read: tokens against transformers' tokenizers, pixels against CLIP's own transform."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from transformers import CLIPTokenizer, GPT2Tokenizer
from vocabularies import clip_vocabulary

from mvader_jax.images.preprocess import CLIP_MEAN, CLIP_STD, clip_preprocess
from mvader_jax.prompt.tokenizer import Tokenizer, train_tokenizer, write_vocabulary

TEXT = """a photo of the red circle's don't we'll I'd they've I'm it's CAT Hat 'S 'Ll 3 42 1000000 3.14 -7 x_y
a-b naïve café Straße ΑΒΓ ΠΑΣ привет мир ĞÜŞİ Ǆungla ﬁne Å Å 日本語 漢字 かな 한국어 ภาษาไทย हिन्दी العربية עברית
👍 👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 n\u0303 ½ ² Ⅷ ① ½cup ₿ … — “quoted” «x» (a) [b] {c} <d> !!! ?!? #tag @me http://a.b/c?d=e&f
<|endoftext|> <|startoftext|> </w> Ġ Ċ"""
WORDS = TEXT.split()
SPACES = (
    " ",
    " ",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\t",
    " \n ",
    "\r\n",
    "\u00a0",
    "\u2003",
    "\u200b",
    "\u3000",
    "",
)
#: Planes of Unicode to draw single characters from.
RANGES = ((0x20, 0x7F), (0xA0, 0x24F), (0x300, 0x36F), (0x400, 0x4FF), (0x900, 0x97F), (0x3040, 0x30FF))
RANGES += (
    (0x4E00, 0x4FFF),
    (0xAC00, 0xACFF),
    (0x2000, 0x206F),
    (0x1F300, 0x1F64F),
    (0x1D400, 0x1D4FF),
    (0, 0x1F),
)


def strings(count: int) -> list[str]:
    """Words, spaces and characters of many scripts in random order; the same ones every time."""
    rng = random.Random(0)
    made = ["", " ", "\n", "  a", "a  ", "\x00", "\ufeffa"]
    while len(made) < count:
        parts = []
        for _ in range(rng.randint(1, 12)):
            if rng.random() < 0.8:
                parts.append(rng.choice(WORDS))
            else:
                low, high = rng.choice(RANGES)
                parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6))))
            parts.append(rng.choice(SPACES))
        made.append("".join(parts))
    return made


def test_gpt2_tokens(tmp_path: Path) -> None:
    texts = strings(4000)
    write_vocabulary(train_tokenizer(texts[:1500], 900), tmp_path)
    ours = Tokenizer.from_vocabulary(tmp_path / "vocab.json", tmp_path / "merges.txt")
    theirs = GPT2Tokenizer.from_pretrained(tmp_path)
    expected = theirs(texts).input_ids
    assert max(max(ids, default=0) for ids in expected) > 800  # merges are used
    for text, ids, other in zip(texts, ours.encode_many(texts), expected, strict=True):
        assert ids == other, repr(text)
    for text in texts[:50]:
        assert ours.encode(text) == theirs(text).input_ids
        if "<|" not in text:
            assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("size", [300, 560], ids=["with unknown bytes", "with every byte"])
def test_clip_tokens(tmp_path: Path, size: int) -> None:
    texts = strings(2000)
    folder = clip_vocabulary(tmp_path, size)
    ours, theirs = Tokenizer.load(folder), CLIPTokenizer.from_pretrained(folder)
    expected = theirs(texts, add_special_tokens=False).input_ids
    for text, ids, other in zip(texts, ours.encode_many(texts), expected, strict=True):
        assert ids == other, repr(text)


def clip_transform(image: PIL.Image.Image, size: int) -> np.ndarray:
    """openai/CLIP's clip.py `_transform` by what torchvision does for each of its steps: Resize of the
    short side (the long one is truncated), CenterCrop, RGB, ToTensor, Normalize. float64 [size, size, 3]."""
    width, height = image.size
    if width <= height:
        wide, high = size, int(size * height / width)
    else:
        wide, high = int(size * width / height), size
    image = image.resize((wide, high), PIL.Image.Resampling.BICUBIC)
    left, top = round((wide - size) / 2.0), round((high - size) / 2.0)
    image = image.crop((left, top, left + size, top + size)).convert("RGB")
    return (np.asarray(image) / 255.0 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)


@pytest.mark.parametrize(
    "shape", [(384, 384), (385, 384), (383, 501), (640, 427), (97, 1001), (1, 1), (3, 2), (777, 333)], ids=str
)
@pytest.mark.parametrize("size", [384, 224])
def test_pixels(shape: tuple[int, int], size: int) -> None:
    assert CLIP_MEAN == (0.48145466, 0.4578275, 0.40821073)
    assert CLIP_STD == (0.26862954, 0.26130258, 0.27577711)
    rng = np.random.default_rng(shape[0] * 7 + shape[1])
    # Smooth and noisy parts, and the extremes that bicubic overshoots.
    smooth = np.add.outer(np.linspace(0, 200, shape[1]), np.linspace(0, 55, shape[0]))[..., None]
    pixels = np.where(rng.random((shape[1], shape[0], 1)) < 0.5, smooth, rng.integers(0, 2, 3) * 255)
    image = PIL.Image.fromarray(pixels.astype(np.uint8))
    expected = clip_transform(image, size)
    found = clip_preprocess(image, size)
    assert found.dtype == np.float32 and found.shape == (size, size, 3)
    # Within 1/255 of a pixel's range, in units before the normalisation.
    assert np.abs((found - expected) * np.array(CLIP_STD)).max() <= 1 / 255


def test_pixels_of_other_modes() -> None:
    """Grey and palette pictures, as CLIP turns them into RGB."""
    rng = np.random.default_rng(1)
    grey = PIL.Image.fromarray(rng.integers(0, 256, (301, 211)).astype(np.uint8))
    np.testing.assert_allclose(clip_preprocess(grey, 96), clip_transform(grey, 96), atol=1e-6)
    # A strip in a ratio beyond 32 is cropped before it is resized, about its centre: the same square.
    strip = PIL.Image.fromarray(rng.integers(0, 256, (10, 1000, 3)).astype(np.uint8))
    difference = np.abs((clip_preprocess(strip, 64) - clip_transform(strip, 64)) * np.array(CLIP_STD))
    assert difference.max() <= 1 / 255

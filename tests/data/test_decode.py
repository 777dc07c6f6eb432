from __future__ import annotations

import io

import img2dataset_like as like
import numpy as np
import PIL.Image
import pytest

from mvader_jax.data import decode as module
from mvader_jax.data.config import DataConfig
from mvader_jax.data.decode import crop, decode, encoder_pixels
from mvader_jax.errors import UserError
from mvader_jax.images.preprocess import clip_preprocess, to_vae_pixels
from mvader_jax.images.read import load_image

RNG = np.random.default_rng(0)
SMOOTH = PIL.Image.open(io.BytesIO(like.jpeg(RNG, 200, 133, quality=95))).convert("RGB")


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (133, 133), (150, 170), (40, 40)])
def test_centre_crop_is_the_reference_of_images(size):
    expected = to_vae_pixels(SMOOTH, *size)
    got = crop(like.encode(SMOOTH, "PNG"), size) / 127.5 - 1
    # `images` resizes to whole pixels before it crops; here the crop's edge may fall between two.
    assert np.abs(got - expected).mean() < 0.02
    assert got.shape == (*size, 3)


@pytest.mark.parametrize("size", [(64, 64), (133, 133), (30, 50), (16, 16)])
def test_fast_jpeg_agrees_with_pillow(size, monkeypatch):
    data = like.encode(SMOOTH, "JPEG", quality=95)
    fast = crop(data, size).astype(int)
    monkeypatch.setattr(module, "_jpeg_decoder", lambda: None)
    slow = crop(data, size).astype(int)
    assert np.abs(fast - slow).mean() < 3


def test_pictures_that_need_care_take_the_slow_path_and_come_out_right():
    red = PIL.Image.new("RGB", (40, 30), (200, 30, 30))
    red.paste((30, 30, 200), (0, 0, 20, 30))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: left becomes top
    turned = crop(like.encode(red, "JPEG", exif=exif.tobytes(), quality=95), (20, 20))
    assert turned[2, 10, 2] > 150
    assert turned[17, 10, 0] > 150
    for picture in (red.convert("CMYK"), red.convert("L")):
        data = like.encode(picture, "JPEG", quality=95)
        expected = np.asarray(load_image(data))[5:25, 10:30].astype(int)
        assert np.abs(crop(data, (30, 30))[5:25, 5:25].astype(int) - expected).mean() < 4


def test_random_crops_cover_the_long_side_and_follow_their_key():
    wide = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (50, 200, 3)).copy()
    lefts = [int(crop(wide, (50, 50), np.random.default_rng(seed))[0, 0, 0]) for seed in range(60)]
    assert min(lefts) < 15
    assert max(lefts) > 135
    assert lefts[3] == int(crop(wide, (50, 50), np.random.default_rng(3))[0, 0, 0])
    assert int(crop(wide, (50, 50))[0, 0, 0]) == 75


def test_strip_of_one_pixel_is_enlarged_without_gigabytes():
    assert crop(like.encode(PIL.Image.new("RGB", (1, 10000), (9, 8, 7)), "PNG"), (64, 64)).shape == (
        64,
        64,
        3,
    )


def test_flips_are_off_unless_asked():
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:, 0] = 255
    rng = np.random.default_rng(0)
    record = {"image": picture, "caption": "x"}
    assert decode(record, DataConfig(), rng, (8, 8))["image"][0, 0, 0] == 255
    assert decode(record, DataConfig(flip=1.0), rng, (8, 8))["image"][0, 7, 0] == 255


@pytest.mark.parametrize("kind", ["truncated", "zero bytes", "web page", "bomb", "noise"])
def test_damaged_pictures_are_named_as_such(kind):
    data = like.picture(kind, RNG, like.jpeg(RNG, 60, 40), (60, 40))
    with pytest.raises(UserError):
        crop(data, (32, 32))


def test_encoder_pixels_are_clips():
    picture = np.asarray(SMOOTH)
    np.testing.assert_array_equal(encoder_pixels([picture], 48)[0], clip_preprocess(picture, 48))
    assert encoder_pixels([], 48).shape == (0, 48, 48, 3)

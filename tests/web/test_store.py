"""Uploads come from anywhere: what is kept of them, and what is refused, in a sentence."""

import io

import numpy as np
import PIL.Image
import pytest

from mvader_jax.errors import UserError
from mvader_jax.images.png import read_png_metadata
from mvader_jax.web import store as web_store
from mvader_jax.web.store import MOST_BYTES, Store, safe_name


def encoded(size: tuple[int, int] = (6, 4), format: str = "PNG") -> bytes:
    data = io.BytesIO()
    PIL.Image.effect_noise(size, 90).convert("RGB").save(
        data, format=format, **{"quality": 90} if format == "JPEG" else {}
    )
    return data.getvalue()


def test_an_upload_keeps_its_pixels_whatever_its_format() -> None:
    store = Store()
    for format in ("PNG", "JPEG", "WEBP", "GIF"):
        data = encoded(format=format)
        kept = store.upload(data)
        assert kept.size == (6, 4)
        with PIL.Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(store.get(kept.id).image(), image.convert("RGB"))
        assert kept.png.startswith(b"\x89PNG")


def test_what_is_no_picture_is_refused_in_a_sentence() -> None:
    store = Store()
    for data in (b"", b"nonsense", encoded()[:60], b"<svg xmlns='http://www.w3.org/2000/svg'/>"):
        with pytest.raises(UserError, match="the image"):
            store.upload(data)


def test_uploads_are_bounded_in_bytes_and_in_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="too large; the page takes up to 20 MB"):
        Store().upload(bytes(MOST_BYTES + 1))
    monkeypatch.setattr(web_store, "MOST_PIXELS", 23)
    with pytest.raises(UserError, match="6 x 4 pixels; the page takes up to 23"):
        Store().upload(encoded())


def test_the_store_is_bounded_and_lets_the_oldest_go() -> None:
    first = encoded((40, 40))
    store = Store(capacity=3 * len(first))
    ids = [store.upload(first if i == 0 else encoded((40, 40))).id for i in range(3)]
    store.get(ids[0])  # asked for: it stays
    for _ in range(2):
        store.upload(encoded((40, 40)))
    with pytest.raises(UserError, match="no longer on the server"):
        store.get(ids[1])
    assert sum(len(kept.png) for kept in store._pictures.values()) == store._held <= 3 * len(first)
    for id in (None, 3, "../../etc/passwd"):
        with pytest.raises(UserError):
            store.get(id)


def test_drawn_pictures_are_marked(tmp_path) -> None:
    kept = Store().add(np.zeros((4, 4, 3), np.uint8), {"seed": 3})
    (tmp_path / "a.png").write_bytes(kept.png)
    found = read_png_metadata(tmp_path / "a.png")
    assert found["AI-generated"] == "true" and found["seed"] == "3"


def test_names_are_safe() -> None:
    assert safe_name("../../etc/pass wd") == "pass-wd.png"
    assert safe_name('C:\\a\\b"; rm -rf.JPG') == "b-rm--rf.JPG"
    assert safe_name("--out.png") == "out.png"
    assert safe_name("") == safe_name("---") == "picture.png"
    assert safe_name("фото.webp") == "фото.webp"

"""PNGs that say what made them: written whole or not at all, with their settings in text chunks."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from typing import Any

from mvader_jax.errors import UserError
from mvader_jax.images.read import load_image
from mvader_jax.storage.atomic import write_file

#: IPTC's term for a picture made by a trained model, in the XMP packet every written PNG carries.
_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def save_png(
    path: str | os.PathLike[str], image: Any, metadata: Mapping[str, Any] | None = None, *, new: bool = False
) -> None:
    """Writes a PNG, whole or not at all.

    image: uint8 [H, W, 3], floats in [0, 1], or a Pillow image.
    metadata: kept in text chunks, values that are no strings as JSON; every file is marked as
        AI-generated, for people (`AI-generated: true`) and for machines (IPTC's digital source type).
    new: nothing is replaced. Raises UserError if the file cannot be written (TakenError: `new`, and one is there).
    """
    write_file(path, png_bytes(image, metadata), new=new)


def png_bytes(image: Any, metadata: Mapping[str, Any] | None = None) -> bytes:
    """The file that `save_png` writes."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    entries = {"Software": "mvader-jax", **(metadata or {}), "AI-generated": "true"}
    for key, value in entries.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        info.add_itxt(key, utf8(text).decode())
    info.add_itxt("XML:com.adobe.xmp", _xmp_packet())
    data = io.BytesIO()
    load_image(image).save(data, format="PNG", pnginfo=info)
    return data.getvalue()


def utf8(text: str) -> bytes:
    """The text in UTF-8; of a file's name that is none, the odd bytes as JSON escapes them (\\udce9)."""
    return text.encode("utf-8", "backslashreplace")


def _xmp_packet() -> str:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f'Iptc4xmpExt:DigitalSourceType="{_SOURCE_TYPE}"/></rdf:RDF></x:xmpmeta>'
    )


def read_png_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text chunks of a PNG written by `save_png`. Raises UserError if it is no PNG."""
    import PIL.Image

    try:
        with PIL.Image.open(path, formats=["PNG"]) as image:
            image.load()
            return dict(getattr(image, "text", {}))
    except (OSError, SyntaxError) as error:
        raise UserError(f"{os.fspath(path)!r} is not a PNG that can be read: {error}") from None

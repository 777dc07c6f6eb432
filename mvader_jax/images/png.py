"""PNGs that say what made them: written whole or not at all, with their settings in text chunks."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mvader_jax.errors import UserError
from mvader_jax.images.read import load_image, open_quietly
from mvader_jax.storage.atomic import write_file

if TYPE_CHECKING:
    import PIL.Image

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


def read_png_metadata(source: str | os.PathLike[str] | bytes) -> dict[str, str]:
    """The text chunks of a PNG written by `save_png`, before its pixels, which are not read: a path, or the file's bytes.

    Raises UserError for what is no such file or is damaged, and for chunks of more than Pillow's limits: 64 MiB, or
    1 MiB of one that is compressed.
    """
    import PIL.Image

    name = "the picture" if isinstance(source, bytes) else repr(os.fspath(source))
    try:
        with open_quietly(io.BytesIO(source) if isinstance(source, bytes) else source, ["PNG"]) as image:
            return texts(image)
    except PIL.Image.DecompressionBombError:
        raise UserError(f"{name} is not a PNG that can be read: it has too many pixels") from None
    except Exception as error:  # Pillow's readers raise anything on a hostile file
        raise UserError(f"{name} is not a PNG that can be read: {error}") from None


def texts(image: PIL.Image.Image) -> dict[str, str]:
    """The text chunks of a picture that was opened from a PNG."""
    return {str(key): str(value) for key, value in image.info.items() if isinstance(value, str)}

"""Which column of a parquet table, or member of a tar's samples, is the picture and which the caption."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tarfile
from collections.abc import Sequence
from typing import IO, Any

from mvader_jax.data.building.captions import IMAGE_SUFFIXES
from mvader_jax.data.building.schema import SPELLINGS, columns
from mvader_jax.data.building.tables import Table, Unreadable, first_line
from mvader_jax.data.building.tars import READ_ERRORS
from mvader_jax.errors import UserError

#: Of a tar, the members that are looked at.
_LOOKED_AT = 64
#: Texts that are known to be no captions.
_OTHERS = {name for column, names in SPELLINGS.items() if column != "caption" for name in names}


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names as their container has them; empty where they are still to be found.

    image: of a table its column; of a tar the ending of its members. caption: so too, or a key of their JSON.
    """

    image: str = ""
    caption: str = ""


#: Nothing asked for, nothing found yet.
NONE = Columns()
#: What a container holds its pictures and captions in, and which of `schema.SPELLINGS` it has, if it has metadata.
Held = tuple[Columns, frozenset[str] | None]


def of_table(file: str | IO[bytes], where: str, asked: Columns) -> Held:
    """The columns of a parquet table: as asked for, else by known names, else the only ones of their kind.

    where: what the table is called in a sentence. Raises UserError where what is asked for is not there or nothing says
    what is meant, and Unreadable where the file is no parquet.
    """
    table = Table(file)
    choice = _Choice(where, table.names)
    image = choice.of("image", table.pictures(), ("image", *IMAGE_SUFFIXES), asked.image)
    caption = choice.of("caption", table.texts(), SPELLINGS["caption"], asked.caption)
    return Columns(image, caption), frozenset(table.columns)


def of_tar(file: str | IO[bytes], where: str, asked: Columns) -> Held:
    """What the first samples of a tar hold: a picture, and a .txt or a text in their JSON. Errors as `of_table`."""
    endings: dict[str, None] = {}
    notes: dict[str, Any] = {}
    try:
        with _open(file) as tar:
            for member in itertools.islice(tar, _LOOKED_AT):
                base, dot, ending = member.name.rpartition("/")[2].partition(".")
                if member.isfile() and base and dot:
                    endings[ending.lower()] = None
                    if ending.lower() == "json":
                        notes = {**_json(tar, member), **notes}
    except READ_ERRORS as error:
        raise Unreadable(first_line(error)) from None
    if not endings:
        raise Unreadable("it holds no sample")
    texts = [name for name, value in notes.items() if _is_text(value)]
    choice = _Choice(where, [*endings, *(f"{name} (in the JSON)" for name in texts)])
    pictures = [ending for ending in IMAGE_SUFFIXES if ending in endings]
    image = choice.of("image", pictures, IMAGE_SUFFIXES, asked.image)
    caption = "txt" if "txt" in endings and not asked.caption else ""
    caption = caption or choice.of("caption", texts, SPELLINGS["caption"], asked.caption, [*endings])
    return Columns(image, caption), frozenset(columns(notes)) if notes else None


@dataclasses.dataclass(frozen=True)
class _Choice:
    """One name out of those that a container has."""

    where: str
    held: Sequence[str]

    def of(
        self, what: str, fitting: Sequence[str], known: Sequence[str], asked: str, more: Sequence[str] = ()
    ) -> str:
        """`asked`, which must be fitting or among `more`; else the first known name; else the only one."""
        flag = f"--{what}-column"
        if asked:
            if asked not in fitting and asked not in more:
                raise UserError(
                    f"{self.where} has no {what}s under {asked!r} ({flag}); it has {_some(self.held)}"
                )
            return asked
        lower = {name.lower(): name for name in reversed(fitting)}
        found = [lower[name] for name in known if name in lower]
        found = found[:1] or [name for name in fitting if name.lower() not in _OTHERS]
        if len(found) == 1:
            return found[0]
        if not found:
            raise UserError(f"{self.where} has nothing that looks like {what}s; it has {_some(self.held)}")
        raise UserError(f"{self.where} may have its {what}s in {_some(found)}: name one with {flag}")


def _open(file: str | IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(file) if isinstance(file, str) else tarfile.open(fileobj=file)


def _json(tar: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    """The object of a JSON member; empty where it holds none."""
    data = tar.extractfile(member)
    try:
        found = json.loads(data.read()) if data else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_text(value: Any) -> bool:
    """Whether it is one, or a list that begins with one."""
    return isinstance(value[0] if isinstance(value, list) and value else value, str)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (" ..." if len(names) > 12 else "")

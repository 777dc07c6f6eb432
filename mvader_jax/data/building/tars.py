"""Samples in a tar, as webdataset lays them out: members named alike up to the first dot of the file's name."""

from __future__ import annotations

import dataclasses
import lzma
import pathlib
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence

from mvader_jax.data.building.admit import Rejected
from mvader_jax.data.building.tables import first_line

#: Endings of the files that are read; what is compressed is read slowly where members are out of order.
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
#: Bytes above which a member is no picture, caption or metadata.
LARGEST = 1 << 30
LOST = "lost in a damaged shard"
_META = re.compile(r"__[^/]*__($|/)")
#: Links followed from a member to its content.
_LINKS = 8
#: What reading a damaged tar raises.
READ_ERRORS = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)


@dataclasses.dataclass
class Group:
    """The members of one sample: {suffix in lower case: its bytes when called}."""

    key: str
    members: dict[str, Callable[[], bytes]]


def stem(path: pathlib.Path) -> str | None:
    """The name of a tar without its ending; None for other files."""
    ending = next((s for s in TAR_SUFFIXES if path.name.lower().endswith(s)), None)
    return path.name[: -len(ending)] if ending and len(path.name) > len(ending) else None


def groups(path: str, cut: list[str]) -> Iterator[Group]:
    """The samples in the order of their first members; an end before the end goes to `cut`.

    Members of a sample need not follow one another. The same file twice begins a second sample of that key.
    """
    try:
        with tarfile.open(path) as tar:
            yield from _grouped(tar, list(_members(tar, cut)))
    except READ_ERRORS as error:
        cut.append(first_line(error))


def _grouped(tar: tarfile.TarFile, found: Sequence[tarfile.TarInfo]) -> list[Group]:
    by_name = {_name(member): member for member in found}
    made: list[Group] = []
    of_key: dict[str, list[Group]] = {}
    for member in found:
        folder, _, file = _name(member).rpartition("/")
        base, dot, suffix = file.partition(".")
        if not base or not dot or _META.match(_name(member)):
            continue  # a hidden file, one without a suffix, or webdataset's own: no part of a sample
        key, suffix = f"{folder}/{base}" if folder else base, suffix.lower()
        own = of_key.setdefault(key, [])
        group = next((group for group in own if suffix not in group.members), None)
        if group is None:
            group = Group(key, {})
            own.append(group)
            made.append(group)
        group.members[suffix] = _content(tar, member, by_name)
    return made


def _name(member: tarfile.TarInfo) -> str:
    name = member.name
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def _members(tar: tarfile.TarFile, cut: list[str]) -> Iterator[tarfile.TarInfo]:
    """Files and links of a tar up to its end, or to where it is damaged."""
    try:
        end = -1
        while (member := tar.next()) is not None:
            # A damaged size may lead back to where it was.
            if member.size < 0 or tar.offset <= end:
                cut.append(f"no valid header at byte {member.offset}")
                return
            end = tar.offset
            if member.isfile() or member.islnk() or member.issym():
                yield member
            # The list of all members would grow with the tar.
            tar.members.clear()  # type: ignore[attr-defined]
        # tarfile takes a damaged or missing header for the end; the true end is a block of zeros.
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            cut.append(f"no valid header at byte {tar.offset}")
    except READ_ERRORS as error:
        cut.append(first_line(error))


def _content(
    tar: tarfile.TarFile, member: tarfile.TarInfo, by_name: dict[str, tarfile.TarInfo]
) -> Callable[[], bytes]:
    def read() -> bytes:
        file = member
        for _ in range(_LINKS):
            if file.isfile():
                return _read(tar, file)
            # A hard link names a member; a symbolic one a path from where it stands.
            folder = posixpath.dirname(_name(file)) if file.issym() else ""
            target = posixpath.normpath(posixpath.join(folder, file.linkname))
            if target not in by_name:
                break
            file = by_name[target]
        raise Rejected("link to what the shard does not hold")

    return read


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > LARGEST:
        raise Rejected("file larger than 1 GiB")
    try:
        file = tar.extractfile(member)
        data = file.read() if file else b""
    except READ_ERRORS:
        raise Rejected(LOST) from None
    if len(data) != member.size:
        raise Rejected(LOST)
    return data

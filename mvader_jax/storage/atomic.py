"""Files and directories written whole or not at all: under a name of their own beside the place, then renamed.

The name says the process and is drawn anew each time, and the process holds a lock (flock) on what bears it, so
that two may write to one place, and what a killed one left is known by nobody holding it. This module starts no
JAX: the worker processes of a data set's build use it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mvader_jax.errors import UserError

_PARTIAL = re.compile(r"\..*\.\d+-[0-9a-f]{8}\.partial")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(/|$)")
#: Of Linux' fcntl.h and stdio.h.
_AT_FDCWD, _EXCHANGE = -100, 2
#: What an OSError says where it cannot be about anything but the place that is written.
_OF_THE_DISK = {errno.ENOSPC: "no space is left on its disk", errno.EDQUOT: "the disk quota is used up"}
_OF_THE_DISK |= {errno.EROFS: "its file system is read-only", errno.EFBIG: "the file would be too large"}


def local(path: str | os.PathLike[str]) -> Path:
    """The path, where it is one of this machine's file system.

    Raises UserError for hf:ORG/NAME and for a URL (gs://bucket/x; also once a Path has made gs:/bucket/x of it):
    taken for a path it would become a folder named "gs:".
    """
    text = os.fspath(path)
    if _SCHEME.match(text):
        how = "mount the bucket (gcsfuse)" if text.startswith("gs:") else "mount it"
        scheme, _, rest = text.partition(":")
        url = f"{scheme}://{rest.lstrip('/')}"
        raise UserError(f"{url!r} is not on this machine's file system: {how} and name the folder under it")
    if text.startswith("hf:"):
        raise UserError(
            f"{text!r} is an address of the hub: write to a folder, and publish it with `mvader push`"
        )
    return Path(path)


class TakenError(UserError):
    """A new file's name is another file's."""


def write_file(path: str | os.PathLike[str], data: str | bytes, *, new: bool = False) -> None:
    """Writes a file, text as UTF-8. new, errors: as `whole_file`."""
    with whole_file(path, new=new) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], *, new: bool = False) -> Iterator[Path]:
    """A file, empty and beside `path`, that takes its place when the block ends well, and else goes.

    A symlink stays one: the file it names is replaced. What is no file (/dev/stdout) is written as it is.
    new: nothing is replaced, not even what another process puts there meanwhile. Raises UserError where the
    place cannot be written, and TakenError where it is taken and `new` is asked for.
    """
    target = Path(os.path.abspath(local(path))) if new else Path(os.path.realpath(local(path)))
    with explained(path, target.parent):
        if not new and target.exists() and not target.is_file() and not target.is_dir():
            yield target
            return
        partial, held = _made(target, lambda name: os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            yield partial
            if new:
                _place_new(partial, target)
                return
            if target.is_file():
                shutil.copymode(target, partial)
            os.replace(partial, target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        finally:
            os.close(held)


def _place_new(partial: Path, target: Path) -> None:
    """Moves a file to a name that nobody has."""
    try:
        try:
            os.link(partial, target)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: the name is taken first, by an empty file
            os.close(os.open(target, os.O_CREAT | os.O_EXCL, 0o666))
            os.replace(partial, target)
        else:
            partial.unlink()
    except FileExistsError:
        raise TakenError(f"{os.fspath(target)!r} exists already") from None


def make_directory(path: str | os.PathLike[str]) -> Path:
    """Makes a directory, with its parents, where there is none. Raises UserError where that cannot be."""
    directory = local(path)
    with explained(path):
        directory.mkdir(parents=True, exist_ok=True)
    return directory


def check_place(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    not_ours: Callable[[Path], str] = lambda path: "",
    sources: Sequence[Path] = (),
) -> None:
    """Raises UserError where `whole_directory` would not put a directory at `path`."""
    target = Path(os.path.realpath(local(path)))
    if not target.exists():
        return
    for source in (Path(os.path.realpath(source)) for source in sources):
        if source.is_relative_to(target) or target.is_relative_to(source):
            what = "is" if source == target else "is a part of" if source in target.parents else "holds"
            raise UserError(f"{path} {what} the source {source}; choose another place")
    if not overwrite:
        raise UserError(f"{path} exists already; choose another place or pass --overwrite")
    reason = not_ours(target)
    if reason:
        raise UserError(f"{path} is not replaced: {reason}; remove it or choose another place")


@contextlib.contextmanager
def whole_directory(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    not_ours: Callable[[Path], str] = lambda path: "",
    sources: Sequence[Path] = (),
    needed: int = 0,
) -> Iterator[Path]:
    """A directory beside `path` that takes its place when the block ends well, and else goes.

    overwrite: replace what is there, unless `not_ours` says in words what of it this package did not write; and
    never one of `sources`, what holds one, or a part of one. needed: bytes that will be written. A symlink
    stays one: what it names is replaced. The processes of a job enter and leave together; the first makes the
    directory and moves it. Raises UserError where the place is taken, cannot be written, or its disk has no room.
    """
    from mvader_jax.parallel.processes import barrier, by_first, first_process

    target, held = Path(os.path.realpath(local(path))), -1

    def check() -> None:
        check_place(path, overwrite=overwrite, not_ours=not_ours, sources=sources)

    def make() -> str:
        nonlocal held
        with explained(path):
            check()
            target.parent.mkdir(parents=True, exist_ok=True)
            sweep(target.parent, target.name)
            made, held = _made(target, _new_directory)
            free = shutil.disk_usage(made).free
            if needed > free:
                made.rmdir()
                os.close(held)
                raise UserError(
                    f"{path} needs {needed / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB left"
                )
        return str(made)

    def finish() -> None:
        with explained(path):
            check()
            _take_place(work, target)

    work = Path(by_first(make))
    try:
        with explained(path, work):
            yield work
        barrier()
        by_first(finish)
    finally:
        if first_process():
            _remove(work)
        if held >= 0:
            os.close(held)


def sweep(directory: Path, name: str = "") -> None:
    """Removes what killed processes left half written in a directory, or of `name` in it."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        start = f".{_short(name)}." if name else "."
        for entry in entries:
            if _PARTIAL.fullmatch(entry.name) and entry.name.startswith(start):
                _remove_unheld(Path(entry.path))


def _is_space(error: BaseException) -> bool:
    """Whether an error, of the system or of a library that wraps it, says that the disk is full."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    # Not RESOURCE_EXHAUSTED, which a device without memory and too many open files are too.
    return full or any(text in str(error) for text in ("No space left", "quota exceeded"))


@contextlib.contextmanager
def explained(path: str | os.PathLike[str], work: Path = Path("/")) -> Iterator[None]:
    """Says in one sentence what keeps `path` from being written; other errors than of `work` pass."""
    try:
        yield
    except UserError:
        raise
    # ArrayRecord raises RuntimeError, tensorstore ValueError.
    except (OSError, RuntimeError, ValueError) as error:
        number, file = getattr(error, "errno", None), getattr(error, "filename", None)
        own = isinstance(file, str) and Path(os.path.abspath(file)).is_relative_to(os.path.abspath(work))
        if number in _OF_THE_DISK or _is_space(error):
            why = _OF_THE_DISK.get(number or 0, _OF_THE_DISK[errno.ENOSPC])
        elif isinstance(error, OSError) and own:
            why = error.strerror or str(error)
        else:
            raise
        raise UserError(f"cannot write {os.fspath(path)!r}: {why}") from None


def _short(name: str) -> str:
    """So much of a name that the temporary one is not too long for a file system."""
    return os.fsdecode(os.fsencode(name)[:200])


def _made(target: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """A new temporary name for `target`, made by `make`, and its descriptor, which holds the lock."""
    while True:
        name = f".{_short(target.name)}.{os.getpid()}-{secrets.token_hex(4)}.partial"
        partial = target.with_name(name)
        held = make(partial)
        with contextlib.suppress(OSError):  # a file system without locks: nobody sweeps there either
            fcntl.flock(held, fcntl.LOCK_EX)
        # Between the two calls another process may have swept it.
        if partial.exists():
            return partial, held
        os.close(held)


def _new_directory(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def _remove_unheld(partial: Path) -> None:
    with contextlib.suppress(OSError):
        flags = os.O_RDONLY | os.O_DIRECTORY if partial.is_dir() else os.O_RDWR
        held = os.open(partial, flags | os.O_NOFOLLOW)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if flags & os.O_DIRECTORY:
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)
        finally:
            os.close(held)


def _remove(work: Path) -> None:
    """Removes a directory that a writer's threads, after an interruption, may still be filling."""
    for _ in range(50):
        shutil.rmtree(work, ignore_errors=True)
        if not work.exists():
            return
        time.sleep(0.1)


def _take_place(work: Path, path: Path) -> None:
    if not path.exists():
        os.replace(work, path)
    elif not _exchanged(work, path):
        old = path.with_name(f"{work.name.removesuffix('.partial')}.old")
        os.replace(path, old)
        os.replace(work, path)
        shutil.rmtree(old)


def _exchanged(a: Path, b: Path) -> bool:
    """Swaps two directories in one step, so that there is no moment without either (Linux' renameat2).

    False where the system or the file system cannot.
    """
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    return swap is not None and swap(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _EXCHANGE) == 0

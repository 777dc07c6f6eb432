"""One job at a time in a directory: a lock that ends with the process that holds it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from mvader_jax.errors import UserError
from mvader_jax.storage.atomic import explained, make_directory

LOCK = ".mvader-lock"


@contextlib.contextmanager
def only_user(directory: str | os.PathLike[str]) -> Iterator[None]:
    """While the block runs, no other job may enter one on the same directory, which is made where it is missing.

    The lock is the system's (flock, over NFS too), so it ends with its holder however that ends, and nothing
    stale is left. Where a file system has no locks, or keeps them to one host (gcsfuse), jobs of other hosts
    are not seen. The processes of a job enter and leave together; the first holds the lock. Raises UserError
    naming the holder, or where the directory cannot be written.
    """
    from mvader_jax.parallel.processes import by_first

    held = -1

    def take() -> None:
        nonlocal held
        with explained(directory):
            held = _taken(make_directory(directory) / LOCK, directory)

    by_first(take)
    try:
        yield
    finally:
        if held >= 0:
            with contextlib.suppress(OSError):
                (Path(directory) / LOCK).unlink()
            os.close(held)


@contextlib.contextmanager
def moment(directory: Path) -> Iterator[None]:
    """While the block runs, others wait who would enter one on the same directory; for what is over at once.

    The lock is the system's, on the directory itself. Where a file system has none, nobody waits.
    """
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _taken(file: Path, directory: str | os.PathLike[str]) -> int:
    """A descriptor that holds the lock and says who does."""
    while True:
        held = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = _flock(held)
            holder = _read(held)
            # Without locks: a holder of this host is dead when its process is.
            if locked is False or (locked is None and _alive(holder)):
                raise UserError(
                    f"{os.fspath(directory)!r} is in use by {_said(holder)}; wait or name another place"
                )
            # Its holder may have removed it between the two calls.
            if _is(held, file):
                os.ftruncate(held, 0)
                os.pwrite(held, json.dumps(_self()).encode(), 0)
                return held
        except BaseException:
            os.close(held)
            raise
        os.close(held)


def _flock(held: int) -> bool | None:
    """Whether the lock was free; None where the file system has none."""
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is(held: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(held), file.stat())
    except FileNotFoundError:
        return False


def _self() -> dict[str, object]:
    return {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _read(held: int) -> dict[str, object]:
    try:
        holder = json.loads(os.pread(held, 4096, 0))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _alive(holder: dict[str, object]) -> bool:
    number = holder.get("process")
    if holder.get("host") != socket.gethostname() or not isinstance(number, int) or number == os.getpid():
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _said(holder: dict[str, object]) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('process')} of {holder.get('host')} since {holder.get('since')}"

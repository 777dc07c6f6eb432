"""A data set's files on the hub, looked into from afar, and brought here one at a time."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mvader_jax.storage.hub import Address, api, bars, check_room, parse
from mvader_jax.storage.hub_errors import endpoint, explained


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of a repository at one commit. size: in bytes; digest: what the hub knows its content by."""

    address: Address
    size: int
    digest: str


def listed(name: str) -> tuple[Address, list[Shard]]:
    """(what a name spells, all files of that data set); `hf:ORG/NAME` and `hf:datasets/ORG/NAME` are the same here.

    Raises UserError where there is no such data set, or it cannot be reached.
    """
    address = dataclasses.replace(parse(name), kind="dataset")
    with explained(address):
        info = api().repo_info(
            address.repository, revision=address.revision, repo_type=address.kind, files_metadata=True
        )
    files = [
        Shard(
            dataclasses.replace(address, file=file.rfilename, revision=info.sha),
            file.size or 0,
            file.lfs.sha256 if file.lfs else file.blob_id or "",
        )
        for file in info.siblings or []
    ]
    return address, sorted(files, key=lambda shard: shard.address.file)


@contextlib.contextmanager
def opened(shard: Shard) -> Iterator[IO[bytes]]:
    """A file to read and seek in, of which only what is read comes here. Raises UserError as `listed`."""
    from huggingface_hub import HfFileSystem

    held = _in_cache(shard)
    if held is not None:
        with held.open("rb") as local:
            yield local
        return
    address = shard.address
    with explained(address):
        system: Any = HfFileSystem(endpoint=endpoint())
        file = system.open(f"datasets/{address.repository}@{address.revision}/{address.file}", "rb")
    with file:
        yield file


@contextlib.contextmanager
def borrowed(shard: Shard, folder: Path) -> Iterator[Path]:
    """The file on this machine while the block runs: in `folder`, or in the hub's cache if that has it already.

    What a killed process left in `folder` is gone on with. Raises UserError as `listed`, and where the disk is full.
    """
    from huggingface_hub import hf_hub_download

    held = _in_cache(shard)
    if held is not None:
        yield held
        return
    address, target = shard.address, folder / shard.address.file
    with explained(address, folder), bars(True):
        if not target.exists():
            check_room(address, shard.size, folder, "name a place with more for what is built")
        hf_hub_download(
            address.repository,
            address.file,
            repo_type=address.kind,
            revision=address.revision,
            local_dir=folder,
        )
    try:
        yield target
    finally:
        target.unlink(missing_ok=True)


def _in_cache(shard: Shard) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    address = shard.address
    held = try_to_load_from_cache(
        address.repository, address.file, revision=address.revision, repo_type=address.kind
    )
    return Path(held) if isinstance(held, str) else None

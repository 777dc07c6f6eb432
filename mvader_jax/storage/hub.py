"""Repositories of the Hugging Face hub as local folders; this, `hub_errors` and `hub_shards` alone know
huggingface_hub.

An address is `hf:ORG/NAME[@REVISION]`, `hf:ORG/NAME/FILE[@REVISION]` for one file of a repository or those that a pattern
(*) names, and `hf:datasets/ORG/NAME...` for a data set's. Files come through the library's own cache (HF_HOME,
HF_HUB_CACHE): one that came whole is not fetched again, and with HF_HUB_OFFLINE, or without a network, the cache alone is
asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import glob
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvader_jax.errors import UserError
from mvader_jax.storage.hub_errors import cache, endpoint, explained, unreachable

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo, ModelInfo

PREFIX = "hf:"
README = "README.md"
#: A line of a model card that `upload` may replace by a newer one.
MARK = "<!-- made by mvader push -->"
#: Of the names of a repository's files, those that are needed. Raises UserError where they do not serve.
Select = Callable[[Sequence[str]], Sequence[str]]
_ADDRESS = re.compile(
    r"hf:(?:(?P<kind>datasets)/(?=[^/@]+/))?(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:/(?P<file>[^@]+))?(?:@(?P<revision>.+))?"
)


@dataclasses.dataclass(frozen=True)
class Address:
    """A repository "ORG/NAME", a file of it or a pattern or "" for all, and a branch, tag or commit.

    revision: None for the main branch. kind: of repository, as the library calls it.
    """

    repository: str
    file: str = ""
    revision: str | None = None
    kind: str = "model"

    @property
    def place(self) -> str:
        """The repository, as it stands in an address."""
        return f"{PREFIX}{'datasets/' if self.kind == 'dataset' else ''}{self.repository}"

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        return f"{self.place}{file}{'' if self.revision is None else '@' + self.revision}"

    def choose(self, names: Sequence[str], select: Select) -> list[str]:
        """The files that are meant. Raises UserError where there is none of that name."""
        if not self.file:
            return list(select(names))
        chosen = [name for name in names if fnmatch.fnmatchcase(name, self.file)]
        if not chosen:
            raise UserError(f"{self.place} has no file {self.file}; it has {_some(names)}")
        return chosen


@dataclasses.dataclass(frozen=True)
class Found:
    """Files of a repository on this machine: their folder, or the file where one was asked for.

    origin: the address with the commit that the files are of. files: all of them.
    """

    path: Path
    origin: str
    files: tuple[Path, ...] = ()


def is_address(name: str | Path) -> bool:
    """Whether a name means a repository of the hub."""
    return str(name).startswith(PREFIX)


def parse(name: str | Path) -> Address:
    """The address that a name spells. Raises UserError where it spells none."""
    match = _ADDRESS.fullmatch(str(name))
    if match is None or ".." in (match["file"] or "").split("/"):
        raise UserError(
            f"{str(name)!r} is no address of the hub; accepted: hf:ORG/NAME, hf:ORG/NAME@REVISION, hf:ORG/NAME/FILE"
        )
    kind = "dataset" if match["kind"] else "model"
    return Address(match["repository"], match["file"] or "", match["revision"], kind)


def download(name: str | Path, select: Select, *, quiet: bool = False) -> Found:
    """Brings files of a repository onto this machine, or finds them in the cache.

    select: which of its files, where the address names none. quiet: no bars. Raises UserError, in one sentence,
    where the address, the repository, the revision or the file does not exist, is not open to this user, or cannot be
    reached.
    """
    address = parse(name)
    with explained(address):
        try:
            info = api().repo_info(
                address.repository, revision=address.revision, repo_type=address.kind, files_metadata=True
            )
        except Exception as error:
            if not unreachable(error):
                raise
            return _from_cache(address, select, error)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        chosen = address.choose(list(sizes), select)
        missing = _missing(address, info, chosen)
        check_room(
            address,
            sum(sizes[file] for file in missing),
            cache(),
            "HF_HOME names another place",
            "the cache ",
        )
        if missing and not quiet:
            total = sum(sizes[file] for file in missing)
            print(f"downloading {len(missing)} files, {total / 1e9:.2f} GB, of {address}", file=sys.stderr)
        folder = _snapshot(address, chosen, quiet=quiet)
    return _found(address, folder, chosen)


def upload(folder: Path, name: str, select: Select, card: str, *, private: bool, revision: str | None) -> str:
    """Puts files of `folder` into a repository of the hub, in one commit; returns the address of that commit.

    name: "ORG/NAME"; the repository and the branch `revision` are made where they are not there. select: of names, those
    that are sent; of what the repository holds, those take the place of what `select` names there, the rest stays. card: its
    README.md, unless somebody wrote another. Raises UserError as `download`, and where the repository holds something of
    which `select` names nothing, or is public and should be private.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    address = Address(parse(f"{PREFIX}{name.removeprefix(PREFIX)}").repository, "", revision)
    hub = api()
    with explained(address):
        hub.create_repo(address.repository, private=private or None, exist_ok=True)
        if private and not hub.model_info(address.repository).private:
            raise UserError(
                f"{address} exists and is public; make it private on the hub, or leave out --private"
            )
        if revision is not None:
            hub.create_branch(address.repository, branch=revision, exist_ok=True)
        held = hub.list_repo_files(address.repository, revision=revision)
        content = {file: folder / file for file in select(names_below(folder))}
        replaced = _replaced(address, held, select)
        if README not in held or MARK in _text(address, README):
            content[README] = card.encode()  # type: ignore[assignment]
        else:
            print(f"{address} has a {README} of its own, which is kept", file=sys.stderr)
        operations: list[Any] = [CommitOperationAdd(path, data) for path, data in content.items()]
        operations += [CommitOperationDelete(file) for file in replaced if file not in content]
        with bars(not sys.stderr.isatty()):
            done = hub.create_commit(
                address.repository, operations, commit_message="mvader push", revision=revision
            )
    return f"{PREFIX}{address.repository}@{done.oid}"


def names_below(folder: Path) -> list[str]:
    """The files of a folder, as a repository names them."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _replaced(address: Address, held: Sequence[str], select: Select) -> list[str]:
    """What of a repository an upload takes the place of. Raises UserError where it is no place for it."""
    old = [file for file in held if file not in (README, ".gitattributes")]
    try:
        return list(select(old)) if old else []
    except UserError:
        raise UserError(
            f"{address} holds something else than a bundle: {_some(old)}; name another repository"
        ) from None


def _text(address: Address, file: str) -> str:
    """A small file of a repository as it is now."""
    from huggingface_hub import hf_hub_download

    with bars(True):
        return Path(hf_hub_download(address.repository, file, revision=address.revision)).read_text(
            "utf-8", "replace"
        )


def _from_cache(address: Address, select: Select, reason: Exception) -> Found:
    """What an earlier download left. Raises UserError where it left not all that is needed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    offline = isinstance(reason, OfflineModeIsEnabled)
    why = "HF_HUB_OFFLINE is set" if offline else f"{endpoint()} cannot be reached"
    try:
        folder = Path(
            snapshot_download(
                address.repository,
                revision=address.revision,
                repo_type=address.kind,
                local_files_only=True,
                allow_patterns=[],
            )
        )
        names = names_below(folder)
        chosen = address.choose(names, select)
        folder = _snapshot(address, chosen, quiet=True, local=True)
    except LocalEntryNotFoundError:
        raise UserError(f"{why}, and {address} is not in the cache {cache()}") from None
    except UserError as error:
        raise UserError(f"{why}, and the cache {cache()} holds not all of {address}: {error}") from None
    return _found(address, folder, chosen)


def _snapshot(address: Address, chosen: Sequence[str], *, quiet: bool, local: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    with bars(quiet):
        return Path(
            snapshot_download(
                address.repository,
                revision=address.revision,
                repo_type=address.kind,
                allow_patterns=[glob.escape(file) for file in chosen],
                local_files_only=local,
            )
        )


def _found(address: Address, folder: Path, chosen: Sequence[str]) -> Found:
    origin = dataclasses.replace(address, revision=folder.name)
    files = tuple(folder / name for name in sorted(chosen))
    return Found(files[0] if chosen == [address.file] else folder, str(origin), files)


def _missing(address: Address, info: ModelInfo | DatasetInfo, chosen: Sequence[str]) -> list[str]:
    from huggingface_hub import try_to_load_from_cache

    def there(file: str) -> bool:
        held = try_to_load_from_cache(address.repository, file, revision=info.sha, repo_type=address.kind)
        return isinstance(held, str)

    return [file for file in chosen if not there(file)]


def check_room(address: Address, needed: int, folder: Path, remedy: str, what: str = "") -> None:
    """Raises UserError where the disk of a folder has fewer bytes left than are needed."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"{address} needs {needed / 1e9:.2f} GB, but the disk of {what}{folder} has {free / 1e9:.2f} GB left; {remedy}"
        )


@contextlib.contextmanager
def bars(quiet: bool) -> Iterator[None]:
    """The library's progress bars, only where somebody sees them."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled() or not (quiet or not sys.stderr.isatty()):
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def api() -> Any:
    """The library's own way to the hub."""
    from huggingface_hub import HfApi

    return HfApi(library_name="mvader_jax", endpoint=endpoint())


def _some(names: Sequence[str] | dict[str, int]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:8]) + (" ..." if len(listed) > 8 else "") if listed else "none"

"""What the hub's library raises, in one sentence; and where it keeps and asks things."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mvader_jax.errors import UserError, first_line

if TYPE_CHECKING:
    from mvader_jax.storage.hub import Address


@contextlib.contextmanager
def explained(address: Address, folder: Path | None = None) -> Iterator[None]:
    """Turns what the library raises into one sentence. folder: where files go, if not into the cache."""
    try:
        yield
    except (UserError, AssertionError):
        raise
    except Exception as error:
        reason = _reason(error, address, folder)
        if reason is None:
            raise
        raise UserError(reason) from None


def _reason(error: Exception, address: Address, folder: Path | None) -> str | None:
    """What an error of the library means to a user; None: it is nothing of the hub's."""
    from huggingface_hub import errors

    where, login = address.place, "log in with `hf auth login`, or set HF_TOKEN"
    cut = isinstance(error, errors.LocalEntryNotFoundError)  # the network went away between two files
    if cut or unreachable(error):
        return f"{endpoint()} cannot be reached ({first_line(error)}); files that came whole are kept, run it again"
    if isinstance(error, errors.GatedRepoError):
        return f"{where} is gated: accept its terms at {endpoint()}/{where.removeprefix('hf:')}, then {login}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no {where} that is open to you: check the name, and if it is private {login}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{where} has no revision {address.revision!r}"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return f"the hub does not take the token that it was sent for {where}: {login}"
        if status == 403:
            return f"the token that was sent may not do this with {where}; log in with one that may"
        return f"the hub answered {status} for {where}: {first_line(error)}"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"{where} needs a token: {login}"
    if isinstance(error, OSError):
        if "No space left" in str(error):
            place = f"the cache {cache()}; HF_HOME names another place" if folder is None else str(folder)
            return f"no space is left on the disk of {place}"
        return f"{where} cannot be read: {first_line(error)}"
    if isinstance(error, (errors.HFValidationError, ValueError)):
        return f"{where} is refused: {first_line(error)}"
    return None


def unreachable(error: Exception) -> bool:
    """Whether an error says that there is no way to the hub, whichever HTTP client the library uses."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, (OfflineModeIsEnabled, ConnectionError, TimeoutError)):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"TransportError", "ConnectError", "TimeoutException"})


def endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)

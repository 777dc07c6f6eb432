"""What stands before every request: who may ask, for what, and how much may come in. Plain ASGI."""

from __future__ import annotations

import hmac
import json
import urllib.parse
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import SimpleCookie
from typing import Any

from mvader_jax.web.store import MOST_BYTES

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: The paths that are answered, or their beginnings; everything else that the server library offers (uploads, files,
#: proxies, its description) is not there.
OPEN = ("/", "/about", "/say", "/cancel", "/pictures", "/favicon.ico")
BELOW = ("/page/", "/pictures/", "/gradio_api/call/")
#: What the server library asks itself when it starts; it does nothing but begin.
STARTUP = "/gradio_api/startup-events"
#: The most bytes of a request that is no picture.
MOST_WORDS = 1024**2
LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE = "mvader_token"
#: Nothing comes from elsewhere, nothing goes elsewhere, and no other page frames this one.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """An ASGI application around another.

    token: what a request must carry, in a cookie that the address with `?token=` sets; None: the server is on the
    loopback, and only what was sent to its names is answered, so that no other page's name leads here.
    """

    def __init__(self, app: Any, token: str | None = None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets
        path = scope["path"]
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        refusal = None if path == STARTUP else self._refusal(scope, headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        if self.token is not None and path == "/" and _asked_token(scope) is not None:
            # Away from the address, where histories and other people's eyes would keep it.
            cookie = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            await _answer(send, 303, "", {"location": "/", "set-cookie": cookie})
            return
        most = MOST_BYTES if path == "/pictures" else MOST_WORDS
        if int(headers.get("content-length") or 0) > most:
            await _answer(send, 413, f"the file is too large; the page takes up to {most // 1024**2} MB")
            return
        await self.app(scope, _bounded(receive, most), _with_headers(send))

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.token is None and _name(host) not in LOOPBACK:
            return 403, "this page answers on this machine alone; start it with --host for others"
        if self.token is not None and not self._carries_token(scope, headers):
            return 401, "this page needs its token: open the address that `mvader web` printed"
        if origin is not None and urllib.parse.urlsplit(origin).netloc != host:
            return 403, "another page asks for this one"
        if scope["path"] not in OPEN and not scope["path"].startswith(BELOW):
            return 404, "there is nothing here"
        if not headers.get("content-length", "0").isdigit():
            return 400, "the length of the request is no number"
        return None

    def _carries_token(self, scope: Scope, headers: dict[str, str]) -> bool:
        assert self.token is not None
        given = _asked_token(scope)
        if given is None and (morsel := SimpleCookie(headers.get("cookie", "")).get(COOKIE)) is not None:
            given = morsel.value
        return given is not None and hmac.compare_digest(given.encode(), self.token.encode())


def _asked_token(scope: Scope) -> str | None:
    found = urllib.parse.parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token")
    return found[0] if found else None


def _name(host: str) -> str:
    """A host without its port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _bounded(receive: Receive, most: int) -> Receive:
    """`receive` of a body that does not say how long it is: what is too long ends."""
    left = most

    async def bounded() -> MutableMapping[str, Any]:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        return message if left >= 0 else {"type": "http.disconnect"}

    return bounded


def _with_headers(send: Send) -> Send:
    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            own = {name: value for name, value in message["headers"] if name.decode().lower() not in _HEADERS}
            added = {name.encode(): value.encode() for name, value in _HEADERS.items()}
            message["headers"] = [*own.items(), *added.items()]
        await send(message)

    return sent


async def _answer(send: Send, status: int, problem: str, headers: dict[str, str] | None = None) -> None:
    body = json.dumps({"problem": problem}).encode() if problem else b""
    about = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    start = {
        "type": "http.response.start",
        "status": status,
        "headers": [(name.encode(), value.encode()) for name, value in about.items()],
    }
    await _with_headers(send)(start)
    await send({"type": "http.response.body", "body": body})

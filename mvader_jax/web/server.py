"""The page over HTTP: its files, its pictures, and drawings through Gradio's queue. Nothing is decided here."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

# Before it is imported: nothing is told to anyone.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mvader_jax.bounds import NonNegativeInt, Seed
from mvader_jax.diffusion.samplers import SAMPLERS
from mvader_jax.errors import UserError
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig
from mvader_jax.paper.demos import demo_of
from mvader_jax.prompt.elements import SITES
from mvader_jax.sampling.drawing import read_drawing
from mvader_jax.sampling.settings import FAST, image_size
from mvader_jax.settings import Checked, from_dict, to_dict
from mvader_jax.web.asked import MOST_CELLS, MOST_PARTS, MOST_PICTURES, Asked, Slider
from mvader_jax.web.guard import Guard
from mvader_jax.web.presets import examples, presets
from mvader_jax.web.restored import restored
from mvader_jax.web.said import say
from mvader_jax.web.store import MOST_BYTES, safe_name
from mvader_jax.web.studio import Event, Studio

_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
#: One drawing at a time, whoever asks.
_DEVICE: dict[str, Any] = {"concurrency_id": "device", "concurrency_limit": 1}


def serve(studio: Studio, host: str, port: int | None, token: str | None) -> tuple[gradio.Server, str]:
    """Begins to answer, in threads of its own; (the server, its address). port: None takes the first that is free
    from 7860 on. Raises UserError where none is."""
    server = application(studio)
    server.add_middleware(Guard, token=token)
    try:
        _bindable(host, port or 0)  # what cannot be, Gradio waits for in vain
        _, address, _ = server.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            inline=False,
            share=False,
            ssr_mode=False,
            run_history=False,
            mcp_server=False,
            enable_monitoring=False,
            allowed_paths=[],
        )
    except OSError:
        raise UserError(
            f"cannot answer at {host}, port {port or '7860 to 7959'}: it is taken, or not of this machine"
        ) from None
    return server, address


def _bindable(host: str, port: int) -> None:
    """Raises OSError where nobody here can answer at an address."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def application(studio: Studio) -> gradio.Server:
    """The routes, around a studio."""
    server, page = gradio.Server(openapi_url=None, docs_url=None, redoc_url=None), Page(studio)
    server.router.routes[:0] = [
        Route("/", page.file),
        Route("/favicon.ico", page.file),
        Route("/page/{name}", page.file),
        Route("/about", page.about),
        Route("/say", page.say, methods=["POST"]),
        Route("/cancel", page.cancel, methods=["POST"]),
        Route("/pictures", page.upload, methods=["POST"]),
        Route("/pictures/{id}", page.picture),
    ]

    def draw(asked: str) -> Iterator[str]:
        yield from page.told(asked, page.draw)

    def sweep(asked: str) -> Iterator[str]:
        yield from page.told(asked, page.sweep)

    def attend(asked: str) -> Iterator[str]:
        yield from page.told(asked, page.attend)

    for one in (draw, sweep, attend):
        server.api(one, name=one.__name__, **_DEVICE)
    return server


class Page:
    """The answers. What a person did wrong is {"problem": a sentence} with status 400."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.demo = demo_of(studio.pipe.bundle)
        self.examples = examples(self.demo, studio.store)
        folder = files("mvader_jax.web").joinpath("page")
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}

    def file(self, request: Request) -> Response:
        """A file of the page."""
        name = request.path_params.get("name", "icon.svg" if "favicon" in request.url.path else "index.html")
        if name not in self.files:
            return _problem("there is nothing here", 404)
        kind = _TYPES.get(name.rpartition(".")[2], "text/plain")
        return Response(self.files[name], media_type=kind, headers={"cache-control": "no-cache"})

    def about(self, request: Request) -> Response:
        """What the page must know before it shows anything."""
        pipe, model = self.studio.pipe, self.studio.pipe.model
        distilled = model.require(UNetConfig).distilled
        height, width = image_size(model)
        known = {
            "bundle": self.studio.opened.bundle,
            "settings": {**to_dict(pipe.defaults), "site": SITES[-1], "balance": False},
            "size": {"height": height, "width": width},
            "fast": FAST if self.studio.has_fast else None,
            "samplers": [name for name, one in SAMPLERS.items() if one.distilled == distilled],
            "multiple": model.require(VAEConfig).multiple * model.require(UNetConfig).multiple,
            "limits": {
                "pictures": MOST_PICTURES,
                "parts": MOST_PARTS,
                "cells": MOST_CELLS,
                "bytes": MOST_BYTES,
            },
            "examples": [{"name": name, "id": id} for name, id in self.examples.items()],
            "presets": presets(self.demo, self.examples),
        }
        return JSONResponse(known)

    def picture(self, request: Request) -> Response:
        """A picture as PNG; with `?name=` to be saved under that name."""
        try:
            kept = self.studio.store.get(request.path_params["id"])
        except UserError as error:
            return _problem(str(error), 404)
        headers = {"cache-control": "private, max-age=31536000, immutable"}
        if "name" in request.query_params:
            name = (
                safe_name(request.query_params["name"]).encode("ascii", "replace").decode().replace("?", "_")
            )
            headers["content-disposition"] = f'attachment; filename="{name}"'
        return Response(kept.png, media_type="image/png", headers=headers)

    async def upload(self, request: Request) -> Response:
        """A picture's file, as the body; its id and size, and what it was drawn with where it says so."""
        try:
            data = await request.body()
        except ClientDisconnect:  # of the bound, or of the browser
            return _problem("the file did not come whole, or is too large", 413)
        return await run_in_threadpool(self._answer, lambda: self._kept(data))

    def _kept(self, data: bytes) -> dict[str, Any]:
        kept = self.studio.store.upload(data)
        found = {"id": kept.id, "width": kept.size[0], "height": kept.size[1]}
        try:
            drawing = read_drawing(data)
        except UserError:  # it was not drawn here, or does not say how
            return found
        return {**found, "asked": restored(drawing, self.studio.store).to_json()}

    async def say(self, request: Request) -> Response:
        """The command line and the Python call of what is asked."""
        data = await request.body()

        def said() -> dict[str, Any]:
            asked = Asked.of(_json(data))
            asked.prompt(self.studio.store)
            asked.negative_elements(self.studio.store)
            return dataclasses.asdict(say(asked, self.studio.opened))

        return await run_in_threadpool(self._answer, said)

    async def cancel(self, request: Request) -> Response:
        """Ends the drawing of this name."""
        self.studio.cancel(str(_json(await request.body())))
        return JSONResponse({})

    def _answer(self, work: Callable[[], Any]) -> Response:
        try:
            return JSONResponse(work())
        except Exception as error:
            if not isinstance(error, UserError):
                traceback.print_exc()
            return _problem(self.studio.explain(error))

    def told(self, asked: str, draw: Callable[[Any], Iterator[Event]]) -> Iterator[str]:
        """Events as the texts that go through the queue."""
        try:
            for event in draw(_json(asked)):
                yield json.dumps(event)
        except UserError as error:
            yield json.dumps({"problem": str(error)})

    def draw(self, asked: Any) -> Iterator[Event]:
        """{"asked", "run", "quick"}."""
        wanted = from_dict(_Drawing, asked, "the drawing")
        return self.studio.draw(wanted.asked.quick() if wanted.quick else wanted.asked, wanted.run)

    def sweep(self, asked: Any) -> Iterator[Event]:
        """{"asked", "run", "across", "down"}."""
        wanted = from_dict(_Sweep, asked, "the sweep")
        return self.studio.sweep(wanted.asked, wanted.across, wanted.down, wanted.run)

    def attend(self, asked: Any) -> Iterator[Event]:
        """{"asked", "run", "seed", "index"}: of one picture of what was asked."""
        wanted = from_dict(_Attending, asked, "what is looked at")
        return self.studio.attend(wanted.asked.alone(wanted.seed, wanted.index), wanted.run)


@dataclasses.dataclass(frozen=True)
class _Attending(Checked):
    asked: Asked
    run: str
    seed: Seed
    index: NonNegativeInt


@dataclasses.dataclass(frozen=True)
class _Drawing(Checked):
    asked: Asked
    run: str
    quick: bool = False


@dataclasses.dataclass(frozen=True)
class _Sweep(Checked):
    asked: Asked
    run: str
    across: Slider
    down: Slider | None = None


def _json(data: str | bytes) -> Any:
    """Raises UserError for what is no JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise UserError("the request is no JSON") from None


def _problem(sentence: str, status: int = 400) -> Response:
    return JSONResponse({"problem": sentence}, status)

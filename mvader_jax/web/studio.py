"""What draws for a page: one drawing after the other, with previews on the way and an end before it."""

from __future__ import annotations

import base64
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import PIL.Image

from mvader_jax.diffusion.samplers import SAMPLERS
from mvader_jax.errors import UserError
from mvader_jax.images.png import png_bytes
from mvader_jax.sampling.pictures import NotFiniteError, drawn_with, kept
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.steps import Cancelled, Step
from mvader_jax.web.asked import Asked, Slider, swept
from mvader_jax.web.said import Opened
from mvader_jax.web.store import Store

#: What the browser is told of a drawing, as JSON.
Event = dict[str, Any]
Tell = Callable[[Event], None]
#: How often a drawing looks whether it is ended, and the seconds between its previews.
_LOOKS, _PAUSE = 16, 0.2


class Studio:
    """A pipeline, and the pictures that were drawn or came in. Drawings are made one at a time; any thread may ask."""

    def __init__(
        self,
        pipe: Pipeline,
        opened: Opened | None = None,
        explained: Callable[[BaseException], tuple[str, int]] | None = None,
    ) -> None:
        """explained: of an error that is no UserError a sentence, where there is one (`cli.main.explained`).
        Raises UserError for a bundle that draws nothing, and where several processes draw."""
        pipe.bundle.need("unet", "vae")
        if jax.process_count() > 1:
            raise UserError("the page draws in one process; several draw with mvader sample --prompts")
        self.pipe, self.opened, self.store = pipe, opened or Opened(), Store()
        self._explained = explained or (lambda error: (str(error) if isinstance(error, UserError) else "", 0))
        self._fast: Pipeline | None = None
        self._turn = threading.Lock()
        self._ends: dict[str, threading.Event] = {}

    @property
    def has_fast(self) -> bool:
        """Whether the bundle holds a UNet of few steps beside the other."""
        return "unet_fast" in self.pipe.bundle.components

    def draw(self, asked: Asked, run: str) -> Iterator[Event]:
        """The pictures of what is asked: {"step", "total", "previews"} on the way and {"pictures"} at the end; or
        {"cancelled"}, or {"problem"}, a sentence. run: a name by which `cancel` ends it."""
        return self._told(run, lambda end, tell: self._draw(asked, end, tell))

    def sweep(self, asked: Asked, across: Slider, down: Slider | None, run: str) -> Iterator[Event]:
        """A picture of each cell, {"row", "column", "asked", "pictures"}, from left to right; ends as `draw` does."""

        def cells(end: threading.Event, tell: Tell) -> None:
            grid = swept(asked, across, down)
            total = sum(map(len, grid))
            for number, (row, column) in enumerate(itertools.product(range(len(grid)), range(len(grid[0])))):
                cell = grid[row][column]
                about = {
                    "row": row,
                    "column": column,
                    "asked": cell.to_json(),
                    "cell": number + 1,
                    "cells": total,
                }
                self._draw(cell, end, _beside(tell, about), looks=False)

        return self._told(run, cells)

    def attend(self, asked: Asked, run: str) -> Iterator[Event]:
        """Where each element of the prompt was looked at in the first picture: {"seen"}, a row per element with the
        overlay's id, the share of attention that it got, and the share that its weight asks for."""

        def seen(end: threading.Event, tell: Tell) -> None:
            found = asked.attend(self._pipeline(asked.fast), self.store)
            rows = [
                {
                    "id": self.store.add(found.overlay(0, number)).id,
                    "name": part.name if part.text is None else part.text,
                    "got": float(found.shares[0, number]),
                    "asked": float(found.asked[number]),
                }
                for number, part in enumerate(asked.parts)
            ]
            tell({"seen": rows})

        return self._told(run, seen)

    def cancel(self, run: str) -> None:
        """Ends a drawing, or keeps one that waits from beginning."""
        if (end := self._ends.get(run)) is not None:
            end.set()

    def explain(self, error: BaseException) -> str:
        """One sentence for a person, whatever the error is."""
        return self._explained(error)[0] or "the drawing failed; the reason is where `mvader web` runs"

    def _told(self, run: str, work: Callable[[threading.Event, Tell], None]) -> Iterator[Event]:
        """What `work` tells, which goes on in a thread of its own; where nobody listens any longer it ends."""
        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        end = self._ends.setdefault(run, threading.Event())

        def worked() -> None:
            try:
                with self._turn:
                    work(end, events.put)
            except Cancelled:
                events.put({"cancelled": True})
            except Exception as error:
                events.put({"problem": self.explain(error)})
                if not self._explained(error)[0]:
                    raise  # to the log
            finally:
                events.put(None)

        thread = threading.Thread(target=worked, name=f"drawing {run}", daemon=True)
        thread.start()
        try:
            while (event := events.get()) is not None:
                yield event
        finally:
            end.set()
            self._ends.pop(run, None)

    def _draw(self, asked: Asked, end: threading.Event, tell: Tell, *, looks: bool = True) -> None:
        shown = time.monotonic()

        def watch(step: Step) -> bool:
            nonlocal shown
            last = step.number == step.total
            if looks and not last and time.monotonic() - shown > _PAUSE:
                tell({"step": step.number, "total": step.total, "previews": [*map(_data_url, step.preview)]})
                shown = time.monotonic()
            return not end.is_set()

        if end.is_set():
            raise Cancelled(Step(0, asked.settings.steps, lambda: None))  # type: ignore[arg-type,return-value]
        watched: dict[str, Any] = {}
        if SAMPLERS[asked.settings.sampler].walks and not asked.fast:  # few steps are one program
            watched = {"callback": watch, "callback_every": max(1, asked.settings.steps // _LOOKS)}
        try:
            drawn = list(asked.draw(self._pipeline(asked.fast), self.store, **watched))
        except NotFiniteError as error:
            tell({"pictures": [self._kept(picture) for picture in error.pictures.values()]})
            raise
        tell({"pictures": [self._kept(picture) for picture in drawn]})

    def _kept(self, picture: PIL.Image.Image) -> dict[str, Any]:
        """The picture in the store, with what it was drawn with as `Pictures.save` writes it."""
        own = drawn_with(picture)
        return {
            "id": self.store.add(picture, {**own, **kept(cast(dict[str, Any], picture.info))}).id,
            "seed": own["seed"],
            "index": own["index"],
        }

    def _pipeline(self, fast: bool) -> Pipeline:
        if fast and self._fast is None:
            pipe, mesh = self.pipe, self.pipe.placement.mesh
            said = {**pipe.loaded, "fast": True}
            self._fast = Pipeline(pipe.bundle.fast(), dtype=pipe.dtype, mesh=mesh, loaded=said)
        return self._fast if fast and self._fast is not None else self.pipe


def _beside(tell: Tell, about: Event) -> Tell:
    return lambda event: tell({**about, **event})


def _data_url(picture: PIL.Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(png_bytes(picture)).decode()}"

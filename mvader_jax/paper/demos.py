"""What a bundle is shown at first, by the pictures that it was trained on: input pictures, and a prompt of each task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from mvader_jax.data.scenes.world import Scene, SceneObject, render
from mvader_jax.storage.bundle import Bundle
from mvader_jax.storage.bundle_config import ASSETS

Picture = UInt8[np.ndarray, "H W 3"]


@dataclasses.dataclass(frozen=True)
class Demo:
    """inputs: {a file name: what makes the picture that the prompts show}. tasks: {a task of the paper: the parts of its
    prompt as `mvader sample` takes them, inputs by name}; every demo has the same."""

    inputs: Mapping[str, Callable[[], Picture]]
    tasks: Mapping[str, tuple[str, ...]]


#: One object each; `figures` draws them too.
SCENES = {
    "circle.png": Scene("black", (SceneObject("circle", "blue", "large", "solid", "left"),)),
    "cross.png": Scene("white", (SceneObject("cross", "red", "large", "hollow", "centre"),)),
    "square.png": Scene("black", (SceneObject("square", "yellow", "large", "solid", "right"),)),
}


def _scene(scene: Scene) -> Callable[[], Picture]:
    return lambda: render(scene)


def _file(name: str) -> Callable[[], Picture]:
    return lambda: np.asarray(PIL.Image.open(ASSETS / "demo" / name).convert("RGB"))


#: {kind of a data source: the demo of what was trained on it}; docs/credits.md says whose the files are.
DEMOS = {
    "scenes": Demo(
        {name: _scene(scene) for name, scene in SCENES.items()},
        {
            "text": ("a large solid green triangle at the top on a white background",),
            "variation": ("cross.png",),
            "style": ("a hollow shape", "circle.png"),
            "element": ("a green shape", "circle.png"),
            "composition": ("circle.png", "square.png"),
        },
    ),
    "emoji": Demo(
        {name: _file(name) for name in ("fox.png", "book.png", "mushroom.png", "strawberry.png")},
        {
            "text": ("castle in the noto style",),
            "variation": ("fox.png",),
            "style": ("as line art", "fox.png"),
            "element": ("in green", "book.png"),
            "composition": ("mushroom.png", "strawberry.png"),
        },
    ),
}


def demo_of(bundle: Bundle) -> Demo:
    """That of the data which the bundle says its UNet was trained on; of scenes where it says another or none."""
    trained = bundle.records.get("unet", {}).get("trained")
    data = str(trained.get("data") if isinstance(trained, dict) else None)
    # As `train/origin.py` words it: "emoji", "precomputed emoji of runs/encoded".
    return DEMOS.get(data.removeprefix("precomputed ").split(" ")[0], DEMOS["scenes"])

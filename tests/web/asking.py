"""Pictures and prompts for the page's tests."""

from typing import Any

import numpy as np

from mvader_jax.web.store import Store


def picture(store: Store, seed: int = 0) -> str:
    """The id of a picture of noise."""
    return store.add(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)).id


def mask(store: Store) -> str:
    """The id of a painted region."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[4:12, :9] = 255
    return store.add(pixels).id


def wanted(*parts: Any, settings: Any = None, **more: Any) -> dict[str, Any]:
    """What a page asks for, as it sends it; a row that is a string is a text."""
    rows = [{"text": part} if isinstance(part, str) else part for part in parts or ("a red circle",)]
    return {
        "parts": rows,
        "settings": {"steps": 4, "guidance_scale": 3.0, "seed": 5, **(settings or {})},
        **more,
    }

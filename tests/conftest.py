"""Eight CPU devices for every test, set before JAX is imported."""

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

# LLVM's optimisations are half of what compiling takes and change nothing that a test looks at.
flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# PyTorch's threads wait by spinning, which starves the worker beside them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: The modules whose signatures are checked at every call: types, and the shapes that jaxtyping names.
install_import_hook(
    [
        "mvader_jax.condition",
        "mvader_jax.data.batches",
        "mvader_jax.data.buckets",
        "mvader_jax.data.decode",
        "mvader_jax.data.prompts",
        "mvader_jax.data.scenes.judge",
        "mvader_jax.data.scenes.world",
        "mvader_jax.data.sources",
        "mvader_jax.diffusion",
        "mvader_jax.images.pixels",
        "mvader_jax.images.preprocess",
        "mvader_jax.models",
        "mvader_jax.prompt.layout",
        "mvader_jax.prompt.theta",
        "mvader_jax.sampling.generate",
        "mvader_jax.sampling.parts",
        "mvader_jax.sampling.pipeline",
        "mvader_jax.sampling.placement",
        "mvader_jax.train.objectives",
    ],
    "checked.checked",
)


#: What drives pages in every `test_browser.py`.
CHROMIUM = os.environ.get("MVADER_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def pytest_report_header() -> list[str]:
    """Says what is left out, and how it comes in."""
    return (
        []
        if CHROMIUM
        else ["pages (test_browser.py) are left out: there is no Chromium; `make browser` installs it"]
    )


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """The tests in a browser, where there is none."""
    return True if not CHROMIUM and collection_path.name == "test_browser.py" else None


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium, headless."""
    from playwright.sync_api import sync_playwright

    quiet = [
        "--disable-gpu",
        "--disable-quic",
        "--disable-background-networking",
        "--disable-component-update",
    ]
    flags = ["--no-sandbox", "--no-first-run", "--disable-sync", *quiet]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()

"""The whole way of `mvader convert` in one call, and what it wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mvader_jax.convert.convert import Report
from mvader_jax.convert.convert import convert as run
from mvader_jax.convert.kinds.base import Options
from mvader_jax.convert.sources import open_source
from mvader_jax.storage.bundle import Bundle, load_bundle, summary


def convert(source: Path, out: Path, kind: str | None = None, **settings: Any) -> Report:
    """Opens and converts; the names of `Options` go there."""
    chosen = {
        name: settings.pop(name) for name in ("config", "ema", "variant", "trust_pickle") if name in settings
    }
    options = Options(**chosen)
    return run(open_source(source, kind, options), source, out, options=options, **settings)


def converted(source: Path, out: Path, kind: str | None = None, **settings: Any) -> Bundle:
    """The bundle that came of it, its hashes checked."""
    report = convert(source, out, kind, **settings)
    bundle = load_bundle(out)
    assert set(report.components) == set(bundle.components)
    for name, tree in bundle.components.items():
        assert summary(tree).items() <= report.components[name].items(), name
    return bundle

"""OpenAI's clip/model.py by its path: the package around it imports what is not installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from types import ModuleType


def openai_clip() -> ModuleType:
    files = importlib.metadata.files("clip-anytorch")
    assert files is not None
    path = next(file.locate() for file in files if str(file) == "clip/model.py")
    spec = importlib.util.spec_from_file_location("clip_model", str(path))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

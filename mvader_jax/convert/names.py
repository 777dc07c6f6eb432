"""Many names of tensors told as a few patterns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

#: So many names are told one by one.
_FEW = 4
#: So many patterns at most are told of more.
_LINES = 8
_NUMBER = re.compile(r"(?<![^./_])\d+(?![^./])")


def in_patterns(names: Iterable[str], what: str = "tensors", few: int = _FEW) -> list[str]:
    """Names as patterns with counts, as in "transformer.h.*.attn...: 28 tensors".

    Numbers become "*"; where too many patterns are left, their last parts go. Up to `few` names stay as they are.
    """
    names = list(names)
    if len(names) <= few:
        return names
    patterns = Counter(_NUMBER.sub("*", name) for name in names)
    depth = max(len(_parts(pattern)) for pattern in patterns)
    while len(patterns) > _LINES and depth > 1:
        depth -= 1
        shorter: Counter[str] = Counter()
        for pattern, count in patterns.items():
            parts = _parts(pattern.removesuffix("..."))
            shorter[pattern if len(parts) <= depth else "".join(parts[:depth]).rstrip("./") + "..."] += count
        patterns = shorter
    return [pattern if count == 1 else f"{pattern}: {count} {what}" for pattern, count in patterns.items()]


def _parts(pattern: str) -> list[str]:
    """A name at its dots and slashes, each kept with what it ends."""
    return re.findall(r"[^./]+[./]?", pattern)

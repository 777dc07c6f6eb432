"""What a build did with its input, sample by sample in numbers."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from typing import Any

from mvader_jax.data.unicode import printable

#: Keys kept of each reason, so that a person can look at what was thrown away.
_EXAMPLES = 5
_LONGEST = 200


@dataclasses.dataclass
class Report:
    """`read` samples are `written` records and all of `rejected` together.

    bytes: of the records; digest: SHA-256 of them, or of their parts' digests.
    examples: the first keys of each reason. problems: of whole parts, in words.
    """

    read: int = 0
    written: int = 0
    bytes: int = 0
    digest: str = ""
    rejected: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)

    def reject(self, reason: str, key: str) -> None:
        """Counts one sample that is not kept."""
        self.rejected[reason] += 1
        kept = self.examples.setdefault(reason, [])
        if len(kept) < _EXAMPLES:
            kept.append(printable(key)[:_LONGEST])

    def add(self, other: Report) -> None:
        """Takes in the report of another part."""
        self.read += other.read
        self.written += other.written
        self.bytes += other.bytes
        self.digest = hashlib.sha256(f"{self.digest}{other.digest}".encode()).hexdigest()
        self.rejected.update(other.rejected)
        for reason, keys in other.examples.items():
            kept = self.examples.setdefault(reason, [])
            kept += keys[: _EXAMPLES - len(kept)]
        self.problems += other.problems

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "rejected": dict(self.rejected.most_common())}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Report:
        return cls(**{**value, "rejected": collections.Counter(value["rejected"])})

    def lines(self) -> list[str]:
        """A table for people: what was read, what became of it, and that the numbers add up."""
        width = max(len(reason) for reason in ("written", *self.rejected))
        rows = [("read", self.read), ("written", self.written), *self.rejected.most_common()]
        lines = [f"{what:{width}}  {count:>12,}" for what, count in rows]
        lines += [f"! {printable(problem)}" for problem in self.problems]
        return lines

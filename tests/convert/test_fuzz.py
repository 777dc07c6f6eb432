"""Whatever a file or its settings say: accepted, or refused in one sentence (`fuzzing.py`)."""

from __future__ import annotations

import fuzzing
import pytest


@pytest.mark.parametrize(("what", "times"), [("configs", 150), ("headers", 400), ("archives", 150)])
def test_a_short_while(what: str, times: int) -> None:
    counts = fuzzing.run(what, seed=1, times=times)
    accepted, refused = (
        sum(n for name, n in counts.items() if name.endswith(word)) for word in ("accepted", "refused")
    )
    assert accepted + refused == times and accepted > times // 50 and refused > times // 10, counts


@pytest.mark.slow
@pytest.mark.parametrize("what", sorted(fuzzing.FUZZERS))
def test_ten_minutes(what: str) -> None:
    counts = fuzzing.run(what, seed=2, seconds=600)
    print("\n" + "\n".join(f"{name}: {count:,}" for name, count in sorted(counts.items())))
    assert sum(counts.values()) > 1000

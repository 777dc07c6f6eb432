"""Labels in any script: a glyph for every letter, from this package's font or the system's, or a notice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from mvader_jax.errors import Notice
from mvader_jax.images import letters
from mvader_jax.images.letters import Letters, check_letters

OWN = ["äöüßÄÖÜ", "éèçœ", "ñ¿¡ó", "ŁžřĐğı", "Ελληνικά", "красный ёж ЩЇ", "θ → “x” – … € ×"]


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of fonts on a system that has no others."""
    fonts = tmp_path / "fonts"
    fonts.mkdir()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path))
    for cached in (letters._font, letters._font_with):
        cached.cache_clear()
    yield fonts
    for cached in (letters._font, letters._font_with):
        cached.cache_clear()


def drawn(text: str, size: int = 24) -> np.ndarray:
    picture = PIL.Image.new("L", (40 * max(len(text), 1), 40), 255)
    Letters(size).draw(PIL.ImageDraw.Draw(picture), (4, 4), text)
    return np.asarray(picture)


@pytest.mark.parametrize("text", OWN)
def test_this_packages_font_has_the_letters_of_european_languages(alone: Path, text: str) -> None:
    check_letters([text])
    box = drawn("\U0010ffff")
    assert (box < 128).any()
    for letter in text.replace(" ", ""):
        assert (drawn(letter) < 128).any() and not np.array_equal(drawn(letter), box)
    assert len({drawn(letter).tobytes() for letter in set(text)}) == len(set(text))


def test_marks_that_follow_their_letter_are_one_with_it(alone: Path) -> None:
    check_letters(["a\u0308 \u200bb\ufe0f\n"])
    assert Letters(20).length("a\u0308") == Letters(20).length("ä")
    np.testing.assert_array_equal(drawn("a\u0308")[:, :40], drawn("ä"))


def test_the_systems_font_has_the_others(alone: Path) -> None:
    with pytest.warns(Notice, match="no font here has あ 日 猫 한: drawn as boxes; install one"):
        check_letters(["日 あ", "한 ä", "猫"])
    boxes = drawn("猫")
    for cached in (letters._font, letters._font_with):
        cached.cache_clear()
    shutil.copy(Path(__file__).parent / "four_signs.ttf", alone / "NotoSansCJK-Regular.ttc")
    check_letters(["日 あ", "한 ä", "猫"])
    assert not np.array_equal(drawn("猫"), boxes)
    assert len({drawn(sign).tobytes() for sign in "猫日あ한"}) == 4
    # Each part of a mixed line stands where the one before it ends.
    line = Letters(24)
    assert line.length("für猫x") == line.length("für") + line.length("猫") + line.length("x")


def test_a_notice_names_a_few(alone: Path) -> None:
    with pytest.warns(Notice) as given:
        check_letters(["".join(map(chr, range(0x4E00, 0x4E80)))])
    assert len(given) == 1 and len(str(given[0].message)) < 150


def test_lines_are_broken_where_they_may_be() -> None:
    ten = Letters(10)
    assert ten.wrap("", 50) == [] and ten.wrap("one", 1000) == ["one"]
    for text in (
        "a red circle on the left of a blue square",
        "without_any_blank_in_it_0001.png",
        "ein x " * 20,
    ):
        lines = ten.wrap(text, 60)
        assert len(lines) > 1 and all(ten.length(line) <= 60 for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    tied = "blue\u00a0=\u00a01"
    assert ten.wrap(f"red {tied}", ten.length("red blue =")) == ["red", tied]
    assert ten.wrap("red blue", ten.length("blue")) == ["red", "blue"]

"""Settings of several kinds: read, written, overridden, and brought up from the keys of an earlier version."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import pytest

from mvader_jax.errors import UserError
from mvader_jax.settings import Choice, from_dict, modern, override, to_dict


class Shape(Choice):
    pass


@dataclasses.dataclass(frozen=True)
class Circle(Shape):
    radius: float = 1.0


@dataclasses.dataclass(frozen=True)
class Box(Shape):
    sides: tuple[int, ...] = ()
    rounded: float = 0.0


Shape.kinds = {"circle": Circle, "box": Box}


@dataclasses.dataclass(frozen=True)
class Pen:
    colour: str = "black"
    moved: ClassVar[Mapping[str, str]] = {"rounded": "..shape.rounded"}


@dataclasses.dataclass(frozen=True)
class Drawing:
    shape: Shape = Circle()
    pen: Pen = Pen()
    moved: ClassVar[Mapping[str, str]] = {"radius": "shape.radius", "sides": "shape.sides"}


@dataclasses.dataclass(frozen=True)
class Book:
    pages: Mapping[str, Drawing]


BOX = Drawing(Box((2, 3)))


def test_a_choice_is_written_with_its_kind_and_read_back():
    data = to_dict(BOX)
    assert data["shape"] == {"kind": "box", "sides": [2, 3], "rounded": 0.0}
    assert from_dict(Drawing, data) == BOX
    assert from_dict(Drawing, {"shape": "box"}) == Drawing(Box())
    assert BOX.shape.kind == "box"


def test_overrides_reach_into_the_kind_that_is_chosen():
    book = Book({"one": Drawing()})
    assert override(book, ["pages.one.shape.radius=2"]).pages["one"].shape == Circle(2.0)
    changed = override(book, ["pages.one.shape=box", "pages.one.shape.sides=[4]"])
    assert changed.pages["one"].shape == Box((4,))
    assert override(BOX, ['shape={"kind": "circle", "radius": 3}']).shape == Circle(3.0)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("shape.radius=2", r"unknown key 'radius' in 'shape.radius' \(box\); known: rounded, sides"),
        ("shape=ball", "shape is 'ball'; accepted: circle, box"),
        ("shape=3", "shape is 3; expected one of circle, box, or its settings"),
        ('shape={"sides": [1]}', "expected one of circle, box, or its settings"),
        ('shape={"kind": "box", "radius": 1}', "unknown key 'radius' in shape"),
        ("radius=2", r"the key of 'radius' has moved; write shape\.radius=2"),
        ("pen.rounded=0.5", r"the key of 'pen\.rounded' has moved; write shape\.rounded=0\.5"),
        ("moved=2", "unknown key 'moved'"),
    ],
)
def test_what_a_kind_does_not_have_is_refused(assignment, message):
    with pytest.raises(UserError, match=message):
        override(BOX, [assignment])


def test_settings_of_an_earlier_version_stand_under_todays_keys():
    old = {"shape": "box", "radius": 1.0, "sides": [2, 3], "pen": {"colour": "red", "rounded": 0.5}}
    now = {"shape": {"kind": "box", "sides": [2, 3], "rounded": 0.5}, "pen": {"colour": "red"}}
    assert modern(Book, {"pages": {"one": old}}) == {"pages": {"one": now}}
    assert modern(Drawing, now) == now
    assert modern(Drawing, {**old, "shape": "circle"}) == {
        "shape": {"kind": "circle", "radius": 1.0},
        "pen": {"colour": "red"},
    }


def test_a_mapping_takes_whole_settings_under_a_new_name_and_nothing_else():
    book = Book({"one": BOX})
    assert override(book, ['pages.two={"shape": "box"}']).pages == {"one": BOX, "two": Drawing(Box())}
    with pytest.raises(UserError, match=r"unknown key 'onee' in 'pages.onee'; did you mean 'one'\?"):
        override(book, ["pages.onee=box"])
    with pytest.raises(UserError, match=r"unknown key 'onee' in 'pages.onee.shape'"):
        override(book, ["pages.onee.shape=box"])
    with pytest.raises(UserError, match=r"unknown key 'colour' in pages.two; known: pen, shape"):
        override(book, ['pages.two={"colour": 1}'])

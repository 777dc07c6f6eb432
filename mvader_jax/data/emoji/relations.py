"""What code points say of a subject: which others it differs from in one respect, and what it is composed of.

A subject is named by its code points: lower case, joined by "-", without leading zeros and without the variation
selector FE0F, as in "1f469-1f3fd-200d-1f680".
"""

from __future__ import annotations

import dataclasses
import hashlib

JOINER, SELECTOR = "200d", "fe0f"
TONES = {
    "1f3fb": "light",
    "1f3fc": "medium-light",
    "1f3fd": "medium",
    "1f3fe": "medium-dark",
    "1f3ff": "dark",
}
HAIR = {"1f9b0": "red", "1f9b1": "curly", "1f9b2": "bald", "1f9b3": "white"}
_SIGNS = {"2642": "man", "2640": "woman"}
#: Neutral, woman, man: of grown, old and young people, and of royalty.
_PEOPLE = (
    ("1f9d1", "1f469", "1f468"),
    ("1f9d3", "1f475", "1f474"),
    ("1f9d2", "1f467", "1f466"),
    ("1fac5", "1f478", "1f934"),
)
_GENDERED = {
    code: (neutral, who)
    for neutral, *both in _PEOPLE
    for code, who in zip((neutral, *both), ("person", "woman", "man"), strict=True)
}
_COLOURS: dict[str, dict[str, str]] = {
    "heart": {
        "2764": "red",
        "1f9e1": "orange",
        "1f49b": "yellow",
        "1f49a": "green",
        "1f499": "blue",
        "1fa75": "light blue",
        "1f49c": "purple",
        "1f90e": "brown",
        "1f5a4": "black",
        "1fa76": "grey",
        "1f90d": "white",
        "1fa77": "pink",
    },
    "circle": {
        "1f534": "red",
        "1f7e0": "orange",
        "1f7e1": "yellow",
        "1f7e2": "green",
        "1f535": "blue",
        "1f7e3": "purple",
        "1f7e4": "brown",
        "26ab": "black",
        "26aa": "white",
    },
    "square": {
        "1f7e5": "red",
        "1f7e7": "orange",
        "1f7e8": "yellow",
        "1f7e9": "green",
        "1f7e6": "blue",
        "1f7ea": "purple",
        "1f7eb": "brown",
        "2b1b": "black",
        "2b1c": "white",
    },
    "book": {"1f4d5": "red", "1f4d7": "green", "1f4d8": "blue", "1f4d9": "orange"},
    "apple": {"1f34e": "red", "1f34f": "green"},
    "large diamond": {"1f536": "orange", "1f537": "blue"},
    "small diamond": {"1f538": "orange", "1f539": "blue"},
}
KINDS = ("tone", "gender", "hair", "color")


@dataclasses.dataclass(frozen=True)
class Relation:
    """Subjects of one kind and family differ in this respect alone; value: this subject's, empty where it has none."""

    kind: str
    family: str
    value: str


def code_of(hexcode: str) -> str:
    """The name of a subject from code points as others write them."""
    points = [point.lower().lstrip("0") for point in hexcode.replace("_", "-").split("-")]
    return "-".join(point for point in points if point and point != SELECTOR)


def relations(code: str) -> tuple[Relation, ...]:
    """All that a subject has; one of tone, gender and hair also where it is the plain one of a family."""
    points = code.split("-")
    people = [point for point in points if point in _GENDERED]
    found = []
    tones = [TONES[point] for point in points if point in TONES]
    if len(tones) <= 1:
        plain = "-".join(point for point in points if point not in TONES)
        found.append(Relation("tone", plain, tones[0] if tones else ""))
    sign = points[-1] if points[-2:-1] == [JOINER] and points[-1] in _SIGNS else None
    if sign and not people:
        found.append(Relation("gender", "-".join(points[:-2]), _SIGNS[sign]))
    elif len(people) == 1 and points[0] in _GENDERED and not sign:
        neutral, who = _GENDERED[points[0]]
        found.append(Relation("gender", "-".join([neutral, *points[1:]]), who))
    elif not people and points[-1] not in _SIGNS:
        # Somebody who runs, of whom nothing more is said; of most things there is no other.
        found.append(Relation("gender", code, "person"))
    hair = points[-1] if points[-2:-1] == [JOINER] and points[-1] in HAIR else None
    if points[0] in _GENDERED and (hair or not set(points[1:]) - TONES.keys()):
        found.append(Relation("hair", "-".join(points[:-2] if hair else points), HAIR.get(hair or "", "")))
    for thing, colours in _COLOURS.items():
        if code in colours:
            found.append(Relation("color", thing, colours[code]))
    return tuple(found)


def parts(code: str) -> tuple[str, ...]:
    """The subjects that a sequence joins, as woman and rocket make an astronaut; none where it joins no two."""
    pieces = code.split(f"-{JOINER}-")
    kept = tuple(piece for piece in pieces if piece not in _SIGNS and piece not in HAIR)
    return kept if len(kept) > 1 else ()


def root(code: str) -> str:
    """The subject without tone, gender and hair: what looks nearly the same is held out together."""
    points = [point for point in code.split("-") if point not in TONES]
    points = [_GENDERED[point][0] if point in _GENDERED else point for point in points]
    while points[-2:-1] == [JOINER] and (points[-1] in _SIGNS or points[-1] in HAIR):
        points = points[:-2]
    return "-".join(points)


#: Shares of subjects that are never seen, and of the pairs of the others with a style.
UNSEEN_SUBJECTS, UNSEEN_PAIRS = 0.05, 0.08


def unseen_subject(code: str) -> bool:
    """Whether no stage of training sees this subject in any style: 5 % of all, by a fixed hash of `root`."""
    return _draw(f"unseen {root(code)}") < UNSEEN_SUBJECTS


def unseen_pair(code: str, style: str) -> bool:
    """Whether no stage of training sees this subject in this style, though it sees both: 8 %, likewise."""
    return not unseen_subject(code) and _draw(f"{root(code)} {style}") < UNSEEN_PAIRS


def order(code: str) -> tuple[float, str]:
    """Where a subject stands among all: by chance, but for ever, and those of one `root` together."""
    return _draw(f"order {root(code)}"), code


def _draw(words: str) -> float:
    """The same number in [0, 1) for the same words, on every machine for ever."""
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big") / 2**64

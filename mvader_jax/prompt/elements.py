"""A prompt: ordered text and image elements, each with a weight (theta of the paper's eq. 2).

No JAX here, and NumPy and Pillow only where a mask or an image is at hand: the command line reads its
arguments through this file.
"""

from __future__ import annotations

import dataclasses
import numbers
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, TypeAlias, TypeGuard, get_args

from mvader_jax.errors import UserError
from mvader_jax.images.names import check_no_url, names_picture
from mvader_jax.images.sources import held, is_source
from mvader_jax.prompt.checks import Box, Factors, check_weight, checked_factors, checked_region, quote

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

    class ArrayLike(Protocol):
        """An array of any library that NumPy can read: of PyTorch, JAX, TensorFlow."""

        def __array__(self) -> np.ndarray: ...

    ImageSource: TypeAlias = (
        str | os.PathLike[str] | bytes | BinaryIO | PIL.Image.Image | np.ndarray | ArrayLike
    )
    #: An element, or what stands for one: ("a hat", 0.3) is Text("a hat", 0.3), (picture, 0.3) Image(picture, 0.3).
    Part: TypeAlias = "Element | ImageSource | tuple[ImageSource, float]"
    #: What `Prompt.of` takes.
    PromptLike: TypeAlias = "Prompt | Part | Sequence[Part]"
else:  # for those who read annotations
    ImageSource = Part = PromptLike = Any

#: Where weights act: in the decoder's self-attentions, in the UNet's cross-attentions, or in both.
Site = Literal["decoder", "cross_attention", "both"]
SITES: tuple[str, ...] = get_args(Site)
#: How an element's weight is meant: as theta of each of its tokens (False), as the sum of their thetas (True), or as its
#: share of the UNet's cross-attention ("attention").
Balance = Literal[False, True, "attention"]
#: What happens to a prompt of more tokens than the model has positions.
LongPrompts = Literal["cut", "refuse", "chunk"]
LONG_PROMPTS: tuple[str, ...] = get_args(LongPrompts)


def check_balance(balance: Any, site: str | None) -> None:
    """Raises UserError for what is no `Balance`, and where it has nothing to move at this site."""
    if not (isinstance(balance, bool) or balance == "attention"):
        raise UserError(f"balance is {balance!r:.80}; accepted: False, True, attention")
    if balance == "attention" and site == "decoder":
        raise UserError(
            "balance attention moves weights at the cross-attention, but their site is decoder; accepted: "
            "cross_attention, both"
        )


@dataclasses.dataclass(frozen=True)
class Text:
    """A text element.

    weight: theta of each of its tokens; 1 leaves them as they are, 0 suppresses them.
    spans: substring -> a factor on the weight of every token that touches any of its occurrences;
        where spans overlap their factors multiply. Given as a mapping, kept as a tuple of pairs.
    Raises UserError for an empty text, a bad weight, or a span that the text does not contain.
    """

    text: str
    weight: float = 1.0
    spans: Mapping[str, float] | tuple[tuple[str, float], ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise UserError(f"a text element holds a {type(self.text).__name__}; expected a string")
        if not self.text.strip():
            raise UserError("a text of the prompt is empty; write at least one word or leave the element out")
        try:
            self.text.encode()
        except UnicodeEncodeError:  # half a character of JSON's, or an argument's bytes
            raise UserError(f"the text {quote(self.text)} is not valid Unicode; expected UTF-8") from None
        object.__setattr__(self, "weight", check_weight(self.weight, quote(self.text)))
        object.__setattr__(self, "spans", self._checked_spans())

    def _checked_spans(self) -> tuple[tuple[str, float], ...]:
        spans = self.spans.items() if isinstance(self.spans, Mapping) else self.spans or ()
        try:
            pairs = [(span, weight) for span, weight in spans]
        except (TypeError, ValueError):
            raise UserError(f"spans is {self.spans!r:.80}; expected {{substring: factor}}") from None
        checked = []
        for span, weight in pairs:
            if not isinstance(span, str) or not span.strip() or span not in self.text:
                raise UserError(f"the span {span!r} does not occur in the text {quote(self.text)}")
            checked.append((span, check_weight(weight, f"the span {quote(span)}")))
        return tuple(checked)

    def __repr__(self) -> str:
        spans = [f"spans={dict(self.span_weights)}"] if self.span_weights else []
        return f"Text({', '.join([repr(self.text), *_weight(self.weight), *spans])})"

    @property
    def span_weights(self) -> tuple[tuple[str, float], ...]:
        """The spans as pairs (substring, factor)."""
        assert isinstance(self.spans, tuple)
        return self.spans


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
    """An image element.

    image: a path, the bytes of an image file or such a file opened with 'rb', a PIL image, or an array
        [H, W, 3] of uint8 or of floats in [0, 1], NumPy's or what NumPy can read (PyTorch's, JAX's); what is
        no open file is read only when the prompt is tokenised.
    weight: theta of each of its tokens.
    regions: pairs (region, factor); a region is a `Box`, a mask [h, w] (bool, or numbers in [0, 1]), or a mask
        as a Pillow image or its path (white is 1, black and what is transparent 0), laid over the whole picture
        as the user sees it, before the encoder's centre crop. A token whose cell the region covers by a fraction f has its
        weight multiplied by 1 + f (factor - 1); where regions overlap their factors multiply.
    Raises UserError for what is no picture, a URL, a bad weight, box or mask.
    """

    image: ImageSource
    weight: float = 1.0
    regions: Sequence[tuple[Box | np.ndarray | PIL.Image.Image | str | os.PathLike[str], float]] = ()

    def __post_init__(self) -> None:
        check_no_url(self.image)
        object.__setattr__(self, "image", held(self.image))
        object.__setattr__(self, "weight", check_weight(self.weight, self.describe()))
        try:
            regions = [
                (checked_region(where), check_weight(weight, "a region")) for where, weight in self.regions
            ]
        except (TypeError, ValueError, OverflowError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError("regions is not a list of pairs (box or mask, weight)") from None
        object.__setattr__(self, "regions", tuple(regions))

    @property
    def checked_regions(self) -> tuple[tuple[Box | np.ndarray, float], ...]:
        """The regions, every mask as an array."""
        return self.regions  # type: ignore[return-value]

    def describe(self) -> str:
        """The file's name, or 'an image' where there is none."""
        path = self.path
        return "an image" if path is None else f"the image {path!r}"

    @property
    def path(self) -> str | None:
        """The path, where the image is a file."""
        return os.fspath(self.image) if isinstance(self.image, (str, os.PathLike)) else None

    def __repr__(self) -> str:
        size = getattr(self.image, "shape", None) or getattr(self.image, "size", None)
        kind = type(self.image).__name__ + (f" {size}" if size else "")
        held = f"<{kind}>" if self.path is None else repr(self.path)
        regions = [f"{len(self.regions)} regions"] if self.regions else []
        return f"Image({', '.join([held, *_weight(self.weight), *regions])})"

    def _key(self) -> tuple[Any, ...]:
        regions = tuple(
            (where if isinstance(where, tuple) else (where.shape, where.tobytes()), weight)
            for where, weight in self.checked_regions
        )
        return (self.path or id(self.image), self.weight, regions)

    def __eq__(self, other: object) -> bool:
        """Equal when they name the same file, or hold the same object, under the same weights."""
        return isinstance(other, Image) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


Element: TypeAlias = Text | Image


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One or more elements in order, and how their weights are meant.

    elements: anything `Prompt.of` takes; kept as a tuple of Text and Image. A string is a text, unless it
        names a picture: then it is refused, since it may be meant either way.
    site: where the weights act.
    balance: take an element's weight as its total share, whatever its token count: the thetas of its
        tokens are scaled to sum to weight * N / E, for the N tokens and E elements of the prompt that
        are not suppressed. So a caption of 10 tokens stands level with an image of 144, the mean theta
        of a prompt of weights 1 stays 1, and elements of equal length keep their weights unchanged.
        Spans and regions then divide an element's share among its tokens.
        "attention": in proportion to its weight an element is to receive attention from the UNet's cross-attentions:
        thetas are moved as it samples until it does (`diffusion.balance`), from the weights on. At the decoder weights
        are thetas.
    decoder_factors, cross_attention_factors: by layer [N], or by layer and head [N, H] (either may be 1);
        theta acts as theta ** factor in that layer and head: 1 as given, 0 not at all, 2 squared. Layers
        are the decoder's, and the UNet's cross-attentions in the order they run. Numbers of at least 0;
        kept as nested tuples; None means 1. Whether the shape is the model's is checked by the tokenizer.
    long_prompts: of a prompt of more tokens than the model has positions the end of its texts is left out, which is
        told (cut), an error (refuse), or read in further chunks, where the embedder can (chunk: CLIP's text tower).
    Raises UserError for an empty prompt, an element of another kind or bad factors. (The null condition
    of classifier-free guidance is not a prompt: `layout.lay_out` takes None for it.)
    """

    elements: tuple[Element, ...]
    site: Site = "both"
    balance: Balance = False
    decoder_factors: Factors | None = None
    cross_attention_factors: Factors | None = None
    long_prompts: LongPrompts = "cut"

    def __post_init__(self) -> None:
        elements = tuple(_elements(self.elements))
        if not elements:
            raise UserError("the prompt is empty; give at least one text or image")
        if self.site not in SITES:
            raise UserError(f"the site of the weights is {self.site!r}; accepted: {', '.join(SITES)}")
        check_balance(self.balance, self.site)
        if self.long_prompts not in LONG_PROMPTS:
            raise UserError(f"long_prompts is {self.long_prompts!r}; accepted: {', '.join(LONG_PROMPTS)}")
        object.__setattr__(self, "elements", elements)
        for name in ("decoder_factors", "cross_attention_factors"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, checked_factors(value, name))

    def __repr__(self) -> str:
        fields = (field for field in dataclasses.fields(self) if field.name != "elements")
        changed = [f", {f.name}={v!r}" for f in fields if (v := getattr(self, f.name)) != f.default]
        return f"Prompt({list(self.elements)}{''.join(changed)})"

    @classmethod
    def of(cls, prompt: PromptLike, **options: Any) -> Prompt:
        """A Prompt from a str (a text), Text, Image, picture (as `Image` takes it), a pair of a text or picture and
        its weight, as ("a hat", 0.3), or a list of these.

        options: the other fields, for what is not yet a Prompt. Raises UserError for a string that names a
        picture: Text or Image says which is meant.
        """
        return prompt if isinstance(prompt, Prompt) else cls(tuple(_elements(prompt)), **options)

    @classmethod
    def from_json(
        cls,
        value: Any,
        root: str | os.PathLike[str] = ".",
        pictures: Iterable[Any] | None = None,
        **options: Any,
    ) -> Prompt:
        """A Prompt from plain JSON: `[{"text": "a red hat", "weight": 1, "spans": {"red": 2}},
        {"image": "a.png", "weight": 0.3, "regions": [{"box": [0, 0, 0.5, 1], "weight": 2}]}]`.

        A region may have "mask", a path, in place of "box". A bare string is a text; paths are relative
        to `root`. pictures: what takes the place of every image and mask, in the order of `Prompt.pictures`: no path is
        then opened. options: the other fields. Raises UserError for anything else.
        """
        values = value if isinstance(value, list) else [value]
        given = None if pictures is None else iter(pictures)
        return cls(tuple(_from_json(item, pathlib.Path(root), given) for item in values), **options)

    def to_json(self) -> list[dict[str, Any]]:
        """The inverse of `from_json`, `pictures` aside; an image that is no file is written as null, a mask as its shape."""
        return [_to_json(element) for element in self.elements]

    @property
    def pictures(self) -> list[Any]:
        """What its JSON does not hold: the source of every image, each followed by the masks of its regions."""
        found: list[Any] = []
        for element in self.elements:
            if isinstance(element, Image):
                masks = [where for where, _ in element.checked_regions if not isinstance(where, tuple)]
                found += [element.image, *masks]
        return found


def _elements(value: Any) -> Iterable[Element]:
    if isinstance(value, (Text, Image)):
        return (value,)
    if isinstance(value, Prompt):
        return value.elements
    if isinstance(value, (list, tuple)) and not is_weighted(value):
        return tuple(_element(item) for item in value)
    return (_element(value),)


def is_weighted(value: Any) -> TypeGuard[tuple[Any, float]]:
    """Whether a value is ("a hat", 0.3): a number is no element."""
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], numbers.Real)


def _element(value: Any) -> Element:
    if isinstance(value, (Text, Image)):
        return value
    if isinstance(value, str):
        if names_picture(value):
            raise UserError(
                f"the string {quote(value)} names a picture; write Image({value!r}) for the picture, or "
                f"Text({value!r}) for the words"
            )
        return Text(value)
    if is_weighted(value):
        part, weight = value
        if isinstance(part, (Text, Image)):
            raise UserError(f"{part!r} has a weight of its own; give {weight!r} there")
        return dataclasses.replace(_element(part), weight=weight)
    if is_source(value) and not isinstance(value, numbers.Number):
        return Image(value)
    raise UserError(
        f"a prompt holds {value!r:.80}; accepted: texts, images, pairs of one and its weight, and lists of these"
    )


def _from_json(item: Any, root: pathlib.Path, pictures: Iterator[Any] | None) -> Element:
    if isinstance(item, str):
        if names_picture(item, root):
            raise UserError(
                f'the string {quote(item)} names a picture; write {{"image": ...}} for the picture, or '
                '{"text": ...} for the words'
            )
        return Text(item)
    if not isinstance(item, dict) or ("text" in item) == ("image" in item):
        raise UserError(f"a prompt's element is {item!r}; expected an object with either 'text' or 'image'")
    kind = "text" if "text" in item else "image"
    known = {kind, "weight", "spans" if kind == "text" else "regions"}
    if unknown := sorted(set(item) - known):
        raise UserError(f"unknown key {unknown[0]!r} in a prompt's {kind}; known: {', '.join(sorted(known))}")
    weight = item.get("weight", 1.0)
    if kind == "text":
        spans = item.get("spans")
        if spans is not None and not isinstance(spans, dict):
            raise UserError(f"spans is {spans!r}; expected an object of substring: weight")
        return Text(item["text"], weight, spans)
    if pictures is None and (not isinstance(item["image"], str) or not item["image"]):
        raise UserError(f"an image of the prompt is {item['image']!r}; expected a path")
    check_no_url(item["image"])
    image = os.fspath(root / item["image"]) if pictures is None else _next(pictures)
    regions = item.get("regions") or []
    try:
        pairs = [(_region_from_json(region, root, pictures), region["weight"]) for region in regions]
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            'regions must be a list of {"box": [left, top, right, bottom], "weight": w} '
            'or {"mask": path, "weight": w}'
        ) from None
    return Image(image, weight, pairs)


def _next(pictures: Iterator[Any]) -> Any:
    for picture in pictures:
        return picture
    raise UserError("the prompt holds more images and masks than there are pictures for")


def _region_from_json(region: dict[str, Any], root: pathlib.Path, pictures: Iterator[Any] | None) -> Any:
    where = {key: value for key, value in region.items() if key != "weight"}
    if set(where) == {"box"}:
        left, top, right, bottom = where["box"]
        return (left, top, right, bottom)
    if set(where) == {"mask"}:
        return os.fspath(root / where["mask"]) if pictures is None else _next(pictures)
    raise KeyError


def _to_json(element: Element) -> dict[str, Any]:
    if isinstance(element, Text):
        spans = {"spans": dict(element.span_weights)} if element.span_weights else {}
        return {"text": element.text, "weight": element.weight, **spans}
    regions = [
        {"box": list(where), "weight": weight}
        if isinstance(where, tuple)
        else {"mask": list(where.shape), "weight": weight}
        for where, weight in element.checked_regions
    ]
    return {"image": element.path, "weight": element.weight, **({"regions": regions} if regions else {})}


def _weight(weight: float) -> list[str]:
    return [] if weight == 1.0 else [f"{weight:g}"]

"""The paper's figures, laid out as labelled grids: the same prompts, pictures of this model."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from mvader_jax.bounds import NonNegativeFloat, Share
from mvader_jax.data.scenes.world import COLORS, Scene, SceneObject, render
from mvader_jax.errors import UserError
from mvader_jax.images.read import load_image
from mvader_jax.images.sheet import grid
from mvader_jax.prompt.elements import Element, Image, Text
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import STRENGTH, SamplingSettings
from mvader_jax.sampling.tasks import composition, element, img2img, interpolation, style, variation
from mvader_jax.settings import Checked

if TYPE_CHECKING:
    from mvader_jax.prompt.elements import ImageSource

#: Noise of the image-to-image baseline, in figure 4's row.
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
#: theta of the sweep's elements.
THETAS = (1.0, 0.3, 0.1, 0.03, 0.0)
#: What stands for the changing word in figure 5's text.
PLACEHOLDER = "<color>"
#: The side that small pictures are enlarged to, so that their labels can be read.
_SIDE = 128


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """sampling: how a figure's pictures are drawn; strength: of the image-to-image baseline, where a figure
    shows one; values: the words of figure 5; thetas: of the figure weights."""

    sampling: SamplingSettings = dataclasses.field(default_factory=SamplingSettings)
    strength: Share = STRENGTH
    values: tuple[str, ...] = tuple(COLORS)[:4]
    thetas: tuple[NonNegativeFloat, ...] = THETAS


Cell = tuple["ImageSource | None", str]
Rows = list[list[Cell]]
Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Figure:
    """draw: makes its rows of (picture or None, label); defaults: inputs that the embedded model knows; options:
    the fields of `Options` beside `sampling` that change it."""

    title: str
    takes: str
    draw: Callable[[Pipeline, list[Element], Options, Progress], Rows]
    defaults: Callable[[], list[Element]]
    options: tuple[str, ...] = ()


def check_figure(name: str, options: Collection[str]) -> Figure:
    """The figure of this name. Raises UserError where there is none, or an option changes nothing in it."""
    if name not in FIGURES:
        raise UserError(f"unknown figure {name!r}; accepted: {', '.join(FIGURES)}")
    for option in options:
        if option not in FIGURES[name].options:
            takers = ", ".join(other for other, figure in FIGURES.items() if option in figure.options)
            raise UserError(f"figure {name} takes no {option}; those that do: {takers}")
    return FIGURES[name]


def draw_figure(
    name: str,
    pipe: Pipeline,
    inputs: Sequence[Element] = (),
    options: Options | None = None,
    progress: Progress = lambda what: None,
) -> PIL.Image.Image:
    """One figure by its name, on these inputs or its own.

    Raises UserError for an unknown figure, or inputs that are not what it takes.
    """
    figure = check_figure(name, ())
    rows = figure.draw(pipe, list(inputs) or figure.defaults(), options or Options(), progress)
    return _sheet(figure.title, rows)


def multimodal(pipe: Pipeline, inputs: list[Element], options: Options, progress: Progress) -> Rows:
    """Figure 3: the prompt's elements, and pictures of it."""
    _take("3", inputs, texts=(0, 9), images=(0, 9))
    progress("the prompt")
    pictures = pipe(inputs, num_images=3, settings=options.sampling)
    shown = [_cell(one) for one in inputs]
    return [[*shown, *((picture, f"output {i}") for i, picture in enumerate(pictures, 1))]]


def style_change(pipe: Pipeline, inputs: list[Element], options: Options, progress: Progress) -> Rows:
    """Figure 4: the strength sweep of image-to-image beside the multimodal prompt."""
    texts, (image,) = _take("4", inputs, texts=(1, 9), images=(1, 1))
    source = image.image
    row: list[Cell] = [_cell(Image(source))]
    for strength in STRENGTHS:
        progress(f"img2img, s = {strength:g}")
        made = img2img(pipe, source, texts, strength=strength, settings=options.sampling)
        row.append((made[0], f"img2img s={strength:g}"))
    progress("the multimodal prompt")
    row.append(
        (style(pipe, texts, image, settings=options.sampling)[0], f"[text, image], theta {image.weight:g}")
    )
    return [[(None, " ".join(text.text for text in texts))], row]


def element_change(pipe: Pipeline, inputs: list[Element], options: Options, progress: Progress) -> Rows:
    """Figure 5: one word of the text substituted, the image the same."""
    texts, (image,) = _take("5", inputs, texts=(1, 1), images=(1, 1))
    if PLACEHOLDER not in texts[0].text:
        raise UserError(
            f"figure 5 substitutes {PLACEHOLDER} in its text, which {texts[0].text!r} does not hold"
        )
    row: list[Cell] = [_cell(Image(image.image))]
    for value in options.values:
        progress(value)
        text = Text(texts[0].text.replace(PLACEHOLDER, value), texts[0].weight)
        row.append((element(pipe, text, image, settings=options.sampling)[0], value))
    return [[(None, f"{texts[0].text}, image of theta {image.weight:g}")], row]


def compositions(pipe: Pipeline, inputs: list[Element], options: Options, progress: Progress) -> Rows:
    """Figure 6: two images, pictures of both; below, latent interpolation of the same (section 4.2)."""
    _, images = _take("6", inputs, texts=(0, 0), images=(2, 9))
    progress("composition")
    pictures = composition(pipe, images, num_images=3, settings=options.sampling)
    shown = [_cell(image) for image in images]
    rows = [[*shown, *((picture, f"composition {i}") for i, picture in enumerate(pictures, 1))]]
    blank: Cell = (None, "")
    below: list[Cell] = [blank] * (len(shown) - 1) + [(None, "latents interpolated")]
    for fraction in (0.25, 0.5, 0.75):
        progress(f"interpolation {fraction:g}")
        picture = interpolation(
            pipe,
            images[0].image,
            images[1].image,
            fraction=fraction,
            strength=options.strength,
            settings=options.sampling,
        )[0]
        below.append((picture, f"{fraction:g}, s={options.strength:g}"))
    return [*rows, below]


def variations(pipe: Pipeline, inputs: list[Element], options: Options, progress: Progress) -> Rows:
    """Figure 7: variations by the image's embedding, and by noising its latents."""
    _, (image,) = _take("7", inputs, texts=(0, 0), images=(1, 1))
    progress("variations")
    ours = variation(pipe, image, num_images=3, settings=options.sampling)
    progress("img2img")
    theirs = img2img(pipe, image.image, strength=options.strength, num_images=3, settings=options.sampling)
    first: list[Cell] = [_cell(Image(image.image)), *((picture, "[image]") for picture in ours)]
    return [first, [(None, ""), *((picture, f"img2img s={options.strength:g}") for picture in theirs)]]


def order_swap(pipe: Pipeline, inputs: list[Element], options: Options, progress: Progress) -> Rows:
    """Figure 9: the same two images in both orders, the same noise."""
    _, images = _take("9", inputs, texts=(0, 0), images=(2, 2))
    rows = []
    for pair, label in ((images, "first, second"), (images[::-1], "second, first")):
        progress(label)
        pictures = composition(pipe, pair, num_images=3, settings=options.sampling)
        rows.append(
            [*map(_cell, pair), *((picture, f"{label}, {i}") for i, picture in enumerate(pictures, 1))]
        )
    return rows


def weights(pipe: Pipeline, inputs: list[Element], options: Options, progress: Progress) -> Rows:
    """A sweep of theta over two elements: the first down, the second across, always the same noise."""
    if len(inputs) != 2:
        raise UserError(f"the figure weights takes 2 elements, texts or images; there are {len(inputs)}")
    first, second = inputs
    rows: Rows = [[_cell(first), _cell(second)]]
    for down in options.thetas:
        row: list[Cell] = []
        for across in options.thetas:
            progress(f"theta {down:g}, {across:g}")
            prompt = [dataclasses.replace(first, weight=down), dataclasses.replace(second, weight=across)]
            row.append((pipe(prompt, settings=options.sampling)[0], f"theta {down:g} and {across:g}"))
        rows.append(row)
    return rows


def _scene(background: str, *objects: tuple[str, str, str, str, str]) -> Image:
    return Image(render(Scene(background, tuple(SceneObject(*one) for one in objects))))


def _circle() -> Image:
    return _scene("grey", ("circle", "red", "large", "solid", "left"))


def _cross() -> Image:
    return _scene("white", ("cross", "blue", "small", "solid", "right"))


def _weighted(image: Image) -> Image:
    """A default image beside a text, weighted down as the paper does (section 3.4), to where the embedded
    model follows both most often."""
    return dataclasses.replace(image, weight=0.2)


FIGURES: dict[str, Figure] = {
    "3": Figure(
        "Figure 3: multimodal guidance",
        "texts and images, one prompt",
        multimodal,
        lambda: [Text("a blue shape"), _weighted(_circle()), Text("a white background")],
    ),
    "4": Figure(
        "Figure 4: style modification, image-to-image beside the multimodal prompt",
        "a text and an image",
        style_change,
        lambda: [Text("a blue shape"), _weighted(_circle())],
    ),
    "5": Figure(
        "Figure 5: one element changed by text",
        f"a text with {PLACEHOLDER} in it, and an image",
        element_change,
        lambda: [Text(f"a {PLACEHOLDER} shape"), _weighted(_circle())],
        ("values",),
    ),
    "6": Figure(
        "Figure 6: composition of images",
        "two or more images",
        compositions,
        lambda: [_circle(), _cross()],
        ("strength",),
    ),
    "7": Figure(
        "Figure 7: variations of an image", "an image", variations, lambda: [_circle()], ("strength",)
    ),
    "9": Figure(
        "Figure 9: the order of the images",
        "two images",
        order_swap,
        lambda: [_circle(), _cross()],
    ),
    "weights": Figure(
        "Weights of two elements",
        "two texts or images",
        weights,
        lambda: [Text("a blue shape"), _circle()],
        ("thetas",),
    ),
}


def _take(
    name: str, inputs: list[Element], *, texts: tuple[int, int], images: tuple[int, int]
) -> tuple[list[Text], list[Image]]:
    told = [one for one in inputs if isinstance(one, Text)]
    shown = [one for one in inputs if isinstance(one, Image)]
    if not (texts[0] <= len(told) <= texts[1] and images[0] <= len(shown) <= images[1]):
        raise UserError(
            f"figure {name} takes {FIGURES[name].takes}; there are {len(told)} texts and {len(shown)} images"
        )
    return told, shown


def _cell(one: Element) -> Cell:
    weight = "" if one.weight == 1.0 else f", theta {one.weight:g}"
    if isinstance(one, Text):
        return (None, f"{one.text}{weight}")
    return (load_image(one.image), f"input{weight}")


def _sheet(title: str, rows: Rows) -> PIL.Image.Image:
    """Rows of labelled pictures under a title; a cell without a picture is its label alone."""
    pictures = [load_image(picture) for row in rows for picture, _ in row if picture is not None]
    side = max(_SIDE, *(max(picture.size) for picture in pictures))
    columns = max(len(row) for row in rows)
    strips = []
    for row in rows:
        if all(picture is None for picture, _ in row):
            strips.append(_caption(", ".join(label for _, label in row), columns * side))
            continue
        cells = [*row, *([(None, "")] * (columns - len(row)))]
        strips.append(grid([_enlarged(p, label, side) for p, label in cells], columns, [
            label if picture is not None else "" for picture, label in cells
        ], gap=6))  # fmt: skip
    strips.insert(0, _caption(title, strips[-1].width))
    width, height = max(strip.width for strip in strips), sum(strip.height for strip in strips)
    sheet = PIL.Image.new("RGB", (width, height), (255, 255, 255))
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _enlarged(picture: ImageSource | None, label: str, side: int) -> PIL.Image.Image:
    if picture is None:
        return _card(label, side)
    image = load_image(picture)
    times = side // max(image.size)
    return image.resize((image.width * times, image.height * times), PIL.Image.Resampling.NEAREST)


def _card(text: str, side: int) -> PIL.Image.Image:
    """A text as a picture of its own, for a prompt's text among its images."""
    card = PIL.Image.new("RGB", (side, side), (255, 255, 255))
    font = PIL.ImageFont.load_default(max(14, side // 9))
    pen = PIL.ImageDraw.Draw(card)
    wrapped = "\n".join(textwrap.wrap(text, max(1, int(side * 0.9 / pen.textlength("n", font=font)))))
    middle = (side / 2, side / 2)
    pen.multiline_text(middle, wrapped, fill=(0, 0, 0), font=font, anchor="mm", align="center")
    return card


def _caption(text: str, width: int) -> PIL.Image.Image:
    font = PIL.ImageFont.load_default(16)
    strip = PIL.Image.new("RGB", (width, 28), (255, 255, 255))
    PIL.ImageDraw.Draw(strip).text((8, 5), text, fill=(0, 0, 0), font=font)
    return strip

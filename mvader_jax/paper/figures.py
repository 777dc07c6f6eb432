"""The paper's figures, laid out as labelled grids: the same prompts, pictures of this model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from mvader_jax.bounds import NonNegativeFloat, Share
from mvader_jax.data.scenes.world import COLORS, Scene, SceneObject, render
from mvader_jax.errors import UserError
from mvader_jax.paper.demos import DEMOS
from mvader_jax.paper.layout import Cell, names, setting, sheet, shown, weighted
from mvader_jax.prompt.elements import Element, Image, Text
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import STRENGTH, SamplingSettings
from mvader_jax.sampling.tasks import composition, element, img2img, interpolation, style, variation
from mvader_jax.settings import Checked

if TYPE_CHECKING:
    import PIL.Image

#: Noise of the image-to-image baseline, in figure 4's row.
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
#: theta of the sweep's elements.
THETAS = (1.0, 0.3, 0.1, 0.03, 0.0)
#: What stands for the changing word in figure 5's text.
PLACEHOLDER = "<color>"


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """sampling: how a figure's pictures are drawn; strength: of the image-to-image baseline, where a figure
    shows one; values: the words of figure 5; thetas: of the figure weights."""

    sampling: SamplingSettings = dataclasses.field(default_factory=SamplingSettings)
    strength: Share = STRENGTH
    values: tuple[str, ...] = tuple(COLORS)[:4]
    thetas: tuple[NonNegativeFloat, ...] = THETAS


Rows = list[list[Cell]]
Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Figure:
    """draw: makes its rows; defaults: inputs that the embedded model knows; options:
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
    return sheet(rows, figure.title)


def multimodal(pipe: Pipeline, inputs: list[Element], options: Options, progress: Progress) -> Rows:
    """Figure 3: the prompt's elements, and pictures of it."""
    _take("3", inputs, texts=(0, 9), images=(0, 9))
    progress("the prompt")
    pictures = pipe(inputs, num_images=3, settings=options.sampling)
    return [[*shown(inputs), *_numbered(pictures, "output")]]


def style_change(pipe: Pipeline, inputs: list[Element], options: Options, progress: Progress) -> Rows:
    """Figure 4: the strength sweep of image-to-image beside the multimodal prompt."""
    texts, (image,) = _take("4", inputs, texts=(1, 9), images=(1, 1))
    source = image.image
    row = shown([*texts, Image(source)])
    for strength in STRENGTHS:
        progress(f"img2img, s = {strength:g}")
        made = img2img(pipe, source, texts, strength=strength, settings=options.sampling)
        row.append(Cell(made[0], f"img2img, {setting('s', strength)}"))
    progress("the multimodal prompt")
    made = style(pipe, texts, image, settings=options.sampling)
    return [[*row, Cell(made[0], f"[text, {weighted('image', image.weight)}]")]]


def element_change(pipe: Pipeline, inputs: list[Element], options: Options, progress: Progress) -> Rows:
    """Figure 5: one word of the text substituted, the image the same."""
    texts, (image,) = _take("5", inputs, texts=(1, 1), images=(1, 1))
    if PLACEHOLDER not in texts[0].text:
        raise UserError(
            f"figure 5 substitutes {PLACEHOLDER} in its text, which {texts[0].text!r} does not hold"
        )
    row = shown([texts[0], image])
    for value in options.values:
        progress(value)
        text = Text(texts[0].text.replace(PLACEHOLDER, value), texts[0].weight)
        row.append(Cell(element(pipe, text, image, settings=options.sampling)[0], value))
    return [row]


def compositions(pipe: Pipeline, inputs: list[Element], options: Options, progress: Progress) -> Rows:
    """Figure 6: two images, pictures of both; below, latent interpolation of the same (section 4.2)."""
    _, images = _take("6", inputs, texts=(0, 0), images=(2, 9))
    progress("composition")
    pictures = composition(pipe, images, num_images=3, settings=options.sampling)
    first = [*shown(images), *_numbered(pictures, "composition")]
    below = [Cell()] * (len(images) - 1) + [
        Cell(text=f"latents interpolated, {setting('s', options.strength)}")
    ]
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
        below.append(Cell(picture, f"{fraction:g} of image 2"))
    return [first, below]


def variations(pipe: Pipeline, inputs: list[Element], options: Options, progress: Progress) -> Rows:
    """Figure 7: variations by the image's embedding, and by noising its latents."""
    _, (image,) = _take("7", inputs, texts=(0, 0), images=(1, 1))
    progress("variations")
    ours = variation(pipe, image, num_images=3, settings=options.sampling)
    progress("img2img")
    theirs = img2img(pipe, image.image, strength=options.strength, num_images=3, settings=options.sampling)
    return [
        [*shown([image]), *_numbered(ours, "variation")],
        [Cell(text=f"img2img, {setting('s', options.strength)}"), *_numbered(theirs, "img2img")],
    ]


def order_swap(pipe: Pipeline, inputs: list[Element], options: Options, progress: Progress) -> Rows:
    """Figure 9: the same two images in both orders, the same noise."""
    _, images = _take("9", inputs, texts=(0, 0), images=(2, 2))
    rows = []
    for cells, pair in ((shown(images), images), (shown(images)[::-1], images[::-1])):
        label = ", ".join(cell.label for cell in cells)
        progress(label)
        pictures = composition(pipe, pair, num_images=3, settings=options.sampling)
        rows.append([*cells, *(Cell(picture, f"[{label}]") for picture in pictures)])
    return rows


def weights(pipe: Pipeline, inputs: list[Element], options: Options, progress: Progress) -> Rows:
    """A sweep of theta over two elements: the first down, the second across, always the same noise."""
    if len(inputs) != 2:
        raise UserError(f"the figure weights takes 2 elements, texts or images; there are {len(inputs)}")
    first, second = (dataclasses.replace(one, weight=1.0) for one in inputs)
    rows: Rows = [shown([first, second])]
    down_name, across_name = names([first, second])
    for down in options.thetas:
        row = []
        for across in options.thetas:
            label = f"{setting(f'{down_name} θ', down)}, {setting(f'{across_name} θ', across)}"
            progress(f"θ = {down:g}, {across:g}")
            prompt = [dataclasses.replace(first, weight=down), dataclasses.replace(second, weight=across)]
            row.append(Cell(pipe(prompt, settings=options.sampling)[0], label))
        rows.append(row)
    return rows


def _numbered(pictures: Sequence[PIL.Image.Image], name: str) -> list[Cell]:
    return [Cell(picture, f"{name} {i}") for i, picture in enumerate(pictures, 1)]


def _input(name: str, weight: float = 1.0) -> Image:
    """A picture of the demo, of which the embedded model is known to draw what the figures show."""
    return Image(DEMOS["scenes"].inputs[name](), weight)


def _pair() -> list[Element]:
    """Two objects that leave room for each other."""
    one = SceneObject("circle", "red", "large", "solid", "left")
    other = SceneObject("square", "blue", "large", "solid", "right")
    return [Image(render(Scene("white", (shape,)))) for shape in (one, other)]


FIGURES: dict[str, Figure] = {
    "3": Figure(
        "Figure 3: multimodal guidance",
        "texts and images, one prompt",
        multimodal,
        lambda: [Text("a green shape"), _input("circle.png", 0.3), Text("on a white background")],
    ),
    "4": Figure(
        "Figure 4: style modification, image-to-image beside the multimodal prompt",
        "a text and an image",
        style_change,
        lambda: [Text("a hollow shape"), _input("circle.png", 0.2)],
    ),
    "5": Figure(
        "Figure 5: one element changed by text",
        f"a text with {PLACEHOLDER} in it, and an image",
        element_change,
        lambda: [Text(f"a {PLACEHOLDER} shape"), _input("circle.png", 0.1)],
        ("values",),
    ),
    "6": Figure(
        "Figure 6: composition of images",
        "two or more images",
        compositions,
        _pair,
        ("strength",),
    ),
    "7": Figure(
        "Figure 7: variations of an image",
        "an image",
        variations,
        lambda: [_input("cross.png")],
        ("strength",),
    ),
    "9": Figure(
        "Figure 9: the order of the images",
        "two images",
        order_swap,
        _pair,
    ),
    "weights": Figure(
        "Weights of two elements",
        "two texts or images",
        weights,
        lambda: [Text("a green shape"), _input("circle.png")],
        ("thetas",),
    ),
}


def _take(
    name: str, inputs: list[Element], *, texts: tuple[int, int], images: tuple[int, int]
) -> tuple[list[Text], list[Image]]:
    told = [one for one in inputs if isinstance(one, Text)]
    seen = [one for one in inputs if isinstance(one, Image)]
    if not (texts[0] <= len(told) <= texts[1] and images[0] <= len(seen) <= images[1]):
        raise UserError(
            f"figure {name} takes {FIGURES[name].takes}; there are {len(told)} texts and {len(seen)} images"
        )
    return told, seen

"""The tasks of the paper, and the two baselines it compares them with, as functions.

    variation(pipe, "photo.png", num_images=4)            # section 3.3, figure 7: [image]
    style(pipe, "a pencil drawing", "photo.png")          # section 4.1, figure 4: [text, image]
    element(pipe, "in blue", "photo.png")                 # section 4.1, figure 5: [text, image]
    composition(pipe, ["a.png", "b.png"])                 # section 4.2, figure 6: [image, image, ...]
    img2img(pipe, "photo.png", "a pencil drawing", strength=0.6)          # baseline of figures 4 and 7
    interpolation(pipe, "a.png", "b.png", fraction=0.5, strength=0.6)     # baseline of section 4.2

Every other argument is `Pipeline.__call__`'s, and so are the errors. A picture may be a `prompt.Image`,
which carries a weight, a pair of one and its weight, or anything that `prompt.Image` takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from mvader_jax.bounds import Share
from mvader_jax.errors import UserError
from mvader_jax.prompt.elements import Element, Image, Prompt, Text, is_weighted
from mvader_jax.sampling.pictures import Pictures
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.settings import convert

if TYPE_CHECKING:
    from mvader_jax.prompt.elements import ImageSource

    Picture: TypeAlias = Image | ImageSource | tuple[ImageSource, float]
    Words: TypeAlias = str | Text | Sequence[str | Text] | None


def variation(pipe: Pipeline, image: Picture, **options: Any) -> Pictures:
    """Variations of one image: the prompt [image]."""
    return pipe((_image(image),), **options)


def style(pipe: Pipeline, text: Words, image: Picture, **options: Any) -> Pictures:
    """The image in the style that the text names: the prompt [text, image], from pure noise.

    text: a string or Text, or a list of them. The paper weights the image below 1 (section 3.4).
    """
    return pipe((*_texts(text), _image(image)), **options)


def element(pipe: Pipeline, text: Words, image: Picture, **options: Any) -> Pictures:
    """The image with one element as the text says: the prompt [text, image].

    The same prompt as `style`; what it changes is in the words (figure 5: "a beautiful red hat").
    """
    return style(pipe, text, image, **options)


def composition(pipe: Pipeline, images: Sequence[Picture], **options: Any) -> Pictures:
    """What several images hold, in one picture: the prompt [image, image, ...]; their order matters.

    Raises UserError for fewer than two images.
    """
    if not isinstance(images, (list, tuple)):
        raise UserError(f"a composition takes a list of images; there is one {type(images).__name__}")
    chosen = tuple(_image(image) for image in images)
    if len(chosen) < 2:
        raise UserError(f"a composition takes at least 2 images; there are {len(chosen)}")
    return pipe(chosen, **options)


def img2img(pipe: Pipeline, image: Picture, text: Words = None, **options: Any) -> Pictures:
    """The image's latents noised to `strength` and denoised under the text (SDEdit; figures 4 and 7).

    strength: s of figure 4, 0 (the image) to 1 (noise alone). text: None denoises without a condition.
    """
    return pipe(_texts(text) or None, init_image=_source(image), **options)


def interpolation(
    pipe: Pipeline,
    first: Picture,
    second: Picture,
    text: Words = None,
    *,
    fraction: float = 0.5,
    **options: Any,
) -> Pictures:
    """Both images' latents noised to `strength`, their convex combination denoised (section 4.2).

    fraction: the second image's part, 0 to 1. Both are noised by the same draw, so that the combination
    has the noise its step expects; the combination of the noised is then the noised combination.
    """
    fraction = convert(Share, fraction, "fraction")  # 0 is the first image, 1 the second
    pictures = [_source(first), _source(second)]
    shares = [1.0 - fraction, fraction]
    return pipe(_texts(text) or None, init_image=pictures, shares=shares, **options)


@dataclasses.dataclass(frozen=True)
class Task:
    """A task as the command line takes it, by the parts of one prompt.

    draw: (pipe, texts, images, **options) -> pictures; images, texts: the fewest and the most it takes, None
    where there is no limit; options: what it takes beyond `Pipeline.__call__`'s arguments.
    """

    draw: Callable[..., Pictures]
    images: tuple[int, int | None]
    texts: tuple[int, int | None] = (0, None)
    options: tuple[str, ...] = ()

    @property
    def takes(self) -> str:
        """What it takes, in words."""
        fewest, most = self.images
        said = f"{'exactly' if most == fewest else 'at least'} {fewest} image{'s' * (fewest > 1)}"
        if self.texts[1] == 0:
            return f"{said} and no text"
        return f"{said} and at least {self.texts[0]} text" if self.texts[0] else said


TASKS = {
    "variation": Task(
        lambda pipe, texts, images, **options: variation(pipe, images[0], **options), (1, 1), (0, 0)
    ),
    "style": Task(
        lambda pipe, texts, images, **options: style(pipe, texts, images[0], **options), (1, 1), (1, None)
    ),
    "element": Task(
        lambda pipe, texts, images, **options: element(pipe, texts, images[0], **options), (1, 1), (1, None)
    ),
    "composition": Task(
        lambda pipe, texts, images, **options: composition(pipe, images, **options), (2, None), (0, 0)
    ),
    "img2img": Task(
        lambda pipe, texts, images, **options: img2img(pipe, images[0], texts, **options),
        (1, 1),
        options=("strength",),
    ),
    "interpolation": Task(
        lambda pipe, texts, images, **options: interpolation(pipe, images[0], images[1], texts, **options),
        (2, 2),
        options=("strength", "fraction"),
    ),
}


def run_task(name: str, pipe: Pipeline, elements: Sequence[Element], **options: Any) -> Pictures:
    """A task by its name with the elements of a prompt. Raises UserError where they are not what it takes."""
    task = check_task(name, options)
    texts = [one for one in elements if isinstance(one, Text)]
    images = [one for one in elements if isinstance(one, Image)]
    for count, (fewest, most) in ((len(images), task.images), (len(texts), task.texts)):
        if count < fewest or (most is not None and count > most):
            raise UserError(
                f"the task {name} takes {task.takes}; there are {len(images)} images and {len(texts)} texts"
            )
    return task.draw(pipe, texts, images, **options)


def check_task(name: str, options: Collection[str]) -> Task:
    """The task of this name. Raises UserError where there is none, or it takes none of the `options` of others."""
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}; accepted: {', '.join(TASKS)}")
    for option in {option for task in TASKS.values() for option in task.options} & set(options):
        if option not in TASKS[name].options:
            takers = ", ".join(other for other, task in TASKS.items() if option in task.options)
            raise UserError(f"the task {name} takes no {option}; those that do: {takers}")
    return TASKS[name]


def _image(image: Picture) -> Image:
    if is_weighted(image):
        return Image(*image)
    return image if isinstance(image, Image) else Image(cast("ImageSource", image))


def _source(image: Picture) -> ImageSource:
    given = _image(image)
    if given.weight != 1.0 or given.regions:
        raise UserError(f"{given.describe()} has a weight, but sampling starts from it: it is in no prompt")
    return given.image


def _texts(text: Words) -> tuple[Element, ...]:
    """A string, a Text, or a list of them; nothing for None."""
    if text is None or (isinstance(text, (list, tuple)) and not text):
        return ()
    elements = Prompt.of(text).elements
    if any(isinstance(one, Image) for one in elements):
        raise UserError("a picture stands where a text was expected")
    return elements

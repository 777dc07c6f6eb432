"""The tasks of the paper, and the two baselines it compares them with: a function each.

    variation(pipe, "photo.png", num_images=4)            # section 3.3, figure 7: [image]
    style(pipe, "a pencil drawing", "photo.png")          # section 4.1, figure 4: [text, image]
    element(pipe, "in blue", "photo.png")                 # section 4.1, figure 5: [text, image]
    composition(pipe, ["a.png", "b.png"])                 # section 4.2, figure 6: [image, image, ...]
    img2img(pipe, "photo.png", "a pencil drawing", strength=0.6)          # baseline of figures 4 and 7
    interpolation(pipe, "a.png", "b.png", fraction=0.5, strength=0.6)     # baseline of section 4.2

Every other argument is `Pipeline.__call__`'s, and so are the errors. A picture may be a `prompt.Image`,
which carries a weight, or anything that `prompt.Image` takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import PIL.Image

from mvader_jax.errors import UserError
from mvader_jax.prompt.elements import Element, Image, Prompt, Text
from mvader_jax.sampling.pipeline import Pipeline

Pictures = list[PIL.Image.Image]


def variation(pipe: Pipeline, image: Any, **options: Any) -> Pictures:
    """Variations of one image: the prompt [image]."""
    return pipe((_image(image),), **options)


def style(pipe: Pipeline, text: Any, image: Any, **options: Any) -> Pictures:
    """The image in the style that the text names: the prompt [text, image], from pure noise.

    text: a string or Text, or a list of them. The paper weights the image below 1 (section 3.4).
    """
    return pipe((*_texts(text), _image(image)), **options)


def element(pipe: Pipeline, text: Any, image: Any, **options: Any) -> Pictures:
    """The image with one element as the text says: the prompt [text, image].

    The same prompt as `style`; what it changes is in the words (figure 5: "a beautiful red hat").
    """
    return style(pipe, text, image, **options)


def composition(pipe: Pipeline, images: Sequence[Any], **options: Any) -> Pictures:
    """What several images hold, in one picture: the prompt [image, image, ...]; their order matters.

    Raises UserError for fewer than two images.
    """
    chosen = tuple(_image(image) for image in images)
    if len(chosen) < 2:
        raise UserError(f"a composition takes at least 2 images; there are {len(chosen)}")
    return pipe(chosen, **options)


def img2img(
    pipe: Pipeline, image: Any, text: Any = None, *, strength: float = 0.6, **options: Any
) -> Pictures:
    """The image's latents noised to `strength` and denoised under the text (SDEdit; figures 4 and 7).

    strength: s of figure 4, 0 (the image) to 1 (noise alone). text: None denoises without a condition.
    """
    return pipe(_texts(text) or None, init_image=_source(image), strength=strength, **options)


def interpolation(
    pipe: Pipeline,
    first: Any,
    second: Any,
    text: Any = None,
    *,
    fraction: float = 0.5,
    strength: float = 0.6,
    **options: Any,
) -> Pictures:
    """Both images' latents noised to `strength`, their convex combination denoised (section 4.2).

    fraction: the second image's part, 0 to 1. Both are noised by the same draw, so that the combination
    has the noise its step expects; the combination of the noised is then the noised combination.
    """
    if not 0.0 <= fraction <= 1.0:
        raise UserError(f"the fraction is {fraction}; accepted are 0 (the first image) to 1 (the second)")
    pictures = [_source(first), _source(second)]
    shares = [1.0 - fraction, fraction]
    return pipe(_texts(text) or None, init_image=pictures, shares=shares, strength=strength, **options)


def _variation(pipe: Pipeline, texts: list[Text], images: list[Image], **options: Any) -> Pictures:
    _expect("variation", texts, images, fewest_texts=0, most_texts=0, counts=(1, 1))
    return variation(pipe, images[0], **options)


def _style(pipe: Pipeline, texts: list[Text], images: list[Image], **options: Any) -> Pictures:
    _expect("style", texts, images, fewest_texts=1, counts=(1, 1))
    return style(pipe, texts, images[0], **options)


def _element(pipe: Pipeline, texts: list[Text], images: list[Image], **options: Any) -> Pictures:
    _expect("element", texts, images, fewest_texts=1, counts=(1, 1))
    return element(pipe, texts, images[0], **options)


def _composition(pipe: Pipeline, texts: list[Text], images: list[Image], **options: Any) -> Pictures:
    _expect("composition", texts, images, fewest_texts=0, most_texts=0, counts=(2, None))
    return composition(pipe, images, **options)


def _img2img(pipe: Pipeline, texts: list[Text], images: list[Image], **options: Any) -> Pictures:
    _expect("img2img", texts, images, fewest_texts=0, counts=(1, 1))
    return img2img(pipe, images[0], texts, **options)


def _interpolation(pipe: Pipeline, texts: list[Text], images: list[Image], **options: Any) -> Pictures:
    _expect("interpolation", texts, images, fewest_texts=0, counts=(2, 2))
    return interpolation(pipe, images[0], images[1], texts, **options)


#: Tasks by name, called with a prompt's texts and images apart from one another.
TASKS: dict[str, Callable[..., Pictures]] = {
    "variation": _variation,
    "style": _style,
    "element": _element,
    "composition": _composition,
    "img2img": _img2img,
    "interpolation": _interpolation,
}
#: What a task takes beyond `Pipeline.__call__`'s arguments.
TASK_OPTIONS = {"img2img": {"strength"}, "interpolation": {"strength", "fraction"}}


def run_task(name: str, pipe: Pipeline, elements: Sequence[Element], **options: Any) -> Pictures:
    """A task by its name with the elements of a prompt. Raises UserError where they are not what it takes."""
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}; accepted: {', '.join(TASKS)}")
    for option in {"strength", "fraction"} & set(options) - TASK_OPTIONS.get(name, set()):
        takers = ", ".join(task for task, taken in TASK_OPTIONS.items() if option in taken)
        raise UserError(f"the task {name} takes no {option}; those that do: {takers}")
    texts = [one for one in elements if isinstance(one, Text)]
    images = [one for one in elements if isinstance(one, Image)]
    return TASKS[name](pipe, texts, images, **options)


def _expect(
    task: str,
    texts: Sequence[Text],
    images: Sequence[Image],
    *,
    fewest_texts: int,
    counts: tuple[int, int | None],
    most_texts: int | None = None,
) -> None:
    fewest, most = counts
    good = fewest <= len(images) and (most is None or len(images) <= most)
    if good and fewest_texts <= len(texts) and (most_texts is None or len(texts) <= most_texts):
        return
    wanted = f"{'exactly' if most == fewest else 'at least'} {fewest} image{'s' * (fewest > 1)}"
    if most_texts == 0:
        wanted += " and no text"
    elif fewest_texts:
        wanted += f" and at least {fewest_texts} text"
    raise UserError(f"the task {task} takes {wanted}; there are {len(images)} images and {len(texts)} texts")


def _image(image: Any) -> Image:
    return image if isinstance(image, Image) else Image(image)


def _source(image: Any) -> Any:
    if isinstance(image, Image) and (image.weight != 1.0 or image.regions):
        raise UserError(f"{image.describe()} has a weight, but sampling starts from it: it is in no prompt")
    return image.image if isinstance(image, Image) else image


def _texts(text: Any) -> tuple[Element, ...]:
    """A string, a Text, or a list of them; nothing for None."""
    if text is None or (isinstance(text, (list, tuple)) and not text):
        return ()
    elements = Prompt.of(text).elements
    if any(isinstance(one, Image) for one in elements):
        raise UserError("a picture stands where a text was expected")
    return elements

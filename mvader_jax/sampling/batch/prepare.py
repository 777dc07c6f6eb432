"""The host's part of a batch: reading images once, laying out prompts; and the device's two small parts of
it, an image's features and a negative prompt's condition, each computed once."""

from __future__ import annotations

import dataclasses
import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mvader_jax.condition import Condition, stack
from mvader_jax.errors import UserError
from mvader_jax.images.preprocess import clip_preprocess, to_vae_pixels
from mvader_jax.images.read import load_image
from mvader_jax.prompt.elements import Image, ImageSource, Prompt
from mvader_jax.sampling.batch.requests import Problem
from mvader_jax.sampling.batch.shapes import Batch, Item, Shape, layout
from mvader_jax.sampling.generate import InitImages, Prompted
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import image_size

#: Bytes of images' features that are kept for prompts to come.
FEATURE_BYTES = 1 << 30
#: Conditions of negative prompts that are kept.
_NEGATIVES = 1024
#: Images encoded by a call, where the mesh does not ask for more.
ENCODED_TOGETHER = 4


class Picture:
    """An image of the prompts: read, then encoded. error: why it could not be read."""

    def __init__(self) -> None:
        self.size = (1, 1)
        self.pixels: np.ndarray | None = None
        self.features: np.ndarray | None = None
        self.error: str | None = None


#: Pictures that are being encoded: parts of them, and each part's features, [together, T, C].
Encoding: TypeAlias = list[tuple[list[Picture], jax.Array]]


@dataclasses.dataclass
class Prepared:
    """A batch that is ready to be drawn but for its features.

    items: what is drawn, `size` rows of which are real; pictures: {what tells it from others: Picture} of their prompts; new:
    those that are to be encoded; problems: requests that had to be left out.
    """

    shape: Shape
    items: tuple[Item, ...]
    pictures: dict[str, Picture]
    new: list[Picture]
    problems: list[Problem]


class Preparer:
    """Prepares batches of `size` rows for a pipeline; `read` may run in one thread of its own."""

    def __init__(self, pipe: Pipeline, size: int) -> None:
        self.pipe, self.size = pipe, size
        self.encoded = 0
        self._pictures: OrderedDict[str, Picture] = OrderedDict()
        self._by_pixels: weakref.WeakValueDictionary[Hashable, Picture] = weakref.WeakValueDictionary()
        self._negatives: OrderedDict[Prompt | None, Condition] = OrderedDict()
        self._known_errors: dict[str, str | None] = {}
        #: How many prompts a batch of each shape embeds, `size` where it does not say (`shapes.places_of`).
        self.places: dict[Shape, int] = {}
        encoder = pipe.model.image_encoder
        self._capacity, self._image_size, shards = 0, 0, pipe.shards
        self._blank = np.zeros((0, 0), np.float32)
        if encoder is not None:
            self._blank = np.zeros((encoder.num_tokens, encoder.token_width), np.dtype(jnp.dtype(pipe.dtype)))
            bytes_each = 4 * encoder.num_tokens * encoder.token_width
            self._capacity = max(64, FEATURE_BYTES // bytes_each)
            self._image_size = encoder.image_size
        self.together = shards * -(-ENCODED_TOGETHER // shards)

    def read(self, batch: Batch) -> Prepared:
        """Reads the images that are not known yet."""
        pictures: dict[str, Picture] = {}
        new: list[Picture] = []
        problems: dict[int, Problem] = {}
        good: list[Item] = []
        for item in batch.items:
            names = _names(item.request.prompt)
            for name, image in zip(names, _images(item.request.prompt), strict=True):
                if name not in pictures:
                    pictures[name] = self._picture(name, image.image, new)
            bad = [pictures[name].error for name in names if pictures[name].error]
            others = [] if item.request.negative is None else _images(item.request.negative)
            if item.request.init_image is not None:
                others.append(item.request.init_image)
            bad += [error for image in others if (error := self._unreadable(image))]
            if bad:
                problems[item.request.line] = Problem(item.request.line, str(bad[0]))
            else:
                good.append(item)
        return Prepared(batch.shape, tuple(good), pictures, new, list(problems.values()))

    def _unreadable(self, image: Image) -> str | None:
        """Why an image beside the prompt's cannot be read; asked once an image."""
        name = _name(image)
        if name not in self._known_errors:
            try:
                load_image(image.image)
                self._known_errors[name] = None
            except UserError as error:
                self._known_errors[name] = str(error)
        return self._known_errors[name]

    def _picture(self, name: str, source: ImageSource, new: list[Picture]) -> Picture:
        if name in self._pictures:
            self._pictures.move_to_end(name)
            return self._pictures[name]
        picture = Picture()
        try:
            loaded = load_image(source)
            picture.size = loaded.size
            picture.pixels = clip_preprocess(loaded, self._image_size)
            # The same picture under another name, or in another file, is encoded once.
            seen = (picture.size, hashlib.blake2b(picture.pixels.tobytes()).digest())
            if seen in self._by_pixels:
                picture = self._by_pixels[seen]
            else:
                self._by_pixels[seen] = picture
                new.append(picture)
        except UserError as error:
            picture.error = str(error)
        self._pictures[name] = picture
        while len(self._pictures) > self._capacity:
            self._pictures.popitem(last=False)
        return picture

    def encode(self, prepared: Prepared) -> Encoding:
        """Starts encoding the new images; `settle` waits for it."""
        started = []
        for start in range(0, len(prepared.new), self.together):
            part = prepared.new[start : start + self.together]
            pixels = np.stack([p.pixels for p in part if p.pixels is not None])
            filled = np.concatenate([pixels, np.repeat(pixels[-1:], self.together - len(part), axis=0)])
            started.append((part, self.pipe.features(filled)))
        return started

    def settle(self, started: Encoding) -> None:
        """Puts features where the prompts find them, and lets go of the images."""
        for part, features in started:
            host = np.asarray(features)
            for picture, row in zip(part, host, strict=False):
                picture.features, picture.pixels = np.array(row), None
                self.encoded += 1

    def inputs(self, prepared: Prepared) -> tuple[Prompted, Condition]:
        """Prompts, and conditions of negative prompts, `size` rows; the last real one fills them up."""
        items = prepared.items + prepared.items[-1:] * (self.size - len(prepared.items))
        prompts, rows = [item.request.prompt for item in items], None
        places = self.places.get(prepared.shape, self.size)
        if places < self.size:
            place_of = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
            rows = np.array([place_of[prompt] for prompt in prompts], np.int32)
            prompts = [*place_of, *prompts[-1:] * (places - len(place_of))]
        sizes = [prepared.pictures[name].size for prompt in prompts for name in _names(prompt)]
        shape = prepared.shape
        images = {"num_images": shape.images, "sizes": sizes} if shape.images else {}
        batch = layout(self.pipe.bundle, prompts, length=shape.length, notify=_told, **images)
        if shape.images:
            pixels = np.stack([self._stacked(prompt, prepared, shape.images) for prompt in prompts])
            batch = dataclasses.replace(batch, pixels=pixels)
        negatives = [self.negative(item.request.negative) for item in items]
        return Prompted(batch, rows), stack(negatives, shape.length)

    def init_images(self, prepared: Prepared) -> InitImages | None:
        """What a batch starts from, `size` rows; None where it is pure noise."""
        items = prepared.items + prepared.items[-1:] * (self.size - len(prepared.items))
        asked = [(item.request.init_image, item.request.settings) for item in items]
        sizes = [image_size(self.pipe.model, one.height, one.width) for _, one in asked]
        read = {
            (image, size): to_vae_pixels(image.image, *size)
            for (image, _), size in zip(asked, sizes, strict=True)
            if image is not None
        }
        if not read:
            return None
        pixels = np.stack(
            [read[image, size] for (image, _), size in zip(asked, sizes, strict=True) if image is not None]
        )
        return InitImages(pixels[:, None], np.ones((self.size, 1), np.float32))

    def _stacked(self, prompt: Prompt, prepared: Prepared, places: int) -> np.ndarray:
        features = [prepared.pictures[name].features for name in _names(prompt)]
        rows = [f for f in features if f is not None]
        return np.stack(rows + [self._blank] * (places - len(rows)))

    def nulls(self, length: int) -> Condition:
        """The null prompt's Condition, `size` rows."""
        return stack([self.negative(None)] * self.size, length)

    def negative(self, prompt: Prompt | None) -> Condition:
        """The Condition of a negative prompt, or of the null prompt, one row on the host; computed once."""
        if prompt not in self._negatives:
            condition = self.pipe.embed_batch(self.pipe.bundle.to_batch([prompt], notify=_told))
            self._negatives[prompt] = jax.tree.map(np.asarray, condition)
            while len(self._negatives) > _NEGATIVES:
                self._negatives.popitem(last=False)
        self._negatives.move_to_end(prompt)
        return self._negatives[prompt]


def _told(sentence: str) -> None:
    """It was when the prompt was measured."""


def _images(prompt: Prompt) -> list[Image]:
    return [element for element in prompt.elements if isinstance(element, Image)]


def _names(prompt: Prompt) -> list[str]:
    return [_name(image) for image in _images(prompt)]


def _name(image: Image) -> str:
    """What tells an image from others: its path, or which object of this process it is, while its request lives."""
    return image.path or f"<{id(image.image)}>"

"""The command line and the Python call below the prompt are true: read again, they are the same prompt and settings."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import asking
import numpy as np
import pytest

from mvader_jax.cli import sample as command_line
from mvader_jax.cli.main import main
from mvader_jax.prompt.elements import Image
from mvader_jax.sampling.pictures import Pictures
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import SamplingSettings
from mvader_jax.web.asked import Asked
from mvader_jax.web.said import Opened, Said, say
from mvader_jax.web.store import Store
from mvader_jax.web.studio import Studio

ODD = (
    "don't",
    "photo.png",
    "a@b",
    "text:x",
    "--help",
    "red @ 3",
    "two\nlines",
    "a hat.",
    "image:a",
    "50%",
    "-",
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(said: Said, store: Store) -> None:
    """The files that both name, where a person has put them."""
    for name, id in said.files.items():
        Path(name).write_bytes(store.get(id).png)


def parsed(command: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """What `mvader sample` makes of a command: the arguments of what draws."""
    caught: list[tuple[Any, ...]] = []
    monkeypatch.setattr(command_line, "_sample_parts", lambda *given: caught.append(given))
    words = shlex.split(command)
    assert words[0] == "mvader"
    with pytest.raises(SystemExit) as ended:
        main(words[1:])
    assert ended.value.code == 0
    return caught[0]


def same_settings(one: SamplingSettings, other: SamplingSettings) -> bool:
    def plain(settings: SamplingSettings) -> SamplingSettings:
        site, balance = settings.site or "both", settings.balance or False
        return dataclasses.replace(settings, site=site, balance=balance, strength=None)

    return plain(one) == plain(other)


def pixels(elements: Any) -> list[Any]:
    """Elements as values that compare, pictures by what they show."""
    return [
        (
            np.asarray(command_line_image(one)).tolist(),
            one.weight,
            [(np.asarray(where).tolist(), weight) for where, weight in one.checked_regions],
        )
        if isinstance(one, Image)
        else (one.text, one.weight, one.span_weights)
        for one in elements
    ]


def command_line_image(one: Image) -> Any:
    from mvader_jax.images.read import load_image

    return load_image(one.image)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"seed": 2**32 - 1, "sampler": "plms", "steps": 7, "guidance_scale": -0.123456789},
    {"height": 64, "width": 128, "balance": True, "site": "cross_attention"},
    {"balance": "attention", "negative_strength": 0.25},
    {"eta": 0.5, "guidance_interval": [0.3, 5.0], "reuse": 2, "long_prompts": "refuse"},
    {"site": "decoder", "seed": [3, 4]},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_command_is_the_same_prompt_and_settings(
    files: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    store = Store()
    parts = [
        *({"text": text, "weight": weight} for text in ODD[:6] for weight in (1, 0.123456789)),
        {"picture": asking.picture(store), "name": "photo.png", "weight": 0.3},
        {"picture": asking.picture(store, 1), "name": "../photo.png"},
    ]
    negative = [{"text": "blurred", "weight": 2}] if "negative_strength" in settings else []
    asked = Asked.of(asking.wanted(*parts, settings=settings, num_images=3, first=2, negative=negative))
    said = say(
        asked, Opened("micro", "bfloat16", "int8", "data=2", True, ("a.safetensors@0.5", "b c.safetensors"))
    )
    assert set(said.files) == {"photo.png", "photo-2.png"}
    saved(said, store)
    found, drawn_with, count, place = parsed(said.command, monkeypatch)
    assert pixels(command_line.read_parts(found.parts)) == pixels(asked.elements(store))
    assert pixels(command_line.read_parts(found.negative)) == pixels(asked.negative_elements(store) or ())
    assert same_settings(drawn_with, asked.settings) and (found.first, count) == (2, 3)
    assert (place.bundle, place.dtype, place.frozen_dtype, place.mesh, place.raw, place.fast, place.lora) == (
        "micro", "bfloat16", "int8", "data=2", True, False, ("a.safetensors@0.5", "b c.safetensors"),
    )  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_any_text_is_read_again(files: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    said = say(Asked.of(asking.wanted(text)), Opened())
    found, *_ = parsed(said.command, monkeypatch)
    (element,) = command_line.read_parts(found.parts)
    assert element == Asked.of(asking.wanted(text)).elements(Store())[0]


def test_weights_of_words_and_regions_are_flags(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    regions = [{"mask": asking.mask(store), "weight": 2}, {"box": [0, 0.25, 0.5, 1], "weight": 0}]
    painted = {"picture": asking.picture(store), "name": "a b.jpg", "regions": regions}
    words = [{"words": words, "weight": 0.123456789} for words in ("red", "1:a@2, it's")]
    parts = [{"text": "a red hat, 1:a@2, it's", "words": words}, painted]
    asked = Asked.of(asking.wanted(*parts, negative=[{**painted, "weight": 0.5}], settings={"balance": True}))
    said = say(asked, Opened())
    saved(said, store)
    assert "a-b.jpg" in said.files and len(said.files) == 2
    found, *_ = parsed(said.command, monkeypatch)
    elements, negative = found.elements()
    assert pixels(elements) == pixels(asked.elements(store))
    assert pixels(negative) == pixels(asked.negative_elements(store))


@pytest.mark.parametrize("task", ["img2img", "interpolation"])
def test_baselines_are_tasks_of_the_command(files: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    store = Store()
    pictures = [
        {"picture": asking.picture(store, i), "name": f"{i}.png"}
        for i in range(1 + (task == "interpolation"))
    ]
    asked = Asked.of(asking.wanted("in blue", *pictures, task=task, strength=0.25, fraction=0.75))
    found, *_ = parsed(say(asked, Opened()).command, monkeypatch)
    assert found.task == task and found.options == asked.options


def test_few_steps_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked.of(asking.wanted("a", settings={"seed": 9})).quick()
    command = say(asked, Opened()).command
    assert "--fast" in command and "--steps" not in command and "--sampler" not in command
    _, settings, count, place = parsed(command, monkeypatch)
    assert place.fast and count == 1 and same_settings(settings, asked.settings)


def drawn(said: Said, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pictures:
    """What the Python call draws."""
    monkeypatch.setattr(Pipeline, "load", classmethod(lambda cls, *_, **__: pipe))
    names: dict[str, Any] = {}
    exec(said.python, names)
    return names["pictures"]


def test_the_pictures_are_those_of_the_command_and_of_the_call(
    files: Path, monkeypatch: pytest.MonkeyPatch, studio: Studio
) -> None:
    store = studio.store
    parts = [{"text": "a red circle", "weight": 0.5}, {"picture": asking.picture(store), "weight": 0.3}]
    body = asking.wanted(*parts, num_images=2, negative=[{"text": "a square"}])
    *_, last = studio.draw(Asked.of(body), "run")
    said = say(Asked.of(body), Opened())
    saved(said, store)
    of_page = [np.asarray(store.get(one["id"]).image()) for one in last["pictures"]]
    for image, picture in zip(of_page, drawn(said, studio.pipe, monkeypatch), strict=True):
        assert np.array_equal(image, picture)
    with pytest.raises(SystemExit):
        main(shlex.split(said.command)[1:])
    for number, image in enumerate(of_page):
        assert np.array_equal(image, command_line_image(Image(f"outputs/{number:05d}.png")))


def test_the_call_draws_words_regions_and_baselines(
    files: Path, monkeypatch: pytest.MonkeyPatch, studio: Studio
) -> None:
    store = studio.store
    region = {"mask": asking.mask(store), "weight": 2}
    painted = {"picture": asking.picture(store), "name": "a.png", "regions": [region]}
    text = {"text": "it's a red hat", "words": [{"words": "red", "weight": 0.5}]}
    plain = {"picture": asking.picture(store), "name": "a.png"}
    for body in (
        asking.wanted(text, painted, settings={"balance": True}),
        asking.wanted(text, plain, task="img2img", strength=0.5),
    ):
        *_, last = studio.draw(Asked.of(body), "run")
        said = say(Asked.of(body), Opened())
        saved(said, store)
        (picture,) = drawn(said, studio.pipe, monkeypatch)
        assert np.array_equal(store.get(last["pictures"][0]["id"]).image(), picture)

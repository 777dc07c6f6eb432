"""What draws for a page, without a browser: previews, ends, sweeps, and mistakes in a sentence."""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import asking
import micro
import numpy as np
import pytest

from mvader_jax.errors import UserError
from mvader_jax.images.png import read_png_metadata
from mvader_jax.sampling.drawing import read_drawing
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.web.asked import Asked, Slider, swept
from mvader_jax.web.restored import restored
from mvader_jax.web.said import Opened, say
from mvader_jax.web.store import Store
from mvader_jax.web.studio import Studio


def test_asked_goes_to_the_browser_and_comes_back() -> None:
    store = Store()
    part = {"picture": asking.picture(store), "regions": [{"mask": asking.mask(store), "weight": 2}]}
    asked = Asked.of(asking.wanted("a", part, negative=[{"text": "b"}], task=None, num_images=2))
    assert Asked.of(asked.to_json()) == asked


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"parts": []}, "the prompt is empty"),
        ({"parts": [{"text": "  "}]}, "a text of the prompt is empty"),
        ({"parts": [{"text": "a", "picture": "b"}]}, "either a text or a picture"),
        ({"parts": [{"text": "a", "weight": -1}]}, "weight is -1"),
        ({"parts": [{"text": "a", "weight": float("nan")}]}, "weight is nan"),
        ({"parts": [{"text": "a", "words": [{"words": "b"}]}]}, "does not occur"),
        ({"parts": [{"picture": "/etc/passwd"}]}, "no longer on the server"),
        ({"parts": [{"text": "a", "regions": [{"mask": "x"}]}]}, "regions to a picture"),
        ({"parts": [{"picture": "a", "regions": [{}]}]}, "either a mask or a box"),
        ({"parts": [{"text": "a"}] * 17}, "more than 16 rows"),
        ({"num_images": 17}, "up to 16"),
        ({"settings": {"steps": 0}}, "steps is 0"),
        ({"settings": {"height": 7}}, "height is 7"),
        ({"nonsense": 1}, "unknown key 'nonsense'"),
        ({"task": "img2img"}, "exactly 1 image"),
    ],
)
def test_a_mistake_is_a_sentence(studio: Studio, more: dict[str, Any], sentence: str) -> None:
    try:
        told = list(studio.draw(Asked.of({**asking.wanted(), **more}), "run"))
        problem = told[-1]["problem"]
    except UserError as error:
        problem = str(error)
    assert sentence in problem and "\n" not in problem


def test_previews_come_before_the_pictures(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvader_jax.web.studio._PAUSE", 0.0)
    *early, last = studio.draw(Asked.of(asking.wanted(num_images=2, settings={"sampler": "ddim"})), "run")
    assert [event["step"] for event in early] == [1, 2, 3] and early[0]["total"] == 4
    assert all(len(event["previews"]) == 2 for event in early)
    assert early[0]["previews"][0].startswith("data:image/png;base64,")
    assert [(one["seed"], one["index"]) for one in last["pictures"]] == [(5, 0), (5, 1)]


def test_a_picture_says_what_it_was_drawn_with(studio: Studio, tmp_path: Path) -> None:
    asked = Asked.of(asking.wanted("a red circle"))
    *_, last = studio.draw(asked, "run")
    (tmp_path / "a.png").write_bytes(studio.store.get(last["pictures"][0]["id"]).png)
    found = read_png_metadata(tmp_path / "a.png")
    assert found["AI-generated"] == "true" and found["seed"] == "5" and "a red circle" in found["prompt"]


@pytest.mark.parametrize("task", [None, "img2img"])
def test_a_picture_brings_its_prompt_back(studio: Studio, task: str | None) -> None:
    store = studio.store
    region = (
        [] if task else [{"mask": asking.mask(store), "weight": 2}, {"box": [0, 0, 0.5, 1], "weight": 0.5}]
    )
    part = {"picture": asking.picture(store), "weight": 1 if task else 0.3, "regions": region}
    text = {"text": "a red circle", "weight": 0.5, "words": [{"words": "red", "weight": 2}]}
    more = {"negative": [{"text": "a square"}], "settings": {"balance": True, "seed": 9}, "first": 1}
    *_, last = studio.draw(Asked.of(asking.wanted(text, part, task=task, strength=0.5, **more)), "run")
    elsewhere = Store()  # another server, which has none of the pictures
    again = restored(read_drawing(store.get(last["pictures"][0]["id"]).png), elsewhere)
    drawn = again.draw(studio.pipe, elsewhere)
    assert (again.settings.seed, again.first, again.task) == (9, 1, task)
    assert np.array_equal(drawn[0], store.get(last["pictures"][0]["id"]).image())


def test_where_it_looked(studio: Studio) -> None:
    picture = {"picture": asking.picture(studio.store), "weight": 0.5}
    (told,) = studio.attend(Asked.of(asking.wanted("a red circle", picture)).alone(7, 1), "run")
    text, image = told["seen"]
    assert (text["name"], image["name"]) == ("a red circle", "picture.png")
    assert 0 < text["got"] < 1 and text["got"] + image["got"] == pytest.approx(1, abs=1e-3)
    assert text["asked"] == pytest.approx(2 / 3)
    assert studio.store.get(text["id"]).size == (64, 64)
    (told,) = studio.attend(Asked.of(asking.wanted("a", picture | {"weight": 1}, task="img2img")), "run")
    assert "drawn from noise" in told["problem"]


def test_a_bundle_that_draws_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="this bundle has no unet and no vae"):
        Studio(Pipeline(micro.bundle(micro.MODEL, "decoder")))


def test_few_steps_draw_while_a_slider_moves() -> None:
    assert Studio(Pipeline.load("tiny", fast=None)).has_fast and not Studio(Pipeline.load("tiny")).has_fast
    unet = micro.MODEL.unet
    assert unet is not None
    few = dataclasses.replace(micro.MODEL, unet_fast=dataclasses.replace(unet, time_cond_proj_dim=16))
    studio = Studio(Pipeline(micro.bundle(few)))
    asked = Asked.of(
        asking.wanted("a red circle", negative=[{"text": "a square"}], settings={"steps": 50, "seed": 3})
    )
    (told,) = studio.draw(asked.quick(), "run")  # one program: no looks on the way
    png = studio.store.get(told["pictures"][0]["id"]).png
    drawing = read_drawing(png)
    assert (drawing.settings.steps, drawing.settings.sampler, drawing.settings.seed) == (4, "lcm", 3)
    assert drawing.loaded["fast"] and restored(drawing, studio.store) == dataclasses.replace(
        asked.quick(), settings=dataclasses.replace(asked.quick().settings, site="both", balance=False)
    )
    assert "--fast" in say(asked.quick(), Opened()).command


def test_a_drawing_is_ended(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvader_jax.web.studio._PAUSE", 0.0)
    told = []
    for event in studio.draw(Asked.of(asking.wanted(settings={"steps": 100, "sampler": "ddim"})), "mine"):
        told.append(event)
        studio.cancel("others")
        studio.cancel("mine")
    assert told[-1] == {"cancelled": True} and len(told) < 10
    assert studio._ends == {}


def test_drawings_take_turns(studio: Studio) -> None:
    results: dict[int, Any] = {}

    def draw(seed: int) -> None:
        *_, results[seed] = studio.draw(Asked.of(asking.wanted(settings={"seed": seed})), f"run {seed}")

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {seed: result["pictures"][0]["seed"] for seed, result in results.items()} == {1: 1, 2: 2, 3: 3}


def test_a_sweep_is_the_pictures_of_each_weight(studio: Studio) -> None:
    picture = {"picture": asking.picture(studio.store), "weight": 0.5}
    asked = Asked.of(asking.wanted("a red circle", picture, num_images=3))
    across, down = Slider("parts", (0.0, 1.0), row=1), Slider("guidance_scale", (1.0, 3.0))
    *cells, _ = told = list(studio.sweep(asked, across, down, "run"))
    assert [(cell["row"], cell["column"]) for cell in told] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    cell = told[-1]["asked"]
    assert cell["parts"][1]["weight"] == 1.0 and cell["settings"]["guidance_scale"] == 3.0
    *_, alone = studio.draw(Asked.of(cell), "run")
    assert alone["pictures"][0]["id"] == told[-1]["pictures"][0]["id"]
    images = [np.asarray(studio.store.get(one["pictures"][0]["id"]).image()) for one in cells]
    assert not np.array_equal(images[0], images[1])


def test_every_slider_can_be_swept() -> None:
    store = Store()
    part = {"picture": asking.picture(store), "regions": [{"mask": asking.mask(store)}]}
    text = {"text": "a b", "words": [{"words": "b"}]}
    asked = Asked.of(asking.wanted(text, part, negative=[{"text": "c"}]))
    sliders = [
        Slider("parts", (2.0,), 1), Slider("negative", (2.0,)), Slider("words", (2.0,), 0), Slider("regions", (2.0,), 1),
        Slider("negative_strength", (2.0,)), Slider("guidance_scale", (2.0,)), Slider("strength", (0.5,)),
        Slider("fraction", (0.25,)),
    ]  # fmt: skip
    found = [swept(asked, slider)[0][0] for slider in sliders]
    assert all(one != asked for one in found) and len({str(one) for one in found}) == len(found)
    with pytest.raises(UserError, match="no longer in the prompt"):
        swept(asked, Slider("parts", (1.0,), 2))
    with pytest.raises(UserError, match="draws 1 to 64"):
        swept(asked, Slider("parts", (1.0,) * 9), Slider("parts", (1.0,) * 9, 1))

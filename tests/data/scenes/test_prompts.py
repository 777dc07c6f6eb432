import collections
import dataclasses
import hashlib

import numpy as np
import pytest

from mvader_jax.data.batches import Shape
from mvader_jax.data.config import DataConfig
from mvader_jax.data.loader import captions_of, make_loader
from mvader_jax.data.scenes.prompts import KINDS, SceneInterleaved, compose, scene_task
from mvader_jax.data.scenes.world import COLORS, POSITIONS, Scene, SceneObject, render
from mvader_jax.data.sources import Records, Scenes
from mvader_jax.data.sources.open import open_interleaved
from mvader_jax.errors import UserError
from mvader_jax.prompt.elements import Text
from mvader_jax.prompt.tokenizer import train_tokenizer
from mvader_jax.train.objectives import Diffusion

TASKS = [scene_task(3, i, "train", np.random.default_rng(i)) for i in range(300)]


def test_each_kind_occurs_about_as_often():
    counts = collections.Counter(task.kind for task in TASKS)
    assert set(counts) == set(KINDS)
    assert min(counts.values()) > 70
    assert not any(task.target.held_out for task in TASKS)


def test_two_pictures_show_the_objects_of_the_target():
    orders = set()
    for task in TASKS:
        if task.kind == "both":
            things = tuple(part.objects[0] for part in task.elements)
            assert sorted(map(repr, things)) == sorted(map(repr, task.target.objects))
            assert all(part.background == task.target.background for part in task.elements)
            orders.add(things == task.target.objects)
    assert orders == {True, False}


def alone(position: str, shape: str = "circle", background: str = "black") -> Scene:
    return Scene(background, (SceneObject(shape, "red", "small", "solid", position),))


def test_the_first_picture_keeps_its_place_and_background():
    across = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
    for here in POSITIONS:
        for there in POSITIONS:
            target = compose(alone(here), alone(there, "square", "white"))
            assert target.background == "black"
            places = {thing.shape: thing.position for thing in target.objects}
            assert across[places["circle"]] == places["square"]
            assert [thing.position for thing in target.objects] in (["left", "right"], ["top", "bottom"])
            if here != "centre":
                assert places["circle"] == here
            elif there != "centre":
                assert places["square"] == there
            else:
                assert places["circle"] == "left"


@pytest.mark.parametrize("split", ["train", "validation"])
def test_any_two_pictures_ask_for_both_objects(split):
    places = set()
    for i in range(40):
        task = scene_task(3, i, split, np.random.default_rng(i), kinds=("pair",))
        assert task.target == compose(*task.elements)
        assert {scene.held_out for scene in (*task.elements, task.target)} == {split == "validation"}
        places.add(tuple(scene.objects[0].position for scene in task.elements))
    assert any(here == there for here, there in places)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_two_pictures_of_the_same_place_ask_for_both_objects(split):
    for i in range(20):
        task = scene_task(3, i, split, np.random.default_rng(i), kinds=("pair_place",))
        one, two = (scene.objects[0].position for scene in task.elements)
        assert one == two
        # Where the few held-out scenes of a place ask for none that is held out, theirs may be of the other split.
        assert split == "validation" or not task.target.held_out
        assert task.target == compose(*task.elements)
        assert {scene.held_out for scene in task.elements} == {split == "validation"}


def test_a_colour_beside_two_pictures_is_that_of_both():
    at = set()
    for i in range(40):
        task = scene_task(3, i, "train", np.random.default_rng(i), ("en",), ("pair_color",))
        at.add(next(n for n, element in enumerate(task.elements) if isinstance(element, str)))
        pictures = [element for element in task.elements if isinstance(element, Scene)]
        composed = compose(*pictures)
        color = next(e for e in task.elements if isinstance(e, str)).removeprefix("in ")
        things = tuple(dataclasses.replace(thing, color=color) for thing in composed.objects)
        assert color in COLORS
        assert task.target == Scene(composed.background, things) != composed
        assert not task.target.held_out
    assert at == {0, 1, 2}


def test_rows_of_before_are_drawn_again():
    """Kinds that joined later changed nothing for configs that name none."""
    assert KINDS == ("color", "style", "both")
    told = hashlib.sha256(repr(TASKS).encode()).hexdigest()
    assert told[:16] == "32347b685d7adec1"
    assert Scenes().prompts == KINDS
    with pytest.raises(UserError, match="prompts names no kind"):
        Scenes(prompts=())
    with pytest.raises(UserError, match="prompts"):
        Scenes(prompts=("pears",))


def test_words_say_the_one_difference_between_picture_and_target():
    english = {"red", "green", "blue", "yellow", "purple", "cyan", "small", "large", "solid", "hollow"}
    english |= {"black", "grey", "white"}
    for task in TASKS:
        if task.kind == "both":
            continue
        words = next(e for e in task.elements if isinstance(e, str))
        scene = next(e for e in task.elements if isinstance(e, Scene))
        before = {**dataclasses.asdict(scene.objects[0]), "background": scene.background}
        after = {**dataclasses.asdict(task.target.objects[0]), "background": task.target.background}
        changed = [name for name in before if before[name] != after[name]]
        assert len(changed) == 1
        assert (changed == ["color"]) == (task.kind == "color") == words.startswith("in ")
        told = english & set(words.split())
        assert told in ({after[changed[0]]}, set())  # German has other words
    assert any("form" in str(task.elements) for task in TASKS)
    assert any("shape" in str(task.elements) for task in TASKS)


def test_records_are_prompts_and_pictures():
    source = SceneInterleaved(100, ("en", "de"), "validation", seed=3, size=40)
    record = source.record(5, np.random.default_rng(1))
    task = scene_task(3, 5, "validation", np.random.default_rng(1))
    np.testing.assert_array_equal(record["image"], render(task.target, 40))
    for element, expected in zip(record["prompt"].elements, task.elements, strict=True):
        if isinstance(element, Text):
            assert element.text == expected
        else:
            np.testing.assert_array_equal(element.image, render(expected, 40))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(captions_of(DataConfig(Scenes(300, omit=0.3)), 300), 500)


MIXED = Diffusion(caption_length=30, p_interleaved=0.5)


def loader(tokenizer, objective=MIXED, **changes):
    config = DataConfig(Scenes(70), image_size=24, **changes)
    shape = Shape(12, groups=2, image_tokens=4, encoder_size=24)
    return make_loader(config, objective, tokenizer, shape)


def test_training_batches_hold_them_at_their_share(tokenizer):
    run = loader(tokenizer)
    seen = collections.Counter()
    for _ in range(10):
        batch = next(run)
        prompt = batch["interleaved_prompt"]
        # 6 samples a group: 1.2 image rows, 3 interleaved, 1.8 captions.
        assert prompt.token_ids.shape == (2 * 4, 2 * 4 + 30)
        assert prompt.pixels.shape == (8, 2, 24, 24, 3)
        seen["image"] += batch["use_image"].sum()
        seen["interleaved"] += batch["use_interleaved"].sum()
        assert not (batch["use_image"] & batch["use_interleaved"]).any()
    assert seen == {"image": 24, "interleaved": 60}


def test_every_prompt_and_every_record_is_seen_once_an_epoch(tokenizer):
    """70 scenes in each of the two orders, counted apart."""
    run = loader(tokenizer, shuffle=False)
    plain, mixed = 0, 0
    for _ in range(7):
        batch = next(run)
        mixed += int(batch["use_interleaved"].sum())
        plain += 12 - int(batch["use_interleaved"].sum())
    assert (plain, mixed) == (42, 42)


def test_prompts_that_do_not_fit_are_left_out_and_counted(tokenizer):
    run = loader(tokenizer, dataclasses.replace(MIXED, interleaved_images=1))
    for _ in range(4):
        assert next(run)["interleaved_prompt"].pixels.shape[1] == 1
    assert run.damaged
    assert all("its prompt has 2 images" in reason for reason in run.damaged.values())
    with pytest.raises(UserError, match="70 damaged records in a row"):
        next(loader(tokenizer, dataclasses.replace(MIXED, interleaved_length=3)))


def test_interleaved_prompts_need_a_source():
    with pytest.raises(UserError, match="data of source 'records' makes no such prompts itself"):
        open_interleaved(DataConfig(Records(("x",))), (), "train")

"""Tasks with weights: prompts ask what they should, and pictures get right what they show."""

import dataclasses

import pytest

from mvader_jax.data.scenes.judge import read_scene
from mvader_jax.data.scenes.prompts import compose
from mvader_jax.data.scenes.world import COLORS, Scene, render
from mvader_jax.errors import UserError
from mvader_jax.paper.curves import TASKS, Curves, check_options, held_out, shares
from mvader_jax.prompt.elements import Image, Text


def read_back(image: Image) -> Scene:
    return read_scene(image.image)


def seen(asked, *answers: Scene) -> list[dict[str, bool]]:
    return [asked.right(answer) for answer in answers]


@pytest.mark.parametrize("name", TASKS)
def test_one_element_of_each_prompt_carries_theta(name) -> None:
    for asked in TASKS[name].asks(6, Curves()):
        prompt = asked.prompt(0.3, "cross_attention", balance=True)
        assert [element.weight for element in prompt.elements].count(0.3) == 1
        assert prompt.elements[asked.weighted].weight == 0.3
        assert prompt.site == "cross_attention" and prompt.balance
        pictures = [read_back(element) for element in prompt.elements if isinstance(element, Image)]
        assert all(len(scene.objects) == 1 and scene.held_out for scene in pictures)


@pytest.mark.parametrize("name", ["change", "style", "three"])
def test_the_text_stands_first_or_last(name) -> None:
    for order, at in (("text first", 0), ("image first", -1)):
        for asked in TASKS[name].asks(6, Curves(order=order)):
            assert [i for i, e in enumerate(asked.elements) if isinstance(e, Text)] == [
                at % len(asked.elements)
            ]


def test_change_names_another_color() -> None:
    for asked, scene in zip(
        TASKS["change"].asks(12, Curves(phrase="in {color}")),
        held_out(12, two_objects=0.0),
        strict=True,
    ):
        color = asked.elements[0].text.removeprefix("in ")
        assert color in COLORS and color != scene.objects[0].color


def test_change_scores_are_shares_of_pictures() -> None:
    asked = TASKS["change"].asks(1, Curves())[0]
    scene = held_out(1, two_objects=0.0)[0]
    thing = scene.objects[0]
    color = asked.elements[0].text.split()[1]
    shape = "circle" if thing.shape != "circle" else "square"
    answers = [
        Scene(scene.background, (dataclasses.replace(thing, color=color),)),
        Scene(scene.background, (dataclasses.replace(thing, color=color, shape=shape),)),
        scene,
        Scene(scene.background, ()),
    ]
    found = shares([asked] * 4, [render(answer) for answer in answers])
    assert found == {"text_color": 0.5, "image_color": 0.25, "image_shape": 0.5, "both": 0.25}


def test_style_asks_for_every_kind_and_keeps_the_object() -> None:
    told = [asked.elements[0].text for asked in TASKS["style"].asks(12, Curves())]
    for words in (("solid", "hollow"), ("small", "large"), ("black", "grey", "white")):
        assert any(word in text.split() for text in told for word in words)
    asked, scene = TASKS["style"].asks(1, Curves())[0], held_out(1, two_objects=0.0)[0]
    thing = scene.objects[0]
    fill = "hollow" if thing.fill == "solid" else "solid"
    assert asked.elements[0].text == f"a {fill} shape"
    changed = Scene(scene.background, (dataclasses.replace(thing, fill=fill),))
    assert seen(asked, changed, scene, Scene("black", ())) == [
        {"text_style": True, "image_object": True, "both": True},
        {"text_style": False, "image_object": True, "both": False},
        {"text_style": False, "image_object": False, "both": False},
    ]


def test_pairs_bind_colors_to_shapes() -> None:
    asked = next(
        one
        for one in TASKS["pairs"].asks(12, Curves())
        if (a := read_back(one.elements[0]).objects[0]).shape
        != (b := read_back(one.elements[1]).objects[0]).shape
        and a.color != b.color
    )
    first, second = (read_back(element) for element in asked.elements)
    together = compose(first, second)
    one, two = together.objects
    swapped = (dataclasses.replace(one, color=two.color), dataclasses.replace(two, color=one.color))
    answers = (together, first, second, Scene("black", swapped), Scene("black", ()))
    names = ["both", "first", "second", "neither", "neither"]
    for found, name in zip(seen(asked, *answers), names, strict=True):
        assert [key for key, value in found.items() if value] == [name]


def test_order_is_asked_both_ways() -> None:
    tasks = TASKS["order"].asks(8, Curves())
    for asked, turned in zip(tasks[::2], tasks[1::2], strict=True):
        first, second = (read_back(element) for element in asked.elements)
        assert [read_back(element) for element in turned.elements] == [second, first]
        answer, other = compose(first, second), compose(second, first)
        assert answer != other
        assert asked.right(answer) == {"background": True, "places": True, "both": True}
        assert turned.right(other)["both"] and not asked.right(other)["both"]


def test_three_elements_are_two_shapes_in_the_colour_told() -> None:
    for asked in TASKS["three"].asks(6, Curves()):
        text, *pictures = asked.elements
        first, second = map(read_back, pictures)
        composed = compose(first, second)
        color = text.text.removeprefix("in ")
        told = tuple(dataclasses.replace(thing, color=color) for thing in composed.objects)
        assert asked.right(dataclasses.replace(composed, objects=told)) == {
            "text_color": True,
            "image_shapes": True,
            "both": True,
        }
        assert asked.right(composed) == {"text_color": False, "image_shapes": True, "both": False}
        assert not asked.right(Scene("black", told[:1]))["both"]


def test_options_that_change_nothing_are_refused() -> None:
    check_options(["order", "thetas"], ["three"])
    with pytest.raises(UserError, match="order belongs to change, style, three, which"):
        check_options(["order"], ["pairs"])
    with pytest.raises(UserError, match="thetas belongs to"):
        check_options(["thetas"], ["text"])

"""What Python gives a pipeline by mistake is one sentence: every public call with every wrong kind of value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import micro
import numpy as np
import pytest

import mvader_jax as mv
from mvader_jax.sampling import tasks

BUNDLE = micro.bundle(micro.NANO)
PIPE = mv.Pipeline(BUNDLE)
PICTURE = np.zeros((8, 8, 3), np.uint8)
Z = np.zeros((2, 8, 8, 4), np.float32)
CONDITION = mv.Condition(np.zeros((2, 8, 32), np.float32), np.zeros((2, 8), np.float32))
WIDE = mv.Condition(np.zeros((1, 8, 48), np.float32), np.zeros((1, 8), np.float32))
THREE = mv.Condition(np.zeros((3, 8, 32), np.float32), np.zeros((3, 8), np.float32))

Calls = dict[str, tuple[Callable[[], Any], str]]
LOADING: Calls = {
    "bundle": (lambda: mv.Pipeline("tiny"), "bundle is 'tiny'; expected a Bundle: Pipeline.load("),
    "dtype": (lambda: mv.Pipeline(BUNDLE, dtype="float16"), "accepted: float32, bfloat16"),
    "dtype object": (lambda: mv.Pipeline(BUNDLE, dtype=jnp.bfloat16), "accepted: float32, bfloat16"),
    "mesh": (lambda: mv.Pipeline(BUNDLE, mesh="data=2"), "mesh is 'data=2'; expected a Mesh"),
    "mesh of others": (
        lambda: mv.Pipeline(BUNDLE, mesh=jax.make_mesh((1,), ("data",))),
        "the mesh has the axes data, each Explicit; expected one of mvader_jax.parallel.mesh.make_mesh",
    ),
    "name": (lambda: mv.Pipeline.load(5), "a bundle is named by 5; expected a string or a path"),
    "none": (lambda: mv.Pipeline.load(None), "a bundle is named by None"),
    "load dtype": (lambda: mv.Pipeline.load("tiny", dtype="f16"), "accepted: float32, bfloat16"),
    "load frozen_dtype": (
        lambda: mv.Pipeline.load("tiny", frozen_dtype="int2"),
        "accepted: float32, bfloat16, int8, int4",
    ),
    "load mesh": (lambda: mv.Pipeline.load("tiny", mesh=2), "mesh is 2; expected a Mesh"),
    "raw": (lambda: mv.Pipeline.load("tiny", raw=True), "raw belongs to RUN/STAGE[@STEP]"),
}
DRAWING: Calls = {
    "prompt": (lambda: PIPE(5), "a prompt holds 5"),
    "empty": (lambda: PIPE([]), "the prompt is empty"),
    "blank": (lambda: PIPE(""), "a text of the prompt is empty"),
    "settings": (lambda: PIPE("x", 20), "settings is 20; expected a SamplingSettings"),
    "dict": (lambda: PIPE("x", {"steps": 3}), "settings is {'steps': 3}; expected a SamplingSettings"),
    "steps": (lambda: PIPE("x", steps=10.5), "steps is 10.5; expected int"),
    "steps text": (lambda: PIPE("x", steps="many"), "steps is 'many'; expected int"),
    "unknown": (lambda: PIPE("x", stps=3), "unknown setting 'stps'; did you mean 'steps'"),
    "sampler": (lambda: PIPE("x", sampler=5), "the sampler is '5'; accepted: plms"),
    "seed": (lambda: PIPE("x", seed="a"), "seed is 'a'; "),
    "seed none": (lambda: PIPE("x", seed=None), "seed is None; "),
    "guidance": (lambda: PIPE("x", guidance_scale="8"), "guidance_scale is '8'; expected float"),
    "guidance array": (
        lambda: PIPE("x", guidance_scale=np.ones(2)),
        "guidance_scale is array([1., 1.]); expected",
    ),
    "site": (lambda: PIPE("x", site="unet"), "site is 'unet'; accepted: decoder, cross_attention, both"),
    "balance": (lambda: PIPE("x", balance="yes"), "balance is 'yes'; accepted: False, True, attention"),
    "height": (lambda: PIPE("x", height="64"), "height is '64'; expected int"),
    "count": (lambda: PIPE("x", num_images=2.5), "num_images is 2.5; expected int"),
    "count none": (lambda: PIPE("x", num_images=None), "num_images is None; expected int"),
    "negative": (lambda: PIPE("x", negative=5), "a prompt holds 5"),
    "init": (lambda: PIPE("x", init_image=5, strength=0.5), "a picture is of type int"),
    "init list": (lambda: PIPE("x", init_image=[PICTURE, 5], strength=0.5), "a picture is of type int"),
    "shares": (
        lambda: PIPE("x", init_image=PICTURE, shares="a"),
        "shares is 'a'; expected a number for each",
    ),
    "share": (lambda: PIPE("x", init_image=PICTURE, shares=1), "1 pictures to start from have 1 shares"),
    "callback": (lambda: PIPE("x", callback=5), "callback is 5; expected a function of a step"),
    "callback_every": (
        lambda: PIPE("x", callback=print, callback_every=0),
        "callback_every is 0; accepted: 1",
    ),
    "progress": (lambda: PIPE("x", progress="yes"), "progress is 'yes'; expected bool"),
    "many": (lambda: PIPE.batch("a red hat"), "prompts is 'a red hat'; expected a list of prompts"),
    "many of": (
        lambda: PIPE.batch({"prompt": "a"}),
        "prompts is {'prompt': 'a'}; expected a list of prompts",
    ),
    "many times": (lambda: PIPE.batch(["a"], num_images="2"), "prompt 1: num_images is '2'; expected int"),
    "many settings": (lambda: PIPE.batch(["a"], 20), "settings is 20; expected a SamplingSettings"),
    "batch_size": (lambda: PIPE.batch(["a"], batch_size="8"), "batch_size is '8'; expected int"),
    "draws": (lambda: PIPE.generate("x", None), "draws is 'x'; expected a Draws"),
}
PARTS: Calls = {
    "embed": (lambda: PIPE.embed(5), "a prompt holds 5"),
    "embed site": (lambda: PIPE.embed("x", site="here"), "site is 'here'; accepted: decoder"),
    "batch": (
        lambda: PIPE.embed_batch(["x"]),
        "batch is ['x']; expected a PromptBatch: pipe.bundle.to_batch",
    ),
    "to_batch": (lambda: BUNDLE.to_batch("a red hat"), "prompts is 'a red hat'; expected a list of prompts"),
    "to_batch prompt": (lambda: BUNDLE.to_batch(mv.Text("a")), "prompts is Text('a'); expected a list"),
    "features": (lambda: PIPE.features("a.png"), "pixels is 'a.png'; expected an array [B, 64, 64, 3]"),
    "features of": (
        lambda: PIPE.features(np.zeros((1, 8, 8, 3), np.float32)),
        "pixels has shape [1, 8, 8, 3]",
    ),
    "features type": (
        lambda: PIPE.features(np.zeros((1, 64, 64, 3), np.uint8)),
        "pixels holds uint8; expected",
    ),
    "denoise": (lambda: PIPE.denoise(Z, 5, "text"), "condition is 'text'; expected a Condition: pipe.embed"),
    "denoise batch": (
        lambda: PIPE.denoise(Z, 5, BUNDLE.to_batch(["x"])),
        "condition is of type PromptBatch; expected a Condition",
    ),
    "width": (lambda: PIPE.denoise(Z, 5, WIDE), "hidden has shape [1, 8, 48]; expected an array [B, S, 32]"),
    "rows": (lambda: PIPE.denoise(Z, 5, THREE), "the condition has 3 rows; expected 1, or 2 as the latents"),
    "latents": (lambda: PIPE.denoise("x", 5, CONDITION), "latents is 'x'; expected an array [B, h, w, 4]"),
    "latents type": (
        lambda: PIPE.denoise(Z.astype(int), 5, CONDITION),
        "latents holds int64; expected floats",
    ),
    "latents axes": (
        lambda: PIPE.denoise(Z[0], 5, CONDITION),
        "latents has shape [8, 8, 4]; expected an array",
    ),
    "ragged": (lambda: PIPE.denoise([[1], [1, 2]], 5, CONDITION), "latents is no array: "),
    "t": (lambda: PIPE.denoise(Z, "noon", CONDITION), "t holds <U4; expected floats or whole numbers"),
    "t none": (lambda: PIPE.denoise(Z, None, CONDITION), "t holds object; expected floats or"),
    "t range": (lambda: PIPE.denoise(Z, 1000, CONDITION), "t is 1000; timesteps are 0 to 999"),
    "t count": (lambda: PIPE.denoise(Z, [1, 2, 3], CONDITION), "t has 3 timesteps; expected one, or 2"),
    "encode": (lambda: PIPE.encode(5), "a picture is of type int"),
    "encode none": (lambda: PIPE.encode(None), "a picture is of type NoneType"),
    "encode empty": (lambda: PIPE.encode([]), "there are no pictures to encode"),
    "encode list": (lambda: PIPE.encode([PICTURE, None]), "a picture is of type NoneType"),
    "encode size": (
        lambda: PIPE.encode(np.zeros((1, 8, 8, 4))),
        "images has shape [1, 8, 8, 4]; expected an",
    ),
    "encode type": (
        lambda: PIPE.encode(np.zeros((1, 8, 8, 3), int)),
        "images holds int64; expected floats or",
    ),
    "decode": (lambda: PIPE.decode("x"), "latents is 'x'; expected an array [B, h, w, 4]"),
    "decode picture": (lambda: PIPE.decode(PICTURE), "latents has shape [8, 8, 3]; expected an array"),
}
OTHERS: Calls = {
    "variation": (lambda: tasks.variation(PIPE, 5), "a picture is of type int"),
    "style": (lambda: tasks.style(PIPE, 5, PICTURE), "a prompt holds 5"),
    "style picture": (
        lambda: tasks.style(PIPE, PICTURE, PICTURE),
        "a picture stands where a text was expected",
    ),
    "composition": (lambda: tasks.composition(PIPE, "ab.png"), "takes a list of images; there is one str"),
    "one image": (lambda: tasks.composition(PIPE, PICTURE), "takes a list of images; there is one ndarray"),
    "fraction": (lambda: tasks.interpolation(PIPE, PICTURE, PICTURE, fraction="half"), "fraction is 'half'"),
    "strength": (lambda: tasks.img2img(PIPE, PICTURE, strength="half"), "strength is 'half'; "),
    "grid": (lambda: mv.grid(5), "images is 5; expected a list of pictures"),
    "grid of": (lambda: mv.grid([5]), "a picture is of type int"),
    "columns": (lambda: mv.grid([PICTURE], columns=0), "columns is 0; accepted: 1 to"),
    "columns text": (lambda: mv.grid([PICTURE], columns="2"), "columns is '2'; expected int"),
    "labels": (lambda: mv.grid([PICTURE], labels=5), "labels is 5; expected a list of strings"),
    "gap": (lambda: mv.grid([PICTURE], gap=-1), "gap is -1; accepted: 0 to"),
    "save": (lambda: mv.Pictures().save(5), "a directory is named by 5"),
    "load_image": (lambda: mv.Image(object()), "a picture is of type object"),
}


@pytest.fixture(autouse=True)
def _unchecked() -> Iterator[None]:
    """The tests check annotations, so that a wrong type would never reach what is looked at here."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.parametrize(
    ("call", "message"),
    [*LOADING.values(), *DRAWING.values(), *PARTS.values(), *OTHERS.values()],
    ids=[*LOADING, *DRAWING, *PARTS, *OTHERS],
)
def test_it_is_one_sentence(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(mv.UserError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_pictures_of_every_kind_are_encoded(tmp_path: Path) -> None:
    """One, a list, or an array of them."""
    path = mv.Pictures([mv.grid([PICTURE], gap=0)]).save(tmp_path)[0]
    expected = np.asarray(PIPE.encode(PICTURE[None]))
    for given in (
        PICTURE,
        path,
        str(path),
        path.read_bytes(),
        path.open("rb"),
        mv.Image(path).image,
        [PICTURE],
    ):
        np.testing.assert_allclose(np.asarray(PIPE.encode(given)), expected, atol=1e-6)


def test_one_condition_serves_all_rows() -> None:
    one = PIPE.embed("a red circle")
    np.testing.assert_array_equal(
        np.asarray(PIPE.denoise(Z, 5, one)),
        np.asarray(
            PIPE.denoise(Z, np.array([5, 5]), PIPE.embed_batch(BUNDLE.to_batch(["a red circle"] * 2)))
        ),
    )

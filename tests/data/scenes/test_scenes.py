"""The synthetic world: what it draws is read back, its splits are apart, its captions say what is there."""

import dataclasses

import numpy as np
import PIL.Image
import pytest

from mvader_jax.data.batches import Shape
from mvader_jax.data.building.listed import find_captions
from mvader_jax.data.config import DataConfig
from mvader_jax.data.loader import make_loader
from mvader_jax.data.scenes.captions import _ADJECTIVE_DE, ATTRIBUTES, caption, contrastive_triplet, differing
from mvader_jax.data.scenes.judge import SCORES, compare, read_scene
from mvader_jax.data.scenes.parts import write_files
from mvader_jax.data.scenes.world import (
    COLORS,
    FILLS,
    PAIRS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    render,
    scene_at,
)
from mvader_jax.data.sources import Pairs, Scenes
from mvader_jax.data.sources.scenes import SceneImages
from mvader_jax.errors import UserError
from mvader_jax.prompt.tokenizer import train_tokenizer
from mvader_jax.train.objectives import Contrastive

SCENES = [scene_at(7, i, ("train", "validation")[i % 2]) for i in range(400)]


def test_clean_renders_are_read_back() -> None:
    scores = [compare(scene, read_scene(render(scene))) for scene in SCENES]
    for name in SCORES:
        assert np.mean([score[name] for score in scores]) >= 0.99, name


def test_every_single_object_is_read_back_on_every_background() -> None:
    wrong = []
    for shape in SHAPES:
        for color in COLORS:
            for size in SIZES:
                for fill in FILLS:
                    for position in POSITIONS:
                        scene = Scene("grey", (SceneObject(shape, color, size, fill, position),))
                        wrong += [scene] * (read_scene(render(scene)) != scene)
    assert len(wrong) <= 0.01 * 480, wrong[:5]


@pytest.mark.parametrize("size", [32, 128])
def test_other_sizes_show_the_same(size: int) -> None:
    right = [read_scene(render(scene, size)).objects == scene.objects for scene in SCENES[:60]]
    assert np.mean(right) >= 0.9


def test_noise_and_blanks_never_raise() -> None:
    rng = np.random.default_rng(0)
    assert read_scene(np.full((64, 64, 3), 128, np.uint8)) == Scene("grey", ())
    read_scene(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))


def test_scores_count_objects_by_place() -> None:
    left = SceneObject("circle", "red", "small", "solid", "left")
    right = SceneObject("square", "blue", "large", "hollow", "right")
    truth = Scene("black", (left, right))
    assert set(compare(truth, truth).values()) == {1.0}
    swapped = Scene(
        "black",
        (dataclasses.replace(left, color="blue"), dataclasses.replace(right, color="red")),
    )
    scores = compare(truth, swapped)
    assert scores["color"] == 0.0 and scores["shape"] == 1.0
    one = compare(truth, Scene("white", (left,)))
    assert one["count"] == one["background"] == 0.0 and one["shape"] == 0.5
    assert set(compare(truth, Scene("black", ())).values()) == {0.0, 1.0}


def test_scenes_are_the_same_for_ever_and_splits_apart() -> None:
    assert scene_at(0, 3) == scene_at(0, 3) != scene_at(0, 4)
    train = {scene_at(0, i) for i in range(2000)}
    validation = {scene_at(0, i, "validation") for i in range(300)}
    assert not train & validation
    pairs = [scene for scene in train if len(scene.objects) == 2]
    assert all(tuple(thing.position for thing in scene.objects) in PAIRS for scene in pairs)


def test_a_full_caption_names_every_attribute() -> None:
    for number, scene in enumerate(SCENES[:100]):
        rng = np.random.default_rng(number)
        english = caption(scene, rng).split()
        german = caption(scene, rng, "de")
        assert scene.background in english
        assert _ADJECTIVE_DE[scene.background] in german
        for thing in scene.objects:
            assert {thing.shape, thing.color, thing.size, thing.fill, thing.position} <= set(english)
            for word in (thing.color, thing.size, thing.fill):
                assert _ADJECTIVE_DE[word] in german


def test_captions_may_leave_any_attribute_out() -> None:
    scene = Scene("black", (SceneObject("circle", "red", "small", "solid", "left"),))
    told = [caption(scene, np.random.default_rng(i), "en", omit=0.5).split() for i in range(200)]
    for word in ("circle", "red", "small", "solid", "left", "black"):
        share = np.mean([word in words for words in told])
        assert 0.2 < share < 0.8, (word, share)
    assert ["in", "red"] in told


def test_the_hard_negative_differs_in_one_attribute() -> None:
    for number, scene in enumerate(SCENES[:100]):
        other = differing(scene, np.random.default_rng(number))
        changed = [scene.background != other.background]
        pairs = list(zip(scene.objects, other.objects, strict=True))
        changed += [any(getattr(a, name) != getattr(b, name) for a, b in pairs) for name in ATTRIBUTES[:-1]]
        assert sum(changed) == 1
        query, positive, negative = contrastive_triplet(scene, np.random.default_rng(number))
        assert negative not in (query, positive)


@pytest.mark.parametrize("format", ["png", "jpg"])
def test_export_to_files_reads_back_as_any_data_set(tmp_path, format: str) -> None:
    write_files(tmp_path / "out", 6, seed=5, format=format)
    pictures = sorted((tmp_path / "out").glob(f"*.{format}"))
    assert len(pictures) == 6
    for index, picture in enumerate(pictures):
        scene = scene_at(5, index)
        shown = np.asarray(PIL.Image.open(picture))
        assert shown.shape == (64, 64, 3)
        assert compare(scene, read_scene(shown))["color"] == 1.0
        lines = picture.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 2 and scene.background in lines[0]
    samples = [sample for part in find_captions(tmp_path / "out") for sample in part.samples([])]
    assert len(samples) == 6
    # The same again writes nothing, what is missing is gone on with, and anything else is refused.
    pictures[3].unlink()
    assert write_files(tmp_path / "out", 6, seed=5, format=format) == 1
    assert write_files(tmp_path / "out", 6, seed=5, format=format) == 0
    for count, seed in ((1, 5), (6, 4)):
        with pytest.raises(UserError, match="not empty"):
            write_files(tmp_path / "out", count, seed=seed, format=format)


CONFIG = DataConfig(Scenes(num_records=50), threads=1)


def test_parallel_captions_tell_the_same_scene_twice() -> None:
    source = SceneImages(Scenes(50, ("en",), parallel=1.0), "train", 0, 64)
    for index in range(20):
        first, second = source.record(index, np.random.default_rng(index))["caption"].split("; ")
        assert scene_at(0, index).background in first and scene_at(0, index).background in second


def test_queries_may_be_pictures() -> None:
    tokenizer = train_tokenizer(["a red circle", "ein roter kreis"], 300, max_positions=96)
    shape = Shape(2, image_tokens=4, encoder_size=64)
    telling = Contrastive(caption_length=48)
    texts = next(make_loader(CONFIG, telling, tokenizer, shape))
    assert texts["query"].pixels.shape[1] == 0
    pictures = next(make_loader(CONFIG, dataclasses.replace(telling, picture_queries=True), tokenizer, shape))
    assert pictures["query"].pixels.shape == (2, 1, 64, 64, 3)
    assert pictures["query"].image_index.tolist() == [[0, 1, 2, 3]] * 2
    assert np.array_equal(pictures["positive"].token_ids, texts["positive"].token_ids)


def test_pairs_have_no_pictures(tmp_path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "a", "positive": "b", "negatives": ["c"]}\n' * 4)
    config = dataclasses.replace(CONFIG, source=Pairs((str(path),)))
    tokenizer = train_tokenizer(["a b c"], 300, max_positions=96)
    with pytest.raises(UserError, match="no pictures beside its pairs"):
        make_loader(config, Contrastive(picture_queries=True), tokenizer, Shape(2))

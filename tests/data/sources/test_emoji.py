"""The picture world as a source: what training sees and never sees, captions, interleaved prompts, precomputing."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest
from emoji_like import SUBJECTS, build_set

from mvader_jax.data.emoji.prompts import Tasks
from mvader_jax.data.emoji.relations import unseen_pair, unseen_subject
from mvader_jax.data.emoji.sets import STYLES
from mvader_jax.data.emoji.words import STYLE_PHRASES
from mvader_jax.data.emoji.world import GROUNDS, Pair, Sight
from mvader_jax.data.order import Dataset
from mvader_jax.data.sources import Emoji
from mvader_jax.errors import UserError
from mvader_jax.prompt.elements import Image, Text


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    return Emoji(build_set(tmp_path_factory.mktemp("emoji")), couples=0.5, grounds=0.25)


def rng(*seed):
    return np.random.default_rng(seed)


def test_training_sees_no_unseen_pair_in_any_kind_of_picture(emoji):
    (train,), (validation,) = (emoji.pictures(split, 0, 64) for split in ("train", "validation"))
    assert isinstance(train, Dataset)
    seen = {pair for index in range(len(train)) for pair in train.sight(index).pairs}
    unseen = {pair for index in range(len(validation)) for pair in validation.sight(index).pairs}
    assert seen | unseen == set(train.world.pairs) and not seen & unseen
    assert not any(unseen_subject(pair.code) or unseen_pair(*pair) for pair in seen)
    assert "1f370" in {pair.code for pair in unseen} and "1f370" not in {pair.code for pair in seen}
    assert Pair("1f34f", "fluent-line") in unseen and Pair("1f34f", "noto") in seen
    for split, pictured in (("train", seen), ("validation", unseen)):
        tasks = Tasks(train.world, split, ("en",))
        for kind in tasks.kinds:
            for number in range(tasks.count(kind)):
                task = tasks.task(kind, number, rng(number))
                assert set(task.target.pairs) <= pictured
                shown = {p for one in task.elements if isinstance(one, Sight) for p in one.pairs}
                assert split == "validation" or shown <= seen


def test_a_picture_and_its_caption_are_the_same_for_ever_and_worded_in_many_ways(emoji):
    (first,), (again,) = emoji.pictures("train", 0, 64), emoji.pictures("train", 0, 64)
    for index in (0, len(first) - 1, len(first.pairs)):
        assert first.sight(index) == again.sight(index)
        np.testing.assert_array_equal(first.picture(index), again.picture(index))
        assert first.caption(index, rng(1)) == again.caption(index, rng(1))
        assert first.picture(index).shape == (64, 64, 3)
    said = {first.caption(0, rng(number)) for number in range(200)}
    assert len(said) > 40
    pair = first.sight(0).pairs[0]
    name = first.world.subjects[pair.code].names["en"]
    phrases = [phrase for phrases in STYLE_PHRASES[pair.style].values() for phrase in phrases]
    assert all(name in text and any(phrase in text for phrase in phrases) for text in said)


def test_parts_of_a_caption_are_left_out_where_it_says_so(emoji):
    (pictures,) = dataclasses.replace(emoji, omit=0.5, languages=("en",)).pictures("train", 0, 64)
    pair = pictures.sight(0).pairs[0]
    subject, phrases = pictures.world.subjects[pair.code], STYLE_PHRASES[pair.style]["en"]
    said = [pictures.caption(0, rng(number)) for number in range(300)]
    assert subject.names["en"] in said and set(phrases) & set(said)
    assert any(tag in text for text in said for tag in subject.tags["en"] if subject.names["en"] not in text)
    parallel = dataclasses.replace(emoji, parallel=1.0).pictures("train", 0, 64)[0]
    assert "; " in parallel.caption(0, rng(0))


def test_couples_stand_side_by_side_and_grounds_lie_behind(emoji):
    (pictures,) = emoji.pictures("train", 0, 64)
    singles = len(pictures.pairs)
    couple = pictures.sight(singles)
    assert len(couple.pairs) == 2
    drawn = pictures.world.render(couple, 64)
    assert (drawn[:15] == 255).all() and (drawn[-15:] == 255).all()
    half = pictures.world.render(Sight(couple.pairs[:1]), 32)
    np.testing.assert_array_equal(drawn[16:48, :32], half)
    ground = pictures.sight(len(pictures) - 1)
    np.testing.assert_array_equal(pictures.world.render(ground, 64)[0, 0], GROUNDS[ground.ground])
    assert sum(len(pictures.sight(i).pairs) == 2 for i in range(len(pictures))) == round(singles * 0.5)


def test_kinds_of_interleaved_prompts_and_their_answers(emoji):
    tasks = Tasks(emoji.world(), "train", ("en",))
    assert tasks.kinds == ("style", "element", "sequence", "both", "ground")
    for number, seed in itertools.product(range(10), range(3)):
        style = tasks.task("style", number, rng(seed))
        words = next(one for one in style.elements if isinstance(one, str))
        (shown,) = (one.pairs[0] for one in style.elements if isinstance(one, Sight))
        target = style.target.pairs[0]
        assert shown.code == target.code and shown.style != target.style
        assert words in STYLE_PHRASES[target.style]["en"]
        element = tasks.task("element", number, rng(seed))
        (shown,) = (one.pairs[0] for one in element.elements if isinstance(one, Sight))
        assert shown.style == element.target.pairs[0].style and shown.code != element.target.pairs[0].code
        both = tasks.task("both", number, rng(seed))
        if len(both.elements) == 2:
            assert tuple(one.pairs[0] for one in both.elements) == both.target.pairs
    changes = {
        (words, task.target.pairs[0].code)
        for number in range(tasks.count("element"))
        for task in [tasks.task("element", number, rng(number))]
        for words in task.elements
        if isinstance(words, str)
    }
    assert {
        ("with dark skin", "1f44b-1f3ff"),
        ("in blue", "1f499"),
        ("in red", "2764"),
        ("as a woman", "1f469-200d-1f680"),
    } <= changes
    joined = {
        task.target.pairs[0].code
        for n in range(tasks.count("sequence"))
        for task in [tasks.task("sequence", n, rng(n))]
    }
    assert joined == {"1f469-200d-1f680", "1f468-200d-1f680", "1f43b-200d-2744"}


def test_interleaved_records_are_prompts_with_their_pictures(emoji):
    (records,) = emoji.interleaved("train", 0, 32)
    kinds = set()
    for index in range(40):
        record = records.record(index, rng(index))
        assert record["image"].shape == (32, 32, 3) and record["image"].dtype == np.uint8
        kinds.add(tuple(type(one) for one in record["prompt"].elements))
    assert {(Text, Image), (Image, Text), (Image, Image)} <= kinds


def test_kinds_named_twice_come_twice_as_often(emoji, monkeypatch):
    asked = collections.Counter()
    task = Tasks.task

    def counted(self, kind, number, rng):
        asked[kind] += 1
        return task(self, kind, number, rng)

    monkeypatch.setattr(Tasks, "task", counted)
    source = dataclasses.replace(emoji, prompts=("sequence", "both", "both", "both"))
    (records,) = source.interleaved("train", 0, 32)
    for index in range(200):
        records.record(index, rng(index))
    assert asked.keys() == {"sequence", "both"} and 130 < asked["both"] < 170
    with pytest.raises(UserError, match=r"source\.prompts names no kind of interleaved prompt"):
        dataclasses.replace(emoji, prompts=())


def test_contrastive_pairs_tell_styles_and_names_apart(emoji):
    (pairs,) = emoji.pairs("train", 0, 64, pictures=True)
    for index in range(len(pairs)):
        record = pairs.record(index, rng(index))
        assert record.keys() == {"image", "query", "positive", "negative"}
        assert record["negative"] not in (record["query"], record["positive"])


def test_skin_tones_subjects_and_styles_are_settings(emoji):
    world = emoji.world()
    assert len(world.subjects) == len(SUBJECTS) + 2 and world.styles == STYLES
    assert {code for code, _ in world.relatives("1f44b-1f3fb")} == {"1f44b", "1f44b-1f3ff"}
    plain = dataclasses.replace(emoji, tones=()).world()
    assert len(plain.subjects) == len(SUBJECTS) and not plain.relatives("1f44b")
    dark = dataclasses.replace(emoji, tones=("dark",)).world()
    assert dark.subjects.keys() - plain.subjects.keys() == {"1f44b-1f3ff"}
    two = dataclasses.replace(emoji, styles=("noto", "twemoji"), least_styles=2).world()
    assert {pair.style for pair in two.pairs} == {"noto", "twemoji"}
    few = dataclasses.replace(emoji, subjects=5).world()
    assert list(few.subjects) == list(world.subjects)[:5]
    # Those of all styles come first.
    assert len(few.pairs) == 5 * len(STYLES)
    with pytest.raises(UserError, match="has no subject in 3 of noto"):
        dataclasses.replace(emoji, styles=("noto",), least_styles=3).world()
    with pytest.raises(
        UserError, match=rf"subjects is 1000, but the set at .* has {len(world.subjects)} in 5 of"
    ):
        dataclasses.replace(emoji, subjects=1000).world()


def test_an_encoded_set_knows_which_pictures_it_is_of(emoji):
    origin = emoji.origin(0, 64)
    reworded = dataclasses.replace(emoji, languages=("en",), omit=0.3)
    assert reworded.differs(origin, 0, 64) == ""
    assert "couples=0.5" in dataclasses.replace(emoji, couples=0.0).differs(origin, 0, 64)
    (pictures,) = emoji.pictures("train", 0, 64)
    assert emoji.captions(pictures, 3) == []
    assert emoji.wording("train", 0, 64)(3, rng(5)) == pictures.caption(3, rng(5))


def test_a_set_of_something_else_is_refused(tmp_path):
    from mvader_jax.data.building.catalogue import find_parts
    from mvader_jax.data.building.filters import FilterConfig
    from mvader_jax.data.building.run import build

    build(find_parts("scenes", "4"), tmp_path / "scenes", "scenes", FilterConfig())
    with pytest.raises(UserError, match="are no emoji: `mvader data build emoji_styles`"):
        Emoji(str(tmp_path / "scenes")).world()
    with pytest.raises(UserError, match="there is no data set at"):
        Emoji(str(tmp_path / "nothing")).world()

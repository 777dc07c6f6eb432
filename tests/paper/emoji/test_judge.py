"""The judge on renders of a small set: what is the same, what is moved, what is something else."""

import numpy as np
import pytest
from emoji_like import SUBJECTS, build_set

from mvader_jax.data.emoji.world import Pair, Sight
from mvader_jax.data.sources import Emoji
from mvader_jax.paper.emoji.features import SIDE, moved
from mvader_jax.paper.emoji.judge import Gallery, Judge, grounds_named, halves, pixel_error


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return Emoji(build_set(tmp_path_factory.mktemp("emoji")), least_styles=1).world()


@pytest.fixture(scope="module")
def judge(world):
    return Judge(Gallery(world))


def share(verdicts, name):
    return np.mean([getattr(verdict, name) for verdict in verdicts])


def shifted(pictures, shift, scale=1.0):
    return np.rint(np.asarray(moved(pictures.astype(np.float32), shift, scale))).astype(np.uint8)


def test_clean_renders_are_what_they_are(judge):
    verdicts = judge.verdicts(judge.pictures, judge.pairs)
    for name in ("exact_1", "exact_5", "subject_1", "style_1"):
        assert share(verdicts, name) == 1.0


def test_a_subject_that_is_drawn_like_another_counts_as_it(judge):
    # "red circle" and "red apple" are one drawing in every style.
    apple, circle = Pair("1f34e", "twemoji"), Pair("1f534", "twemoji")
    # In black lines any two of one shape are.
    shapes = {shape for _, shape, _ in SUBJECTS.values()}
    assert judge.repeated == 6 + len(SUBJECTS) - len(shapes)
    picture = judge.pictures[[judge.pairs.index(circle)]]
    (verdict,) = judge.verdicts(picture, [apple])
    assert verdict.exact_1 and verdict.subject_1 and verdict.style_1
    (verdict,) = judge.verdicts(picture, [Pair("1f34f", "twemoji")])
    assert verdict.style_1 and not verdict.exact_1 and not verdict.subject_1


@pytest.mark.parametrize(("shift", "scale"), [((2, 0), 1.0), ((0, -2), 1.0), ((2, 2), 1.0), ((0, 0), 0.95)])
def test_small_shifts_and_scales_are_seen_through(judge, shift, scale):
    verdicts = judge.verdicts(shifted(judge.pictures, shift, scale), judge.pairs)
    assert share(verdicts, "exact_1") >= 0.9
    assert share(verdicts, "subject_1") >= 0.95


def test_noise_of_a_lossy_decoder_is_seen_through_and_nothing_is_nothing(judge):
    rng = np.random.default_rng(0)
    noisy = np.clip(judge.pictures + rng.normal(0, 12, judge.pictures.shape), 0, 255).astype(np.uint8)
    assert share(judge.verdicts(noisy, judge.pairs), "exact_1") >= 0.95
    white = np.full_like(judge.pictures[:20], 255)
    assert share(judge.verdicts(white, judge.pairs[:20]), "exact_1") <= 0.1


def test_halves_and_grounds(world):
    pairs = (Pair("1f680", "noto"), Pair("1f44b", "twemoji"))
    picture = world.render(Sight(pairs), SIDE)
    small = Judge(Gallery(world, SIDE // 2))
    assert share(small.verdicts(halves(picture), pairs), "exact_1") == 1.0
    for ground in ("white", "red", "grey"):
        assert grounds_named(world.render(Sight(pairs[:1], ground), SIDE)[None]) == [ground]
    on_red = Judge(Gallery(world), "red")
    (verdict,) = on_red.verdicts(world.render(Sight(pairs[:1], "red"), SIDE)[None], pairs[:1])
    assert verdict.exact_1


def test_pictures_move_as_they_are_told():
    picture = np.full((1, SIDE, SIDE, 3), 255, np.float32)
    picture[0, 20:30, 20:30] = 0
    down = moved(picture, (2, 1), 1.0)
    np.testing.assert_allclose(down[0, 22:32, 21:31], 0, atol=1e-3)
    assert down[0, :22].min() > 254.9 and down.sum() == pytest.approx(picture.sum(), rel=1e-6)
    smaller = moved(picture, (0, 0), 0.5)
    assert (255 - smaller).sum() == pytest.approx((255 - picture).sum() / 4, rel=0.05)
    assert pixel_error(np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 7, np.uint8)) == 7

"""Aspect buckets: whole batches of one shape, every record equally often, the same for any process count."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest

from mvader_jax.data import batches, loader
from mvader_jax.data.buckets import Buckets, nearest_bucket, turn
from mvader_jax.data.config import DataConfig
from mvader_jax.data.order import DamagedRecord
from mvader_jax.errors import UserError
from mvader_jax.train.objectives import Contrastive, Diffusion

SIDES = ((8, 12), (12, 8), (10, 10), (4, 40))
SHAPES = {"wide": (40, 60), "tall": (60, 40), "square": (50, 50)}


class Pictures:
    """Record i is a picture of level i, its shape by turns wide, wide, tall, square."""

    def __init__(self, count, damaged=()):
        self.kinds = [("wide", "wide", "tall", "square")[i % 4] for i in range(count)]
        self.damaged = set(damaged)

    def __len__(self):
        return len(self.kinds)

    def record(self, index, rng):
        if index in self.damaged:
            raise DamagedRecord("it is cut")
        return {"image": np.full((*SHAPES[self.kinds[index]], 3), index, np.uint8), "caption": "x"}

    def where(self, index):
        return f"picture {index}"

    @property
    def shapes(self):
        return np.array([SHAPES[kind] for kind in self.kinds])


def feed(*sources, weights=()):
    return Buckets(sources, [s.shapes for s in sources], SIDES, weights, 0, True)


def make(*sources, index=0, count=1, batch_size=4, weights=()):
    buckets = feed(*sources, weights=weights)
    config = DataConfig(threads=2, image_size=10)
    shape = batches.Shape(batch_size, count, index, count)
    return loader.Loader(batches.pixel_batch(buckets, shape, config), config, batch_size, len(buckets))


def numbers(batch):
    return batch["pixels"][:, 0, 0, 0].tolist()


def test_pictures_go_where_their_shape_is_nearest():
    shapes = np.array([(512, 768), (512, 640), (512, 512), (1000, 100), (768, 512), (0, 5)])
    assert nearest_bucket(shapes, ((8, 12), (12, 8), (10, 10))).tolist() == [0, 0, 2, 1, 1, 0]


def test_turns_follow_their_shares_evenly_and_count_up():
    taken = [turn(step, (5, 3, 1)) for step in range(90)]
    for number, share in enumerate((5, 3, 1)):
        assert [k for who, k in taken if who == number] == list(range(share * 10))
        for length in range(1, 91):
            assert abs(sum(who == number for who, _ in taken[:length]) - length * share / 9) < 2


def test_batches_are_of_one_shape_and_every_record_is_seen_once_an_epoch():
    seen = collections.Counter()
    shapes = collections.Counter()
    run = make(Pictures(64))
    for batch in (next(run) for _ in range(32)):
        found = numbers(batch)
        kinds = {Pictures(64).kinds[n] for n in found}
        assert len(kinds) == 1
        side = {"wide": (8, 12), "tall": (12, 8), "square": (10, 10)}[kinds.pop()]
        assert batch["pixels"].shape == (4, *side, 3)
        shapes[side] += 1
        seen.update(found)
    # Two epochs; the bucket that no picture is near never comes.
    assert seen == collections.Counter(dict.fromkeys(range(64), 2))
    assert shapes == {(8, 12): 16, (12, 8): 8, (10, 10): 8}


def test_process_count_and_resume_change_nothing():
    whole = [numbers(b) for _, b in zip(range(16), make(Pictures(64)), strict=False)]
    parts = [make(Pictures(64), index=i, count=2) for i in range(2)]
    first = [[numbers(next(part)) for part in parts] for _ in range(7)]
    assert [a + b for a, b in first] == whole[:7]
    again = make(Pictures(64))
    again.set_state(parts[0].get_state())
    assert [numbers(next(again)) for _ in range(9)] == whole[7:]


def test_damage_is_told_by_the_number_in_the_set():
    run = make(Pictures(64, damaged=(8, 9, 2)))
    for _ in range(16):
        next(run)
    assert sorted(run.damaged) == [(0, 2), (0, 8), (0, 9)]
    assert run.damaged[0, 8] == "picture 8: it is cut"
    two = make(Pictures(4), Pictures(64, damaged=(9,)))
    for _ in range(17):
        next(two)
    assert sorted(two.damaged) == [(1, 9)]


def test_mixtures_need_pictures_everywhere_and_sides_must_be_sides():
    assert len(feed(Pictures(16), Pictures(32), weights=(1.0, 2.0))) == 48
    with pytest.raises(UserError, match="no picture near the aspect bucket"):
        feed(Pictures(2), Pictures(16), weights=(1.0, 1.0))
    with pytest.raises(UserError, match="pairs of height and width"):
        Buckets([Pictures(4)], [Pictures(4).shapes], ((0, 4),), (), 0, True)
    data = DataConfig(aspect_buckets=((8, 8),))
    with pytest.raises(UserError, match="aspect_buckets do not go with interleaved"):
        Diffusion(p_interleaved=0.5).check(data)
    with pytest.raises(UserError, match="aspect_buckets do nothing for the contrastive objective"):
        Contrastive().check(data)
    with pytest.raises(UserError, match="aspect_buckets do not go with precomputed"):
        Diffusion().check(dataclasses.replace(data, precomputed=("x",)))

"""The loader over a source that counts: which record stands where, across resumes and process counts."""

from __future__ import annotations

import collections
import dataclasses

import grain
import numpy as np
import pytest

from mvader_jax.data import batches, loader
from mvader_jax.data.config import DataConfig
from mvader_jax.data.order import DamagedRecord, Reader
from mvader_jax.data.prompts import IGNORED
from mvader_jax.errors import UserError
from mvader_jax.prompt.tokenizer import train_tokenizer
from mvader_jax.train.objectives import Captioning, Diffusion

SIDE, ENCODER, TOKENS = 12, 8, 4


class Numbered:
    """Record i is a picture of level i and the caption 'number i'."""

    def __init__(self, count, damaged=()):
        self.count = count
        self.damaged = set(damaged)

    def __len__(self):
        return self.count

    def record(self, index, rng):
        if index in self.damaged:
            raise DamagedRecord("it is cut")
        picture = np.full((SIDE, SIDE, 3), index, np.uint8)
        return {"image": picture, "caption": f"number {index}", "luck": int(rng.integers(1 << 30))}

    def where(self, index):
        return f"shard-{index}"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"number {i}" for i in range(300)], 400)


def config(**changes):
    return DataConfig(**{"image_size": SIDE, "threads": 2, "seed": 3, **changes})


def diffusion_loader(tokenizer, source, config, *, batch_size=12, index=0, count=1, groups=4):
    reader = Reader([source], (), config.seed, config.shuffle)
    shape = batches.Shape(batch_size, groups, index, count, TOKENS, ENCODER)
    make = Diffusion(caption_length=7).batches(reader, config, shape, tokenizer, "train")
    return loader.Loader(make, config, batch_size, len(reader))


def numbers(batch):
    return batch["pixels"][:, 0, 0, 0].tolist()


def take(iterator, steps):
    return [next(iterator) for _ in range(steps)]


def test_diffusion_batch_pairs_every_sample_with_its_own_row(tokenizer):
    source = Numbered(90)
    for batch in take(diffusion_loader(tokenizer, source, config()), 5):
        seen = numbers(batch)
        assert batch["pixels"].shape == (12, SIDE, SIDE, 3)
        assert batch["pixels"].dtype == np.uint8
        # 4 groups of 3, a share of 0.2: one image row and three caption rows a group.
        assert batch["image_prompt"].pixels.shape == (4, 1, ENCODER, ENCODER, 3)
        assert batch["text_prompt"].token_ids.shape == (12, 7)
        image_of = [seen[group * 3] for group in range(4)]
        levels = batch["image_prompt"].pixels[:, 0, 0, 0, 0] * 0.26862954 + 0.48145466
        assert np.rint(levels * 255).astype(int).tolist() == image_of
        for row, number in enumerate(seen):
            ids = batch["text_prompt"].token_ids[row][batch["text_prompt"].log_weights[row] == 0]
            assert tokenizer.decode(ids) == f"number {number}"


def test_share_of_images_is_exact_over_the_run(tokenizer):
    used = sum(b["use_image"].sum() for b in take(diffusion_loader(tokenizer, Numbered(90), config()), 25))
    assert used == 25 * 12 * 0.2


def test_every_epoch_sees_every_record_once_in_a_new_order(tokenizer):
    run = [n for b in take(diffusion_loader(tokenizer, Numbered(90), config()), 30) for n in numbers(b)]
    epochs = [run[i : i + 90] for i in range(0, 360, 90)]
    assert all(sorted(epoch) == list(range(90)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_order_is_that_of_grains_shuffle():
    # Runs saved by earlier versions, which asked grain, go on in the same order.
    seed = int(np.random.SeedSequence([7, 0]).generate_state(1)[0])
    theirs = grain.MapDataset.range(61).shuffle(seed=seed).repeat()
    ours = Reader([Numbered(40), Numbered(21)], (), 7, True).order
    positions = [*range(200), 10**6, 123_456_789]
    assert [ours[p] for p in positions] == [theirs[p] for p in positions]


def test_global_batch_does_not_depend_on_the_number_of_processes(tokenizer):
    whole = take(diffusion_loader(tokenizer, Numbered(90), config()), 6)
    for count in (2, 4):
        parts = [
            take(diffusion_loader(tokenizer, Numbered(90), config(), index=i, count=count), 6)
            for i in range(count)
        ]
        for step, batch in enumerate(whole):
            joined = {k: np.concatenate([p[step][k] for p in parts]) for k in ("pixels", "use_image")}
            np.testing.assert_array_equal(joined["pixels"], batch["pixels"])
            np.testing.assert_array_equal(joined["use_image"], batch["use_image"])
            ids = np.concatenate([p[step]["text_prompt"].token_ids for p in parts])
            np.testing.assert_array_equal(ids, batch["text_prompt"].token_ids)


def test_twenty_random_stops_with_other_process_counts_lose_and_repeat_nothing(tokenizer):
    """One epoch of 240 records in 20 steps, cut at random places; the same count gives the same order."""
    rng = np.random.default_rng(0)
    whole = [n for b in take(diffusion_loader(tokenizer, Numbered(240), config()), 20) for n in numbers(b)]
    for _ in range(20):
        stop = int(rng.integers(1, 20))
        before, after = rng.choice([1, 2, 4], 2).tolist()
        seen = []
        states = []
        for index in range(before):
            part = diffusion_loader(tokenizer, Numbered(240), config(), index=index, count=before)
            seen += [n for b in take(part, stop) for n in numbers(b)]
            states.append(part.get_state())
        assert all(state == states[0] for state in states)
        rest = []
        for index in range(after):
            part = diffusion_loader(tokenizer, Numbered(240), config(), index=index, count=after)
            part.set_state(states[0])
            rest.append([numbers(b) for b in take(part, 20 - stop)])
        assert sorted(seen + [n for part in rest for b in part for n in b]) == list(range(240))
        ordered = [n for step in zip(*rest, strict=True) for part in step for n in part]
        assert ordered == whole[stop * 12 :]


def test_damaged_records_are_replaced_counted_and_remembered(tokenizer):
    source = Numbered(60, damaged=(7, 8, 30))
    first = diffusion_loader(tokenizer, source, config())
    seen = collections.Counter(n for b in take(first, 5) for n in numbers(b))
    assert seen == collections.Counter([*set(range(60)) - {7, 8, 30}, 9, 9, 31])
    assert sorted(index for _, index in first.damaged) == [7, 8, 30]
    (told,) = first.notices()
    assert told.startswith("a damaged record is passed over: shard-") and not first.notices()
    again = diffusion_loader(tokenizer, source, config())
    again.set_state(first.get_state())
    assert again.damaged == first.damaged


def test_too_many_damaged_records_stop_the_run_with_the_file(tokenizer):
    run = diffusion_loader(tokenizer, Numbered(60, damaged=range(0, 60, 3)), config(bad_limit=4))
    with pytest.raises(UserError, match=r"5 records .* bad_limit 4; the last: shard-\d+: it is cut"):
        take(run, 10)
    with pytest.raises(UserError, match="60 damaged records in a row"):
        take(diffusion_loader(tokenizer, Numbered(60, damaged=range(60)), config()), 1)


def test_most_of_a_set_damaged_stops_the_run_long_before_bad_limit(tokenizer):
    source = Numbered(60, damaged=range(6, 60))
    with pytest.raises(
        UserError, match=r"31 of the 60 records .* bad_share 0\.5; the last: shard-\d+: it is cut"
    ):
        take(diffusion_loader(tokenizer, source, config()), 40)
    run = diffusion_loader(tokenizer, source, config(bad_share=1.0))
    assert {n for b in take(run, 40) for n in numbers(b)} == set(range(6))


def test_a_state_of_other_data_or_no_whole_batch_is_refused(tokenizer):
    run = diffusion_loader(tokenizer, Numbered(60), config())
    take(run, 3)
    with pytest.raises(UserError, match="61 records, but the run began with 60"):
        diffusion_loader(tokenizer, Numbered(61), config()).set_state(run.get_state())
    with pytest.raises(UserError, match="36 samples"):
        diffusion_loader(tokenizer, Numbered(60), config(), batch_size=8).set_state(run.get_state())
    doubled = diffusion_loader(tokenizer, Numbered(60), config(), batch_size=4)
    doubled.set_state(run.get_state())
    assert doubled.step == 9


def test_mixture_follows_its_weights():
    reader = Reader([Numbered(10), Numbered(100)], (3.0, 1.0), 0, True)
    drawn = [reader.read(p, lambda r: r)[0]["image"][0, 0, 0] for p in range(200)]
    assert len(reader) == 110
    # The first source has 150 of 200 draws, each of its ten records 15 times; the other's are all new.
    small = collections.Counter(int(reader.order[p]) for p in range(200) if int(reader.order[p]) < 10)
    assert len(drawn) == 200
    assert set(small.values()) == {15}
    assert len({int(reader.order[p]) for p in range(200)}) == 60


def test_sources_without_weights_are_one_set():
    reader = Reader([Numbered(10), Numbered(30)], (), 0, True)
    assert sorted(int(reader.order[p]) for p in range(40)) == list(range(40))


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, -1.0)])
def test_bad_weights_are_refused(weights):
    with pytest.raises(UserError, match="weights"):
        Reader([Numbered(3), Numbered(4)], weights, 0, True)


def test_captioning_labels_are_the_caption_and_one_eos(tokenizer):
    reader = Reader([Numbered(50)], (), 1, True)
    shape = batches.Shape(5, image_tokens=TOKENS, encoder_size=ENCODER)
    captioning = Captioning(caption_length=6)
    batch, _ = captioning.batches(reader, config(), shape, tokenizer, "train")(0)
    prompt, labels = batch["prompt"], batch["labels"]
    assert labels.shape == prompt.token_ids.shape == (5, TOKENS + 6)
    np.testing.assert_array_equal(prompt.image_index[0], [0, 1, 2, 3, -1, -1, -1, -1, -1, -1])
    for row in range(5):
        caption = tokenizer.encode(f"number {reader.read(row, lambda r: r)[0]['image'][0, 0, 0]}")
        learnt = [*caption, tokenizer.config.eos_id]
        assert labels[row].tolist() == [IGNORED] * TOKENS + learnt + [IGNORED] * (6 - len(learnt))
        assert prompt.token_ids[row, TOKENS:].tolist() == caption + [tokenizer.config.eos_id] * (
            6 - len(caption)
        )
    alone, _ = dataclasses.replace(captioning, images=False).batches(
        reader, config(), shape, tokenizer, "train"
    )(0)
    np.testing.assert_array_equal(alone["labels"], labels[:, TOKENS:])
    assert alone["prompt"].pixels.shape[1] == 0


@pytest.mark.parametrize(("batch_size", "groups", "count"), [(10, 4, 1), (12, 3, 2), (0, 1, 1)])
def test_batches_that_do_not_divide_are_refused(batch_size, groups, count):
    with pytest.raises(UserError, match="does not divide"):
        batches.Shape(batch_size, groups, 0, count)


def test_random_choices_belong_to_the_position(tokenizer):
    reader = Reader([Numbered(50)], (), 1, True)
    luck = [reader.read(p, lambda r: r)[0]["luck"] for p in (0, 1, 50, 0)]
    assert luck[0] == luck[3]
    assert len(set(luck)) == 3
    assert dataclasses.replace(config(), seed=4) != config()

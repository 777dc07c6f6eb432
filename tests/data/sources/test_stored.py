from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import multiprocessing
import pickle
import shutil

import img2dataset_like as like
import numpy as np
import pytest
import tensorflow_datasets as tfds

from mvader_jax.data.batches import Shape
from mvader_jax.data.building.describe import contact_sheet, describe, histogram
from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.data.building.parts import find_shards
from mvader_jax.data.building.run import build
from mvader_jax.data.building.schema import COLUMNS, REPORT
from mvader_jax.data.config import DataConfig
from mvader_jax.data.loader import captions_of, make_loader
from mvader_jax.data.order import DamagedRecord
from mvader_jax.data.sources import Records, encoded, jsonl
from mvader_jax.data.sources.open import open_pictures
from mvader_jax.data.sources.stored import Stored, digest
from mvader_jax.errors import UserError
from mvader_jax.prompt.tokenizer import train_tokenizer
from mvader_jax.train.objectives import Autoencoding, Captioning, Contrastive, Diffusion


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """210 records in three files."""
    root = tmp_path_factory.mktemp("data")
    like.make(root / "in", shards=3, per_shard=70)
    build(find_shards(root / "in"), root / "out", "laion_aesthetics", FilterConfig.paper())
    return root / "out"


@pytest.fixture
def copy(data, tmp_path):
    return shutil.copytree(data, tmp_path / "copy")


def overwrite(path, at, count):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(count))


def test_one_in_a_hundred_is_held_out(data):
    train, held_out = Stored(str(data), "train"), Stored(str(data), "validation")
    assert [held_out.number(i) for i in range(len(held_out))] == [0, 100, 200]
    both = [source.number(i) for source in (train, held_out) for i in range(len(source))]
    assert sorted(both) == list(range(210))
    assert [len(Stored(str(data), None)), len(train)] == [210, 207]


def test_source_travels_to_other_processes(data):
    source = Stored(str(data), "train")
    again = pickle.loads(pickle.dumps(source))
    assert again.row(100)["key"] == source.row(100)["key"]
    assert again.where(150) == source.where(150)
    assert "laion_aesthetics-train.array_record-00002-of-00003" in again.where(150)


def test_damaged_bytes_are_skipped_counted_and_named(copy):
    file = copy / "laion_aesthetics-train.array_record-00001-of-00003"
    size = file.stat().st_size
    overwrite(file, size // 2, 60)
    source = Stored(str(copy), "train")
    bad = []
    for index in range(len(source)):
        try:
            source.record(index, np.random.default_rng(0))
        except DamagedRecord:
            bad.append(index)
    assert 1 <= len(bad) <= 2
    assert str(file) in source.where(bad[0])
    config = DataConfig(Records((str(copy),)), image_size=24)
    loader = make_loader(config, Autoencoding(), None, Shape(23))
    for _ in range(9):
        assert next(loader)["pixels"].shape == (23, 24, 24, 3)
    assert sorted(index for _, index in loader.damaged) == bad
    assert "00001-of-00003: it cannot be read: Corrupted" in loader.damaged[0, bad[0]]


def test_a_cut_file_stops_the_run_with_its_name(copy):
    file = copy / "laion_aesthetics-train.array_record-00002-of-00003"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)
    config = DataConfig(Records((str(copy),)), image_size=24, bad_limit=20, shuffle=True)
    loader = make_loader(config, Autoencoding(), None, Shape(23))
    with pytest.raises(UserError, match=r"more than bad_limit 20; the last: .* of .*00002-of-00003"):
        collections.deque(itertools.islice(loader, 9))


def test_every_objective_reads_records(data):
    config = DataConfig(Records((str(data), str(data))), image_size=24)
    tokenizer = train_tokenizer(captions_of(config, 50), 300)
    shape = Shape(10, image_tokens=4, encoder_size=16)
    diffusion = next(make_loader(config, Diffusion(caption_length=9), tokenizer, shape))
    assert diffusion["use_image"].sum() == 2
    captioning = next(make_loader(config, Captioning(caption_length=9), tokenizer, shape))
    assert captioning["labels"].shape == (10, 13)
    alone = next(make_loader(config, Captioning(images=False, caption_length=9), tokenizer, shape))
    assert alone["labels"].shape == (10, 9)
    with pytest.raises(UserError, match="needs pairs"):
        make_loader(config, Contrastive(), tokenizer, shape)


def test_buckets_follow_the_shapes_that_are_stored(tmp_path):
    like.make(tmp_path / "in", shards=1, per_shard=40, damage=dict.fromkeys(range(0, 40, 5), "rotated"))
    build(find_shards(tmp_path / "in"), tmp_path / "out", "laion_aesthetics", FilterConfig.paper())
    config = DataConfig(Records((str(tmp_path / "out"),)), aspect_buckets=((24, 32), (32, 24)), image_size=24)
    # 39 records to train on; 7 of them stand upright.
    loader = make_loader(config, Autoencoding(), None, Shape(4))
    shapes = collections.Counter(next(loader)["pixels"].shape[1:3] for _ in range(39))
    assert shapes == {(24, 32): 32, (32, 24): 7}


def test_workers_are_processes_and_change_nothing(data):
    config = DataConfig(Records((str(data),)), image_size=24, threads=1)
    here = make_loader(config, Autoencoding(), None, Shape(11))
    there = make_loader(dataclasses.replace(config, workers=2), Autoencoding(), None, Shape(11))
    before = len(multiprocessing.active_children())
    for _ in range(5):
        np.testing.assert_array_equal(next(here)["pixels"], next(there)["pixels"])
    assert len(multiprocessing.active_children()) >= before + 2
    again = make_loader(dataclasses.replace(config, workers=1), Autoencoding(), None, Shape(11))
    again.set_state(there.get_state())
    np.testing.assert_array_equal(next(again)["pixels"], next(here)["pixels"])


def test_no_data_set_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no data set at"):
        Stored(str(tmp_path), "train")
    with pytest.raises(UserError, match="needs paths"):
        make_loader(DataConfig(Records()), Autoencoding(), None, Shape(4))


def test_description_counts_and_draws(data, copy):
    text = "\n".join(describe(data))
    assert "records        210 in 3 files" in text
    assert "shorter side   37 to 37, median 37 pixels" in text
    assert "written           210" in text
    (copy / COLUMNS).unlink()
    np.testing.assert_array_equal(Stored(str(copy), None).columns(), np.load(data / COLUMNS))
    sheet = contact_sheet(data, count=5)
    assert sheet.width > 4 * 160
    assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 1000


def test_a_set_that_was_built_anew_is_another_than_was_encoded(data, copy, tmp_path):
    like.make_encoded(tmp_path / "encoded", 3)
    file = tmp_path / "encoded" / encoded.INFO
    source = Records((str(copy),))
    origin = source.origin(0, 512)
    assert origin == {"source": "records", "path": str(copy), "digest": digest(str(data))}
    file.write_text(json.dumps({**json.loads(file.read_text()), "origin": origin}))
    config = DataConfig(Records(), image_size=512, precomputed=(str(tmp_path / "encoded"),))
    (pictures,) = open_pictures(config, "train")
    assert pictures.record(0, np.random.default_rng(0))["caption"].startswith("a photograph")
    # The same pictures under other captions.
    report = json.loads((copy / REPORT).read_text())
    report["report"]["digest"] = "0" * 64
    (copy / REPORT).write_text(json.dumps(report))
    with pytest.raises(UserError, match="its records have changed since; encode it again"):
        open_pictures(config, "train")
    # Encoded records can stand alone, and those of before know no digest.
    shutil.rmtree(copy)
    open_pictures(config, "train")
    with pytest.raises(UserError, match="encode each data set into a folder of its own"):
        Records(("a", "b")).origin(0, 512)


@pytest.mark.parametrize(
    "change", [{"splits": {"train": 3}}, {"splits": None}, {"shard_size": 0}, {"origin": {}}, {"origin": 3}]
)
def test_an_encoded_set_that_does_not_say_what_it_is_is_refused(tmp_path, change):
    like.make_encoded(tmp_path, 3)
    file = tmp_path / encoded.INFO
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match="there is no finished encoded set at"):
        encoded.read_info(tmp_path)


def test_the_digest_is_of_what_the_records_hold(tmp_path):
    like.make(tmp_path / "in", shards=2, per_shard=5)
    parts = find_shards(tmp_path / "in")
    digests = [
        build(parts, tmp_path / f"out{score}{workers}", "laion_aesthetics", filters, workers=workers).digest
        for score, workers in ((None, 1), (None, 2), (6.0, 1))
        for filters in [FilterConfig(min_aesthetic=score)]
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_damaged_set_is_described_as_far_as_it_goes(copy):
    (copy / REPORT).write_text("{")
    file = copy / "laion_aesthetics-train.array_record-00001-of-00003"
    overwrite(file, file.stat().st_size // 4, file.stat().st_size // 2)
    assert "cannot be read: JSONDecodeError" in "\n".join(describe(copy))
    assert contact_sheet(copy, count=190).width > 160
    (copy / COLUMNS).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"columns\.npy' cannot be read"):
        describe(copy)
    file.unlink()
    with pytest.raises(DamagedRecord, match="cannot be read"):
        Stored(str(copy), None).record(100, np.random.default_rng(0))


def test_a_set_without_pictures_or_captions_is_refused(copy):
    file = copy / "features.json"
    features = json.loads(file.read_text())
    del features["featuresDict"]["features"]["caption"]
    file.write_text(json.dumps(features))
    with pytest.raises(UserError, match="have no caption, but "):
        Stored(str(copy), "train")


def test_histogram_literally():
    lines = histogram(np.array([0.5, 1.5, 1.6, 4.0]), (0, 1, 2, 3, np.inf))
    assert lines == [
        f"  {'0 - 1':>14}  {1:>10}  {'#' * 20}",
        f"  {'1 - 2':>14}  {2:>10}  {'#' * 40}",
        f"  {'2 - 3':>14}  {0:>10}",
        f"  {'>= 3':>14}  {1:>10}  {'#' * 20}",
    ]
    assert histogram(np.zeros(0), (0, 1)) == ["  (none)"]


def test_gs_paths_reach_the_libraries_unchanged(monkeypatch):
    seen = []

    class Bucket:
        def __init__(self, path):
            seen.append(path)

        def __truediv__(self, name):
            return Bucket(f"{seen[-1]}/{name}")

        def open(self, mode):
            raise OSError(2, "no network here")

        def read_text(self):
            raise OSError(2, "no network here")

    def no_builder(path):
        seen.append(path)
        raise OSError("no network here")

    monkeypatch.setattr(tfds, "builder_from_directory", no_builder)
    monkeypatch.setattr(jsonl.epath, "Path", Bucket)
    with pytest.raises(UserError, match="no data set at 'gs://bucket/set': no network here"):
        Stored("gs://bucket/set", "train")
    with pytest.raises(UserError, match=r"cannot read 'gs://bucket/pairs\.jsonl': no network here"):
        jsonl.PairLines(["gs://bucket/pairs.jsonl"])
    with pytest.raises(UserError, match="no finished encoded set at 'gs://bucket/encoded'"):
        encoded.read_info("gs://bucket/encoded")
    assert seen == [
        "gs://bucket/set",
        "gs://bucket/pairs.jsonl",
        "gs://bucket/encoded",
        "gs://bucket/encoded/encoded.json",
    ]

from __future__ import annotations

import json

import img2dataset_like as like
import numpy as np
import PIL.Image
import pytest

from mvader_jax.data.building.catalogue import find_parts
from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.data.building.listed import find_captions
from mvader_jax.data.building.run import build
from mvader_jax.data.scenes.parts import find_scenes
from mvader_jax.data.scenes.world import render, scene_at
from mvader_jax.data.sources.stored import Stored
from mvader_jax.errors import UserError


@pytest.fixture
def picture():
    return like.jpeg(np.random.default_rng(0), 31, 23)


def built(parts, tmp_path, filters=None):
    """({key: captions}, report) of a build."""
    report = build(parts, tmp_path / "out", "image_captions", filters or FilterConfig())
    source = Stored(str(tmp_path / "out"), None)
    keys = [source.row(i)["key"].decode() for i in range(len(source))]
    return {key: source.captions(i) for i, key in enumerate(keys)}, report


def test_folder_of_pictures_and_texts(tmp_path, picture):
    root = tmp_path / "in"
    (root / "deep").mkdir(parents=True)
    (root / "a.jpg").write_bytes(picture)
    (root / "a.txt").write_text("  a\n cat ")
    (root / "deep" / "b.PNG").write_bytes(like.encode(PIL.Image.new("RGBA", (9, 7)), "PNG"))
    (root / "deep" / "b.txt").write_text("größer")
    (root / "c.jpg").write_bytes(picture)
    (root / "d.txt").write_text("nothing to see")
    (root / "a.png").write_bytes(picture)
    captions, report = built(find_captions(root), tmp_path)
    assert captions == {"a": ["a cat"], "deep/b": ["größer"]}
    assert report.rejected == {"caption missing": 1, "image missing": 1, "key duplicated": 1}
    assert report.read == 5


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_tables_of_paths_and_captions(tmp_path, picture, kind):
    root = tmp_path / "in"
    (root / "pictures").mkdir(parents=True)
    for name in ("a", "b", "c"):
        (root / "pictures" / f"{name}.jpg").write_bytes(picture)
    rows = [("pictures/a.jpg", 'a "cat", sitting'), ("pictures/b.jpg", ""), ("pictures/none.jpg", "lost")]
    file = root / f"captions.{kind}"
    if kind == "jsonl":
        lines = [json.dumps({"file_name": p, "text": c}) for p, c in rows]
        file.write_bytes(
            "\n".join([*lines, "{not json", ""]).encode() + b'{"file_name": "pictures/c.jpg", "text": "\xff"}'
        )
    else:
        mark = "," if kind == "csv" else "\t"
        quoted = "".join('{}{}"{}"\n'.format(p, mark, c.replace('"', '""')) for p, c in rows)
        file.write_bytes(
            f"image_path{mark}Caption\n{quoted}".encode() + f"pictures/c.jpg{mark}".encode() + b"caf\xe9\n"
        )
    captions, report = built(find_captions(file), tmp_path)
    assert captions == {"pictures/a.jpg": ['a "cat", sitting']}
    expected = {"caption empty": 1, "image missing": 1, "caption is not UTF-8": 1}
    assert report.rejected == {**expected, **({"line is no JSON object": 1} if kind == "jsonl" else {})}


def test_coco_annotations_keep_all_captions_of_a_picture(tmp_path, picture):
    (tmp_path / "train2017").mkdir()
    for number in (7, 8):
        (tmp_path / "train2017" / f"{number:012d}.jpg").write_bytes(picture)
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "width": 640, "height": 480} for n in (7, 8, 9)]
    notes = [{"image_id": 7, "id": 1, "caption": "A cat.\n"}, {"image_id": 7, "id": 2, "caption": "One cat"}]
    notes += [{"image_id": 9, "id": 3, "caption": "gone"}]
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({"images": images, "annotations": notes}))
    captions, report = built(find_parts("image_captions", file, pictures=tmp_path / "train2017"), tmp_path)
    assert captions == {"7": ["A cat.", "One cat"]}
    assert report.rejected == {"caption missing": 1, "image missing": 1}
    source = Stored(str(tmp_path / "out"), None)
    drawn = {source.record(0, np.random.default_rng(seed))["caption"] for seed in range(20)}
    assert drawn == {"A cat.", "One cat"}


def test_scenes_export_the_pictures_and_captions_of_the_world(tmp_path):
    parts = find_scenes(4500, seed=2)
    assert [(part.start, part.stop) for part in parts] == [(0, 2000), (2000, 4000), (4000, 4500)]
    captions, _ = built(find_scenes(5, seed=2), tmp_path)
    assert len(captions) == 5
    assert all(len(both) == 2 and both[0] != both[1] for both in captions.values())
    record = Stored(str(tmp_path / "out"), None).record(3, np.random.default_rng(0))
    import io

    pixels = np.asarray(PIL.Image.open(io.BytesIO(record["image"])))
    np.testing.assert_array_equal(pixels, render(scene_at(2, 3)))


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("image_captions", "missing", "does not exist"),
        ("image_captions", "a.xml", "is no folder, .csv"),
        ("image_captions", "bad.json", "cannot be read as JSON"),
        ("image_captions", "other.json", "is not COCO's"),
        ("image_captions", "columns.csv", "has the columns a, b; expected a path"),
        ("image_captions", "empty", "names no picture"),
        ("scenes", "many", "expected their number"),
        ("scenes", "²", "expected their number"),
        ("scenes", "9" * 5000, "expected their number, 1 to 10000000"),
        ("paintings", "x", "unknown data set 'paintings'; known: laion_aesthetics"),
    ],
)
def test_sources_of_another_kind_are_refused(tmp_path, name, source, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.xml").write_text("<a/>")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=message):
        find_parts(name, source if name == "scenes" else tmp_path / source)
    with pytest.raises(UserError, match="scenes takes no pictures"):
        find_parts("scenes", "5", pictures=tmp_path)

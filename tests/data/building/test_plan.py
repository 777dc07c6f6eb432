"""A folder knows what it was built from: the same is said to be there, anything else is refused."""

from __future__ import annotations

import json
import os
import shutil

import img2dataset_like as like
import numpy as np
import pytest

from mvader_jax.cli.main import main
from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.data.building.listed import find_captions
from mvader_jax.data.building.parts import find_shards
from mvader_jax.data.building.plan import begun, make_plan
from mvader_jax.data.building.run import build
from mvader_jax.data.building.schema import REPORT
from mvader_jax.data.scenes.parts import find_scenes
from mvader_jax.data.sources.stored import Stored
from mvader_jax.errors import UserError

PICTURE = like.jpeg(np.random.default_rng(0), 20, 16)


def folder(root, *captions):
    root.mkdir()
    for number, caption in enumerate(captions):
        (root / f"{number}.jpg").write_bytes(PICTURE)
        (root / f"{number}.txt").write_text(caption)
    return root


def table(root, *captions):
    folder(root, *captions)
    lines = [f"{number}.jpg,{caption}\n" for number, caption in enumerate(captions)]
    (root / "c.csv").write_text("path,caption\n" + "".join(lines))
    return root / "c.csv"


def run(source, out):
    return build(find_captions(source), out, "image_captions", FilterConfig())


def captions(out):
    source = Stored(str(out), None)
    return [source.captions(i)[0] for i in range(len(source))]


@pytest.mark.parametrize("kind", ["folder", "csv", "tar", "files", "parquet"])
def test_another_source_of_the_same_names_and_sizes_is_refused(tmp_path, kind):
    def source(seed):
        root = tmp_path / "in"
        shutil.rmtree(root, ignore_errors=True)
        words = ("a cat", "a dog") if seed else ("a cow", "a pig")
        if kind == "folder":
            return find_captions(folder(root, *words))
        if kind == "csv":
            return find_captions(table(root, *words))
        like.make(root, shards=2, per_shard=2, layout="tar" if kind == "tar" else kind, seed=seed)
        return find_shards(root)

    report = build(source(0), tmp_path / "out", "image_captions", FilterConfig())
    held = captions(tmp_path / "out")
    with pytest.raises(
        UserError, match="a finished build of another source, or its files have changed since"
    ):
        build(source(1), tmp_path / "out", "image_captions", FilterConfig())
    assert captions(tmp_path / "out") == held
    assert json.loads((tmp_path / "out" / REPORT).read_text())["report"] == report.to_json()


def test_mended_captions_are_seen(tmp_path):
    source = folder(tmp_path / "in", "a cat", "a dog")
    run(source, tmp_path / "out")
    run(source, tmp_path / "out")
    (source / "1.txt").write_text("a cow")
    with pytest.raises(UserError, match=r"files have changed since \(the first is part 'in-00000'\)"):
        run(source, tmp_path / "out")
    csv = table(tmp_path / "other", "a cat")
    run(csv, tmp_path / "o2")
    stat = csv.stat()
    csv.write_text(csv.read_text().replace("cat", "cow"))
    os.utime(csv, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(UserError, match="files have changed since"):
        run(csv, tmp_path / "o2")


def test_an_unfinished_build_is_not_gone_on_with_from_another_source(tmp_path):
    def stop(read):
        if read >= 30:
            raise KeyboardInterrupt

    def go(seed, **options):
        shutil.rmtree(tmp_path / "in", ignore_errors=True)
        like.make(tmp_path / "in", shards=5, per_shard=12, seed=seed)
        return build(
            find_shards(tmp_path / "in"), tmp_path / "out", "laion_aesthetics", FilterConfig(), **options
        )

    with pytest.raises(KeyboardInterrupt):
        go(0, on_progress=stop)
    with pytest.raises(UserError, match="an unfinished build of another source"):
        go(1)


def test_the_same_files_elsewhere_are_the_same_source(tmp_path):
    source = folder(tmp_path / "in", "a cat", "a dog")
    before = run(source, tmp_path / "out")
    (tmp_path / "deep").mkdir()
    elsewhere = source.rename(tmp_path / "deep" / "in")
    assert run(elsewhere, tmp_path / "out").to_json() == before.to_json()


def test_scenes_of_another_number_are_others(tmp_path):
    build(find_scenes(3), tmp_path / "out", "scenes", FilterConfig())
    build(find_scenes(3), tmp_path / "out", "scenes", FilterConfig())
    with pytest.raises(UserError, match="of another source"):
        build(find_scenes(4), tmp_path / "out", "scenes", FilterConfig())


def test_a_build_of_before_that_noted_nothing_is_not_vouched_for(tmp_path):
    source = folder(tmp_path / "in", "a cat")
    run(source, tmp_path / "out")
    file = tmp_path / "out" / REPORT
    noted = json.loads(file.read_text())
    del noted["plan"]["source"], noted["report"]["digest"]
    file.write_text(json.dumps(noted))
    with pytest.raises(UserError, match="by an earlier version, which did not note"):
        run(source, tmp_path / "out")
    assert captions(tmp_path / "out") == ["a cat"]
    file.write_text("{")
    with pytest.raises(UserError, match=r"report\.json' cannot be read"):
        run(source, tmp_path / "out")


def test_two_builds_into_one_folder_do_not_meet(tmp_path):
    parts = find_captions(folder(tmp_path / "in", "a cat"))
    with (
        begun(tmp_path / "out", make_plan(parts, "image_captions", FilterConfig())),
        pytest.raises(UserError, match="is in use by process"),
    ):
        build(parts, tmp_path / "out", "image_captions", FilterConfig())
    build(parts, tmp_path / "out", "image_captions", FilterConfig())


def test_the_command_says_that_it_is_built_already(tmp_path, capsys):
    source = folder(tmp_path / "in", "a cat")
    command = ["data", "build", "image_captions", str(source), str(tmp_path / "out"), "--workers", "1"]
    for already in (False, True):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert not stopped.value.code
        said = capsys.readouterr().out
        assert "written  " in said
        assert ("already built" in said) == already


def test_a_report_that_says_nothing_is_one_sentence(tmp_path):
    source = folder(tmp_path / "in", "a cat")
    run(source, tmp_path / "out")
    file = tmp_path / "out" / REPORT
    file.write_text(json.dumps({**json.loads(file.read_text()), "report": {"read": 1}}))
    with pytest.raises(UserError, match=r"report\.json' cannot be read: KeyError"):
        run(source, tmp_path / "out")

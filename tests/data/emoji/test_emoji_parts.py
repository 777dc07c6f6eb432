"""`mvader data build emoji_styles` on a folder laid out as npm's packages, with drawings of our own."""

import io
import json
import shutil

import numpy as np
import PIL.Image
import pytest
from emoji_like import SUBJECTS, TONED, write_packages

from mvader_jax.data.building.catalogue import find_parts
from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.data.building.run import build
from mvader_jax.data.emoji.packages import LANGUAGES
from mvader_jax.data.emoji.sets import SETS, STYLES
from mvader_jax.data.sources.stored import Stored
from mvader_jax.errors import UserError
from mvader_jax.images.read import load_image


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return write_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def built(packages, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "emoji"
    build(find_parts("emoji_styles", packages), out, "emoji_styles", FilterConfig())
    source = Stored(str(out), None)
    return {source.row(i)["key"].decode(): source.row(i) for i in range(len(source))}


def about(row):
    return json.loads(row["details"])


def test_every_set_draws_what_it_has(built):
    # Joined by code points or, where a set names none, by name and alias; one set knows no skin tones.
    count = len(SUBJECTS) + len(TONED)
    by_style = {style: sum(key.endswith(f"/{style}") for key in built) for style in STYLES}
    assert by_style == {
        style: count - {"fluent-line": 2, "noto-blob": 1, "emojione": 1}.get(style, 0) for style in STYLES
    }
    assert not any("openmoji" in key for key in built)
    assert {"1f34e/emojione", "2764/fluent-3d", "23-20e3/noto", "1f44b-1f3ff/twemoji"} <= built.keys()
    assert "1f43b-200d-2744/emojione" not in built


def test_pictures_lie_on_white_in_the_middle_and_keep_their_alpha(built):
    for style in STYLES:
        row = built[f"1f34f/{style}"]
        picture = PIL.Image.open(io.BytesIO(row["image"]))
        assert (picture.size, picture.mode) == ((64, 64), "RGBA")
        pixels = np.asarray(load_image(row["image"])).astype(int)
        assert (pixels[:2, :2] == 255).all()
        ink = np.argwhere(pixels.min(-1) < 200)
        np.testing.assert_allclose(ink.mean(0), 32, atol=3.5)
    green = np.asarray(load_image(built["1f34f/fluent-flat"]["image"]))[32, 32]
    np.testing.assert_array_equal(green, [0, 128, 0])


def test_a_record_keeps_names_relations_parts_and_licence(built):
    heart = about(built["2764/noto"])
    assert (heart["licence"], heart["credit"], heart["style"]) == ("Apache-2.0", "Google", "noto")
    assert heart["names"] == {
        language: "red heart" + ("" if language == "en" else f" {language}") for language in LANGUAGES
    }
    assert heart["tags"]["de"] == ["heart", "thing de"]
    assert ["color", "heart", "red"] in heart["relations"]
    assert about(built["1f44b-1f3ff/noto"])["names"]["en"] == "waving hand: dark skin tone"
    assert ["tone", "1f44b", "dark"] in about(built["1f44b-1f3ff/noto"])["relations"]
    assert about(built["1f469-200d-1f680/noto"])["parts"] == ["1f469", "1f680"]
    captions = built["2764/noto"]["caption"].decode().split("\n")
    assert captions == ["red heart", "red heart de", "red heart fr", "red heart es", "red heart it"]


def test_size_and_styles_are_settings(packages, tmp_path):
    parts = find_parts("emoji_styles", packages, size=20, styles=("openmoji",))
    build(parts, tmp_path / "out", "emoji_styles", FilterConfig())
    row = Stored(str(tmp_path / "out"), None).row(0)
    assert PIL.Image.open(io.BytesIO(row["image"])).size == (20, 20)
    assert about(row)["licence"] == "CC-BY-SA-4.0" and not SETS["openmoji"].shippable


def test_another_version_is_told_and_a_broken_drawing_is_counted(packages, tmp_path):
    folder = shutil.copytree(packages, tmp_path / "copy")
    noto = folder / SETS["noto"].package
    (noto / "package.json").write_text('{"version": "9.9.9"}')
    icons = json.loads((noto / "icons.json").read_text())
    icons["icons"]["bear"]["body"] = "<circle"
    (noto / "icons.json").write_text(json.dumps(icons))
    report = build(
        find_parts("emoji_styles", folder, styles=("noto",)), tmp_path / "out", "e", FilterConfig()
    )
    assert sum(report.rejected.values()) == 1 and next(iter(report.rejected)).startswith(
        "picture cannot be drawn"
    )
    assert "@iconify-json/noto is of version 9.9.9" in report.problems[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"styles": ("manga",)}, "unknown style 'manga'; accepted: fluent-3d, "),
        ({"size": 0}, "size is 0; accepted are 1 to 1024"),
        ({"pictures": "x"}, "emoji_styles takes no pictures; accepted for image_captions"),
    ],
)
def test_what_it_does_not_take_is_refused(packages, options, message):
    with pytest.raises(UserError, match=message):
        find_parts("emoji_styles", packages, **options)


def test_a_missing_package_names_the_command(tmp_path):
    with pytest.raises(
        UserError, match=r"lacks the npm packages emojibase-data, .*npm install --prefix FOLDER"
    ):
        find_parts("emoji_styles", tmp_path)

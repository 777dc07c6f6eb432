import pytest

from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.data.building.schema import columns
from mvader_jax.errors import UserError

GOOD = {"aesthetic": 5.1, "watermark": 0.5, "original_width": 512, "original_height": 700}


def test_paper_keeps_what_it_keeps():
    assert FilterConfig.paper().reject(GOOD) is None
    assert FilterConfig.paper().needs() == ("aesthetic", "watermark")


@pytest.mark.parametrize(
    ("filters", "change", "reason"),
    [
        (FilterConfig.paper(), {"aesthetic": 5.0}, "aesthetic score <= 5"),
        (FilterConfig.paper(), {"aesthetic": float("nan")}, "aesthetic score is not a number"),
        (FilterConfig.paper(), {"aesthetic": None}, "aesthetic score is not a number"),
        (FilterConfig.paper(), {"aesthetic": "high"}, "aesthetic score is not a number"),
        (FilterConfig.paper(), {"watermark": 0.51}, "watermark > 0.5"),
        (FilterConfig.paper(), {"watermark": None}, "watermark is not a number"),
        (FilterConfig.paper(), {"original_width": 511}, "smaller than 512 x 512"),
        (FilterConfig.paper(), {"original_height": "512"}, None),
        (FilterConfig(), {"original_height": 20 * 512 + 1}, "sides in a ratio above 20"),
        (FilterConfig(), {"original_height": 0}, "sides in a ratio above 20"),
        (FilterConfig(), {"aesthetic": 0}, None),
        (FilterConfig(max_punsafe=0.1), {"punsafe": 0.2}, "punsafe > 0.1"),
        (FilterConfig(max_punsafe=0.1), {"punsafe": 0.1}, None),
        (FilterConfig(nsfw=("UNLIKELY",)), {"nsfw": "unlikely"}, None),
        (FilterConfig(nsfw=("UNLIKELY",)), {"nsfw": "NSFW"}, "nsfw tag is not UNLIKELY"),
        (FilterConfig(nsfw=("UNLIKELY", "UNSURE")), {}, "nsfw tag is not UNLIKELY or UNSURE"),
        (FilterConfig(languages=("en",)), {"language": "EN"}, None),
        (FilterConfig(languages=("en",)), {"language": None}, "language is not en"),
    ],
)
def test_each_filter(filters, change, reason):
    assert filters.reject({**GOOD, **change}) == reason


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("abc", None),
        ("  ", "caption empty"),
        (" ab", "caption shorter than 3 characters"),
        ("x" * 11, "caption longer than 10 characters"),
    ],
)
def test_captions(caption, reason):
    assert FilterConfig(min_caption=3, max_caption=10).reject_caption(caption) == reason


def test_missing_columns_are_named_with_their_spellings():
    with pytest.raises(
        UserError, match=r"shard 3 has no metadata column .*aesthetic \(aesthetic_score, aesthetic\)"
    ):
        FilterConfig.paper().check_columns({"watermark"}, "shard 3")


def test_columns_prefer_the_original_size_and_match_any_case():
    names = ["WIDTH", "original_width", "Pwatermark", "AESTHETIC_SCORE", "hash"]
    expected = {"original_width": "original_width", "watermark": "Pwatermark", "aesthetic": "AESTHETIC_SCORE"}
    assert columns(names) == expected
    assert columns(["WIDTH"]) == {"original_width": "WIDTH"}

import numpy as np
import pytest

from mvader_jax.data.rows import IMAGE, INTERLEAVED, TEXT, kinds, row_layout
from mvader_jax.errors import UserError


def test_literal_layout_of_one_image_in_five():
    layout = row_layout(4, 0.2)
    assert (layout.image_rows, layout.text_rows, layout.text_start) == (1, 4, 0)
    # 0.8 image rows a group: the first group has none, the next four one each.
    expected = [[2, 2, 2, 2], [0, 2, 2, 2], [0, 2, 2, 2], [0, 2, 2, 2], [0, 2, 2, 2]]
    np.testing.assert_array_equal(kinds(layout, 0, 5), expected)


def test_whole_shares_do_not_overlap():
    layout = row_layout(10, 0.2)
    assert (layout.image_rows, layout.text_rows) == (2, 8)
    assert (kinds(layout, 3, 1) == IMAGE).sum() == 2


@pytest.mark.parametrize("samples", [1, 3, 7, 13, 64])
@pytest.mark.parametrize(
    ("p_image", "p_interleaved"), [(0.2, 0.0), (0.0, 0.0), (1.0, 0.0), (0.2, 0.4), (0.37, 0.63)]
)
def test_shares_are_exact_over_the_run_and_every_used_row_exists(samples, p_image, p_interleaved):
    if samples == 1 and p_interleaved == 0.4:
        with pytest.raises(UserError, match="less than one prompt"):
            row_layout(samples, p_image, p_interleaved)
        return
    layout = row_layout(samples, p_image, p_interleaved)
    all_kinds = kinds(layout, 0, 400)
    for length in (1, 17, 100, 400):
        seen = all_kinds[:length]
        assert abs((seen == IMAGE).sum() - length * samples * p_image) < 1
        assert abs((seen == INTERLEAVED).sum() - length * samples * p_interleaved) < 1
    where = np.arange(samples)
    for kind, start, rows in (
        (IMAGE, 0, layout.image_rows),
        (INTERLEAVED, layout.interleaved_start, layout.interleaved_rows),
        (TEXT, layout.text_start, layout.text_rows),
    ):
        used = where[(all_kinds == kind).any(axis=0)]
        assert all(start <= i < start + rows for i in used)
    assert layout.image_rows + layout.interleaved_rows + layout.text_rows <= samples + 2
    np.testing.assert_array_equal(all_kinds[123:130], kinds(layout, 123, 7))


@pytest.mark.parametrize("shares", [(1.2, 0.0), (-0.1, 0.0), (0.7, 0.4), (float("nan"), 0.0)])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(UserError, match=r"p_(image|interleaved)"):
        row_layout(8, *shares)

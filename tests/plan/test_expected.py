"""What is expected of a step: the fit on recorded features, what it misses when a row is left out, and its range."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mvader_jax.errors import UserError
from mvader_jax.parallel.pods import parse_topology
from mvader_jax.plan.expected import (
    EFFORT,
    Features,
    Row,
    expect,
    features_of,
    fit,
    fitted,
    leave_one_out,
    read_measured,
    recorded,
    table,
)

LIKE = Features(0.1, 0.06, 0.006, 6500, 0.3)


def test_every_measured_step_is_predicted_from_the_others_to_15_percent() -> None:
    known = fitted()
    assert len(known.rows) == len(known.steps) >= 7
    for step, error in zip(known.steps, leave_one_out(known.rows), strict=True):
        assert abs(error) <= 0.15, step
    assert known.error == max(map(abs, leave_one_out(known.rows)))


def test_the_fit_is_one_that_a_chip_can_have() -> None:
    """No chip reaches its peak, and to start an instruction takes microseconds."""
    best = fitted().fit
    assert 1.0 < best.slowness < 2.0
    assert 1e-6 < best.launch < 10e-6
    assert 1.0 < best.software["PyTorch/XLA"] < 1.5


def test_a_fit_finds_what_its_rows_were_made_with() -> None:
    features = [
        Features(a, m, 0.01, n, 0.3) for a, m, n in ((0.1, 0.2, 900), (0.3, 0.1, 500), (0.2, 0.2, 9000))
    ]
    rows = [Row(f, 1.3 * f.work + 4e-6 * f.launches) for f in features]
    other = Row(features[0], 1.2 * rows[0].seconds, "other")
    found = fit([*rows, other])
    assert found.slowness == pytest.approx(1.3) and found.launch == pytest.approx(4e-6)
    assert found.software == {"other": pytest.approx(1.2)}
    assert found.seconds(features[1], "other") == pytest.approx(1.2 * rows[1].seconds)
    assert found.seconds(features[1], "a third") == pytest.approx(rows[1].seconds)
    assert max(map(abs, leave_one_out(rows))) < 1e-9


def test_no_step_is_faster_than_a_bound() -> None:
    """A program that only moves memory: there is nothing to hide it behind."""
    memory = Features(0.001, 3.0, 0.0, 10, 0.3)
    found = expect(parse_topology("v5p-128"), memory, EFFORT, training=False)
    assert found.seconds == fitted().fit.seconds(memory) == found.least == 3.0 < found.most


def test_neither_number_of_a_fit_is_negative() -> None:
    rows = [Row(Features(t, 0.0, 0.0, n, 0.3), t) for t, n in ((1.0, 9000), (0.5, 9000), (2.0, 8000))]
    rows.append(Row(Features(1.0, 0.0, 0.0, 20000, 0.3), 0.8))
    found = fit(rows)
    assert found.launch == 0 and 0.8 < found.slowness < 1


def test_gradients_are_summed_over_the_whole_pod() -> None:
    """Two of MLPerf's pods run the same program; the larger one has longer sides, and rings."""
    small, large = (next(s for s in read_measured() if s.pod == pod) for pod in ("v5p-16", "v5p-512"))
    program = {
        "flops": 459e12,
        "convolution_flops": 2e14,
        "kernel_flops": 1e14,
        "bytes": 2765e9,
        "launches": 9,
        "reduced": 6e9,
    }
    cube, box = features_of(small, program), features_of(large, program)
    assert (cube.arithmetic, cube.memory, cube.launches) == (1.0, 1.0, 9)
    assert cube.products == pytest.approx(1 - 300 / 459)
    # 2x2x2 has a link along each side, 4x8x8 two.
    assert cube.interconnect == pytest.approx(2 * 6e9 * 7 / 8 / 300e9)
    assert box.interconnect == pytest.approx(2 * 6e9 * 255 / 256 / 600e9)


def test_a_step_like_the_measured_ones_is_no_extrapolation() -> None:
    found, known = expect(parse_topology("v5p:4x4x4"), LIKE, EFFORT, training=True), fitted()
    assert found.seconds == known.fit.seconds(LIKE)
    assert found.most / found.seconds == pytest.approx(1 + known.error)
    assert (
        len(found.notes) == 1
        and "fitted to 7 measured steps" in found.notes[0]
        and "v5p and v6e" in found.notes[0]
    )


@pytest.mark.parametrize(
    ("pod", "changes", "effort", "training", "phrase"),
    [
        ("v5e-256", {}, EFFORT, True, "no step was measured on v5e"),
        ("2xv6e-256", {}, EFFORT, True, "on several slices"),
        ("v5p-128", {}, EFFORT, False, "fitted to no drawing"),
        ("v5p-128", {}, 0.0, True, "compiled at effort -1"),
        ("v5p-128", {"products": 0.6}, EFFORT, True, "60% of its FLOPs are matrix products"),
        ("v5p-128", {"interconnect": 0.2}, EFFORT, True, "of its bounds are interconnect"),
    ],
)
def test_an_extrapolation_is_named_and_has_a_range(
    pod: str, changes: dict[str, float], effort: float, training: bool, phrase: str
) -> None:
    features = dataclasses.replace(LIKE, **changes)
    found, error = expect(parse_topology(pod), features, effort, training=training), fitted().error
    assert phrase in found.notes[1] and found.notes[1].startswith("expected is an extrapolation: ")
    assert (
        found.least < found.seconds * (1 - error) * (1 + 1e-9) and found.seconds * (1 + error) <= found.most
    )
    assert found.most < 3 * features.sum + 0.1


def test_the_table_predicts_each_step_without_it() -> None:
    steps = read_measured()
    head, rule, *lines = table(steps, recorded()).splitlines()
    assert len(lines) == len(steps) and all(
        line.count("|") == head.count("|") == rule.count("|") for line in lines
    )
    errors = leave_one_out(fitted().rows)
    assert [line.split("|")[-2].strip() for line in lines] == [f"{100 * e:+.1f} %" for e in errors]
    # A step that nothing is fitted to is predicted by the whole fit.
    new = steps[0]._replace(ms=500.0)
    assert f"{1e3 * fitted().fit.seconds(fitted().rows[0].features):.1f}" in table([new], recorded())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs [[tpu]] rows of pod, batch, ms, software, source: 'tpu'"),
        ('[[tpu]]\npod = "v5p-16"\nbatch = 2\n', "'ms'"),
        ('[[tpu]]\npod = "v5p-16"\nbatch = 0\nms = 1\nsoftware = "a"\nsource = "b"', "both must be positive"),
        (
            '[[tpu]]\npod = "v5p-17"\nbatch = 1\nms = 1\nsoftware = "a"\nsource = "b"',
            "there is no slice v5p-17",
        ),
        ("[[tpu]\n", "needs [[tpu]] rows"),
    ],
)
def test_a_file_of_measured_steps_is_checked(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "measured.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_measured(path)
    assert message in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_measured(tmp_path / "nowhere.toml")

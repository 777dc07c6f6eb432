"""The map is strict and total: every way of not fitting is an error that names all of it."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mvader_jax.convert.engine import (
    Alias,
    Link,
    Skip,
    SourceMap,
    converted,
    external,
    manifest,
    match,
)
from mvader_jax.convert.layouts import LINEAR, SAME, fused_vector
from mvader_jax.convert.tensors import DTYPES, Tensor, cast, finite
from mvader_jax.errors import UserError

#: Two layers, stacked on our side.
OURS = {"net": {"layers": {"fc": {"kernel": np.zeros((2, 5, 3))}}, "norm": {"scale": np.zeros(3)}}}
MAP = SourceMap(
    "the test's source",
    (
        Link("h.0.fc.weight", "net", "layers/fc/kernel", LINEAR, 0),
        Link("h.1.fc.weight", "net", "layers/fc/kernel", LINEAR, 1),
        Link("norm.weight", "net", "norm/scale"),
    ),
    (Skip(r"h\.\d\.mask", "a mask"),),
    (Alias(r"copy\.(.*)", r"\1"),),
    ((r"^model\.", ""),),
)


def tensor(name: str, array: np.ndarray) -> Tensor:
    return Tensor(name, array.shape, array.dtype, Path("file"), id(array), lambda: array)


def source(dtype: type = np.float32, **changes: np.ndarray | None) -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(dtype) for name, shape in manifest(MAP, OURS).items()}
    arrays |= {name.replace("__", "."): array for name, array in changes.items() if array is not None}
    for name in [name.replace("__", ".") for name, array in changes.items() if array is None]:
        del arrays[name]
    return {name: tensor(name, array) for name, array in arrays.items()}


def test_manifest_is_the_sources_side() -> None:
    assert manifest(MAP, OURS) == {"h.0.fc.weight": (3, 5), "h.1.fc.weight": (3, 5), "norm.weight": (3,)}


def test_leaves_and_back() -> None:
    tensors = source(np.float16)
    (fc, norm) = match(MAP, tensors, OURS).leaves["net"]
    assert (fc.path, fc.shape, fc.dtype, fc.stacked) == ("layers/fc/kernel", (2, 5, 3), np.float16, True)
    ours = {fc.path: np.stack(list(converted(fc))), norm.path: next(converted(norm))}
    np.testing.assert_array_equal(ours["layers/fc/kernel"][1], tensors["h.1.fc.weight"].read().T)

    def read(component: str, path: str, layer: int | None) -> np.ndarray:
        return ours[path] if layer is None else ours[path][layer]

    for name, array in external(MAP, OURS, read):
        np.testing.assert_array_equal(array, tensors.pop(name).read())
    assert not tensors


def test_everything_that_does_not_fit_is_named_at_once() -> None:
    tensors = source(norm__weight=None, stranger=np.zeros(2), h__1__fc__weight=np.zeros((5, 3)))
    with pytest.raises(UserError) as error:
        match(MAP, tensors, OURS)
    assert str(error.value) == (
        "the source does not fit the test's source: missing norm.weight; unexpected stranger; "
        "misshaped h.1.fc.weight, [5, 3] where [3, 5] belongs"
    )


def test_repeated_by_another_spelling() -> None:
    tensors = source(**{"model__norm__weight": np.zeros(3)})
    with pytest.raises(UserError, match=r"repeated model\.norm\.weight \(also norm\.weight\)"):
        match(MAP, tensors, OURS)


def test_skips_are_reported_and_aliases_compared() -> None:
    norm = source()["norm.weight"].read()
    copies = {"copy__norm__weight": norm.copy(), "copy__h__0__mask": np.ones(2), "h__0__mask": np.ones(2)}
    matched = match(MAP, source(**copies), OURS)
    assert matched.skipped == {
        "a mask": ("h.0.mask", "copy.h.0.mask"),
        "repeats another tensor, checked equal": ("copy.norm.weight",),
    }
    with pytest.raises(UserError, match=r"copy\.norm\.weight differs from norm\.weight"):
        match(MAP, source(copy__norm__weight=norm + 1), OURS)
    # An alias alone stands for what it would repeat.
    assert match(MAP, source(norm__weight=None, copy__norm__weight=norm), OURS).leaves["net"]


def test_optional_components_are_absent_as_a_whole_or_not() -> None:
    both = SourceMap(
        "x", (*MAP.links, Link("a", "extra", "a"), Link("b", "extra", "b")), optional=frozenset(["extra"])
    )
    ours = {**OURS, "extra": {"a": np.zeros(1), "b": np.zeros(1)}}
    assert set(match(both, source(), ours).leaves) == {"net"}
    assert set(match(both, source(a=np.zeros(1, np.float32), b=np.zeros(1, np.float32)), ours).leaves) == {
        "net",
        "extra",
    }
    with pytest.raises(UserError, match="missing b"):
        match(both, source(a=np.zeros(1)), ours)


def test_types() -> None:
    def kinds(tensors: dict[str, Tensor], dtype: str = "keep") -> set[str]:
        return {str(leaf.dtype) for leaf in match(MAP, tensors, OURS, dtype=dtype).leaves["net"]}

    assert kinds(source(np.float16)) == {"float16"}
    assert kinds(source(ml_dtypes.bfloat16)) == {"bfloat16"}
    assert kinds(source(np.float16), "float32") == {"float32"}
    assert kinds(source(np.float64), "bfloat16") == {"bfloat16"}
    with pytest.raises(UserError, match="is float64, which cannot be kept"):
        kinds(source(np.float64))
    with pytest.raises(UserError, match=r"norm\.weight is int64, not floating"):
        kinds(source(norm__weight=np.zeros(3, np.int64)))
    with pytest.raises(UserError, match="of several types \\(float16, float32\\); pass --dtype"):
        kinds(source(h__1__fc__weight=np.zeros((3, 5), np.float16)))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -np.nan])
def test_finite_finds_each_kind(dtype: type, value: float) -> None:
    largest = float(ml_dtypes.finfo(dtype).max)
    array = np.array([0.0, -0.0, largest, -largest, 1e-7] * 20_000).astype(dtype)
    assert finite(array)
    array[71_234] = value
    assert not finite(array) and not finite(array.reshape(10, -1).T)


def test_not_finite_is_refused_or_reported() -> None:
    bad = np.array([1, np.nan, 3], np.float32)
    (_, norm) = match(MAP, source(norm__weight=bad), OURS).leaves["net"]
    with pytest.raises(
        UserError, match=r"norm\.weight in file holds NaN or infinite numbers; pass --allow-nan"
    ):
        next(converted(norm))
    seen: list[str] = []
    np.testing.assert_array_equal(next(converted(norm, allow_nan=True, report=seen.append)), bad)
    assert seen == ["norm.weight"]


@pytest.mark.parametrize(
    ("value", "source", "target", "said"),
    [
        (1e5, "F32", "F16", "100000, which float16 cannot: its largest number is 65504"),
        (3.4e38, "F32", "BF16", "3.4e\\+38, which bfloat16 cannot"),
        (-1e300, "F64", "F32", "-1e\\+300, which float32 cannot"),
        (1e300, "F64", "BF16", "1e\\+300, which bfloat16 cannot"),
        (3e38, "BF16", "F16", "3.00406e\\+38, which float16 cannot"),
    ],
)
def test_a_number_that_does_not_fit_is_refused(value: float, source: str, target: str, said: str) -> None:
    array = np.array([1.0, 2.0, value, 3.0]).astype(DTYPES[source])
    with pytest.raises(UserError, match=f"the tensor holds {said}"):
        cast(array, DTYPES[target], "the tensor")
    # What is not finite already passes: that is another question, asked before.
    odd = np.array([1.0, np.nan, np.inf, -np.inf]).astype(DTYPES[source])
    np.testing.assert_array_equal(
        cast(odd, DTYPES[target], "x").astype(float), [1.0, np.nan, np.inf, -np.inf]
    )


def test_numbers_that_do_not_fit_stop_a_conversion(tmp_path: Path) -> None:
    tensors = source(np.float64, norm__weight=np.array([1, 1e300, 3]))
    (_, norm) = match(MAP, tensors, OURS, dtype="float32").leaves["net"]
    for allow in (False, True):
        with pytest.raises(UserError, match=r"norm\.weight in file holds 1e\+300, which float32 cannot"):
            next(converted(norm, allow_nan=allow, report=lambda name: None))


def test_a_map_that_is_no_bijection_is_a_fault() -> None:
    first, second, norm = MAP.links
    q = Link("qkv", "net", "norm/scale", fused_vector(3), None, 0)
    for links, reason in [
        ((first, norm), "does not fill net layers/fc/kernel"),
        ((first, second), "does not fill net norm/scale"),
        ((first, second, second, norm), "twice at layer 1"),
        ((*MAP.links, Link("x", "net", "nowhere")), "names net nowhere"),
        ((first, second, Link("h.0.fc.weight", "net", "norm/scale", SAME)), "two shapes"),
        ((first, second, q), "uses parts"),
    ]:
        with pytest.raises(ValueError, match=reason):
            manifest(SourceMap("faulty", links), OURS)

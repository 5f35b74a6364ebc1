"""clip_by_block_rms and adaptive_clip: optax's formulas, compared with optax where it is installed."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastclip
from support import fresh_python, oracle
from support.dtypes import EVERY_FLOAT, REAL_DTYPES
from support.strategies import PROPERTY, array_lists, arrays, finite_values, limit_factors

SHAPES: list[tuple[int, ...]] = [
    (),
    (1,),
    (6,),
    (1, 6),
    (6, 1),
    (4, 6),
    (1, 1, 7),
    (3, 4, 5),
    (3, 3, 2, 4),
    (2, 3, 2, 2, 4),
]


def test_signatures() -> None:
    parameters = inspect.signature(fastclip.clip_by_block_rms).parameters
    assert list(parameters) == ["t_list", "threshold", "out"]
    assert parameters["out"].kind is inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(fastclip.adaptive_clip).parameters
    assert list(parameters) == ["params", "grads", "clipping", "eps", "axes", "out"]
    assert parameters["clipping"].default == 0.01
    assert parameters["eps"].default == 1e-3
    assert parameters["axes"].kind is inspect.Parameter.KEYWORD_ONLY


# --- clip_by_block_rms --------------------------------------------------------------------------


@PROPERTY
@given(blocks=array_lists(min_size=1), factor=limit_factors)
def test_block_rms_of_any_arrays(blocks: list[Any], factor: float) -> None:
    threshold = oracle.to_float(oracle.root_mean_square(blocks[0]))
    threshold = threshold * factor if np.isfinite(factor) else factor
    got = fastclip.clip_by_block_rms(blocks, threshold)
    assert isinstance(got, list)
    assert len(got) == len(blocks)
    for output, block in zip(got, blocks, strict=True):
        oracle.assert_clipped([output], [block], oracle.root_mean_square(block), threshold)


def test_each_block_has_its_own_factor() -> None:
    blocks: Any = {"w": np.full((2, 8), 4, np.float32), "b": [np.full(3, 0.5, np.float32), None]}
    got = fastclip.clip_by_block_rms(blocks, 1.0)
    assert oracle.same_bits(got["w"], np.ones((2, 8), np.float32))
    assert oracle.same_bits(got["b"][0], blocks["b"][0])
    assert got["b"][1] is None


def test_block_rms_in_place() -> None:
    blocks = [np.full(8, 4.0), np.full(3, 0.5)]
    got = fastclip.clip_by_block_rms(blocks, 2.0, out=blocks)
    assert all(output is block for output, block in zip(got, blocks, strict=True))
    np.testing.assert_array_equal(blocks[0], np.full(8, 2.0))
    np.testing.assert_array_equal(blocks[1], np.full(3, 0.5))


@EVERY_FLOAT
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_block_is_nan_and_does_not_affect_others(dtype: np.dtype[Any], bad: float) -> None:
    blocks = [np.array([1, bad, 3], dtype), np.array([0.5, 0.25], dtype)]
    got = fastclip.clip_by_block_rms(blocks, 1.0)
    assert oracle.all_nan(got[0])
    assert oracle.same_bits(got[1], blocks[1])


@pytest.mark.parametrize("threshold", [np.nan, -1.0], ids=repr)
def test_threshold_out_of_range(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        fastclip.clip_by_block_rms([np.ones(3)], threshold)


@pytest.mark.parametrize("threshold", ["1", None, 1j], ids=repr)
def test_threshold_of_a_wrong_type(threshold: Any) -> None:
    with pytest.raises(TypeError, match="threshold"):
        fastclip.clip_by_block_rms([np.ones(3)], threshold)


def test_block_rms_names_the_entry() -> None:
    with pytest.raises(TypeError, match=r"t_list\[1\].*int32"):
        fastclip.clip_by_block_rms([np.ones(3), np.ones(3, np.int32)], 1.0)


# --- adaptive_clip ------------------------------------------------------------------------------


@EVERY_FLOAT
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [1e-4, 0.02, 1.0, 50.0])
def test_adaptive_of_every_rank(dtype: np.dtype[Any], shape: tuple[int, ...], size: float) -> None:
    rng = np.random.default_rng(1)
    parameter = finite_values(rng, shape, dtype)
    gradient = np.asarray(finite_values(rng, shape, dtype) * np.asarray(size, dtype), dtype)
    got = fastclip.adaptive_clip([parameter], [gradient], 0.1)
    oracle.assert_adaptively_clipped(got[0], parameter, gradient, 0.1)


@PROPERTY
@given(
    shape=st.lists(st.integers(0, 4), max_size=5).map(tuple),
    dtypes=st.tuples(*[st.sampled_from(REAL_DTYPES)] * 2),
    data=st.data(),
)
def test_adaptive_of_any_pair(shape: tuple[int, ...], dtypes: tuple[Any, Any], data: st.DataObject) -> None:
    kinds = ["normal", "sparse", "constant"]
    parameter = data.draw(arrays([dtypes[0]], kinds=kinds, shape=st.just(shape)))
    gradient = data.draw(arrays([dtypes[1]], kinds=kinds, shape=st.just(shape)))
    got = fastclip.adaptive_clip([parameter], [gradient])
    oracle.assert_adaptively_clipped(got[0], parameter, gradient)


def test_norm_of_small_parameters_is_replaced_by_eps() -> None:
    parameter, gradient = np.zeros(4), np.array([3.0, 0, 4.0, 0])
    got = fastclip.adaptive_clip([parameter], [gradient], clipping=0.5, eps=2.0)
    np.testing.assert_allclose(got[0], [0.6, 0, 0.8, 0], rtol=1e-14)


@pytest.mark.parametrize("axes", [0, 1, 2, -1, (0, 1), [0, 2], (0, 1, 2)], ids=repr)
def test_axes_of_the_units_are_an_argument(axes: Any) -> None:
    rng = np.random.default_rng(2)
    parameter, gradient = rng.standard_normal((2, 3, 4, 5))
    got = fastclip.adaptive_clip([parameter], [gradient], 0.3, axes=axes)
    oracle.assert_adaptively_clipped(got[0], parameter, gradient, 0.3, axes=axes)


def test_six_dimensions_need_axes() -> None:
    array = np.ones((1, 2, 1, 2, 1, 2))
    with pytest.raises(ValueError, match="axes"):
        fastclip.adaptive_clip([array], [array])
    got = fastclip.adaptive_clip([array], [array], axes=(0, 1, 2, 3, 4))
    oracle.assert_adaptively_clipped(got[0], array, array, axes=(0, 1, 2, 3, 4))


def test_axis_beyond_the_rank() -> None:
    with pytest.raises(ValueError, match="axes"):
        fastclip.adaptive_clip([np.ones((2, 2))], [np.ones((2, 2))], axes=2)


def test_nested_containers_with_none_and_out() -> None:
    params: Any = {"w": np.full((2, 2), 0.01), "frozen": np.ones(3), "b": [np.zeros(2)]}
    grads: dict[str, Any] = {"w": np.ones((2, 2)), "frozen": None, "b": [np.array([3.0, 4.0])]}
    got = fastclip.adaptive_clip(params, grads)
    assert list(got) == ["w", "frozen", "b"]
    assert got["frozen"] is None
    oracle.assert_adaptively_clipped(got["b"][0], params["b"][0], grads["b"][0])
    in_place = fastclip.adaptive_clip(params, grads, out=grads)
    assert in_place["w"] is grads["w"]
    assert oracle.same_bits(grads["w"], got["w"])
    np.testing.assert_array_equal(params["w"], np.full((2, 2), 0.01))


def test_out_must_not_be_the_parameters() -> None:
    params, grads = [np.ones(4)], [np.ones(4)]
    with pytest.raises(ValueError, match="out"):
        fastclip.adaptive_clip(params, grads, out=params)
    assert (params[0] == 1).all()


@pytest.mark.parametrize(
    ("params", "grads"),
    [
        ([np.ones(3)], [np.ones(4)]),
        ([np.ones(3)], [np.ones((3, 1))]),
        ([np.ones(3)], [np.ones(3), np.ones(3)]),
        ({"a": np.ones(3)}, {"b": np.ones(3)}),
        ([[np.ones(3)]], [np.ones(3)]),
    ],
    ids=["shape", "rank", "length", "keys", "nesting"],
)
def test_params_and_grads_that_do_not_match(params: Any, grads: Any) -> None:
    with pytest.raises(ValueError, match=r"params|grads"):
        fastclip.adaptive_clip(params, grads)


def test_gradient_without_a_parameter() -> None:
    with pytest.raises((ValueError, TypeError), match="param"):
        fastclip.adaptive_clip([None], [np.ones(3)])


@pytest.mark.parametrize("value", [np.nan, -1.0], ids=repr)
@pytest.mark.parametrize("argument", ["clipping", "eps"])
def test_clipping_and_eps_out_of_range(argument: str, value: float) -> None:
    options: dict[str, Any] = {argument: value}
    with pytest.raises(ValueError, match=argument):
        fastclip.adaptive_clip([np.ones(3)], [np.ones(3)], **options)


@pytest.mark.parametrize("argument", ["clipping", "eps"])
def test_clipping_and_eps_of_a_wrong_type(argument: str) -> None:
    options: dict[str, Any] = {argument: "1"}
    with pytest.raises(TypeError, match=argument):
        fastclip.adaptive_clip([np.ones(3)], [np.ones(3)], **options)


def test_errors_name_the_argument_and_the_position() -> None:
    good, bad = np.ones(3), np.ones(3, np.int16)
    with pytest.raises(TypeError, match=r"params\[1\].*int16"):
        fastclip.adaptive_clip([good, bad], [good, good])
    with pytest.raises(TypeError, match=r"grads\[1\].*int16"):
        fastclip.adaptive_clip([good, good], [good, bad])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_unit_is_nan_and_does_not_affect_others(bad: float) -> None:
    parameter = np.full((3, 2), 100.0)
    gradient = np.array([[0.1, 0.1], [bad, 0.1], [0.1, 0.1]])
    got = np.asarray(fastclip.adaptive_clip([parameter], [gradient])[0])
    assert oracle.all_nan(got[:, 0])
    assert oracle.same_bits(got[:, 1], gradient[:, 1])


def test_nan_parameter_gives_nan() -> None:
    parameter = np.array([[1.0, np.nan], [1.0, 1.0]])
    got = np.asarray(fastclip.adaptive_clip([parameter], [np.full((2, 2), 1e-3)])[0])
    assert oracle.all_nan(got[:, 1])
    np.testing.assert_array_equal(got[:, 0], 1e-3)


def test_limit_of_zero_gives_zeros() -> None:
    got = fastclip.adaptive_clip([np.ones(3)], [np.ones(3)], clipping=0.0)
    np.testing.assert_array_equal(got[0], np.zeros(3))


# --- optax --------------------------------------------------------------------------------------

OPTAX = """
import sys
import jax.numpy as jnp, numpy as np, optax
arrays = np.load(sys.argv[1])
count = int(arrays["count"])
params = [jnp.asarray(arrays[f"p{i}"]) for i in range(count)]
grads = [jnp.asarray(arrays[f"g{i}"]) for i in range(count)]
results = {}
for name, rule in {
    "rms": optax.clip_by_block_rms(0.5),
    "agc": optax.adaptive_grad_clip(0.05, 0.01),
    "agc_axis": optax.adaptive_grad_clip(0.05, 0.01, axis=-1),
}.items():
    got, _ = rule.update(grads, rule.init(params), params)
    results |= {f"{name}{i}": np.asarray(g) for i, g in enumerate(got)}
np.savez(sys.argv[2], **results)
"""


@pytest.mark.interop("optax")
def test_agrees_with_optax(tmp_path: Path) -> None:
    """optax runs in a fresh interpreter, because JAX starts threads and warns when a process forks."""
    rng = np.random.default_rng(3)
    shapes = SHAPES[1:]
    params = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    sizes = [0.01, 0.3, 1.0]
    grads = [(rng.standard_normal(shape) * sizes[i % 3]).astype(np.float32) for i, shape in enumerate(shapes)]
    named: dict[str, Any] = {f"p{i}": p for i, p in enumerate(params)} | {
        f"g{i}": g for i, g in enumerate(grads)
    }
    arrays_file, results_file = tmp_path / "arrays.npz", tmp_path / "results.npz"
    np.savez(arrays_file, count=np.array(len(shapes)), **named)
    environment = {"JAX_PLATFORMS": "cpu"}
    fresh_python.run(OPTAX, str(arrays_file), str(results_file), env=environment)
    expected = np.load(results_file)
    got = {
        "rms": fastclip.clip_by_block_rms(grads, 0.5),
        "agc": fastclip.adaptive_clip(params, grads, 0.05, 0.01),
        "agc_axis": fastclip.adaptive_clip(params, grads, 0.05, 0.01, axes=-1),
    }
    changed = 0
    for name, outputs in got.items():
        for i, output in enumerate(outputs):
            np.testing.assert_allclose(output, expected[f"{name}{i}"], rtol=3e-6, atol=1e-12)
            changed += not oracle.same_bits(output, grads[i])
    assert 0 < changed < 3 * len(shapes)

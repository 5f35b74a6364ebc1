"""Counters that share memory, memory that is not written, and norms that overflow."""

from __future__ import annotations

import os
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastclip
from fastclip.train import AdagradDAOptimizer, AdamOptimizer, GradientDescentOptimizer, MomentumOptimizer
from support import fresh_python
from support.training_cases import snapshot

# --- counters ---------------------------------------------------------------------------------------


def counter_in(array: Any, offset: int = 0) -> Any:
    """Returns a counter that is a view of eight bytes of an array's memory."""
    return array.view(np.uint8).reshape(-1)[offset : offset + 8].view(np.int64).reshape(())


@pytest.mark.parametrize("offset", [0, 8, 20, 3])
def test_counter_in_the_memory_of_a_variable_is_refused(offset: int) -> None:
    other, variable = np.ones(3, np.float32), np.ones(100, np.float32)
    optimizer = MomentumOptimizer(0.1, 0.9)
    optimizer.apply_gradients([(np.ones(100, np.float32), variable)])
    counter = counter_in(variable, offset)
    before = snapshot(optimizer, variable, other, counter)
    pairs = [(np.ones(3, np.float32), other), (np.ones(100, np.float32), variable)]
    with pytest.raises(ValueError, match="global_step"):
        optimizer.apply_gradients(pairs, counter)
    assert snapshot(optimizer, variable, other, counter) == before


def test_counter_in_the_memory_of_a_slot_is_refused() -> None:
    variable = np.ones(100, np.float32)
    optimizer = MomentumOptimizer(0.1, 0.9)
    pairs = [(np.ones(100, np.float32), variable)]
    optimizer.apply_gradients(pairs)
    counter = counter_in(optimizer.get_slot(variable, "momentum"), 16)
    before = snapshot(optimizer, variable)
    with pytest.raises(ValueError, match="global_step"):
        optimizer.apply_gradients(pairs, counter)
    assert snapshot(optimizer, variable) == before


def test_counter_in_the_memory_of_a_low_precision_copy_is_refused() -> None:
    variable, half = np.ones(100, np.float32), np.zeros(100, np.float16)
    optimizer = GradientDescentOptimizer(0.1)
    optimizer.set_low_precision_copy(variable, half)
    counter = counter_in(half, 16)
    before = snapshot(optimizer, variable, half, counter)
    with pytest.raises(ValueError, match="global_step"):
        optimizer.apply_gradients([(np.ones(100, np.float32), variable)], counter)
    assert snapshot(optimizer, variable, half, counter) == before


def test_counter_between_the_elements_of_a_variable_is_accepted() -> None:
    whole = np.zeros(64, np.float64)
    variable, counter = whole[::2], counter_in(whole, 8)
    GradientDescentOptimizer(0.5).apply_gradients([(np.ones(32), variable)], counter)
    assert int(counter) == 1
    np.testing.assert_array_equal(variable, -0.5)


def test_global_step_of_the_constructor_may_be_that_of_the_step() -> None:
    counter, variable = np.zeros((), np.int64), np.ones(3)
    AdagradDAOptimizer(0.5, counter).apply_gradients([(np.ones(3), variable)], counter)
    assert int(counter) == 1


# --- a bound of zero, and bounds that do not clip ----------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.complex64])
@pytest.mark.parametrize("in_place", [False, True])
def test_bound_of_zero_with_use_norm_of_zero_gives_zeros(dtype: Any, in_place: bool) -> None:
    tensors = [np.arange(1, 40).astype(dtype), np.ones((3, 4), dtype).T, np.zeros(3, dtype)]
    out = tensors if in_place else None
    clipped, norm = fastclip.clip_by_global_norm(tensors, 0.0, use_norm=0.0, out=out)
    assert norm == 0.0
    assert all(not array.astype(np.complex128).any() for array in clipped)


@pytest.mark.skipif(sys.platform != "linux", reason="protects pages as Linux does")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int8", "uint16", "int64"])
@pytest.mark.parametrize(
    ("layout", "bounds"),
    [
        ("[:]", "LOW, 50"),
        ("[::2]", "LOW, 50"),
        ("[::-1]", "LOW, 50"),
        ("[3:]", "np.full(t.shape, LOW).astype(t.dtype), np.full(t.shape, 50).astype(t.dtype)"),
        (".reshape(16, -1).T", "LOW, 50"),
        ("[:]", "LOW, np.abs(t)"),
        ("[:7]", "LOW, 50"),
    ],
)
def test_clip_by_value_in_place_does_not_write_within_the_bounds(
    dtype: str, layout: str, bounds: str
) -> None:
    """The pages are write-protected: a write ends the process."""
    low = "0" if dtype.startswith("u") else "-50"
    bounds = bounds.replace("LOW", low)
    script = f"""
    import ctypes, mmap
    import ml_dtypes
    import numpy as np
    import fastclip
    fastclip.set_num_threads(2)
    dtype = np.dtype({dtype!r} if {dtype!r} != "bfloat16" else ml_dtypes.bfloat16)
    bytes_ = 3 << 20
    memory = mmap.mmap(-1, bytes_)
    whole = np.frombuffer(memory, dtype)
    whole[...] = (np.arange(whole.size) % 20).astype(dtype)
    if dtype.kind == "f" or dtype.name == "bfloat16":
        if "abs" not in {bounds!r}:
            whole[1000], whole[5::1001] = -0.0, np.nan
    t = whole{layout}
    before = whole.tobytes()
    low, high = ({bounds})
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(whole.ctypes.data)
    assert libc.mprotect(address, ctypes.c_size_t(bytes_), mmap.PROT_READ) == 0
    assert fastclip.clip_by_value(t, low, high, out=t) is t
    assert libc.mprotect(address, ctypes.c_size_t(bytes_), mmap.PROT_READ | mmap.PROT_WRITE) == 0
    assert whole.tobytes() == before
    fastclip.clip_by_value(t, 3, 7, out=t)
    assert ((t >= 3) & (t <= 7) | (t != t)).all() and (t == 3).any()
    print("done")
    """
    assert fresh_python.run(script).stdout == "done\n"


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer has its own mappings")
@pytest.mark.skipif(sys.platform != "linux", reason="protects pages as Linux does")
@pytest.mark.parametrize(
    "call",
    [
        "fastclip.clip_by_global_norm([t], 1e9, out=[t])",
        "fastclip.clip_by_norm(t, 1e9, out=t)",
        "fastclip.clip_by_norm(t.reshape(1024, -1), 1e9, axes=[1], out=t.reshape(1024, -1))",
        "fastclip.clip_by_norm(t.reshape(1024, -1), 1e9, axes=[0], out=t.reshape(1024, -1))",
        "fastclip.clip_by_average_norm(t, 1e9, out=t)",
        "fastclip.clip_by_block_rms([t], 1e9, out=[t])",
    ],
)
def test_clipping_by_norm_in_place_does_not_write_within_the_bound(call: str) -> None:
    script = f"""
    import ctypes, mmap
    import numpy as np
    import fastclip
    fastclip.set_num_threads(2)
    memory = mmap.mmap(-1, 4 << 20)
    t = np.frombuffer(memory, np.float32)
    t[...] = np.linspace(-1, 1, t.size)
    libc, address = ctypes.CDLL(None), ctypes.c_void_p(t.ctypes.data)
    assert libc.mprotect(address, ctypes.c_size_t(4 << 20), mmap.PROT_READ) == 0
    {call}
    print("done")
    """
    assert fresh_python.run(script).stdout == "done\n"


# --- norms that overflow ----------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
def test_error_does_not_name_a_finite_tensor_whose_norm_overflows(order: float) -> None:
    large = np.full(1000, 1.7e308)
    tensors = {"large": large, "bad": np.array([1.0, np.nan]), "small": np.ones(3)}
    tensors["worse"] = np.array([np.inf])
    with np.errstate(all="ignore"):
        assert fastclip.tensor_norms(tensors, ord=order)[0] == np.inf
    with pytest.raises(fastclip.NonFiniteError) as raised:
        fastclip.clip_by_global_norm(tensors, 1.0, ord=order, on_nonfinite="raise")
    message = str(raised.value)
    assert "'bad'" in message
    assert "'worse'" in message
    assert "large" not in message
    assert "small" not in message


def test_error_of_a_step_does_not_name_finite_gradients() -> None:
    pairs = [(np.full(9, 1.7e308), np.ones(9)), (np.array([np.nan]), np.ones(1)), (np.ones(2), np.ones(2))]
    optimizer = AdamOptimizer(on_nonfinite="raise")
    with pytest.raises(fastclip.NonFiniteError) as raised:
        optimizer.apply_gradients(pairs)
    message = str(raised.value)
    assert "grads_and_vars[1][0]" in message
    assert "grads_and_vars[0][0]" not in message
    assert "grads_and_vars[2][0]" not in message


@pytest.mark.parametrize("size", [9, 5000])
@pytest.mark.parametrize("options", [{"global_clipnorm": 1.0}, {"clipnorm": 1.0}, {"on_nonfinite": "skip"}])
def test_norm_that_is_in_range_after_division_by_the_loss_scale_does_not_overflow(
    size: int, options: dict[str, Any]
) -> None:
    optimizer = GradientDescentOptimizer(1e-300, loss_scale=1024.0, **options)
    variable = np.zeros(size)
    optimizer.apply_gradients([(np.full(size, 1.5e308), variable)])
    assert optimizer.last_norm is not None
    exact = 1.5e308 / 1024 * np.sqrt(size)
    assert abs(float(optimizer.last_norm) / exact - 1) < 1e-14
    assert optimizer.skipped_steps == 0
    assert np.isfinite(variable).all()
    assert variable.all()


def test_norm_that_is_in_float32_range_after_division_by_the_loss_scale_is_correct() -> None:
    """The squares and the norm of the gradients overflow float32 before the division."""
    optimizer = GradientDescentOptimizer(0.1, loss_scale=2.0**40, global_clipnorm=1.0)
    variable = np.zeros(100, np.float32)
    optimizer.apply_gradients([(np.full(100, 3e38, np.float32), variable)])
    assert optimizer.last_norm is not None
    exact = float(np.float32(3e38)) * 10 / 2.0**40
    assert abs(float(optimizer.last_norm) / exact - 1) < 1e-6
    np.testing.assert_allclose(variable, -0.01, rtol=1e-6)

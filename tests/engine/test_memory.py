"""The memory of outputs, and the peak memory of calls."""

from __future__ import annotations

import gc
import sys
from typing import Any

import numpy as np
import pytest

import fastclip
from support import fresh_python, oracle
from support.dtypes import EVERY_FLOAT
from support.strategies import LAYOUTS, finite_values, laid_out

CALLS: dict[str, Any] = {
    "value": lambda t: fastclip.clip_by_value(t, -1e3, 1e3),
    "value_clipped": lambda t: fastclip.clip_by_value(t, -0.1, 0.1),
    "norm": lambda t: fastclip.clip_by_norm(t, 1e9),
    "norm_clipped": lambda t: fastclip.clip_by_norm(t, 0.1),
    "norm_axes": lambda t: fastclip.clip_by_norm(t, 0.1, axes=0),
    "average_norm": lambda t: fastclip.clip_by_average_norm(t, 1e9),
    "global_norm": lambda t: fastclip.clip_by_global_norm([t], 1e9)[0][0],
    "global_norm_clipped": lambda t: fastclip.clip_by_global_norm([t], 0.1)[0][0],
    "global_norm_zero": lambda t: fastclip.clip_by_global_norm([t], 0.0)[0][0],
    "infinite_limit": lambda t: fastclip.clip_by_global_norm([t], np.inf)[0][0],
    "use_norm": lambda t: fastclip.clip_by_global_norm([t], 1.0, 0.5)[0][0],
    "block_rms": lambda t: fastclip.clip_by_block_rms([t], 1e9)[0],
    "adaptive": lambda t: fastclip.adaptive_clip([t], [t], 1e9)[0],
}
EVERY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


# --- outputs ------------------------------------------------------------------------------------


@EVERY_CALL
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_are_fresh_writable_and_aligned(call: Any, layout: str) -> None:
    array = laid_out(finite_values(np.random.default_rng(1), (4, 6), np.float32), layout)
    before = array.copy()
    got = call(array)
    assert type(got) is np.ndarray
    assert got.flags.writeable
    assert got.flags.aligned
    assert not np.shares_memory(got, array)
    got[...] = 7
    assert oracle.same_bits(array, before)
    assert not np.shares_memory(got, call(array))


@EVERY_CALL
@pytest.mark.parametrize("shape", [(4, 6), (3, 4, 5), (2, 3, 4, 5)], ids=str)
def test_outputs_have_the_memory_order_of_inputs(call: Any, shape: tuple[int, ...]) -> None:
    values = finite_values(np.random.default_rng(2), shape, np.float32)
    assert call(values).flags.c_contiguous
    assert call(laid_out(values, "stepped")).flags.c_contiguous
    assert call(laid_out(values, "F")).flags.f_contiguous
    for array in (laid_out(values, "permuted"), np.swapaxes(values, 0, -1)):
        got = call(array)
        assert got.strides == np.empty_like(array).strides


@EVERY_FLOAT
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1)], ids=str)
def test_small_shapes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    got = fastclip.clip_by_global_norm([np.zeros(shape, dtype)], 1.0)[0][0]
    assert got.shape == shape
    assert got.dtype == dtype
    assert got.flags.writeable


@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])
def test_outputs_stay_valid_without_inputs_and_other_outputs(size: int) -> None:
    inputs = [np.full(size, float(n), np.float32) for n in range(1, 4)]
    outputs, norm = fastclip.clip_by_global_norm(inputs, 1e6)
    copies = [output.copy() for output in outputs]
    del inputs
    middle = outputs[1]
    del outputs
    gc.collect()
    for _ in range(3):
        fastclip.clip_by_global_norm([np.zeros(size, np.float32)] * 3, 1.0)
    fastclip.free_cached_memory()
    assert oracle.same_bits(middle, copies[1])
    assert np.isfinite(norm)


def test_memory_of_live_outputs_is_not_reused() -> None:
    array = np.ones(300_000, np.float32)
    alive = [fastclip.clip_by_global_norm([array], 1e9)[0][0] for _ in range(20)]
    for i, output in enumerate(alive):
        output[:] = i
    for i, output in enumerate(alive):
        assert (output == i).all()
    views = [output[100:200] for output in alive]
    alive.clear()
    gc.collect()
    for _ in range(20):
        fastclip.clip_by_global_norm([array], 1e9)
    for i, view in enumerate(views):
        assert (view == i).all()


def test_resizing_an_output_is_safe() -> None:
    """NumPy may resize it or raise; either way the contents are kept."""
    got = fastclip.clip_by_global_norm([np.ones(1000, np.float32)], 1e9)[0][0]
    try:
        got.resize(2000, refcheck=False)
    except ValueError:
        assert got.shape == (1000,)
    assert (got[:1000] == 1).all()


# --- amount -------------------------------------------------------------------------------------

MEASURE = """
import gc, sys
import numpy as np
import fastclip

MIB = 1 << 20

def status(field):
    with open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise SystemExit(f"no {field}")

def reset_peak():
    gc.collect()
    fastclip.free_cached_memory()
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")

warm = [np.ones(200_000, np.float32)]
fastclip.clip_by_global_norm(warm, 1.0)
"""

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux does")


@LINUX
@pytest.mark.parametrize(
    ("inputs", "call", "outputs"),
    [
        ("[np.ones(32 * MIB, 'f4')]", "fastclip.clip_by_global_norm(x, 1.0)", 128),
        ("[np.ones(MIB // 4, 'f4') for _ in range(128)]", "fastclip.clip_by_global_norm(x, 1.0)", 128),
        ("[np.ones(1024, 'f4') for _ in range(16384)]", "fastclip.clip_by_global_norm(x, 1.0)", 64),
        ("[np.ones((4096, 4096), 'f8').T]", "fastclip.clip_by_global_norm(x, 1.0)", 128),
        ("[np.ones((8192, 8192), 'f4')[::2, ::2]]", "fastclip.clip_by_global_norm(x, 1.0)", 64),
        ("[np.ones(32 * MIB, 'f2')]", "fastclip.clip_by_global_norm(x, 1.0)", 64),
        ("[np.ones(32 * MIB, 'f4')]", "fastclip.clip_by_global_norm(x, 1e9)", 128),
        ("[np.ones(32 * MIB, 'f4')]", "fastclip.clip_by_global_norm(x, 1.0, out=x)", 0),
        ("[np.ones((8192, 8192), 'f4')[::2, ::2]]", "fastclip.clip_by_global_norm(x, 1.0, out=x)", 0),
        ("[np.ones(32 * MIB, 'f4')]", "fastclip.global_norm(x)", 0),
        ("[np.ones((4096, 8192), 'f2')[:, ::2]]", "fastclip.global_norm(x)", 0),
        ("[np.ones((8192, 4096), 'f4')]", "fastclip.clip_by_norm(x[0], 1.0, axes=0)", 128),
        ("[np.ones((8192, 4096), 'f4')]", "fastclip.clip_by_norm(x[0], 1.0, axes=1, out=x[0])", 0),
        ("[np.ones(32 * MIB, 'f4')]", "fastclip.clip_by_value(x[0], -0.5, 0.5)", 128),
        ("[np.ones((8192, 4096), 'f4')]", "fastclip.clip_by_value(x[0], -1.0, np.ones(4096))", 128),
    ],
)
def test_peak_memory_is_that_of_inputs_and_outputs_plus_16_mib_at_most(
    inputs: str, call: str, outputs: int
) -> None:
    script = f"""{MEASURE}
x = {inputs}
reset_peak()
before = status("VmRSS")
result = {call}
print((status("VmHWM") - before) / MIB)
"""
    grown = float(fresh_python.run(script).stdout)
    assert outputs * 0.9 <= grown <= outputs + 16, f"{grown:.1f} MiB for {outputs} MiB of outputs"


@LINUX
@pytest.mark.parametrize(
    ("inputs", "keep", "limit"),
    [
        ("[np.ones(MIB // 4, 'f4') for _ in range(128)]", 64, 8),
        ("[np.ones(1024, 'f4') for _ in range(32768)]", 1000, 8),
        ("[np.ones(16, 'f4') for _ in range(200_000)]", 1000, 16),
        ("[np.ones(32 * MIB, 'f4'), np.ones(10, 'f4')]", 1, 8),
        ("[np.ones(10, 'f4'), np.ones(32 * MIB, 'f4'), np.ones(10, 'f4')]", 2, 8),
    ],
    ids=["medium", "small", "tiny", "large_and_tiny", "tiny_large_tiny"],
)
def test_one_output_does_not_keep_the_others_in_memory(inputs: str, keep: int, limit: int) -> None:
    script = f"""{MEASURE}
x = {inputs}
fastclip.clip_by_global_norm(x[:1], 1.0)
reset_peak()
before = status("VmRSS")
outputs, _ = fastclip.clip_by_global_norm(x, 1.0)
during = status("VmRSS")
kept = outputs[{keep}]
del outputs
gc.collect()
fastclip.free_cached_memory()
assert (kept > 0).all()
print((during - before) / MIB, (status("VmRSS") - before) / MIB)
"""
    during, after = map(float, fresh_python.run(script).stdout.split())
    assert during > 2 * limit, "the outputs did not show in the memory in use, so the test proves nothing"
    assert after < limit, f"{after:.1f} of {during:.1f} MiB stay for one small array"


@LINUX
def test_repeated_calls_do_not_leak() -> None:
    script = f"""{MEASURE}
x = [np.ones(4 * MIB, 'f4'), np.ones((100, 100)), *[np.ones(7, 'f2')] * 100]
for _ in range(5):
    fastclip.clip_by_global_norm(x, 1.0)
before = status("VmRSS")
for _ in range(200):
    fastclip.clip_by_global_norm(x, 1.0)
    fastclip.global_norm({{"a": x}})
    try:
        fastclip.clip_by_global_norm([*x, np.ones(1, int)], 1.0)
    except TypeError:
        pass
    try:
        fastclip.clip_by_global_norm([*x, np.array([np.nan])], 1.0, on_nonfinite="raise")
    except fastclip.NonFiniteError:
        pass
print((status("VmRSS") - before) / MIB)
"""
    assert float(fresh_python.run(script).stdout) < 24


@LINUX
def test_cached_memory_is_bounded_and_can_be_freed() -> None:
    script = f"""{MEASURE}
x = [np.ones(16 * MIB, 'f4')]
fastclip.clip_by_global_norm(x, 1.0)
reset_peak()
before = status("VmRSS")
for size in range(8, 16):
    outputs = [fastclip.clip_by_global_norm([x[0][: size * MIB]], 1.0)[0] for _ in range(4)]
    del outputs
fastclip.free_cached_memory()
print((status("VmRSS") - before) / MIB)
"""
    assert float(fresh_python.run(script).stdout) < 16


def test_references_to_inputs_are_released() -> None:
    array, other = np.ones(100, np.float32), np.ones(100, np.float32)
    counts = sys.getrefcount(array), sys.getrefcount(other)
    for _ in range(50):
        fastclip.clip_by_global_norm([array], 1.0, out=[other])
        fastclip.clip_by_norm(array, 1.0, out=other)
        fastclip.clip_by_value(array, other, 1.0)
        fastclip.tensor_norms({"a": [array, other]})
        with pytest.raises(TypeError):
            fastclip.clip_by_global_norm([array, other, "x"], 1.0)
        with pytest.raises(ValueError, match="out"):
            fastclip.clip_by_global_norm([array, array], 1.0, out=[other, other])
    gc.collect()
    assert (sys.getrefcount(array), sys.getrefcount(other)) == counts

"""Arrays on a device: transfers, attributes, and what is refused."""

from __future__ import annotations

import gc
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastclip
from support import fresh_python
from support.devices import require_device

require_device()

DTYPES = [np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16, np.int32)]


def values(shape: Any, dtype: Any = np.float32, seed: int = 1) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) * 100).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (7, 0), (4097,), (3, 2**20)])
def test_round_trip(dtype: Any, shape: Any) -> None:
    array = values(shape, dtype)
    on_device = fastclip.gpu.asarray(array)
    assert (on_device.shape, on_device.dtype) == (array.shape, array.dtype)
    assert (on_device.size, on_device.nbytes, on_device.ndim) == (array.size, array.nbytes, array.ndim)
    np.testing.assert_array_equal(on_device.numpy(), array)


def test_layouts_are_copied_in_c_order() -> None:
    array = values((6, 5))
    for view in (array.T, array[::2], array[:, ::-1]):
        np.testing.assert_array_equal(fastclip.gpu.asarray(view).numpy(), view)


def test_copy_from() -> None:
    on_device = fastclip.gpu.asarray(np.zeros((3, 4), np.float32))
    source = values((3, 4))
    on_device.copy_from(source)
    np.testing.assert_array_equal(on_device.numpy(), source)
    for wrong in (source[:2], source.astype(np.float64), source.T):
        with pytest.raises(ValueError, match="source is an array"):
            on_device.copy_from(wrong)
    np.testing.assert_array_equal(on_device.numpy(), source)


def test_numpy_does_not_read_device_memory_unasked() -> None:
    on_device = fastclip.gpu.asarray(values(3))
    with pytest.raises(TypeError, match=r"\.numpy\(\)"):
        np.asarray(on_device)
    with pytest.raises(TypeError, match=r"\.numpy\(\)"):
        np.add(on_device, 1)


def test_other_dtypes_are_refused() -> None:
    for dtype in (np.float64, np.complex64, np.int64, bool):
        with pytest.raises(TypeError):
            fastclip.gpu.asarray(np.zeros(3, dtype))


def test_memory_is_used_again_and_released() -> None:
    gpu = fastclip.gpu
    gc.collect()
    gpu.free_cached_memory()
    before = gpu.statistics()["allocated_bytes"]
    for _ in range(20):
        large = gpu.asarray(np.zeros(10**7, np.float32))
        assert gpu.statistics()["allocated_bytes"] <= before + (128 << 20)
    del large
    gpu.free_cached_memory()
    assert gpu.statistics()["allocated_bytes"] == before


def test_arrays_that_are_larger_than_a_binding_have_several_ranges() -> None:
    # Bindings of lavapipe have 128 MiB.
    array = values(50 * 2**20, np.float32)
    on_device = fastclip.gpu.asarray(array)
    assert float(fastclip.global_norm([on_device])) == pytest.approx(
        float(fastclip.global_norm([array])), rel=3e-7
    )
    fastclip.clip_by_value(on_device, -1.0, 1.0, out=on_device)
    np.testing.assert_array_equal(on_device.numpy(), np.clip(array, -1.0, 1.0))


def test_import_opens_nothing() -> None:
    fresh_python.run(
        "import sys, fastclip.gpu\n"
        "maps = open('/proc/self/maps').read() if sys.platform == 'linux' else ''\n"
        "assert 'libvulkan' not in maps\n"
    )


def test_forked_children_get_an_error_and_the_parent_goes_on() -> None:
    fresh_python.run(
        "import os, numpy as np, fastclip\n"
        "os.environ['FASTCLIP_GPU_SOFTWARE'] = '1'\n"
        "from fastclip import gpu\n"
        "array = gpu.asarray(np.ones(5, np.float32))\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try:\n"
        "        fastclip.global_norm([array])\n"
        "    except gpu.GpuUnavailableError as error:\n"
        "        os._exit(0 if 'fork' in str(error) else 2)\n"
        "    os._exit(3)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
        "assert abs(float(fastclip.global_norm([array])) - 5 ** 0.5) < 1e-6\n"
    )

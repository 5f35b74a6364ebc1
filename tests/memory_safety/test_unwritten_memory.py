"""Clipping in place does not write arrays within the bounds."""

from __future__ import annotations

import os
import sys

import pytest

from support import fresh_python


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
    buffer = np.frombuffer(memory, dtype)
    buffer[...] = (np.arange(buffer.size) % 20).astype(dtype)
    if dtype.kind == "f" or dtype.name == "bfloat16":
        if "abs" not in {bounds!r}:
            buffer[1000], buffer[5::1001] = -0.0, np.nan
    t = buffer{layout}
    before = buffer.tobytes()
    low, high = ({bounds})
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(buffer.ctypes.data)
    assert libc.mprotect(address, ctypes.c_size_t(bytes_), mmap.PROT_READ) == 0
    assert fastclip.clip_by_value(t, low, high, out=t) is t
    assert libc.mprotect(address, ctypes.c_size_t(bytes_), mmap.PROT_READ | mmap.PROT_WRITE) == 0
    assert buffer.tobytes() == before
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

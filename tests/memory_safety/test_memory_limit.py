"""Large calls in an address space that is too small for them, and sizes larger than any memory.

Where `test_failing_allocations.py` makes single allocations fail, here the system refuses them: the address
space is limited, in steps below the size that a call needs.
"""

from __future__ import annotations

import os
import sys

import pytest

from support import fresh_python

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does"),
    pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer needs terabytes"),
]

SETUP = """
import gc, resource, sys
import numpy as np
import fastclip
from fastclip.train import AdamOptimizer, AdagradOptimizer

fastclip.set_num_threads(2)

def limited(spare, call):
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, hard))
    try:
        return call()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))

MIB = 1 << 20
"""

STEPS = (
    SETUP
    + """
size = 8 * MIB  # 32 MiB
values = np.random.default_rng(1).standard_normal(size).astype(np.float32)
tensor, variable = values.copy().reshape(4096, -1), values.copy()
optimizer = AdamOptimizer()
state = None

def step():
    optimizer.apply_gradients([(values, variable)])
    return optimizer

def unchanged():
    return tensor.tobytes() == values.tobytes() and variable.tobytes() == values.tobytes()

calls = {
    "global_norm": lambda: fastclip.clip_by_global_norm([tensor], 1.0)[0][0],
    "rows": lambda: fastclip.clip_by_norm(tensor, 1.0, axes=[1]),
    "columns": lambda: fastclip.clip_by_norm(tensor, 1.0, axes=[0]),
    "elements": lambda: fastclip.clip_by_norm(tensor, np.ones((4096, 2048)), axes=[1]),
    "value": lambda: fastclip.clip_by_value(tensor, -1.0, 1.0),
    "value_arrays": lambda: fastclip.clip_by_value(tensor, np.full(2048, -1.0), np.abs(tensor)),
    "block_rms": lambda: fastclip.clip_by_block_rms([tensor], 0.1)[0],
    "adaptive": lambda: fastclip.adaptive_clip([tensor], [tensor], 0.01)[0],
    "step": step,
    "state_dict": lambda: optimizer.state_dict(),
    "load_state_dict": lambda: optimizer.load_state_dict(state),
}
call = calls[sys.argv[1]]
if "state" in sys.argv[1]:
    optimizer.apply_gradients([(values, variable)])
    state = optimizer.state_dict()
    values = variable.copy()
    tensor[...] = values.reshape(tensor.shape)
fastclip.global_norm([np.ones(MIB, np.float32)])
refused = granted = 0
for spare in [*range(0, 160, 16), 240, 480, 960]:
    fastclip.free_cached_memory()
    gc.collect()
    try:
        limited(spare * MIB, call)
    except MemoryError:
        refused += 1
        assert unchanged(), f"something was written with {spare} MiB"
        if sys.argv[1] == "step":
            assert optimizer.variables() == [] and int(optimizer.state_dict()["variables"]) == 0
    else:
        granted += 1
        if sys.argv[1] == "step":
            break
assert refused > 0
fastclip.free_cached_memory()
call()
print("done")
"""
)


@pytest.mark.parametrize(
    "call",
    [
        "global_norm",
        "rows",
        "columns",
        "elements",
        "value",
        "value_arrays",
        "block_rms",
        "adaptive",
        "step",
        "state_dict",
        "load_state_dict",
    ],
)
def test_call_that_does_not_fit_raises_memory_error_and_writes_nothing(call: str) -> None:
    assert fresh_python.run(STEPS, call).stdout == "done\n"


SIZES = (
    SETUP
    + """
resource.setrlimit(resource.RLIMIT_AS, (4096 * MIB, 4096 * MIB))
long = np.broadcast_to(np.float16(1), (2**61,))
wide = np.broadcast_to(np.float16(1), (2**31, 2**30))
calls = [
    lambda: fastclip.global_norm([long]),
    lambda: fastclip.tensor_norms([np.ones(3, np.float32), wide]),
    lambda: fastclip.global_norm([long], ord=3),
    lambda: fastclip.clip_by_global_norm([long], 1.0),
    lambda: fastclip.clip_by_norm(wide, 1.0, axes=[1]),
    lambda: fastclip.clip_by_norm(wide, 1.0, axes=[0]),
    lambda: fastclip.clip_by_value(long, 0.0, 1.0),
    lambda: fastclip.clip_by_block_rms([wide], 1.0),
    lambda: fastclip.adaptive_clip([wide], [wide]),
]
try:
    calls[int(sys.argv[1])]()
except MemoryError:
    assert fastclip.global_norm([np.array([3.0, 4.0])]) == 5
    print("done")
"""
)


@pytest.mark.parametrize("call", range(9))
def test_size_larger_than_any_memory_is_a_memory_error(call: int) -> None:
    assert fresh_python.run(SIZES, str(call), timeout=60).stdout == "done\n"


def test_array_with_long_axes_and_an_axis_of_length_zero_is_empty() -> None:
    script = """
    import numpy as np
    import fastclip
    for shape in [(2**60, 0), (0, 2**60), (2**40, 0, 2**18), (3, 0, 2**58)]:
        empty = np.broadcast_to(np.zeros([min(n, 1) for n in shape], np.float32), shape)
        assert empty.size == 0
        assert fastclip.global_norm([empty, np.float32([3, 4])]) == 5
        clipped, norm = fastclip.clip_by_global_norm([empty, np.float32([3, 4])], 1.0)
        assert clipped[0].shape == shape and norm == 5
    print("done")
    """
    assert fresh_python.run(script).stdout == "done\n"

"""The memory of slots cannot be taken from the optimizer by way of the arrays that show it.

What `get_slot` gives is an array of the caller's, and so is whatever can be reached as its base. Whatever
is done to them, the optimizer goes on with its own memory, and nobody else is given it.
"""

from __future__ import annotations

import pytest

from support import fresh_python

SCRIPT = """
import gc, sys, warnings
import numpy as np
import fastclip
from fastclip.train import AdamOptimizer

warnings.simplefilter("ignore")
shape, action = eval(sys.argv[1]), sys.argv[2]

def chain(array):
    found = []
    while isinstance(array, np.ndarray):
        found.append(array)
        array = array.base
    return found

def apply(array):
    if action == "setstate":
        array.__setstate__((1, (3,), np.dtype(np.float64), False, b"x" * 24))
    elif action == "setstate_large":
        array.__setstate__((1, array.shape, array.dtype, False, b"x" * array.nbytes))
    elif action == "shape":
        array.shape = (1, array.size)
    elif action == "strides":
        array.strides = (0,) * array.ndim
    elif action == "dtype":
        array.dtype = np.uint8
    elif action == "resize":
        array.resize((1,), refcheck=False)
    elif action == "byteswap":
        array.dtype = array.dtype.newbyteorder()
    elif action == "read-only":
        array.flags.writeable = False
    else:
        raise AssertionError(action)

def trained(meddles):
    variables = [np.ones(shape, np.float32), np.ones((5, 2), np.float32)]
    narrow = np.zeros(shape, np.float16)
    optimizer = AdamOptimizer(0.1, global_clipnorm=1e9)
    optimizer.set_low_precision_copy(variables[0], narrow)
    others = []
    for turn in range(4):
        gradients = [np.full(shape, turn - 1.5, np.float32), np.ones((5, 2), np.float32)]
        optimizer.apply_gradients(list(zip(gradients, variables)))
        if meddles:
            shown = [optimizer.get_slot(v, name) for v in variables for name in ("m", "v")]
            shown += optimizer.variables()[2:]
            # Those that lie deepest first: what is based on them still stands.
            for array in [a for slot in shown for a in reversed(chain(slot))]:
                try:
                    apply(array)
                except (AttributeError, ValueError, TypeError, SystemError):
                    pass
            del shown, array
            gc.collect()
            # Memory that was given back is taken again by these.
            for _ in range(3):
                results, _ = fastclip.clip_by_global_norm([np.full(shape, 5.0, np.float32)] * 2, 1e30)
                others += results
                others += fastclip.clip_by_global_norm([np.full((5, 2), 5.0, np.float32)] * 20, 1e30)[0]
                others += [np.full(shape, 5.0, np.float32) for _ in range(2)]
    assert all((array == 5.0).all() for array in others), "memory of another was written"
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    assert optimizer.get_slot(variables[0], "m").shape == shape
    return [*(v.tobytes() for v in variables), narrow.tobytes(), *(v.tobytes() for v in state.values())]

assert trained(True) == trained(False)
print("done")
"""


@pytest.mark.parametrize(
    "action",
    ["setstate", "setstate_large", "shape", "strides", "dtype", "resize", "byteswap", "read-only"],
)
@pytest.mark.parametrize("shape", ["(7,)", "(300, 100)", "(700, 800)"])
def test_what_is_done_to_arrays_that_show_a_slot_does_not_reach_the_optimizer(
    shape: str, action: str
) -> None:
    assert fresh_python.run(SCRIPT, shape, action, env={"RUST_BACKTRACE": "0"}).stdout == "done\n"


def test_slot_that_is_still_held_outlives_the_optimizer() -> None:
    script = """
    import gc
    import numpy as np
    import fastclip
    from fastclip.train import MomentumOptimizer
    optimizer, w = MomentumOptimizer(1.0, 0.9), np.zeros(300_000, np.float32)
    optimizer.apply_gradients([(np.full(300_000, 3.0, np.float32), w)])
    kept = optimizer.get_slot(w, "momentum")
    del optimizer
    gc.collect()
    fastclip.free_cached_memory()
    others = [fastclip.clip_by_global_norm([w], 1.0)[0][0] for _ in range(3)]
    assert (kept == 3.0).all()
    print("done")
    """
    assert fresh_python.run(script).stdout == "done\n"

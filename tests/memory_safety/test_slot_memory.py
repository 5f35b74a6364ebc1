"""The optimizer keeps the memory of its slots, whatever happens to the arrays that are views of it.

`get_slot` returns an array that the caller may change in any way, as well as the arrays that are its bases.
The optimizer still uses its own memory, which is not freed or reused.
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
    arrays = []
    while isinstance(array, np.ndarray):
        arrays.append(array)
        array = array.base
    return arrays

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

def train(change_slots):
    variables = [np.ones(shape, np.float32), np.ones((5, 2), np.float32)]
    narrow = np.zeros(shape, np.float16)
    optimizer = AdamOptimizer(0.1, global_clipnorm=1e9)
    optimizer.set_low_precision_copy(variables[0], narrow)
    others = []
    for turn in range(4):
        gradients = [np.full(shape, turn - 1.5, np.float32), np.ones((5, 2), np.float32)]
        optimizer.apply_gradients(list(zip(gradients, variables)))
        if change_slots:
            views = [optimizer.get_slot(v, name) for v in variables for name in ("m", "v")]
            views += optimizer.variables()[2:]
            # Bases are changed before the arrays that are views of them.
            for array in [a for view in views for a in reversed(chain(view))]:
                try:
                    apply(array)
                except (AttributeError, ValueError, TypeError, SystemError):
                    pass
            del views, array
            gc.collect()
            # These allocations would reuse memory of slots that was freed.
            for _ in range(3):
                results, _ = fastclip.clip_by_global_norm([np.full(shape, 5.0, np.float32)] * 2, 1e30)
                others += results
                others += fastclip.clip_by_global_norm([np.full((5, 2), 5.0, np.float32)] * 20, 1e30)[0]
                others += [np.full(shape, 5.0, np.float32) for _ in range(2)]
    assert all((array == 5.0).all() for array in others), "memory of other arrays was written"
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    assert optimizer.get_slot(variables[0], "m").shape == shape
    return [*(v.tobytes() for v in variables), narrow.tobytes(), *(v.tobytes() for v in state.values())]

assert train(True) == train(False)
print("done")
"""


@pytest.mark.parametrize(
    "action",
    ["setstate", "setstate_large", "shape", "strides", "dtype", "resize", "byteswap", "read-only"],
)
@pytest.mark.parametrize("shape", ["(7,)", "(300, 100)", "(700, 800)"])
def test_changes_of_the_arrays_of_slots_do_not_affect_the_optimizer(shape: str, action: str) -> None:
    assert fresh_python.run(SCRIPT, shape, action, env={"RUST_BACKTRACE": "0"}).stdout == "done\n"


def test_array_of_a_slot_is_valid_after_the_optimizer_is_deleted() -> None:
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

"""No framework is imported but by the caller, and bfloat16 of torch needs no ml_dtypes."""

from __future__ import annotations

import pytest

from support import fresh_python

ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}

#: Names the frameworks that are imported, and the optional libraries.
IMPORTED = """
import sys

def imported():
    names = ("torch", "jax", "jaxlib", "tensorflow", "ml_dtypes", "autograd", "numpy.ma", "cupy")
    return [name for name in names if name in sys.modules]
"""

#: Calls every function with tensors that `make` makes of arrays.
CALLS = """
import array, mmap
import numpy as np
import fastclip

def call(make, in_place):
    x = np.float32([3, 4, -12])
    t = make(x)
    list_of_tensors = [t, None, make(x)]
    fastclip.clip_by_value(t, -1.0, 1.0)
    fastclip.clip_by_norm(t, 1.0, axes=0)
    fastclip.clip_by_average_norm(t, 1.0)
    fastclip.clip_by_global_norm(list_of_tensors, 1.0)
    fastclip.clip_by_global_norm({"a": [t], "b": (t, t)}, 1.0)
    fastclip.global_norm(list_of_tensors)
    fastclip.tensor_norms(list_of_tensors)
    fastclip.clip_by_block_rms(list_of_tensors, 1.0)
    fastclip.adaptive_clip([t, None, t], list_of_tensors)
    if in_place:
        fastclip.clip_by_global_norm(list_of_tensors, 1.0, out=list_of_tensors)
    for wrong in (object(), "text", None, np.array(["text"]), np.ones(2, bool)):
        try:
            fastclip.global_norm([t, (wrong,)])
        except TypeError as error:
            assert "t_list[1]" in str(error), error
        else:
            assert wrong is None
"""


def test_arrays_exporters_and_buffers_import_no_framework() -> None:
    fresh_python.run(
        IMPORTED
        + CALLS
        + """
before = imported()
def mapped(x):
    memory = mmap.mmap(-1, x.nbytes)
    memory[:] = x.tobytes()
    return memoryview(memory).cast("f")

class Exporter:
    def __init__(self, x):
        self.x = x
    def __dlpack__(self, **options):
        return self.x.__dlpack__(**options)
    def __dlpack_device__(self):
        return self.x.__dlpack_device__()

for make in (np.copy, lambda x: array.array("f", x), lambda x: memoryview(x.copy()), mapped, Exporter):
    call(make, in_place=make is not Exporter)
assert imported() == before == [], (before, imported())
"""
    )


def test_objects_with_the_names_of_frameworks_import_none() -> None:
    """A type is not torch's because its module is called so; nothing is imported to find out."""
    fresh_python.run(
        IMPORTED
        + """
import numpy as np
import fastclip
for module in ("torch", "torch.nn", "jax", "jaxlib.xla_extension", "tensorflow.python", "cupy"):
    kind = type("Tensor", (), {"__module__": module})
    for call in (lambda: fastclip.global_norm([kind()]), lambda: fastclip.clip_by_norm(kind(), 1.0)):
        try:
            call()
        except TypeError:
            pass
        else:
            raise AssertionError(module)
    try:
        fastclip.clip_by_norm(np.ones(2), 0.5, out=kind())
    except TypeError:
        pass
    else:
        raise AssertionError(module)
    readable = type("Tensor", (), {
        "__module__": module,
        "__dlpack__": lambda self, **options: np.ones(4).__dlpack__(**options),
        "__dlpack_device__": lambda self: (1, 0),
        "__array__": lambda self, *args, **options: np.ones(4),
    })
    try:
        assert fastclip.global_norm([readable()]) == 2
    except TypeError as error:
        assert "t_list[0]" in str(error)
assert imported() == [], imported()
"""
    )


OWN = {
    "torch": ("import torch", "torch.from_numpy(x.copy())", ("torch",)),
    "jax": ("import jax.numpy as jnp", "jnp.array(x)", ("jax", "jaxlib", "ml_dtypes")),
    "tensorflow": ("import tensorflow as tf", "tf.constant(x)", ("tensorflow", "ml_dtypes")),
}


@pytest.mark.parametrize("framework", [pytest.param(name, marks=pytest.mark.interop(name)) for name in OWN])
@pytest.mark.timeout(600)
def test_a_framework_imports_no_other(framework: str) -> None:
    statement, made, own = OWN[framework]
    fresh_python.run(
        IMPORTED
        + statement
        + "\nbefore = imported()\n"
        + CALLS
        + f"""
call(lambda x: {made}, in_place={framework == "torch"})
assert set(imported()) - set(before) == set(), (before, imported())
assert {own[0]!r} in imported()
""",
        env=ENVIRONMENT,
        timeout=500,
    )


@pytest.mark.interop("torch")
def test_bfloat16_of_torch_without_ml_dtypes() -> None:
    """Three ways in which ml_dtypes is missing: it is hidden, it is not found, and its import fails."""
    script = """
import sys
way = sys.argv[1]
if way == "hidden":
    sys.modules["ml_dtypes"] = None
else:
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "ml_dtypes":
                if way == "broken":
                    raise ImportError("ml_dtypes is broken")
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return None
    sys.meta_path.insert(0, Finder())
import numpy as np
import torch
import fastclip
from fastclip.train import AdamOptimizer
t = torch.tensor([[3.0, 4.0], [0.0, 0.0]]).to(torch.bfloat16)
u = t.t().contiguous().t()
for x in (t, u, t[:, ::2], t[0, 0], t[:0], torch.nn.Parameter(t)):
    wide = x.detach().float().numpy()
    with torch.no_grad():
        for clip in (
            lambda x: fastclip.clip_by_norm(x, 0.5),
            lambda x: fastclip.clip_by_norm(x, 0.5, axes=()),
            lambda x: fastclip.clip_by_average_norm(x, 0.5),
            lambda x: fastclip.clip_by_value(x, 0.0, 1.0),
            lambda x: fastclip.clip_by_global_norm([x], 0.5)[0][0],
            lambda x: fastclip.clip_by_block_rms([x], 0.5)[0],
            lambda x: fastclip.adaptive_clip([x], [x])[0],
        ):
            got, expected = clip(x), clip(wide)
            assert type(got) is torch.Tensor and got.dtype == torch.bfloat16
            rounded = torch.from_numpy(np.asarray(expected)).to(torch.bfloat16)
            assert torch.equal(got, rounded), (got, expected)
    assert fastclip.global_norm([x]) == fastclip.global_norm([wide])
    assert type(fastclip.global_norm([x])) is np.float32
    assert fastclip.tensor_norms([x, x]).dtype == np.float32
assert fastclip.clip_by_global_norm([t], 2.5, out=[t])[0][0] is t
assert t.tolist() == [[1.5, 2.0], [0.0, 0.0]]
variable = torch.zeros(2, 2)
optimizer = AdamOptimizer(0.1, global_clipnorm=1.0)
optimizer.apply_gradients([(t, variable)])
assert variable[0, 0] != 0
try:
    fastclip.clip_by_norm(t, 0.5, out=torch.zeros(2, 2))
except ValueError as error:
    assert "bfloat16" in str(error) and "float32" in str(error), error
else:
    raise AssertionError("an output of another dtype was taken")
assert sys.modules.get("ml_dtypes") is None
"""
    for way in ("hidden", "missing", "broken"):
        fresh_python.run(script, way, env=ENVIRONMENT, timeout=300)


@pytest.mark.interop("torch")
def test_without_the_table_of_c_functions_dlpack_capsules_are_used() -> None:
    """Older versions of torch have no ``__dlpack_c_exchange_api__``."""
    fresh_python.run(
        """
import warnings
import torch
if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    del torch.Tensor.__dlpack_c_exchange_api__
assert not hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
"""
        + CALLS
        + """
call(lambda x: torch.from_numpy(x.copy()), in_place=True)
z = torch.tensor([3 + 4j, 1 - 2j])
cases = [torch.ones(2, 3).t(), torch.ones(3)[::2], z.conj(), z.conj().imag, torch.ones(2).to(torch.bfloat16),
         torch.nn.Parameter(torch.ones(3)), torch.ones(()), torch.ones(0, 3)]
for x in cases:
    plain = x.detach().resolve_conj().resolve_neg().clone()
    with torch.no_grad():
        got, expected = fastclip.clip_by_norm(x, 0.5), fastclip.clip_by_norm(plain, 0.5)
        assert type(got) is torch.Tensor and torch.equal(got, expected), (got, expected)
    assert fastclip.global_norm([x]) == fastclip.global_norm([plain])
t = torch.ones(3)
fastclip.clip_by_norm(t, 0.5, out=t)
assert abs(float(t.norm()) - 0.5) < 1e-6 and t._version == 1
for wrong in (torch.ones(2, device="meta"), torch._efficientzerotensor((2,)), torch.ones(2, 3).to_sparse(2)):
    try:
        fastclip.global_norm([wrong])
    except TypeError as error:
        assert "t_list[0]" in str(error), error
    else:
        raise AssertionError(wrong)
""",
        env=ENVIRONMENT,
        timeout=300,
    )

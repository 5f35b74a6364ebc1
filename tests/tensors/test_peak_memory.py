"""The norm and the clip in place of large tensors take no memory to speak of: nothing is copied."""

from __future__ import annotations

import sys

import pytest

from support import fresh_python

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(600),
]

MIB = 512
#: How much the peak may rise, in MiB.
ALLOWED = 16

#: Prints by how many MiB a call raises the peak of resident memory above what is resident before it.
SCRIPT = """
import sys

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))

def rise(call):
    # The peak begins anew, so that one from making the tensor hides nothing.
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    call()
    print("rise", (status("VmHWM") - before) / 1024)

import numpy as np
import fastclip
ELEMENTS = {mib} * 2**18
SIDE = 8192
fastclip.global_norm([np.ones(2**20, np.float32)])
fastclip.clip_by_global_norm([np.ones(4, np.float32)], 1.0)
"""


def rises(script: str) -> list[float]:
    """Returns what a script printed by `rise`."""
    done = fresh_python.run(
        SCRIPT.replace("{mib}", str(MIB)) + script,
        env={"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
        timeout=500,
    )
    return [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("rise")]


def test_the_measurement_sees_a_copy() -> None:
    (copied,) = rises("x = np.ones(ELEMENTS, np.float32)\nrise(lambda: x.copy())\n")
    assert copied > MIB / 2


@pytest.mark.interop("torch")
def test_torch() -> None:
    measured = rises(
        """
import torch
x = torch.ones(ELEMENTS)
matrix = x.view(-1, SIDE)
fastclip.global_norm([torch.ones(4)])
for tensor in (x, matrix.t(), matrix[:, 1:], matrix[:, ::2], matrix.t()[5:]):
    rise(lambda: fastclip.global_norm([tensor]))
    rise(lambda: fastclip.tensor_norms([tensor]))
rise(lambda: fastclip.clip_by_global_norm([matrix.t()], 0.5, out=[matrix.t()]))
rise(lambda: fastclip.clip_by_norm(x, 0.25, out=x))
rise(lambda: fastclip.clip_by_value(x, 0.0, 1e-9, out=x))
"""
    )
    assert len(measured) == 13
    assert max(measured) < ALLOWED, measured


@pytest.mark.interop("torch")
def test_half_precision_of_torch() -> None:
    measured = rises(
        """
import torch
x = torch.ones(ELEMENTS, dtype=torch.bfloat16)
fastclip.global_norm([torch.ones(4)])
rise(lambda: fastclip.global_norm([x]))
rise(lambda: fastclip.clip_by_norm(x.view(-1, SIDE).t(), 0.25, out=x.view(-1, SIDE).t()))
"""
    )
    assert len(measured) == 2
    assert max(measured) < ALLOWED, measured


@pytest.mark.interop("jax")
def test_jax() -> None:
    measured = rises(
        """
import jax.numpy as jnp
x = jnp.ones(ELEMENTS).block_until_ready()
fastclip.global_norm([jnp.ones(4)])
rise(lambda: fastclip.global_norm([x]))
rise(lambda: fastclip.tensor_norms([x]))
"""
    )
    assert len(measured) == 2
    assert max(measured) < ALLOWED, measured


@pytest.mark.interop("tensorflow")
def test_tensorflow() -> None:
    measured = rises(
        """
import tensorflow as tf
x = tf.ones(ELEMENTS)
fastclip.global_norm([tf.ones(4)])
rise(lambda: fastclip.global_norm([x]))
"""
    )
    assert len(measured) == 1
    assert max(measured) < ALLOWED, measured


def test_exporters_and_buffers() -> None:
    measured = rises(
        """
import mmap
from support.dlpack_capsules import exporter
x = np.ones(ELEMENTS, np.float32)
transposed = x.reshape(-1, SIDE).T
for tensor in (exporter(x), exporter(transposed), memoryview(x), memoryview(transposed)):
    rise(lambda: fastclip.global_norm([tensor]))
memory = memoryview(x)
rise(lambda: fastclip.clip_by_norm(memory, 0.5, out=memory))
"""
    )
    assert len(measured) == 5
    assert max(measured) < ALLOWED, measured

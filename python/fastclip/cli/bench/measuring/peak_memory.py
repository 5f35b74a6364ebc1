"""Measures the peak memory of an out-of-place call, in a new process.

The new process runs ``python -m fastclip.cli.bench.measuring.peak_memory full``, which prints JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from fastclip.cli.bench.measuring.new_process import run_python

MIB = 1 << 20


@dataclass(frozen=True)
class PeakMemory:
    """Memory of a process that clips the gradients of ResNet-50 out of place.

    Attributes
    ----------
    input_bytes, output_bytes : int
        Size of the gradients, and of the clipped gradients.
    peak_bytes : int
        Peak memory of the process minus its memory before the gradients were allocated, which is that of
        the interpreter, NumPy, fastclip and its threads.
    """

    input_bytes: int
    output_bytes: int
    peak_bytes: int

    @property
    def excess_bytes(self) -> int:
        """The memory that the call took in addition to its inputs and outputs."""
        return self.peak_bytes - self.input_bytes - self.output_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the row for the JSON output."""
        return {
            "row": "memory/f32/out-of-place",
            "kind": "memory",
            "input_bytes": self.input_bytes,
            "output_bytes": self.output_bytes,
            "peak_bytes": self.peak_bytes,
            "excess_bytes": self.excess_bytes,
        }


def measure_peak_memory(size: str) -> PeakMemory:
    """Measure the peak memory in a new process, with shapes of `size` "full" or "small"."""
    command = ["-m", "fastclip.cli.bench.measuring.peak_memory", size]
    return PeakMemory(**json.loads(run_python(command, "measuring the peak memory")))


def _resident_bytes(field: str) -> int:
    """Return VmRSS (the present memory) or VmHWM (the peak so far) of this process, in bytes."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith(f"{field}:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        raise NotImplementedError("the peak memory of a process is not measured on Windows")
    # Other systems report the peak only. It equals the present memory of a process that only grows.
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _measure(size: str) -> dict[str, int]:
    import numpy as np

    import fastclip
    from fastclip.cli.bench.inputs.shapes import SHAPES

    # A first call, so that the threads, lazy imports and free lists it creates are not measured.
    random = np.random.default_rng(2024)
    fastclip.clip_by_global_norm([random.standard_normal(100_000, np.float32)], 1.0)
    before = _resident_bytes("VmRSS")
    gradients = [random.standard_normal(shape, np.float32) for shape in SHAPES[size]["resnet50"]()]
    clipped, _ = fastclip.clip_by_global_norm(gradients, 1.0)
    return {
        "input_bytes": sum(gradient.nbytes for gradient in gradients),
        "output_bytes": sum(gradient.nbytes for gradient in clipped),
        "peak_bytes": _resident_bytes("VmHWM") - before,
    }


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))

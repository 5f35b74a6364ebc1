"""The memory that an out-of-place call takes at its peak, measured in a process of its own.

``python -m fastclip.cli.bench.measuring.peak_memory full`` is that process; it prints JSON.
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
    """The memory of a process that clips the gradients of ResNet-50 out of place.

    Attributes
    ----------
    input_bytes, output_bytes : int
        The gradients, and the clipped gradients.
    peak_bytes : int
        The most that the process held at any time, above what it held before there were
        gradients: interpreter, NumPy, fastclip and its threads.
    """

    input_bytes: int
    output_bytes: int
    peak_bytes: int

    @property
    def excess_bytes(self) -> int:
        """What the call took beyond its inputs and outputs."""
        return self.peak_bytes - self.input_bytes - self.output_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the row of the JSON output."""
        return {
            "row": "memory/f32/out-of-place",
            "kind": "memory",
            "input_bytes": self.input_bytes,
            "output_bytes": self.output_bytes,
            "peak_bytes": self.peak_bytes,
            "excess_bytes": self.excess_bytes,
        }


def measure_peak_memory(size: str) -> PeakMemory:
    """Measure the peak in a new process."""
    command = ["-m", "fastclip.cli.bench.measuring.peak_memory", size]
    return PeakMemory(**json.loads(run_python(command, "measuring the peak memory")))


def _resident_bytes(field: str) -> int:
    """Return VmRSS (now) or VmHWM (the most so far) of this process."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith(f"{field}:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        raise NotImplementedError("the peak memory of a process is not measured on Windows")
    # Elsewhere there is only the most so far, which a process that only grows is also at now.
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _measure(size: str) -> dict[str, int]:
    import numpy as np

    import fastclip
    from fastclip.cli.bench.inputs.shapes import SHAPES

    # Threads, lazy imports and free lists of the first calls are not the call's own.
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

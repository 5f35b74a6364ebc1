"""Clipping of arrays that are on a graphics processor already, by wgpu compute shaders.

The clip functions of :mod:`fastclip` and four optimizers of :mod:`fastclip.train` take and return
:class:`DeviceArray`; nothing is copied to the host but norms, when they are looked at, and what
:meth:`DeviceArray.numpy` and ``state_dict`` are asked for. A round trip of host arrays costs more than
clipping them on the CPU. Devices are reached through Vulkan, Metal or DX12; CUDA tensors of torch are not
taken.
"""

from fastclip import _core

if not hasattr(_core, "DeviceArray"):
    raise ImportError("this build of fastclip has no GPU path: it was compiled without the feature 'gpu'")

from fastclip._core import DeviceArray, GpuUnavailableError
from fastclip.gpu._arrays import Device, asarray, devices, free_cached_memory, statistics, synchronize
from fastclip.gpu._functions import DeviceNorm, run

__all__ = [
    "Device",
    "DeviceArray",
    "DeviceNorm",
    "GpuUnavailableError",
    "asarray",
    "devices",
    "free_cached_memory",
    "run",
    "statistics",
    "synchronize",
]

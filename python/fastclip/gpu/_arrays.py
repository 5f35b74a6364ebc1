"""Devices, and copies between them and the host."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclip import _core
from fastclip._core import DeviceArray, GpuUnavailableError

_LOOKED_FOR = (
    "adapters of Vulkan (Linux), Metal (macOS) and DX12 (Windows) were looked for. On Linux a driver has to "
    "be installed that Vulkan finds, and containers with an NVIDIA card need the capability 'graphics' "
    "(NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics)."
)


@dataclass(frozen=True)
class Device:
    """A device that arrays can be on.

    Attributes
    ----------
    name : str
        The name of the device.
    backend : str
        The interface to it: ``"vulkan"``, ``"metal"`` or ``"dx12"``.
    driver : str
        Name and version of the driver.
    is_software : bool
        Whether it is a program that runs on the CPU.
    """

    name: str
    backend: str
    driver: str
    is_software: bool
    _index: int = field(repr=False)


def _all_devices() -> list[Device]:
    return [
        Device(name, backend, driver, is_software, index)
        for index, (name, backend, driver, is_software) in enumerate(_core.gpu_adapters())
    ]


def devices(allow_software: bool = False) -> list[Device]:
    """Return the devices of this machine, without opening them.

    Parameters
    ----------
    allow_software : bool, optional
        Whether to list devices that are programs on the CPU, such as lavapipe. The environment variable
        ``FASTCLIP_GPU_SOFTWARE=1`` has the same effect.

    Returns
    -------
    list of Device
        The faster kinds of devices first. Empty if there is none.

    Examples
    --------
    >>> from fastclip import gpu
    >>> [device.backend for device in gpu.devices()]
    ['vulkan'...]
    """
    allow = allow_software or os.environ.get("FASTCLIP_GPU_SOFTWARE") == "1"
    return [device for device in _all_devices() if allow or not device.is_software]


def device_at(index: int) -> Device:
    """Returns the device of an index among all adapters."""
    return _all_devices()[index]


def _chosen(device: Device | None) -> Device:
    if device is not None:
        if not isinstance(device, Device):
            raise TypeError(f"device is a {type(device).__name__}; it takes one of fastclip.gpu.devices()")
        return device
    found = devices()
    if found:
        return found[0]
    software = [device.name for device in _all_devices() if device.is_software]
    hint = (
        f" Devices in software are used when asked for, by FASTCLIP_GPU_SOFTWARE=1 or device=: {software}."
        if software
        else ""
    )
    raise GpuUnavailableError(f"no GPU was found; {_LOOKED_FOR}{hint}")


@lru_cache
def dtype_of(name: str) -> np.dtype[Any]:
    """Returns NumPy's dtype of a name; that of bfloat16 is defined by ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def asarray(x: npt.ArrayLike | DeviceArray, device: Device | None = None) -> DeviceArray:
    """Copy an array to a device.

    Parameters
    ----------
    x : array_like
        Elements of float32, float16, bfloat16 or int32. A DeviceArray is returned as it is.
    device : Device, optional
        One of :func:`devices`. The first of them by default.

    Returns
    -------
    DeviceArray
        An array on the device, in C order.

    Raises
    ------
    GpuUnavailableError
        If there is no device, it is lost, or this process was forked from one that uses it.
    TypeError
        If `x` has elements of another type.
    MemoryError
        If the memory of the device is full.

    Examples
    --------
    >>> import fastclip
    >>> import numpy as np
    >>> from fastclip import gpu
    >>> gradient = gpu.asarray(np.array([30.0, -40.0], np.float32))
    >>> _, norm = fastclip.clip_by_global_norm([gradient], 5.0, out=[gradient])
    >>> norm.item()
    50.0
    >>> gradient.numpy()
    array([ 3., -4.], dtype=float32)
    """
    if type(x) is DeviceArray:
        if device is not None and device != x.device:
            raise ValueError(f"x is on {x.device}; copy it by asarray(x.numpy(), device)")
        return x
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError("x is a masked array, some elements of which have no value; it takes x.filled(value)")
    array = np.asarray(x)
    if array.dtype.name not in ("float32", "float16", "bfloat16", "int32") or not array.dtype.isnative:
        raise TypeError(
            f"x is an array of dtype {array.dtype} and shape {array.shape}; devices take float32, float16, "
            "bfloat16 and int32 in native byte order"
        )
    return DeviceArray._from_host(np.ascontiguousarray(array).reshape(array.shape), _chosen(device)._index)


def to_host(array: Any) -> npt.NDArray[Any]:
    """Returns a copy of a DeviceArray in host memory."""
    copy = np.empty(array.shape, array.dtype)
    array._download(copy)
    return copy


def copy_from(array: Any, source: npt.ArrayLike) -> None:
    """Copies the elements of a host array to a DeviceArray."""
    if isinstance(source, DeviceArray):
        raise TypeError("source is an array on a device; it takes one in host memory")
    elements = np.asarray(source)
    if elements.shape != array.shape or elements.dtype != array.dtype:
        raise ValueError(
            f"source is an array of dtype {elements.dtype} and shape {elements.shape}; it takes dtype "
            f"{array.dtype} and shape {array.shape}"
        )
    array._upload(np.ascontiguousarray(elements).reshape(elements.shape))


def statistics(device: Device | None = None) -> dict[str, int]:
    """Return what was done on a device since it was opened.

    Parameters
    ----------
    device : Device, optional
        The first of :func:`devices` by default. It is opened if it is not.

    Returns
    -------
    dict
        ``submissions`` to the device, ``uploaded_bytes`` and ``downloaded_bytes`` (tables and scalars
        included), and ``allocated_bytes``, the size of the buffers that arrays lie in.

    Raises
    ------
    GpuUnavailableError
        If there is no device, or this process was forked from one that uses it.

    Examples
    --------
    >>> from fastclip import gpu
    >>> sorted(gpu.statistics())
    ['allocated_bytes', 'downloaded_bytes', 'submissions', 'uploaded_bytes']
    """
    names = ("submissions", "uploaded_bytes", "downloaded_bytes", "allocated_bytes")
    return dict(zip(names, _core.gpu_statistics(_chosen(device)._index), strict=True))


def synchronize(device: Device | None = None) -> None:
    """Wait until a device has done all work that was submitted to it.

    Parameters
    ----------
    device : Device, optional
        The first of :func:`devices` by default.

    Raises
    ------
    GpuUnavailableError
        If the device is lost.

    Examples
    --------
    >>> from fastclip import gpu
    >>> gpu.synchronize()
    """
    _core.gpu_synchronize(_chosen(device)._index)


def free_cached_memory(device: Device | None = None) -> None:
    """Release the memory of a device that no array uses, and what past calls have left for later ones.

    Parameters
    ----------
    device : Device, optional
        The first of :func:`devices` by default.

    Raises
    ------
    GpuUnavailableError
        If there is no device, or this process was forked from one that uses it.

    Examples
    --------
    >>> from fastclip import gpu
    >>> gpu.free_cached_memory()
    """
    _core.gpu_free_cached_memory(_chosen(device)._index)

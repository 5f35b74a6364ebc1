"""The device that tests of the GPU path run on: any, software included."""

from __future__ import annotations

import os

import pytest

from fastclip import _core


def require_device() -> None:
    """Skips the module that calls it if there is no device."""
    if not hasattr(_core, "DeviceArray"):
        pytest.skip("fastclip was compiled without the feature gpu", allow_module_level=True)
    # Layers that the system adds to every program that uses Vulkan print messages.
    os.environ.setdefault("VK_LOADER_LAYERS_DISABLE", "~implicit~")
    os.environ["FASTCLIP_GPU_SOFTWARE"] = "1"
    from fastclip import gpu

    if not gpu.devices():
        pytest.skip(
            "there is no Vulkan driver, such as Debian's mesa-vulkan-drivers", allow_module_level=True
        )

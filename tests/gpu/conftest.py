"""The device that the tests run on: any, software included."""

from __future__ import annotations

import os
from typing import Any

import pytest

from fastclip import _core


@pytest.fixture(scope="session", autouse=True)
def device() -> Any:
    """Returns a device, the first that there is."""
    if not hasattr(_core, "DeviceArray"):
        pytest.skip("fastclip was compiled without the feature gpu")
    # Layers that the system adds to every program that uses Vulkan print messages.
    os.environ.setdefault("VK_LOADER_LAYERS_DISABLE", "~implicit~")
    os.environ["FASTCLIP_GPU_SOFTWARE"] = "1"
    from fastclip import gpu

    found = gpu.devices()
    if not found:
        pytest.skip("there is no Vulkan driver, such as Debian's mesa-vulkan-drivers")
    return found[0]

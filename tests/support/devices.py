"""The device that tests of the GPU path run on: any, software included."""

from __future__ import annotations

import os

import pytest

from fastclip import _core

#: If set, tests that need a device fail where there is none, instead of being skipped.
REQUIRE = "FASTCLIP_REQUIRE_GPU"


def require_device() -> None:
    """Skips the module that calls it if there is no device."""
    lacks = what_is_missing()
    if lacks is not None and os.environ.get(REQUIRE):
        pytest.fail(f"{REQUIRE} is set, and {lacks}", pytrace=False)
    if lacks is not None:
        pytest.skip(lacks, allow_module_level=True)


def what_is_missing() -> str | None:
    """Returns why there is no device, or None if there is one. Devices in software count."""
    if not hasattr(_core, "DeviceArray"):
        return "fastclip was compiled without the feature gpu"
    # Layers that the system adds to every program that uses Vulkan print messages.
    os.environ.setdefault("VK_LOADER_LAYERS_DISABLE", "~implicit~")
    os.environ["FASTCLIP_GPU_SOFTWARE"] = "1"
    from fastclip import gpu

    if not gpu.devices():
        return "there is no Vulkan driver, such as Debian's mesa-vulkan-drivers"
    return None

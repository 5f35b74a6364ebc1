"""Importing the GPU path opens nothing. These tests need no device."""

from __future__ import annotations

import sys

import pytest

from fastclip import _core
from support import fresh_python

if not hasattr(_core, "DeviceArray"):
    pytest.skip("fastclip was compiled without the feature gpu", allow_module_level=True)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the libraries of a process as Linux shows them")
def test_no_graphics_library_is_loaded_before_the_first_use() -> None:
    fresh_python.run(
        """
        import os
        import numpy as np
        import fastclip, fastclip.gpu
        from fastclip.train import AdamOptimizer
        fastclip.clip_by_global_norm([np.ones(3)], 1.0)
        AdamOptimizer().apply_gradients([(np.ones(3), np.ones(3))])
        maps = open("/proc/self/maps").read()
        assert "vulkan" not in maps, maps
        assert len(os.listdir("/proc/self/task")) == 1
        """
    )


def test_without_a_device_the_error_says_what_was_looked_for() -> None:
    fresh_python.run(
        """
        import os
        # A folder without drivers: the loader of Vulkan finds none.
        os.environ["VK_DRIVER_FILES"] = os.environ["VK_ICD_FILENAMES"] = "/nonexistent/driver.json"
        import numpy as np
        from fastclip import gpu
        if gpu.devices(allow_software=True):
            raise SystemExit(0)  # another interface than Vulkan
        try:
            gpu.asarray(np.ones(3, np.float32))
        except gpu.GpuUnavailableError as error:
            assert isinstance(error, RuntimeError)
            assert "Vulkan" in str(error) and "graphics" in str(error), error
        else:
            raise SystemExit("no error")
        """
    )

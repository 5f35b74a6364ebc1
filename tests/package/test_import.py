"""Importing fastclip: no frameworks, threads, warnings or changed global state; and the public names."""

from __future__ import annotations

import sys

import pytest

from support import fresh_python

FRAMEWORKS = ("torch", "tensorflow", "jax", "jaxlib", "autograd", "optax")
EXTRAS = ("rich", "matplotlib", "safetensors", "sklearn", "scipy", "optree")


def test_no_framework_and_no_extra_is_imported() -> None:
    fresh_python.run(
        f"""
        import sys
        import numpy
        before = set(sys.modules)
        import fastclip
        loaded = {{name.partition(".")[0] for name in set(sys.modules) - before}}
        assert "fastclip" in loaded
        unwanted = loaded & set({FRAMEWORKS + EXTRAS!r})
        assert not unwanted, unwanted
        """
    )


def test_calls_import_no_framework() -> None:
    fresh_python.run(
        f"""
        import sys
        import numpy as np
        import fastclip
        a = np.ones(3)
        fastclip.clip_by_value(a, 0, 1)
        fastclip.clip_by_norm(a, 1.0)
        fastclip.clip_by_global_norm({{"a": [a, (a, None)]}}, 1.0)
        fastclip.adaptive_clip([a], [a])
        try:
            fastclip.global_norm([object()])
        except TypeError:
            pass
        else:
            raise SystemExit("no error")
        unwanted = set(sys.modules) & set({FRAMEWORKS!r})
        assert not unwanted, unwanted
        """
    )


@pytest.mark.skipif(sys.platform != "linux", reason="counts tasks as Linux does")
def test_import_starts_no_thread() -> None:
    fresh_python.run(
        """
        import os
        import numpy
        before = len(os.listdir("/proc/self/task"))
        import fastclip
        assert len(os.listdir("/proc/self/task")) == before
        fastclip.config()
        fastclip.get_num_threads()
        assert len(os.listdir("/proc/self/task")) == before
        """,
        env={"FASTCLIP_NUM_THREADS": "4"},
    )


def test_import_emits_no_warning_and_prints_nothing() -> None:
    done = fresh_python.run(
        """
        import warnings
        import numpy
        warnings.simplefilter("error")
        import fastclip
        """
    )
    assert done.stdout == ""
    assert done.stderr == ""


def test_import_needs_little_processor_time() -> None:
    """A second is many times what the import needs; importing a framework or compiling needs more."""
    done = fresh_python.run(
        """
        import time
        import numpy
        start = time.process_time()
        import fastclip
        print(time.process_time() - start)
        """
    )
    assert float(done.stdout) < 1.0


def test_signal_handlers_and_the_floating_point_environment_are_unchanged() -> None:
    fresh_python.run(
        """
        import signal
        import numpy as np
        before = signal.getsignal(signal.SIGINT)
        state = np.geterr()
        import fastclip
        fastclip.global_norm([np.full(100_000, 1e308), np.full(100_000, 1e-310)])
        assert signal.getsignal(signal.SIGINT) is before
        assert np.geterr() == state
        # Denormal results and operands are not flushed to zero afterwards.
        assert np.float64(2.0**-1074) + np.float64(2.0**-1074) == 2.0**-1073
        assert (np.full(1000, 1e-310) / 2 > 0).all()
        """
    )


def test_public_names() -> None:
    import fastclip

    expected = {
        "GraphKeys",
        "IndexedSlices",
        "NonFiniteError",
        "Variable",
        "adaptive_clip",
        "clip_by_average_norm",
        "clip_by_block_rms",
        "clip_by_global_norm",
        "clip_by_norm",
        "clip_by_value",
        "config",
        "free_cached_memory",
        "get_collection",
        "get_num_threads",
        "global_norm",
        "set_num_threads",
        "show_config",
        "tensor_norms",
        "threads",
        "train",
        "trainable_variables",
    }
    assert expected <= set(fastclip.__all__)
    for name in expected:
        assert getattr(fastclip, name).__doc__, f"{name} has no docstring"


def test_optimizers_are_imported_when_they_are_first_used() -> None:
    fresh_python.run(
        """
        import sys
        import fastclip
        assert "fastclip.train" not in sys.modules
        assert "train" in dir(fastclip)
        fastclip.train.AdamOptimizer
        assert not hasattr(fastclip, "no_such_name")
        """
    )


def test_steps_import_no_framework() -> None:
    fresh_python.run(
        f"""
        import sys
        import numpy as np
        import fastclip.train
        w = fastclip.Variable([1.0, 2.0])
        fastclip.train.AdamOptimizer(global_clipnorm=1.0).apply_gradients([(np.ones(2), w)])
        unwanted = set(sys.modules) & set({FRAMEWORKS!r})
        assert not unwanted, unwanted
        """
    )

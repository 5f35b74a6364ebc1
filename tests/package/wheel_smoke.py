"""A program that clips and takes a step with an installed wheel and NumPy alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import fastclip


def main() -> None:
    frameworks = {"torch", "tensorflow", "jax", "matplotlib", "rich", "ml_dtypes", "safetensors", "optree"}
    imported = frameworks & sys.modules.keys()
    assert not imported, f"importing fastclip imported {sorted(imported)}"

    rng = np.random.default_rng(0)
    grads = [rng.standard_normal((257, 129)).astype(np.float32), None, rng.standard_normal(1000)]
    exact = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in grads if g is not None))

    clipped, norm = fastclip.clip_by_global_norm(grads, 1.0)
    assert clipped[1] is None
    np.testing.assert_allclose(norm, exact, rtol=1e-14)
    np.testing.assert_allclose(fastclip.global_norm(clipped), 1.0, rtol=1e-6)
    for before, after in zip(grads, clipped, strict=True):
        if before is not None:
            assert after.dtype == before.dtype
            np.testing.assert_allclose(after, before / exact, rtol=1e-6)

    values = fastclip.clip_by_value(np.array([-2.0, 0.5, 3.0, np.nan]), -1.0, 1.0)
    np.testing.assert_array_equal(values, [-1.0, 0.5, 1.0, np.nan])

    weights = fastclip.Variable(np.zeros(3, np.float32))
    optimizer = fastclip.train.AdamOptimizer(0.5, global_clipnorm=1.0)
    optimizer.apply_gradients([(np.float32([30.0, 0.0, -40.0]), weights)])
    np.testing.assert_allclose(weights.value, [-0.5, 0.0, 0.5], rtol=1e-6)
    assert optimizer.last_norm == 50.0

    # Libraries of the system for graphics processors are neither linked nor opened before they are used.
    maps = Path("/proc/self/maps")
    assert not maps.exists() or "vulkan" not in maps.read_text()
    size = Path(fastclip._core.__file__).stat().st_size / 2**20
    assert size < 10, f"the module has {size:.1f} MiB"

    config = fastclip.config()
    print(f"fastclip {config['version']} ({config['isa']}, {config['threads']} threads)", end=" ")
    print(f"with NumPy {np.__version__} on Python {sys.version.split()[0]}: clips and steps")


if __name__ == "__main__":
    main()

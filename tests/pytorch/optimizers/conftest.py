"""What all tests of the optimizers have in common."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _one_thread_for_torch() -> Iterator[None]:
    """PyTorch's own steps over small tensors take a thousand times as long on a busy machine otherwise."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

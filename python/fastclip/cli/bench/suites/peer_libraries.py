"""The libraries that the benchmark compares with: which are installed, and importing them.

They are imported only here and by the contenders, and only when asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastclip.cli.bench.inputs.arrays import Array
from fastclip.cli.errors import CommandError

# peer: (what it is, the packages it needs)
Catalogue = Mapping[str, tuple[str, tuple[str, ...]]]

_ALIASES = {"optax": "jax", "tensorflow": "tf"}


def chosen_peers(text: str | None, catalogue: Catalogue) -> list[str]:
    """Return the peers named in `text`, or all that are installed where it is None.

    Raises
    ------
    CommandError
        If a name is not a peer's, or if a peer that is named is not installed.
    """
    if text is None:
        return [peer for peer in catalogue if not _missing(peer, catalogue)]
    if text == "none":
        return []
    names = [_ALIASES.get(name.strip(), name.strip()) for name in text.split(",")]
    for name in names:
        if name not in catalogue:
            raise CommandError(f"--peers: {name!r} is not one of {', '.join(catalogue)}, none")
        if missing := _missing(name, catalogue):
            raise CommandError(f"--peers: {name} is not installed: pip install {' '.join(missing)}")
    return [peer for peer in catalogue if peer in names]


def _missing(peer: str, catalogue: Catalogue) -> list[str]:
    return [package for package in catalogue[peer][1] if importlib.util.find_spec(package) is None]


def import_peers(peers: Sequence[str], catalogue: Catalogue, threads: int) -> None:
    """Import the peers' libraries and give each as many threads as fastclip has."""
    packages = {package for peer in peers for package in catalogue[peer][1]}
    if "torch" in packages:
        importlib.import_module("torch").set_num_threads(threads)
    if "tensorflow" in packages:
        # The first operation starts the runtime, which looks for GPUs and reads the threads.
        with _environment(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1"), _held_back_stderr():
            tensorflow = importlib.import_module("tensorflow")
            with contextlib.suppress(RuntimeError):  # TensorFlow is in use already
                tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
                tensorflow.config.threading.set_inter_op_parallelism_threads(threads)
            tensorflow.constant(0.0)
    if "jax" in packages:
        # NPROC is what sets the size of XLA's thread pool; nothing else does.
        with _environment(NPROC=str(threads), JAX_PLATFORMS="cpu"):
            importlib.import_module("jax").devices()
    with contextlib.suppress(ImportError):
        importlib.import_module("threadpoolctl").threadpool_limits(threads, user_api="blas")


def torch_tensor(array: Array) -> Any:
    """Return a torch tensor over the memory of `array`, bfloat16 too."""
    torch = importlib.import_module("torch")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _held_back_stderr() -> Iterator[None]:
    """Keep what is written to file descriptor 2, and show it only if the block raises.

    TensorFlow logs to it before its log level can be set.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException:
            held_back.seek(0)
            os.write(stderr, held_back.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)

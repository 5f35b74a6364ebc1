"""Selects and imports the libraries that the benchmark compares fastclip with.

They are imported only here and in the ``peers`` modules, and only if they are selected.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastclip.cli.bench.inputs.arrays import Array
from fastclip.cli.errors import CommandError


class Peer(NamedTuple):
    """A contender other than fastclip and the limit.

    Attributes
    ----------
    description : str
        The library, and how it is used.
    packages : tuple of str
        The packages to import.
    """

    description: str
    packages: tuple[str, ...] = ()


Peers = Mapping[str, Peer]  # by name

_ALIASES = {"optax": "jax", "tensorflow": "tf"}


def select_peers(text: str | None, available: Peers) -> list[str]:
    """Return the names of the selected peers.

    Parameters
    ----------
    text : str or None
        Names or aliases of peers, separated by commas, or "none". None selects all installed peers.
    available : Peers
        All peers of the suite.

    Raises
    ------
    CommandError
        If a name in `text` is unknown, or if a package that it needs is not installed.
    """
    if text is None:
        return [peer for peer in available if not _missing(peer, available)]
    if text == "none":
        return []
    names = [_ALIASES.get(name.strip(), name.strip()) for name in text.split(",")]
    for name in names:
        if name not in available:
            raise CommandError(f"--peers: {name!r} is not one of {', '.join(available)}, none")
        if missing := _missing(name, available):
            raise CommandError(f"--peers: {name} is not installed: pip install {' '.join(missing)}")
    return [peer for peer in available if peer in names]


def _missing(peer: str, available: Peers) -> list[str]:
    return [package for package in available[peer].packages if importlib.util.find_spec(package) is None]


def not_installed(available: Peers) -> dict[str, list[str]]:
    """Return the packages that are missing, by the names of the peers that need them."""
    return {peer: missing for peer in available if (missing := _missing(peer, available))}


def import_peers(peers: Sequence[str], available: Peers, threads: int) -> None:
    """Import the packages of the peers and limit each of them to `threads` threads."""
    packages = {package for peer in peers for package in available[peer].packages}
    if "torch" in packages:
        importlib.import_module("torch").set_num_threads(threads)
    if "tensorflow" in packages:
        # The first operation starts the runtime, which searches for GPUs and fixes the number of threads.
        with _environment(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1"), _withheld_stderr():
            tensorflow = importlib.import_module("tensorflow")
            with contextlib.suppress(RuntimeError):  # raised if the runtime has been started before
                tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
                tensorflow.config.threading.set_inter_op_parallelism_threads(threads)
            tensorflow.constant(0.0)
    if "jax" in packages:
        # NPROC is the only setting for the size of XLA's thread pool.
        with _environment(NPROC=str(threads), JAX_PLATFORMS="cpu"):
            importlib.import_module("jax").devices()
    with contextlib.suppress(ImportError):
        importlib.import_module("threadpoolctl").threadpool_limits(threads, user_api="blas")


def torch_tensor(array: Array) -> Any:
    """Return a torch tensor that shares memory with `array`, which may be bfloat16."""
    torch = importlib.import_module("torch")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def deepspeed_cpu_adam(*arguments: Any, **options: Any) -> Any:
    """Return a DeepSpeedCPUAdam with these arguments. It compiles itself at first use.

    The compilation takes minutes, and needs ninja, which is also found in the environment of this interpreter
    if that is not active. DeepSpeed's messages go to stderr: stdout is for the results.
    """
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    with _environment(PATH=path), contextlib.redirect_stdout(sys.stderr):
        return importlib.import_module("deepspeed.ops.adam").DeepSpeedCPUAdam(*arguments, **options)


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables for the duration of the block."""
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
def _withheld_stderr() -> Iterator[None]:
    """Withhold what is written to file descriptor 2, and write it there only if the block raises.

    TensorFlow logs to that descriptor before its log level can be set.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as withheld:
        os.dup2(withheld.fileno(), 2)
        try:
            yield
        except BaseException:
            withheld.seek(0)
            os.write(stderr, withheld.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)

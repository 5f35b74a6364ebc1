"""Configuration: number of threads, SIMD level and cached memory."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

from fastclip import _core

__all__ = [
    "Config",
    "config",
    "free_cached_memory",
    "get_num_threads",
    "set_num_threads",
    "show_config",
    "threads",
]


class Config(TypedDict):
    """Result of :func:`config`."""

    version: str
    isa: str
    isa_detected: str
    isa_available: list[str]
    threads: int
    threads_from: str


#: Largest number of threads accepted. No machine has more, so that a larger number is a mistake.
_MAX_THREADS = 65536


def _thread_count(n: int, name: str) -> int:
    """Returns a number of threads as an int. Raises TypeError or ValueError if it is not valid."""
    try:
        count = operator.index(n)
    except TypeError:
        raise TypeError(f"{name} is {n!r}; it takes a whole number of threads, at least 1") from None
    if isinstance(n, bool) or not 1 <= count <= _MAX_THREADS:
        raise ValueError(f"{name} is {n!r}; it takes a whole number of threads from 1 to {_MAX_THREADS}")
    return count


def get_num_threads() -> int:
    """Return the number of threads that a call may use.

    Returns
    -------
    int
        The number set by the innermost :func:`threads` block, else by :func:`set_num_threads`, else by the
        first of the environment variables ``FASTCLIP_NUM_THREADS``, ``RAYON_NUM_THREADS`` and
        ``OMP_NUM_THREADS`` that holds a number, else the number of cores that this process may use (by
        affinity and control group). These cores are divided by the number of processes that a launcher has
        started on the machine, according to the first of ``LOCAL_WORLD_SIZE`` (torchrun),
        ``OMPI_COMM_WORLD_LOCAL_SIZE``, ``MPI_LOCALNRANKS`` and ``SLURM_NTASKS_PER_NODE`` that holds a number,
        unless the process is bound to some of the cores already. ``OMP_NUM_THREADS=1`` beside
        ``LOCAL_WORLD_SIZE`` does not count, because torchrun sets it by itself. The environment is read when
        fastclip is imported.

    Examples
    --------
    >>> import fastclip
    >>> fastclip.get_num_threads() >= 1
    True
    """
    return _core.get_num_threads()


def set_num_threads(n: int | None) -> None:
    """Set the number of threads that calls in this process may use.

    Results have the same bits for any number of threads. Small arrays are processed by the calling thread
    alone.

    Parameters
    ----------
    n : int or None
        Number of threads, at least 1. None restores the default, see :func:`get_num_threads`.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is less than 1.

    Examples
    --------
    >>> import fastclip
    >>> fastclip.set_num_threads(2)
    >>> fastclip.get_num_threads()
    2
    >>> fastclip.set_num_threads(None)
    """
    _core.set_num_threads(0 if n is None else _thread_count(n, "n"))


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Context manager that sets the number of threads for calls by the current thread.

    Parameters
    ----------
    n : int
        Number of threads, at least 1.

    Raises
    ------
    TypeError, ValueError
        As :func:`set_num_threads`.

    Examples
    --------
    >>> import fastclip
    >>> with fastclip.threads(1):
    ...     fastclip.get_num_threads()
    1
    """
    before = _core.override_num_threads(_thread_count(n, "n"))
    try:
        yield
    finally:
        _core.override_num_threads(before)


def free_cached_memory() -> int:
    """Release cached memory to the system.

    The memory of results of 64 KiB and more is cached when the results are deleted, and reused for later
    results, because the first access to fresh pages costs more than the arithmetic on them. The cache holds
    at most 1 GiB, or an eighth of the machine's memory if that is less, and on Linux the system may reclaim
    large blocks of it at any time, except the 64 MiB that were cached last.

    Returns
    -------
    int
        Number of bytes released.

    Examples
    --------
    >>> import fastclip
    >>> fastclip.free_cached_memory() >= 0
    True
    """
    return _core.free_cached_memory()


def config() -> Config:
    """Return the version and the configuration.

    Returns
    -------
    dict
        ``version``; ``isa``, the SIMD level in use; ``isa_detected``, the highest level of the processor
        (the environment variable ``FASTCLIP_ISA`` selects a lower one of ``isa_available``); ``threads``, see
        :func:`get_num_threads`, and ``threads_from``, what decides it: ``"set_num_threads"``, the name of an
        environment variable, ``"cores of this process"``, or these divided by the number of processes.

    Examples
    --------
    >>> import fastclip
    >>> sorted(fastclip.config())
    ['isa', 'isa_available', 'isa_detected', 'threads', 'threads_from', 'version']
    """
    return {
        "version": _core.__version__,
        "isa": _core.isa_in_use(),
        "isa_detected": _core.isa_detected(),
        "isa_available": _core.isa_levels(),
        "threads": _core.get_num_threads(),
        "threads_from": _core.num_threads_rule(),
    }


def show_config() -> None:
    """Print the version and the configuration, for bug reports.

    Examples
    --------
    >>> import fastclip
    >>> fastclip.show_config()  # doctest: +ELLIPSIS
    fastclip ...
    SIMD level: ...
    threads: ...
    """
    current = config()
    print(f"fastclip {current['version']}")
    early = "; avx512 needs Ice Lake, Zen 4 or later" if _core.isa_has_early_avx512() else ""
    print(f"SIMD level: {current['isa']} (available: {', '.join(current['isa_available'])}{early})")
    print(f"threads: {current['threads']} ({current['threads_from']})")

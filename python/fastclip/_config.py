"""Threads, SIMD level, cached memory: what fastclip runs on, and how to change it."""

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
    """What :func:`config` returns."""

    version: str
    isa: str
    isa_detected: str
    isa_available: list[str]
    threads: int
    gpu_adapters: list[str]


#: More than any machine has; a typing error, rather than a wish.
_MOST_THREADS = 65536


def _count(n: int, name: str) -> int:
    try:
        count = operator.index(n)
    except TypeError:
        raise TypeError(f"{name} is {n!r}; it takes a whole number of threads, at least 1") from None
    if isinstance(n, bool) or not 1 <= count <= _MOST_THREADS:
        raise ValueError(f"{name} is {n!r}; it takes a whole number of threads from 1 to {_MOST_THREADS}")
    return count


def get_num_threads() -> int:
    """Return how many threads a call made here may use.

    Returns
    -------
    int
        The number set by :func:`threads` around this call, else by :func:`set_num_threads`, else by the
        first of the environment variables ``FASTCLIP_NUM_THREADS``, ``RAYON_NUM_THREADS`` and
        ``OMP_NUM_THREADS`` that has one, else the cores this process may use (affinity and control group).

    Examples
    --------
    >>> import fastclip
    >>> fastclip.get_num_threads() >= 1
    True
    """
    return _core.get_num_threads()


def set_num_threads(n: int | None) -> None:
    """Set how many threads calls may use from now on, in this process.

    The results have the same bits whatever the number. Small arrays are done on the calling thread alone.

    Parameters
    ----------
    n : int or None
        At least 1. None goes back to the default, see :func:`get_num_threads`.

    Raises
    ------
    TypeError
        If `n` is no whole number.
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
    _core.set_num_threads(0 if n is None else _count(n, "n"))


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Set how many threads calls may use inside a ``with`` block, for the thread that runs it.

    Parameters
    ----------
    n : int
        At least 1.

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
    before = _core.override_num_threads(_count(n, "n"))
    try:
        yield
    finally:
        _core.override_num_threads(before)


def free_cached_memory() -> int:
    """Give the memory that dropped results have left behind back to the system.

    Results of 64 KiB and more stand on memory that is used again for later results, because fresh
    pages cost more than the arithmetic on them. What is kept is bounded (1 GiB, or an eighth of the
    machine's memory if that is less), and on Linux the system may take large blocks of it back at any time.

    Returns
    -------
    int
        The number of bytes given back.

    Examples
    --------
    >>> import fastclip
    >>> fastclip.free_cached_memory() >= 0
    True
    """
    return _core.free_cached_memory()


def config() -> Config:
    """Return what fastclip is and runs on.

    Returns
    -------
    dict
        ``version``; ``isa``, the SIMD level in use; ``isa_detected``, the best one the processor has
        (``FASTCLIP_ISA`` lowers it to one of ``isa_available``); ``threads``; ``gpu_adapters``, empty in
        a build without the GPU path.

    Examples
    --------
    >>> import fastclip
    >>> sorted(fastclip.config())
    ['gpu_adapters', 'isa', 'isa_available', 'isa_detected', 'threads', 'version']
    """
    return {
        "version": _core.__version__,
        "isa": _core.isa_in_use(),
        "isa_detected": _core.isa_detected(),
        "isa_available": _core.isa_levels(),
        "threads": _core.get_num_threads(),
        "gpu_adapters": [],
    }


def show_config() -> None:
    """Print what fastclip is and runs on, for bug reports.

    Examples
    --------
    >>> import fastclip
    >>> fastclip.show_config()  # doctest: +ELLIPSIS
    fastclip ...
    SIMD level: ...
    threads: ...
    GPU adapters: none (this build has no GPU path)
    """
    found = config()
    print(f"fastclip {found['version']}")
    print(f"SIMD level: {found['isa']} (available: {', '.join(found['isa_available'])})")
    print(f"threads: {found['threads']}")
    print("GPU adapters: none (this build has no GPU path)")

"""SIMD levels, and scripts whose results must have the same bits at each of them.

Such a script prints a JSON object: digests of results by name, the SIMD level in use as ``isa``, and the
highest that the processor has as ``detected``.
"""

from __future__ import annotations

import json
import platform

import pytest

from support import fresh_python

#: SIMD levels of this architecture, ascending.
LEVELS = {
    "x86_64": ["scalar", "sse2", "sse4.2", "avx2", "avx512"],
    "AMD64": ["scalar", "sse2", "sse4.2", "avx2", "avx512"],
    "aarch64": ["scalar", "neon"],
    "arm64": ["scalar", "neon"],
}.get(platform.machine(), ["scalar"])

EVERY_LEVEL = pytest.mark.parametrize("level", LEVELS)


def digests_at_the_detected_level(script: str) -> dict[str, str]:
    """Returns the digests of a script at the highest level that the processor has, with ``detected``."""
    digests = _digests(script, {})
    assert digests.pop("isa") == digests["detected"]
    return digests


def assert_same_digests(
    script: str, expected: dict[str, str], level: str, threads: str | None = None
) -> None:
    """Checks that a script has the same digests at another SIMD level, for any number of threads.

    Skips the test if the processor does not have the level.

    Parameters
    ----------
    script : str
        Source code.
    expected : dict
        Its digests at the detected level.
    level : str
        One of `LEVELS`.
    threads : str, optional
        The number of threads; that of the processor's cores if it is not given.
    """
    detected = expected["detected"]
    assert detected in LEVELS
    if LEVELS.index(level) > LEVELS.index(detected):
        pytest.skip(f"this processor has {detected} at most")
    environment = {"FASTCLIP_ISA": level}
    if threads is not None:
        environment["FASTCLIP_NUM_THREADS"] = threads
    digests = _digests(script, environment)
    assert digests.pop("isa") == level
    assert digests.keys() == expected.keys()
    differing = [name for name, digest in expected.items() if digest != digests[name]]
    assert not differing, f"{len(differing)} results at {level} differ: {differing[:10]}"


def _digests(script: str, environment: dict[str, str]) -> dict[str, str]:
    digests: dict[str, str] = json.loads(fresh_python.run(script, env=environment).stdout)
    return digests

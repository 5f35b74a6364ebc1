"""Settings of the whole suite: the libraries that some tests need, and how Hypothesis searches."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Generator

import hypothesis
import pytest

# Plots are drawn to files, on machines without a screen too.
os.environ.setdefault("MPLBACKEND", "Agg")

# No deadline: a shared machine is sometimes slow. In CI the same examples each time.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

# Tests marked `interop("torch")` skip where torch is not installed. So that a CI that means to run them
# notices when they do not run, FASTCLIP_REQUIRE_INTEROP makes such skips failures: "1" for every library,
# or names with commas between them ("tensorflow,jax"). CI finds these tests by their mark, so a test that
# skips for want of one of these libraries and has no mark fails anywhere.
REQUIRE = "FASTCLIP_REQUIRE_INTEROP"
LIBRARIES = ("torch", "tensorflow", "jax", "optax", "mpi4py")
NOT_IMPORTED = re.compile(r"could not import '([\w.]+)'")


def pytest_report_header() -> list[str]:
    distributions = importlib.metadata.packages_distributions()
    found = [
        f"{library} {importlib.metadata.version(distributions[library][0])}"
        for library in LIBRARIES
        if distributions.get(library)
    ]
    return [
        f"interop: {', '.join(found) or 'no library'}",
        f"{REQUIRE}: {os.environ.get(REQUIRE, 'not set')}",
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("interop") and not _marked_libraries(item):
            raise pytest.UsageError(f'{item.nodeid}: interop names its libraries, as in interop("torch")')


def pytest_runtest_setup(item: pytest.Item) -> None:
    missing = sorted(library for library in _marked_libraries(item) if not importlib.util.find_spec(library))
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}, which is not installed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    marked = _marked_libraries(item)
    _judge_skip(report, marked or _unimportable(report), is_marked=bool(marked))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:
        # A module that skipped has not come as far as its `pytestmark`.
        is_marked = "mark.interop(" in collector.path.read_text(encoding="utf-8")
        _judge_skip(report, _unimportable(report), is_marked=is_marked)
    return report


def _judge_skip(
    report: pytest.TestReport | pytest.CollectReport, libraries: set[str], *, is_marked: bool
) -> None:
    """Make a skip for want of ``libraries`` a failure, where it is one."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    if not is_marked and libraries & set(LIBRARIES):
        names = ", ".join(f'"{library}"' for library in sorted(libraries))
        complaint = f"has to be marked: pytest.mark.interop({names})"
    elif _is_required(libraries):
        complaint = f"has to run, as {REQUIRE} is set"
    else:
        return
    report.longrepr = f"{report.nodeid} {complaint}; it skipped: {_reason(report)}"
    report.outcome = "failed"


def _is_required(libraries: set[str]) -> bool:
    """Whether a test of these libraries has to run here."""
    value = os.environ.get(REQUIRE, "").strip()
    if not libraries or value in ("", "0"):
        return False
    return value == "1" or libraries <= {name.strip() for name in value.split(",")}


def _marked_libraries(item: pytest.Item) -> set[str]:
    """The libraries that the marks of a test name."""
    return {library for mark in item.iter_markers("interop") for library in mark.args}


def _unimportable(report: pytest.TestReport | pytest.CollectReport) -> set[str]:
    """The library that ``pytest.importorskip`` did not find, if that is why the report says skipped."""
    return {name.partition(".")[0] for name in NOT_IMPORTED.findall(_reason(report))}


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a report says that something was skipped."""
    return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)

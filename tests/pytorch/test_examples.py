"""The examples in the docstrings of `fastclip.torch`.

pytest's search for examples leaves that package out, because importing it needs torch.
"""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import fastclip

pytestmark = pytest.mark.interop("torch")
torch = pytest.importorskip("torch")

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
MODULES = [
    "fastclip.torch",
    *(found.name for found in pkgutil.walk_packages(fastclip.torch.__path__, "fastclip.torch.")),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert failed == 0, capsys.readouterr().out


def test_every_public_function_has_an_example_that_is_found() -> None:
    found = {test.name: test.examples for test in doctest.DocTestFinder().find(fastclip.torch)}
    for name in fastclip.torch.__all__:
        if not isinstance(getattr(fastclip.torch, name), type):
            assert found.get(f"fastclip.torch.{name}"), name

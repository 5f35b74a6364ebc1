"""The layout of the sources: imports without cycles, private modules, and files that hold `unsafe` code."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fastclip
import fastclip.train
from support import fresh_python

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "fastclip"
SOURCE = ROOT / "src"

#: Packages directly in `fastclip` that users import or run.
PUBLIC_PACKAGES = {"cli", "gpu", "torch", "train"}


# Python ----------------------------------------------------------------------------------------


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_paths() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_modules(name: str, path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that a module imports, inside functions and for type checkers too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                if f"{base}.{alias.name}" in modules:
                    yield f"{base}.{alias.name}"
                elif base in modules:
                    yield base


def import_graph() -> dict[str, set[str]]:
    """The imports of each module, but for those of `fastclip` itself, which imports most others."""
    modules = module_paths()
    del modules["fastclip"]
    return {name: set(imported_modules(name, path, modules)) for name, path in modules.items()}


def find_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """A cycle of a directed graph, as the nodes along it; None if there is none."""
    finished: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return None
        for successor in sorted(graph[node]):
            cycle = visit(successor, [*path, node])
            if cycle is not None:
                return cycle
        finished.add(node)
        return None

    return next((cycle for node in graph if (cycle := visit(node, [])) is not None), None)


def test_find_cycle_finds_one() -> None:
    graph: dict[str, set[str]] = {"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}
    assert find_cycle(graph) == ["b", "d", "b"]
    assert find_cycle({**graph, "d": {"c"}}) is None


def test_import_graph_has_function_level_and_type_checking_imports() -> None:
    graph = import_graph()
    assert "fastclip._autodiff.differentiation_rules" in graph["fastclip._functions.clip"]
    assert "fastclip._variables.variable" in graph["fastclip._autodiff.traced"]


def test_modules_import_each_other_in_no_cycle() -> None:
    cycle = find_cycle(import_graph())
    assert cycle is None, " -> ".join(cycle or [])


def test_differentiation_rules_do_not_import_public_functions() -> None:
    graph = import_graph()
    for name, imports in graph.items():
        if name.startswith(("fastclip._arguments", "fastclip._compiled", "fastclip._autodiff")):
            assert not [other for other in imports if other.startswith("fastclip._functions")], name


def test_modules_in_the_package_are_private_or_imported_by_users() -> None:
    entries = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()
    }
    public = {name for name in entries if not name.startswith("_")}
    assert public == PUBLIC_PACKAGES


def test_no_module_is_a_miscellany() -> None:
    names = {path.stem.strip("_") for path in [*PACKAGE.rglob("*.py"), *SOURCE.rglob("*.rs")]}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc"}


def test_command_line_package_has_at_most_12_modules_at_its_top() -> None:
    assert len(list((PACKAGE / "cli").glob("*.py"))) <= 12


# Public names ----------------------------------------------------------------------------------

PUBLIC_MODULES = (fastclip, fastclip.train)


def public_names(module: ModuleType) -> set[str]:
    return {name for name in module.__all__ if not name.startswith("_")}


def public_objects() -> Iterator[tuple[str, str, Any]]:
    """The module, the name and the object of each public class and function."""
    for module in PUBLIC_MODULES:
        for name in sorted(public_names(module)):
            if not isinstance(getattr(module, name), ModuleType):
                yield module.__name__, name, getattr(module, name)


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_dir_shows_the_public_names_alone(module: ModuleType) -> None:
    assert {name for name in dir(module) if not name.startswith("_")} == public_names(module)
    assert set(module.__all__) <= set(dir(module))
    assert not [name for name in dir(module) if name.startswith("_") and not name.startswith("__")]


@pytest.mark.parametrize(("module", "name", "value"), list(public_objects()))
def test_public_classes_and_functions_name_the_public_module(module: str, name: str, value: Any) -> None:
    assert f"{value.__module__}.{value.__qualname__}" == f"{module}.{name}"
    assert pickle.loads(pickle.dumps(value)) is value
    # Exceptions of extension modules have no signature.
    if value is not fastclip.NonFiniteError:
        inspect.signature(value)


def test_pickles_do_not_name_private_modules() -> None:
    values = [fastclip.Variable([1.0]), fastclip.IndexedSlices([[1.0]], [0]), fastclip.NonFiniteError("x")]
    for value in values:
        pickled = pickle.dumps(value)
        assert b"fastclip._" not in pickled
        assert type(pickle.loads(pickled)) is type(value)


def test_import_leaves_masked_arrays_alone() -> None:
    """numpy.ma takes as long to import as all of fastclip."""
    fresh_python.run(
        """
        import sys
        import numpy
        before = "numpy.ma" in sys.modules
        import fastclip.train
        assert ("numpy.ma" in sys.modules) == before
        """
    )


# Rust ------------------------------------------------------------------------------------------


def test_crate_root_has_at_most_four_rust_files() -> None:
    assert len(list(SOURCE.glob("*.rs"))) <= 4


def test_no_rust_file_stands_beside_a_folder_of_its_name() -> None:
    assert [path for path in SOURCE.rglob("*.rs") if path.with_suffix("").is_dir()] == []


def has_unsafe_code(source: str) -> bool:
    """Whether Rust source has a block, function, impl or extern block that is `unsafe`, outside comments."""
    without_comments = re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL)
    return re.search(r"\bunsafe\s*(\{|fn\b|impl\b|extern\b|trait\b)", without_comments) is not None


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("unsafe { f() }", True),
        ("pub unsafe fn f() {}", True),
        ("unsafe impl Send for X {}", True),
        ("// unsafe { f() }", False),
        ("/* unsafe\nfn */ fn f() {}", False),
        ("#![deny(unsafe_op_in_unsafe_fn)]", False),
    ],
)
def test_has_unsafe_code(source: str, expected: bool) -> None:
    assert has_unsafe_code(source) is expected


def test_at_most_ten_rust_files_outside_the_bindings_have_unsafe_code() -> None:
    bindings = SOURCE / "py"
    files = [
        path.relative_to(SOURCE).as_posix()
        for path in sorted(SOURCE.rglob("*.rs"))
        if bindings not in path.parents and has_unsafe_code(path.read_text(encoding="utf-8"))
    ]
    assert len(files) <= 10, files

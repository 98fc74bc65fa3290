"""The project's own source, parsed: what the tests of its architecture look at."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ROOMS = ("models", "orchestrator_web", "orchestrator_tasks")
PACKAGES = (*ROOMS, "orchestrator_cli")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One file; `path` is relative to the project, with forward slashes."""

    path: str
    text: str
    tree: ast.Module

    @property
    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))

    @property
    def calls(self) -> Iterator[ast.Call]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.Call))


@functools.cache
def modules(*packages: str) -> tuple[Module, ...]:
    """Every module of these packages, or of the whole project."""
    files = sorted(file for package in packages or PACKAGES for file in (ROOT / package).rglob("*.py"))
    return tuple(
        Module(file.relative_to(ROOT).as_posix(), file.read_text(), ast.parse(file.read_text())) for file in files
    )


def dotted(node: ast.AST) -> str:
    """`os.environ.get` of the expression that says so; what is not a plain name is `?`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "?"


def imports(module: Module) -> Iterator[str]:
    """The full name of everything that a module imports."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def users(found: dict[str, list[int]]) -> str:
    """Where something was found, as a line to read in a failure."""
    return ", ".join(f"{path}:{lines[0]}" for path, lines in sorted(found.items()))

"""Names and sizes: a path is a sentence, an operation is a verb and a noun, nothing is too long to read."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.architecture.source import PACKAGES, ROOMS, ROOT, Module, modules

LONGEST_MODULE = 300
LONGEST_FUNCTION = 40
LONGEST_TEST_MODULE = 500
EMPTY_WORDS = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "base_utils"}

ROLES = {
    "models": {"states", "tables", "transitions", "operations", "queries", "events", "errors"},
    "orchestrator_web": {"routes", "schemas", "streams"},
    "orchestrator_tasks": {"tasks", "drivers", "together"},
}
HEARTS = {
    "models/engine": {
        "batches",
        "cadence",
        "canonical",
        "config",
        "contract",
        "control",
        "cuts",
        "delays",
        "divergence",
        "exports",
        "inputs",
        "lines",
        "planning",
        "publications",
        "replay",
        "retention",
        "sections",
        "snapshots",
        "workers",
    },
    "orchestrator_web/engine": {"answers", "ingest", "metrics", "marks"},
    "orchestrator_tasks/engine": {
        "__main__",
        "adapter",
        "announce",
        "asking",
        "checks",
        "config",
        "host",
        "hosts",
        "ingest",
        "message",
        "planner",
        "publish",
        "shapes",
    },
    "models/tickets": {
        "batches",
        "contracts",
        "estop",
        "motions",
        "robot_tables",
        "robots",
        "room",
        "safety",
        "stops",
        "telemetry",
    },
    "orchestrator_web/tickets": {"answers", "batches", "estop"},
}
"""A domain's files of its own beside the roles; each new name is a decision."""

READS = ("find", "get", "list", "count", "is", "read")
NOUNS = r"[a-z][a-z0-9]*(_[a-z0-9]+)*"


def domains(room: str) -> set[str]:
    return {path.parent.name for path in (ROOT / room).glob("*/__init__.py")} - {"kernel"}


def test_no_module_is_too_long_to_read() -> None:
    sizes = {module.path: len(module.text.splitlines()) for module in modules()}
    assert {path: size for path, size in sizes.items() if size > LONGEST_MODULE} == {}


def test_no_test_module_is_too_long_to_read() -> None:
    sizes = {
        file.relative_to(ROOT).as_posix(): len(file.read_text().splitlines()) for file in (ROOT / "tests").rglob("*.py")
    }
    assert {path: size for path, size in sizes.items() if size > LONGEST_TEST_MODULE} == {}


def test_no_function_is_too_long_to_read() -> None:
    long = {
        f"{module.path}:{function.name}": function.end_lineno - function.lineno + 1
        for module in modules()
        for function in module.functions
        if function.end_lineno and function.end_lineno - function.lineno + 1 > LONGEST_FUNCTION
    }
    assert long == {}


def test_every_module_says_what_it_is_for() -> None:
    silent = [module.path for module in modules() if module.text.strip() and not ast.get_docstring(module.tree)]
    assert silent == []


def test_no_name_is_empty_of_meaning() -> None:
    def parts(name: str) -> set[str]:
        return set(re.split(r"[_./]", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))

    named = [part for module in modules() for part in [module.path.removesuffix(".py")] if parts(part) & EMPTY_WORDS]
    named += [
        f"{module.path}:{node.name}"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and parts(node.name) & EMPTY_WORDS
    ]
    assert named == []


def public_functions(module: Module) -> list[str]:
    return [
        node.name for node in module.tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]


def takes_connection(module: Module, name: str) -> bool:
    (node,) = (n for n in module.tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    return bool(node.args.args) and node.args.args[0].arg == "connection"


def operations() -> list[tuple[str, str]]:
    return [
        (module.path, name)
        for module in modules("models")
        if module.path.endswith("/operations.py")
        for name in public_functions(module)
        if takes_connection(module, name)
    ]


def test_operations_are_a_verb_and_a_noun() -> None:
    assert operations()
    wrong = [f"{path}:{name}" for path, name in operations() if not re.fullmatch(rf"[a-z]+_{NOUNS}", name)]
    assert wrong == []


def test_operations_are_unique_in_the_repository() -> None:
    doubled = [name for name, n in Counter(name for _, name in operations()).items() if n > 1]
    assert doubled == []


def test_reads_say_by_their_first_word_what_happens_when_there_is_nothing() -> None:
    wrong = [
        f"{module.path}:{name}"
        for module in modules("models")
        if module.path.endswith("/queries.py")
        for name in public_functions(module)
        if takes_connection(module, name) and not name.startswith(tuple(f"{verb}_" for verb in READS))
    ]
    assert wrong == []


def test_the_same_domains_live_in_each_room() -> None:
    assert domains("models")
    for room in ROOMS:
        assert domains(room) == domains("models"), room


@pytest.mark.parametrize("room", ROOMS)
def test_the_files_of_a_domain_are_named_after_their_roles(room: str) -> None:
    for domain in domains(room):
        folder = ROOT / room / domain
        own = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
        assert own - ROLES[room] - HEARTS.get(f"{room}/{domain}", set()) <= {"__init__"}, folder


def test_every_domain_has_its_states_tables_operations_and_queries() -> None:
    for domain in domains("models"):
        for role in ("states", "tables", "operations", "queries"):
            assert (ROOT / "models" / domain / f"{role}.py").exists(), f"{domain}/{role}"


def test_times_and_states_are_named_alike_in_every_table() -> None:
    wrong = []
    for module in modules("models"):
        for call in module.calls:
            if isinstance(call.func, ast.Name) and call.func.id == "Column" and call.args:
                name = getattr(call.args[0], "value", "")
                is_time = any("DateTime" in ast.dump(part) for part in call.args[1:])
                if is_time and not re.search(r"(^|_)(at|until|after|before)$", str(name)):
                    wrong.append(f"{module.path}:{name}")
    assert wrong == []


def test_tests_are_sentences() -> None:
    files = (ROOT / "tests").rglob("test_*.py")
    short = [
        f"{file.relative_to(ROOT)}:{node.name}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and node.name.count("_") < 3
    ]
    assert short == []


def test_no_test_sleeps() -> None:
    sleeps = re.compile(r"\btime\.sleep\(|\bclock\.pause\(|\bfrom time import sleep")
    files = [*(ROOT / "tests").rglob("*.py")]
    asleep = [
        str(file.relative_to(ROOT)) for file in files if file != Path(__file__) and sleeps.search(file.read_text())
    ]
    assert asleep == []


def test_only_the_fixed_packages_are_at_the_top() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= {*PACKAGES, "tests", "benchmarks"}

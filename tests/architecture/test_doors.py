"""One door for each act: whoever wants to read the environment, commit, publish or change a state goes through it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable

from tests.architecture.source import ROOMS, Module, dotted, imports, modules, users

Look = Callable[[Module], Iterable[ast.AST]]


def found(look: Look, *packages: str) -> dict[str, list[int]]:
    """The lines at which each module does what is looked for."""
    lines = {module.path: [node.lineno for node in look(module)] for module in modules(*packages)}  # type: ignore[attr-defined]
    return {path: at for path, at in lines.items() if at}


def outside(allowed: dict[str, str], look: Look, *packages: str) -> str:
    """Who does it without being allowed; each that is allowed says why."""
    return users({path: at for path, at in found(look, *packages).items() if path not in allowed})


def calls_of(*names: str) -> Look:
    """Calls of functions or methods by these last names."""
    return lambda module: (call for call in module.calls if dotted(call.func).split(".")[-1] in names)


def names_of(*wanted: str) -> Look:
    return lambda module: (node for node in ast.walk(module.tree) if dotted(node) in wanted)


def test_only_the_settings_read_the_environment() -> None:
    allowed = {
        "models/kernel/settings.py": "the door",
        "orchestrator_web/__main__.py": "tells the Prometheus client, which knows no other way, where its files are",
        "orchestrator_web/metrics.py": "asks whether the above was told",
    }
    look = names_of("os.environ", "os.getenv", "os.environb")
    assert outside(allowed, look, *ROOMS) == ""


def test_only_the_session_makes_engines_and_commits() -> None:
    allowed = {"models/kernel/session.py": "the door"}
    look = calls_of("create_engine", "commit", "rollback", "begin", "begin_nested")
    own = names_of("self.begin")  # another thing's own verb
    assert outside(allowed, lambda module: (n for n in look(module) if n.func not in [*own(module)]), *ROOMS) == ""  # type: ignore[attr-defined]


def test_raw_database_connections_are_opened_for_listening_alone() -> None:
    allowed = {"models/kernel/listening.py": "LISTEN needs a connection outside every pool"}
    assert outside(allowed, calls_of("raw_connection"), *ROOMS) == ""
    speaks = {module.path for module in modules(*ROOMS) if any(name.startswith("psycopg2") for name in imports(module))}
    assert speaks <= set(allowed)


def writes_state(module: Module) -> Iterable[ast.AST]:
    """Statements that set a column `state`, by SQLAlchemy or as text."""
    for call in module.calls:
        if dotted(call.func).split(".")[-1] != "values":
            continue
        keys = [key for arg in call.args if isinstance(arg, ast.Dict) for key in arg.keys if key is not None]
        keys += [keyword for keyword in call.keywords if keyword.arg == "state"]
        if any(getattr(key, "value", "") == "state" or getattr(key, "arg", "") == "state" for key in keys):
            yield call
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            sql = re.search(r"\bUPDATE\b.*\bSET\b[^;]*\bstate\s*=", node.value, re.DOTALL | re.IGNORECASE)
            if sql:
                yield node


def test_only_the_transition_writes_a_state() -> None:
    allowed = {"models/kernel/transition.py": "the door"}
    assert outside(allowed, writes_state) == ""


def test_only_the_ledger_s_two_doors_write_the_ledger() -> None:
    def inserts(module: Module) -> Iterable[ast.AST]:
        for call in module.calls:
            if dotted(call.func) == "insert" and call.args and dotted(call.args[0]) == "ledger":
                yield call

    allowed = {"models/kernel/transition.py": "a state changed", "models/kernel/ledger.py": "a note: no state changed"}
    assert outside(allowed, inserts) == ""


def test_only_the_publisher_publishes_to_celery() -> None:
    allowed = {"orchestrator_tasks/publisher.py": "the door"}
    look = calls_of("delay", "apply_async", "send_task", "send_task_message", "as_task_v2", "signature", "apply_catch")
    assert outside(allowed, look) == ""


def test_only_two_doors_send_what_a_job_owes() -> None:
    allowed = {
        "orchestrator_tasks/publisher.py": "the dispatcher's, for all that waits",
        "orchestrator_web/sending.py": "what was just accepted, while nobody waits",
    }
    assert outside(allowed, calls_of("job_message", "lpush")) == ""


def test_no_message_carries_a_time_to_run_at() -> None:
    def carries(module: Module) -> Iterable[ast.AST]:
        return (word.value for call in module.calls for word in call.keywords if word.arg in {"eta", "countdown"})

    assert outside({}, carries) == ""


def test_only_the_problems_map_errors_to_statuses() -> None:
    look = names_of("STATUSES", "errors.Unavailable", "errors.NotFound", "errors.Forbidden")
    assert outside({"orchestrator_web/problems.py": "the door"}, look, "orchestrator_web") == ""
    handlers = calls_of("register_error_handler", "errorhandler", "app_errorhandler")
    assert outside({"orchestrator_web/problems.py": "the door"}, handlers) == ""


def test_time_and_chance_come_through_one_place_each() -> None:
    doors = {
        "models/kernel/clock.py": "the door to time",
        "models/kernel/ids.py": "the door to chance",
        "models/kernel/logs.py": "turns the time that a log record already carries into text",
    }

    def named(module: Module) -> Iterable[ast.AST]:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                if {"time", "random", "uuid", "secrets"} & {str(name).split(".")[0] for name in names}:
                    yield node
            elif dotted(node) in {"datetime.now", "datetime.utcnow", "datetime.today", "date.today"}:
                yield node

    assert outside(doors, named, *ROOMS) == ""


def test_the_doors_of_the_models_are_the_only_ones_that_speak_sql() -> None:
    """No SQL outside the models: neither the web nor the tasks import SQLAlchemy, but for its errors' names."""
    speaks = {
        (module.path, name)
        for module in modules("orchestrator_web", "orchestrator_tasks")
        for name in imports(module)
        if name.startswith("sqlalchemy")
    }
    assert speaks <= {("orchestrator_web/problems.py", "sqlalchemy.exc.DataError")}

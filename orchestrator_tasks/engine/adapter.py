"""The engine behind ENGINE_MODULE: found and checked at load, called with plain JSON values, its answers checked.

The classes of its contract are found by the annotations of its two functions: the snapshot and
its parts, the store of states, the configuration. An engine without annotations is given plain
classes with the same fields. Nothing here knows a process: `answer` is as good in a test or in a
replay as in a host.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, make_dataclass
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any

from models.engine.canonical import NotSerialisable, canonical
from models.engine.snapshots import FIELDS, SnapshotNotBuilt
from models.kernel.errors import InvalidSettings
from orchestrator_tasks.engine.checks import EngineFailed, StateNotKept, check_decision, check_output, described, detail
from orchestrator_tasks.engine.shapes import Misfit, alike, build, hints_of, plain, resolve, same

ROOT = Path(__file__).resolve().parent.parent.parent
TRUTH, HYSTERESIS, CHECK = "truth", "hysteresis", "check"
LONGEST_VERSION = 64


class Missing:
    """What an engine without an object of its own is given for what is missing."""

    def __repr__(self) -> str:
        return "MISSING"


@dataclass
class Store:
    """What an engine without annotations is given as its store."""

    states: dict[str, Any]


PARTS = {
    name: make_dataclass(f"{name.title()}Snapshot", [(field, Any) for field in names], frozen=True)
    for name, names in FIELDS.items()
}
Snapshot = make_dataclass("Snapshot", [("symbol", str), ("timestamp", int), *PARTS.items()], frozen=True)
OWN_MISSING = Missing()


@dataclass(frozen=True)
class Engine:
    """A loaded engine."""

    decide: Callable[..., Any]
    decide_with_hysteresis: Callable[..., Any]
    snapshot_type: Any
    store_type: Any
    state_type: Any
    config_type: Any  # None: the engine takes no configuration
    missing: Any
    version: str | None = None

    @classmethod
    def load(cls, module_path: str) -> Engine:
        """Import and check the module; raises InvalidSettings with one line that says what to do."""
        try:
            return load(module_path)
        except (Misfit, InvalidSettings) as error:
            raise InvalidSettings(f"ENGINE_MODULE={module_path}: {error.message}") from error

    @property
    def options(self) -> dict[str, bool] | None:
        """What it takes as its configuration: by name whether it is required; None when it takes anything."""
        if self.config_type is None:
            return {}
        if not is_dataclass(self.config_type):
            return None
        own = [field for field in fields(self.config_type)]
        return {f.name: f.init and f.default is MISSING and f.default_factory is MISSING for f in own}

    def check_config(self, config: Mapping[str, Any]) -> None:
        """Raises InvalidSettings when the engine does not take this configuration."""
        try:
            self.built_config(config)
        except Misfit as error:
            raise InvalidSettings(f"engine.hysteresis: {error.message}") from error

    def run(self, input: Mapping[str, Any]) -> dict[str, Any]:
        """The RegimeOutput for an input.

        Raises SnapshotNotBuilt, EngineFailed, or whatever the engine raises.
        """
        output = self.answered(self.decide(self.snapshot(input)))
        check_output(output, input["symbol"], input["timestamp"])
        return output

    def run_with_hysteresis(
        self, input: Mapping[str, Any], state: Mapping[str, Any] | None, config: Mapping[str, Any] | None
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The HysteresisDecision for an input and the symbol's state, and its state from now on.

        Raises SnapshotNotBuilt, StateNotKept, EngineFailed, or whatever the engine raises.
        """
        snapshot, symbol = self.snapshot(input), input["symbol"]
        store = self.store_type(states={symbol: self.restored(state)} if state is not None else {})
        more = (self.built_config(config),) if config else self.no_config()
        decision = self.answered(self.decide_with_hysteresis(snapshot, store, *more))
        check_decision(decision, symbol, input["timestamp"])
        return decision, self.kept(store.states.get(symbol))

    def snapshot(self, input: Mapping[str, Any]) -> Any:
        """The engine's own input object, with its own missing value wherever one is omitted."""
        try:
            kinds = hints_of(self.snapshot_type)
            return self.snapshot_type(
                **{name: self.part(kinds[name], input[name]) for name in input if name in kinds and name in FIELDS},
                **{name: build(kinds[name], input[name]) for name in ("symbol", "timestamp")},
            )
        except Exception as error:
            raise SnapshotNotBuilt(described(error)) from error

    def part(self, kind: Any, given: Mapping[str, Any]) -> Any:
        """One part: each field that its class has, by its annotation; what we know nothing of is missing."""
        kinds = hints_of(kind)
        names = [field.name for field in fields(kind) if field.init]
        return kind(**{n: build(kinds[n], given[n], self.missing) if n in given else self.missing for n in names})

    def restored(self, state: Mapping[str, Any]) -> Any:
        try:
            return build(self.state_type, state, self.missing)
        except Misfit as error:
            raise StateNotKept(f"the stored state cannot be restored: {error.message}") from error

    def kept(self, state: Any) -> Any:
        """The state as JSON, of which it can be made again."""
        try:
            stored = plain(state, self.missing)
            again = self.restored(stored)
            if same(plain(again, self.missing), stored) and alike(state, again):
                return stored
        except (Misfit, NotSerialisable) as error:
            raise StateNotKept(f"the state cannot be stored: {error.message}") from error
        raise StateNotKept("the state cannot be stored: its annotations do not say how it is made again")

    def built_config(self, config: Mapping[str, Any]) -> Any:
        if self.config_type is None and config:
            raise Misfit("run_with_hysteresis takes no configuration")
        return build(self.config_type, dict(config))

    def no_config(self) -> tuple[None, ...]:
        return () if takes(self.decide_with_hysteresis, 2) else (None,)

    def answered(self, answer: Any) -> dict[str, Any]:
        try:
            value = plain(answer, self.missing)
            canonical(value)
        except (Misfit, NotSerialisable) as error:
            raise EngineFailed(detail(f"what the engine answered is not serialisable: {error.message}")) from error
        if not isinstance(value, dict):
            raise EngineFailed(detail(f"the engine answered a {type(answer).__name__}, not an object with fields"))
        return value


def answer(engine: Engine, request: Mapping[str, Any]) -> dict[str, Any]:
    """Call the engine for one attempt and say how it went, whatever the engine does that an exception can tell.

    A request has `mode`, `input`, and with hysteresis `state` and `config`. The answer is `{"ok": {...}}` with
    `regime_output`, and with hysteresis `hysteresis_decision` and `state`; or it has `error_kind` and `error_detail`.
    The mode CHECK asks for nothing but what the engine says of itself: `version` and `options`.
    """
    try:
        return {"ok": called(engine, request)}
    except (EngineFailed, StateNotKept, SnapshotNotBuilt) as error:
        return {"error_kind": error.code, "error_detail": error.message}
    except BaseException as error:  # SystemExit as well: it is the engine's, and ends nothing of ours
        return {"error_kind": EngineFailed.code, "error_detail": described(error)}


def called(engine: Engine, request: Mapping[str, Any]) -> dict[str, Any]:
    if request["mode"] == CHECK:
        if request["config"]:  # without any the engine is called without one
            engine.check_config(request["config"])
        return {"version": engine.version, "options": engine.options}
    if request["mode"] == TRUTH:
        return {"regime_output": engine.run(request["input"])}
    decision, state = engine.run_with_hysteresis(request["input"], request.get("state"), request.get("config"))
    return {"regime_output": decision["selected_output"], "hysteresis_decision": decision, "state": state}


def load(module_path: str) -> Engine:
    module = imported(module_path)
    decide = entry(module, "run", (1,), "a snapshot")
    with_hysteresis = entry(module, "run_with_hysteresis", (2, 3), "a snapshot, a store and perhaps a configuration")
    snapshot_type = class_of(decide, 0) or Snapshot
    for part in FIELDS:
        if not is_dataclass(hints_of(snapshot_type).get(part)):
            raise InvalidSettings(f"{snapshot_type.__name__} needs a field {part} whose annotation is a dataclass")
    store_type = class_of(with_hysteresis, 1) or Store
    config_type = (class_of(with_hysteresis, 2) or Any) if takes(with_hysteresis, 3) else None
    for kind in (snapshot_type, store_type, config_type):
        resolve(kind)
    return Engine(
        decide=decide,
        decide_with_hysteresis=with_hysteresis,
        snapshot_type=snapshot_type,
        store_type=store_type,
        state_type=state_of(store_type),
        config_type=config_type,
        missing=getattr(sys.modules.get(snapshot_type.__module__), "MISSING", OWN_MISSING),
        version=version_of(module),
    )


def version_of(module: ModuleType) -> str | None:
    """What it says that it is; only a text can be shown, and kept with the runs that it makes."""
    found = getattr(module, "__version__", None)
    return detail(found)[:LONGEST_VERSION] or None if isinstance(found, str) else None


def imported(module_path: str) -> ModuleType:
    """The module; the working directory and the project's own folder are looked in after all others."""
    sys.path += [folder for folder in (os.getcwd(), str(ROOT)) if folder not in sys.path]
    try:
        return importlib.import_module(module_path)
    except ModuleNotFoundError as error:
        if error.name and f"{module_path}.".startswith(f"{error.name}."):
            raise InvalidSettings(f"there is no module {error.name}; is its folder on PYTHONPATH?") from None
        raise InvalidSettings(f"it cannot be imported: {described(error)}") from error
    except (Exception, SystemExit) as error:
        raise InvalidSettings(f"it cannot be imported: {described(error)}") from error


def entry(module: ModuleType, name: str, arities: tuple[int, ...], given: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if function is None:
        raise InvalidSettings(f"it has no function {name}; an engine has run and run_with_hysteresis")
    if not callable(function):
        raise InvalidSettings(f"{name} is no function")
    if not any(takes(function, arity) for arity in arities):
        raise InvalidSettings(f"{name} must take {given}, but is {name}{signature_of(function)}")
    return function  # type: ignore[no-any-return]


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.Signature.from_callable(function)


def takes(function: Callable[..., Any], arity: int) -> bool:
    """Whether it can be called with so many arguments by position."""
    try:
        signature_of(function).bind(*[None] * arity)
    except (TypeError, ValueError):
        return False
    return True


def class_of(function: Callable[..., Any], index: int) -> Any:
    """The dataclass that a parameter is annotated with, without its Optional; None when the engine leaves it open."""
    parameter = list(signature_of(function).parameters.values())[index]
    annotated = function if inspect.isroutine(function) else type(function).__call__
    try:
        kind = typing.get_type_hints(annotated).get(parameter.name, Any)
    except (NameError, TypeError, SyntaxError) as error:
        raise InvalidSettings(f"the annotations of {function!r:.60} cannot be resolved: {error}") from None
    if typing.get_origin(kind) in (typing.Union, UnionType):
        kind = next((member for member in typing.get_args(kind) if is_dataclass(member)), Any)
    if kind in (Any, object) or getattr(kind, "_is_protocol", False):
        return None
    if not is_dataclass(kind):
        raise InvalidSettings(f"parameter {parameter.name} is annotated with {kind}, which is no dataclass")
    return kind


def state_of(store_type: Any) -> Any:
    """The class of one symbol's state, of a store with `states: dict[symbol, state]`."""
    args = typing.get_args(hints_of(store_type).get("states"))
    try:
        store_type(states={})
    except TypeError:
        raise InvalidSettings(f"{store_type.__name__}(states={{}}) does not work") from None
    return args[1] if len(args) == 2 else Any  # noqa: PLR2004 - the annotation of a mapping

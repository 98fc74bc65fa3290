"""The engine behind ENGINE_MODULE: what it is refused for at load, what it is given, what it may answer."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from examples.regime_engine import contracts
from models.engine.canonical import canonical
from models.engine.snapshots import FIELDS, MISSING
from models.engine.tables import ENGINE_FAILURE, ENGINE_TIMEOUT, SNAPSHOT_FAILURE, STATE_FAILURE
from models.kernel.errors import InvalidSettings
from orchestrator_tasks.engine import adapter, checks, host
from orchestrator_tasks.engine.adapter import Engine, answer

EXAMPLE = "examples.regime_engine.engine"
AT = 180_000
numbers = itertools.count(1)

CONTRACT = """
from __future__ import annotations
from dataclasses import dataclass, field
from examples.regime_engine.contracts import *

def output(snapshot, **other):
    return RegimeOutput(**{"symbol": snapshot.symbol, "timestamp": snapshot.timestamp, "regime": Regime.SQUEEZE_UP,
                           "confidence": 0.5, "drivers": ["d"], "invalidations": [], "permissions": [], **other})

def decision(selected, **other):
    known = dict(stable_regime=None, candidate_regime=None, candidate_count=0, transition_active=False, flipped=False,
                 reset_due_to_gap=False)
    return {"selected_output": selected, "effective_confidence": 0.5, "transition": known, **other}

def run(snapshot: RegimeInputSnapshot): return output(snapshot)
def run_with_hysteresis(snapshot: RegimeInputSnapshot, state: HysteresisStore, config: HysteresisConfig | None = None):
    return decision(output(snapshot))
"""

BARE = """
def answered(snapshot, drivers):
    return {"symbol": snapshot.symbol, "timestamp": snapshot.timestamp, "regime": "X", "confidence": 1,
            "drivers": drivers, "invalidations": [], "permissions": []}

def run(snapshot):
    return answered(snapshot, [repr(snapshot.market.price), repr(snapshot.flow.cvd), repr(snapshot.context.btc_regime)])

def run_with_hysteresis(snapshot, store, config):
    before = store.states.get(snapshot.symbol, {"seen": []})
    store.states[snapshot.symbol] = {"seen": [*before["seen"], snapshot.timestamp], "config": config}
    transition = {"stable_regime": None, "candidate_regime": "Y", "candidate_count": len(before["seen"]),
                  "transition_active": True, "flipped": False, "reset_due_to_gap": False}
    return {"selected_output": answered(snapshot, []), "effective_confidence": 0.5, "transition": transition}
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Makes a module of this source, and gives its name."""
    monkeypatch.syspath_prepend(tmp_path)
    made: list[str] = []

    def write(source: str) -> str:
        made.append(f"made_up_engine_{next(numbers)}")
        (tmp_path / f"{made[-1]}.py").write_text(source)
        return made[-1]

    yield write
    for name in made:
        sys.modules.pop(name, None)


@pytest.fixture
def engine(written: Callable[[str], str]) -> Callable[[str], Engine]:
    """Loads an engine that keeps the contract but for what `source` does otherwise."""
    return lambda source: Engine.load(written(CONTRACT + source))


def given(symbol: str = "BTC-USD", timestamp: int = AT, **parts: dict[str, Any]) -> dict[str, Any]:
    made = {name: dict.fromkeys(names, MISSING) | parts.get(name, {}) for name, names in FIELDS.items()}
    return {"symbol": symbol, "timestamp": timestamp, **made}


def truth(engine: Engine, **parts: dict[str, Any]) -> dict[str, Any]:
    return answer(engine, {"mode": "truth", "input": given(**parts)})


def hysteresis(engine: Engine, state: Any = None, config: Any = None, timestamp: int = AT) -> dict[str, Any]:
    request = {"mode": "hysteresis", "input": given(timestamp=timestamp), "state": state, "config": config}
    return answer(engine, request)


def test_the_kinds_of_failure_are_those_of_the_contract() -> None:
    kinds = {checks.EngineFailed.code, checks.StateNotKept.code, adapter.SnapshotNotBuilt.code, host.TIMEOUT}
    assert kinds == {ENGINE_FAILURE, STATE_FAILURE, SNAPSHOT_FAILURE, ENGINE_TIMEOUT}


# --- loading


def test_the_classes_of_an_engine_are_found_by_its_annotations() -> None:
    loaded = Engine.load(EXAMPLE)
    assert loaded.snapshot_type is contracts.RegimeInputSnapshot
    assert loaded.store_type is contracts.HysteresisStore
    assert loaded.state_type is contracts.HysteresisState
    assert loaded.config_type is contracts.HysteresisConfig
    assert loaded.missing is contracts.MISSING


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "it has no function run; an engine has run and run_with_hysteresis"),
        ("def run(s): ...", "it has no function run_with_hysteresis"),
        ("run = 5", "run is no function"),
        ("def run(): ...", "run must take a snapshot, but is run()"),
        ("def run(a, b): ...", "run must take a snapshot, but is run(a, b)"),
        ("def run(*, s): ...", "run must take a snapshot, but is run(*, s)"),
        ("def run(s): ...\ndef run_with_hysteresis(s): ...", "run_with_hysteresis must take a snapshot, a store and"),
        ("def run(s): ...\ndef run_with_hysteresis(a, b, c, d): ...", "run_with_hysteresis must take"),
        ("def run(s: 'Nowhere'): ...\ndef run_with_hysteresis(s, t): ...", "name 'Nowhere' is not defined"),
        ("def run(s: int): ...\ndef run_with_hysteresis(s, t): ...", "annotated with <class 'int'>, which is no data"),
        (CONTRACT + "def run(s: MarketSnapshot): ...", "MarketSnapshot needs a field market whose annotation is a"),
        (
            CONTRACT + "@dataclass\nclass Store:\n    other: int\n\ndef run_with_hysteresis(s, t: Store): ...",
            "Store(states={}) does not work",
        ),
        ("1 +", "it cannot be imported: SyntaxError"),
    ],
)
def test_what_is_no_engine_is_refused_in_one_line(source: str, reason: str, written: Callable[[str], str]) -> None:
    name = written(source)
    with pytest.raises(InvalidSettings) as refused:
        Engine.load(name)
    assert refused.value.message.startswith(f"ENGINE_MODULE={name}: ")
    assert reason in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("name", ["no_such_package.engine", "examples.no_such_engine", EXAMPLE + ".deeper"])
def test_a_module_that_is_not_there_is_refused_with_where_to_put_it(name: str) -> None:
    with pytest.raises(InvalidSettings) as refused:
        Engine.load(name)
    assert "there is no module " in refused.value.message
    assert "PYTHONPATH" in refused.value.message


def test_an_engine_may_be_any_callable(engine: Callable[[str], Engine]) -> None:
    class_made = engine(
        """
class Run:
    def __call__(self, snapshot: RegimeInputSnapshot): return output(snapshot)
run = Run()
import functools
run_with_hysteresis = functools.partial(run_with_hysteresis, config=None)
"""
    )
    assert class_made.snapshot_type is contracts.RegimeInputSnapshot
    assert "ok" in truth(class_made)
    assert "ok" in hysteresis(class_made)


def test_an_engine_without_annotations_is_given_plain_classes(written: Callable[[str], str]) -> None:
    bare = Engine.load(written(BARE))
    found = truth(bare, market={"price": 1.5}, context={"btc_regime": None})
    assert found["ok"]["regime_output"]["drivers"] == ["1.5", "MISSING", "None"]
    first = hysteresis(bare)["ok"]
    assert first["state"] == {"seen": [AT], "config": None}
    second = hysteresis(bare, first["state"], {"any": 1}, 2 * AT)["ok"]
    assert second["state"] == {"seen": [AT, 2 * AT], "config": {"any": 1}}
    assert second["hysteresis_decision"]["transition"]["candidate_count"] == 1


# --- what it is given


SPY = """
def run(snapshot: RegimeInputSnapshot):
    seen = [repr(snapshot.{field}), str(snapshot.{field} is MISSING)]
    return output(snapshot, drivers=seen)
"""


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (MISSING, ["MISSING", "True"]),
        (None, ["None", "False"]),
        (3, ["3.0", "False"]),
        (2.5, ["2.5", "False"]),
        ("odd", ["'odd'", "False"]),
    ],
)
def test_an_engine_is_given_its_own_missing_value_where_one_is_omitted(
    value: Any, seen: list[str], engine: Callable[[str], Engine]
) -> None:
    spy = engine(SPY.format(field="derivatives.liquidation_intensity"))
    found = truth(spy, derivatives={"liquidation_intensity": value})
    assert found["ok"]["regime_output"]["drivers"] == seen


def test_fields_that_the_contract_does_not_have_are_missing(engine: Callable[[str], Engine]) -> None:
    spy = engine(
        """
@dataclass(frozen=True)
class Wider(FlowSnapshot):
    later: float
@dataclass(frozen=True)
class RegimeInputSnapshot(RegimeInputSnapshot):
    flow: Wider
"""
        + SPY.format(field="flow.later")
        + """
def run_with_hysteresis(snapshot: RegimeInputSnapshot, state: HysteresisStore): return decision(output(snapshot))
"""
    )
    assert truth(spy)["ok"]["regime_output"]["drivers"] == ["MISSING", "True"]


def test_a_snapshot_that_its_own_class_refuses_is_not_the_engine_s_failure(engine: Callable[[str], Engine]) -> None:
    strict = engine(
        """
@dataclass(frozen=True)
class Strict(RegimeInputSnapshot):
    def __post_init__(self):
        if self.timestamp % 180_000: raise ValueError(f"timestamp_ms must be 3m-aligned (ms): got {self.timestamp}")
def run(snapshot: Strict): return output(snapshot)
"""
    )
    assert "ok" in truth(strict)
    assert answer(strict, {"mode": "truth", "input": given(timestamp=100)}) == {
        "error_kind": "snapshot_build_failure",
        "error_detail": "ValueError: timestamp_ms must be 3m-aligned (ms): got 100",
    }


# --- what it answers


@pytest.mark.parametrize(
    ("other", "detail"),
    [
        ("symbol='ETH'", "what the engine answered: symbol is 'ETH', not the input's 'BTC-USD'"),
        ("timestamp=1", "what the engine answered: timestamp is 1, not the input's 180000"),
        ("timestamp=180000.0", "what the engine answered: timestamp is no whole number"),
        ("regime=5", "what the engine answered: regime is no text"),
        ("regime=None", "what the engine answered: regime is no text"),
        ("confidence=True", "what the engine answered: confidence is no finite number"),
        ("confidence='high'", "what the engine answered: confidence is no finite number"),
        ("confidence=float('nan')", "what the engine answered is not serialisable: confidence is nan"),
        ("drivers='d'", "what the engine answered: drivers is no list of texts"),
        ("drivers=[1]", "what the engine answered: drivers is no list of texts"),
        ("permissions=None", "what the engine answered: permissions is no list of texts"),
        ("invalidations=[object()]", "what the engine answered is not serialisable: a object is neither"),
        ("drivers=['\\ud800']", "what the engine answered is not serialisable: drivers[0] contains half"),
        ("drivers=['a\\0b']", "what the engine answered is not serialisable: drivers[0] contains NUL"),
        ("drivers={1: 2}", "what the engine answered is not serialisable: a key is of type int"),
    ],
)
def test_an_answer_against_the_contract_is_a_failure_that_says_where(
    other: str, detail: str, engine: Callable[[str], Engine]
) -> None:
    wrong = engine(f"def run(snapshot: RegimeInputSnapshot): return output(snapshot, {other})")
    found = truth(wrong)
    assert found["error_kind"] == "engine_failure"
    assert found["error_detail"].startswith(detail)
    assert canonical(found)


@pytest.mark.parametrize("nothing", ["None", "5", "[1]", "'CHOP_BALANCED'"])
def test_an_answer_without_fields_is_a_failure(nothing: str, engine: Callable[[str], Engine]) -> None:
    found = truth(engine(f"def run(snapshot: RegimeInputSnapshot): return {nothing}"))
    assert "not an object with fields" in found["error_detail"]


def test_tuples_and_further_fields_are_kept_as_json(engine: Callable[[str], Engine]) -> None:
    wider = engine(
        """
@dataclass(frozen=True)
class Wider(RegimeOutput):
    extra: dict
def run(snapshot: RegimeInputSnapshot):
    return Wider(**vars(output(snapshot, drivers=("a", "b"))), extra={"scores": {Regime.SQUEEZE_UP.value: (1, None)}})
"""
    )
    found = truth(wider)["ok"]["regime_output"]
    assert found["drivers"] == ["a", "b"]
    assert found["extra"] == {"scores": {"SQUEEZE_UP": [1, None]}}
    assert found["regime"] == "SQUEEZE_UP"


@pytest.mark.parametrize(
    ("expression", "detail"),
    [
        ("decision(None)", "selected_output is no object"),
        ("decision(output(snapshot, symbol='ETH'))", "selected_output.symbol is 'ETH', not the input's"),
        (
            "decision(output(snapshot, timestamp=180001))",
            "selected_output.timestamp is 180001, after the input's 180000",
        ),
        ("decision(output(snapshot, drivers=None))", "selected_output.drivers is no list of texts"),
        ("decision(output(snapshot), effective_confidence=None)", "effective_confidence is no finite number"),
        ("decision(output(snapshot), transition=None)", "transition is no object"),
        ("decision(output(snapshot), transition={'stable_regime': 1})", "transition.stable_regime is neither"),
        ("decision(output(snapshot), transition={'candidate_count': 'x'})", "transition.candidate_count is no whole"),
        ("decision(output(snapshot), transition={'candidate_count': 1})", "transition.transition_active is neither"),
    ],
)
def test_a_decision_against_the_contract_is_a_failure(
    expression: str, detail: str, engine: Callable[[str], Engine]
) -> None:
    signature = "def run_with_hysteresis(snapshot: RegimeInputSnapshot, state: HysteresisStore):"
    found = hysteresis(engine(f"{signature} return {expression}"))
    assert found["error_kind"] == "engine_failure"
    assert detail in found["error_detail"]


def test_a_decision_may_select_an_earlier_output(engine: Callable[[str], Engine]) -> None:
    signature = "def run_with_hysteresis(snapshot: RegimeInputSnapshot, state: HysteresisStore):"
    found = hysteresis(engine(f"{signature} return decision(output(snapshot, timestamp=0))"))
    assert found["ok"]["regime_output"]["timestamp"] == 0


@pytest.mark.parametrize(
    ("raised", "detail"),
    [
        ("ValueError('no')", "ValueError: no"),
        ("ValueError()", "ValueError"),
        ("SystemExit(3)", "SystemExit: 3"),
        ("Silent()", "Silent"),
        ("ValueError('one\\ntwo\\x1b[31m')", "ValueError: one two?[31m"),
        ("ValueError(repr(object()))", "ValueError: <object object at 0x...>"),
    ],
)
def test_what_an_engine_raises_is_one_line_without_addresses(
    raised: str, detail: str, engine: Callable[[str], Engine]
) -> None:
    source = f"""
class Silent(Exception):
    def __str__(self): raise RuntimeError
def run(snapshot: RegimeInputSnapshot): raise {raised}
"""
    assert truth(engine(source)) == {"error_kind": "engine_failure", "error_detail": detail}


def test_a_long_complaint_is_cut_short(engine: Callable[[str], Engine]) -> None:
    found = truth(engine("def run(snapshot: RegimeInputSnapshot): raise ValueError('x' * 10**7)"))
    assert len(found["error_detail"]) == checks.LONGEST_DETAIL
    assert found["error_detail"].endswith("x...")


# --- states and configuration


def test_a_state_goes_through_json_unchanged_from_run_to_run() -> None:
    loaded, state = Engine.load(EXAMPLE), None
    for turn in range(1, 4):
        found = hysteresis(loaded, state, timestamp=turn * AT)["ok"]
        state = orjson.loads(canonical(found["state"]))
        assert loaded.restored(state).last_timestamp == turn * AT
        assert isinstance(loaded.restored(state).stable_output.regime, contracts.Regime)
    again = hysteresis(loaded, state, timestamp=3 * AT)
    assert again["error_detail"] == "HysteresisError: Non-increasing timestamp for hysteresis input."


def test_a_state_that_does_not_fit_the_engine_is_a_failure_of_the_state() -> None:
    found = hysteresis(Engine.load(EXAMPLE), {"candidate_count": 1, "window": 3})
    assert found["error_kind"] == "hysteresis_state_failure"
    assert found["error_detail"] == "the stored state cannot be restored: HysteresisState has no field window"


STATEFUL = """
from collections import defaultdict
from collections.abc import Sequence
from enum import Enum

class Plain(Enum):
    ONE = "one"
@dataclass
class State:
    value: {annotation}
@dataclass
class Store:
    states: dict[str, State]
def run_with_hysteresis(snapshot: RegimeInputSnapshot, state: Store, config: HysteresisConfig | None = None):
    state.states[snapshot.symbol] = State({value})
    return decision(output(snapshot))
"""


LOST = "the state cannot be stored: its annotations do not say how it is made again"


@pytest.mark.parametrize(
    ("annotation", "value", "detail"),
    [
        ("float", "float('inf')", "the state cannot be stored: value is inf, which JSON does not have"),
        ("object", "object()", "the state cannot be stored: a object is neither a dataclass nor"),
        ("dict", "{1: 2}", "the state cannot be stored: a key is of type int; keys are texts"),
        ("Regime", "'NOT_ONE'", "the stored state cannot be restored: 'NOT_ONE' is no Regime"),
        ("list[int]", "'x'", None),
        ("tuple[int, ...]", "(1, 2)", None),
        ("set[str]", "{'b', 'a'}", None),
        ("set[int]", "[1, 1]", LOST),
        ("dict", "{'seen': {1, 2}}", LOST),
        ("dict", "{'last': (1, 2)}", LOST),
        ("object", "(1, 2)", LOST),
        ("list", "[(1, 2)]", LOST),
        ("dict", "{'regime': Plain.ONE}", LOST),
        ("dict", "{'of': State(1)}", LOST),
        ("dict", "defaultdict(int)", LOST),
        ("dict", "{'seen': [1, 2.5, 'x', True, None, {'a': []}]}", None),
        ("dict[str, tuple[int, ...]]", "{'a': (1, 2)}", None),
        ("set[tuple[int, int]]", "{(1, 2)}", None),
        ("Sequence[int]", "(1, 2)", None),
        ("tuple[int, ...]", "[1, 2]", None),
        ("dict[str, set[Regime]]", "{'a': {Regime.SQUEEZE_UP}}", None),
        ("float", "MISSING", None),
    ],
)
def test_a_state_is_kept_only_if_it_can_be_made_again(
    annotation: str, value: str, detail: str | None, engine: Callable[[str], Engine]
) -> None:
    found = hysteresis(engine(STATEFUL.format(annotation=annotation, value=value)))
    if detail is None:
        assert "ok" in found
    else:
        assert found["error_kind"] == "hysteresis_state_failure"
        assert found["error_detail"].startswith(detail)


def test_a_symbol_that_the_engine_forgets_has_no_state(engine: Callable[[str], Engine]) -> None:
    forgetful = engine(
        "def run_with_hysteresis(snapshot: RegimeInputSnapshot, state: HysteresisStore):\n"
        "    state.states.clear()\n    return decision(output(snapshot))"
    )
    assert hysteresis(forgetful, {"candidate_count": 1})["ok"]["state"] is None


def test_the_configuration_is_the_engine_s_own_class(engine: Callable[[str], Engine]) -> None:
    told = engine(
        "def run_with_hysteresis(snapshot: RegimeInputSnapshot, state: HysteresisStore, config: HysteresisConfig):\n"
        "    return decision(output(snapshot, drivers=[repr(config)]))"
    )
    assert hysteresis(told, config={"decay_factor": 1})["ok"]["regime_output"]["drivers"] == [
        repr(contracts.HysteresisConfig(decay_factor=1.0))
    ]
    assert hysteresis(told, config={})["ok"]["regime_output"]["drivers"] == ["None"]


def test_a_configuration_that_the_engine_does_not_know_is_refused(engine: Callable[[str], Engine]) -> None:
    Engine.load(EXAMPLE).check_config({"decay_factor": 0.5})
    with pytest.raises(InvalidSettings, match=r"engine\.hysteresis: HysteresisConfig has no field window"):
        Engine.load(EXAMPLE).check_config({"window": 3})
    takes_none = engine(
        "def run_with_hysteresis(s: RegimeInputSnapshot, t: HysteresisStore): return decision(output(s))"
    )
    takes_none.check_config({})
    with pytest.raises(InvalidSettings, match="takes no configuration"):
        takes_none.check_config({"decay_factor": 0.5})
    assert "ok" in hysteresis(takes_none)

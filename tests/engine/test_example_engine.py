"""The example engine: its regimes have reasons, its hysteresis keeps the contract's rules, whatever it is given."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.regime_engine import contracts, engine, hysteresis
from examples.regime_engine.contracts import (
    HysteresisConfig,
    HysteresisDecision,
    HysteresisState,
    HysteresisStore,
    Regime,
    RegimeOutput,
)
from models.engine.snapshots import FIELDS, MISSING
from orchestrator_tasks.engine.adapter import Engine, answer

MODULE = "examples.regime_engine.engine"
STEP = 180_000

CALM: dict[str, dict[str, Any]] = {
    "market": {
        "price": 100.0,
        "vwap": 100.0,
        "atr": 2.0,
        "atr_z": 0.0,
        "range_expansion": 1.0,
        "structure_levels": {},
        "acceptance_score": 0.8,
        "sweep_score": 0.1,
    },
    "derivatives": {
        "open_interest": 1000.0,
        "oi_slope_short": 0.0,
        "oi_slope_med": 0.0,
        "oi_accel": 0.0,
        "funding_rate": 0.0,
        "funding_slope": 0.0,
        "funding_z": 0.0,
        "liquidation_intensity": None,
    },
    "flow": {"cvd": 0.0, "cvd_slope": 0.0, "cvd_efficiency": 0.5, "aggressive_volume_ratio": 0.5},
    "context": {
        "rs_vs_btc": 0.0,
        "beta_to_btc": 1.0,
        "alt_breadth": 0.5,
        "btc_regime": "CHOP_BALANCED",
        "eth_regime": None,
    },
}

MOVES: dict[Regime, dict[str, dict[str, Any]]] = {
    Regime.CHOP_BALANCED: {},
    Regime.CHOP_STOPHUNT: {"market": {"sweep_score": 0.9, "acceptance_score": 0.1}},
    Regime.TREND_BUILD_UP: {"market": {"price": 106.0}, "flow": {"cvd_slope": 2.0}},
    Regime.TREND_BUILD_DOWN: {"market": {"price": 94.0}, "flow": {"cvd_slope": -2.0}},
    Regime.TREND_EXHAUSTION: {"market": {"price": 106.0}, "flow": {"cvd_slope": -1.0}},
    Regime.SQUEEZE_UP: {"derivatives": {"funding_z": -3.0, "oi_slope_short": 4.0}},
    Regime.SQUEEZE_DOWN: {"derivatives": {"funding_z": 3.0, "oi_slope_short": 4.0}},
    Regime.LIQUIDATION_UP: {"market": {"price": 106.0}, "derivatives": {"liquidation_intensity": 9.0}},
    Regime.LIQUIDATION_DOWN: {"market": {"price": 94.0}, "derivatives": {"liquidation_intensity": 9.0}},
}


def inputs(moves: dict[str, dict[str, Any]], timestamp: int = STEP) -> dict[str, Any]:
    return {"symbol": "BTC-USD", "timestamp": timestamp} | {name: CALM[name] | moves.get(name, {}) for name in FIELDS}


def ask(given_input: dict[str, Any]) -> dict[str, Any]:
    found = answer(Engine.load(MODULE), {"mode": "truth", "input": given_input})
    return dict(found["ok"]["regime_output"])


@pytest.mark.parametrize("regime", Regime)
def test_every_regime_has_inputs_that_lead_to_it(regime: Regime) -> None:
    found = ask(inputs(MOVES[regime]))
    assert found["regime"] == regime.value
    assert 0 < found["confidence"] <= 1
    assert found["drivers"]
    assert found["invalidations"]
    assert found["permissions"]


def test_a_regime_is_a_function_of_the_snapshot() -> None:
    assert ask(inputs(MOVES[Regime.SQUEEZE_UP])) == ask(inputs(MOVES[Regime.SQUEEZE_UP]))


def test_what_is_missing_lowers_the_confidence_and_null_does_not() -> None:
    whole = inputs(MOVES[Regime.TREND_BUILD_UP])
    gaps = inputs(MOVES[Regime.TREND_BUILD_UP])
    gaps["context"] = dict.fromkeys(FIELDS["context"], MISSING)
    nulls = inputs(MOVES[Regime.TREND_BUILD_UP])
    nulls["context"] = dict.fromkeys(FIELDS["context"], None)
    assert ask(gaps)["regime"] == ask(whole)["regime"] == ask(nulls)["regime"]
    assert ask(gaps)["confidence"] < ask(whole)["confidence"] == ask(nulls)["confidence"]


def test_with_nothing_known_it_is_chop_and_hardly_believed() -> None:
    found = ask({"symbol": "X", "timestamp": 0} | {name: dict.fromkeys(FIELDS[name], MISSING) for name in FIELDS})
    assert found["regime"] == "CHOP_BALANCED"
    assert found["confidence"] < 0.25


def test_it_has_the_regimes_and_fields_of_the_contract() -> None:
    assert [regime.name for regime in Regime] == [regime.value for regime in Regime]
    for part, names in FIELDS.items():
        kind = contracts.RegimeInputSnapshot.__annotations__[part]
        assert tuple(getattr(contracts, kind).__annotations__) == names


values = st.one_of(
    st.just(MISSING),
    st.none(),
    st.booleans(),
    st.text(max_size=3),
    st.integers(-(2**63), 2**63),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.integers(), max_size=2),
)


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries({part: st.fixed_dictionaries(dict.fromkeys(names, values)) for part, names in FIELDS.items()})
)
def test_whatever_it_is_given_it_answers_by_the_contract(parts: dict[str, Any]) -> None:
    loaded = Engine.load(MODULE)
    for mode in ("truth", "hysteresis"):
        found = answer(loaded, {"mode": mode, "input": {"symbol": "X", "timestamp": STEP, **parts}})
        assert "ok" in found, found
        assert 0 <= found["ok"]["regime_output"]["confidence"] <= 1


# --- hysteresis: each vector is worked out by hand from the rules of the contract


A, B, C = Regime.CHOP_BALANCED, Regime.TREND_BUILD_UP, Regime.SQUEEZE_DOWN


def output(turn: float, regime: Regime, confidence: float) -> RegimeOutput:
    return RegimeOutput("X", int(turn * STEP), regime, confidence, [], [], [])


def decisions(*steps: tuple[float, Regime, float], config: HysteresisConfig | None = None) -> list[HysteresisDecision]:
    state, made = HysteresisState(), []
    for step in steps:
        decision, state = hysteresis.step(output(*step), state, config or HysteresisConfig())
        made.append(decision)
    return made


def seen(decision: HysteresisDecision) -> tuple[Any, ...]:
    """(selected regime, effective confidence, candidate, count, active, flipped, reset)."""
    then = decision.transition
    assert then.stable_regime is decision.selected_output.regime
    return (
        decision.selected_output.regime,
        round(decision.effective_confidence, 9),
        then.candidate_regime,
        then.candidate_count,
        then.transition_active,
        then.flipped,
        then.reset_due_to_gap,
    )


def test_the_first_output_is_stable_and_the_same_regime_refreshes_it() -> None:
    first, second = decisions((1, A, 0.7), (2, A, 0.4))
    assert seen(first) == (A, 0.7, None, 0, False, False, False)
    assert seen(second) == (A, 0.4, None, 0, False, False, False)
    assert second.selected_output.timestamp == 2 * STEP


def test_another_regime_takes_over_when_it_came_three_times_and_is_believed() -> None:
    made = decisions((1, A, 0.8), (2, B, 0.9), (3, B, 0.9), (4, B, 0.6))
    assert [seen(decision) for decision in made[1:]] == [
        (A, 0.68, B, 1, True, False, False),  # 0.8 x 0.85
        (A, 0.578, B, 2, True, False, False),  # 0.8 x 0.85 x 0.85
        (B, 0.6, None, 0, False, True, False),
    ]
    assert made[2].selected_output.timestamp == STEP


def test_a_regime_that_is_not_believed_does_not_take_over_however_often_it_comes() -> None:
    made = decisions((1, A, 0.8), (2, B, 0.59), (3, B, 0.59), (4, B, 0.59), (5, B, 0.6))
    assert seen(made[3]) == (A, round(0.8 * 0.85**3, 9), B, 3, True, False, False)
    assert seen(made[4]) == (B, 0.6, None, 0, False, True, False)  # the fourth, and believed


def test_counting_begins_again_when_the_candidate_changes() -> None:
    made = decisions((1, A, 0.8), (2, B, 0.9), (3, B, 0.9), (4, C, 0.9), (5, B, 0.9))
    assert [decision.transition.candidate_count for decision in made] == [0, 1, 2, 1, 1]
    assert seen(made[4])[0] is A


def test_the_stable_regime_coming_back_ends_the_counting() -> None:
    made = decisions((1, A, 0.8), (2, B, 0.9), (3, B, 0.9), (4, A, 0.5), (5, B, 0.9))
    assert seen(made[3]) == (A, 0.5, None, 0, False, False, False)
    assert made[4].transition.candidate_count == 1


def test_what_is_believed_less_and_less_does_not_fall_below_the_floor() -> None:
    made = decisions((1, A, 0.3), *((turn, B, 0.1) for turn in range(2, 7)))
    assert [round(decision.effective_confidence, 6) for decision in made] == [0.3, 0.255, 0.21675, 0.2, 0.2, 0.2]


def test_a_gap_longer_than_the_interval_begins_anew_and_one_as_long_does_not() -> None:
    exactly, beyond = decisions((1, A, 0.8), (2, B, 0.9)), decisions((1, A, 0.8), (2.00001, B, 0.9))
    assert seen(exactly[1])[0] is A
    assert seen(beyond[1]) == (B, 0.9, None, 0, False, False, True)


def test_a_gap_resets_even_when_the_regime_is_the_same() -> None:
    assert seen(decisions((1, A, 0.8), (3, A, 0.9))[1]) == (A, 0.9, None, 0, False, False, True)


@pytest.mark.parametrize("turn", [1, 0.5])
def test_time_that_does_not_rise_is_an_error(turn: float) -> None:
    with pytest.raises(hysteresis.HysteresisError, match=r"^Non-increasing timestamp for hysteresis input\.$"):
        decisions((1, A, 0.8), (turn, A, 0.8))


def test_the_configuration_rules() -> None:
    config = HysteresisConfig(1, 0.0, 0.5, 0.1, 10 * STEP)
    assert seen(decisions((1, A, 0.8), (9, B, 0.01), config=config)[1]) == (B, 0.01, None, 0, False, True, False)
    config = replace(config, min_persistence_updates=9)
    assert seen(decisions((1, A, 0.8), (9, B, 0.9), config=config)[1]) == (A, 0.4, B, 1, True, False, False)


def test_the_store_keeps_each_symbol_by_itself() -> None:
    store = HysteresisStore({})
    loaded = Engine.load(MODULE)
    for symbol, timestamp in (("X", STEP), ("Y", STEP), ("X", 2 * STEP)):
        engine.run_with_hysteresis(loaded.snapshot(inputs({}) | {"symbol": symbol, "timestamp": timestamp}), store)
    assert {symbol: state.last_timestamp for symbol, state in store.states.items()} == {"X": 2 * STEP, "Y": STEP}


def test_the_example_needs_nothing_but_itself() -> None:
    folder = Path(engine.__file__).parent
    imported = {
        node.module
        for file in folder.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom)
    }
    standard = {"__future__", "dataclasses", "enum", "typing", "collections.abc"}
    assert {name for name in imported if not str(name).startswith("examples.regime_engine")} <= standard

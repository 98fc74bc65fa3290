"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Missing:
    """A value that nobody sent; `None` is a value that was sent."""

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False


MISSING: Any = Missing()


class Regime(Enum):
    CHOP_BALANCED = "CHOP_BALANCED"
    CHOP_STOPHUNT = "CHOP_STOPHUNT"
    LIQUIDATION_UP = "LIQUIDATION_UP"
    LIQUIDATION_DOWN = "LIQUIDATION_DOWN"
    SQUEEZE_UP = "SQUEEZE_UP"
    SQUEEZE_DOWN = "SQUEEZE_DOWN"
    TREND_BUILD_UP = "TREND_BUILD_UP"
    TREND_BUILD_DOWN = "TREND_BUILD_DOWN"
    TREND_EXHAUSTION = "TREND_EXHAUSTION"


@dataclass(frozen=True)
class MarketSnapshot:
    price: float
    vwap: float
    atr: float
    atr_z: float
    range_expansion: float
    structure_levels: dict[str, Any]
    acceptance_score: float
    sweep_score: float


@dataclass(frozen=True)
class DerivativesSnapshot:
    open_interest: float
    oi_slope_short: float
    oi_slope_med: float
    oi_accel: float
    funding_rate: float
    funding_slope: float
    funding_z: float
    liquidation_intensity: float | None


@dataclass(frozen=True)
class FlowSnapshot:
    cvd: float
    cvd_slope: float
    cvd_efficiency: float
    aggressive_volume_ratio: float


@dataclass(frozen=True)
class ContextSnapshot:
    rs_vs_btc: float
    beta_to_btc: float
    alt_breadth: float
    btc_regime: str | None
    eth_regime: str | None


@dataclass(frozen=True)
class RegimeInputSnapshot:
    """Everything that is known about one symbol at one moment (milliseconds since 1970)."""

    symbol: str
    timestamp: int
    market: MarketSnapshot
    derivatives: DerivativesSnapshot
    flow: FlowSnapshot
    context: ContextSnapshot


@dataclass(frozen=True)
class RegimeOutput:
    symbol: str
    timestamp: int
    regime: Regime
    confidence: float
    drivers: list[str]
    invalidations: list[str]
    permissions: list[str]


@dataclass(frozen=True)
class HysteresisConfig:
    """How firmly a regime is held; `update_interval_ms` is the longest step that continues what was before."""

    min_persistence_updates: int = 3
    min_confidence_for_flip: float = 0.6
    decay_factor: float = 0.85
    min_confidence_floor: float = 0.2
    update_interval_ms: int = 180_000


@dataclass(frozen=True)
class HysteresisState:
    """What is remembered of one symbol."""

    stable_output: RegimeOutput | None = None
    candidate_regime: Regime | None = None
    candidate_count: int = 0
    last_timestamp: int | None = None


@dataclass
class HysteresisStore:
    """The states by symbol; `run_with_hysteresis` puts the new one here."""

    states: dict[str, HysteresisState] = field(default_factory=dict)


@dataclass(frozen=True)
class HysteresisTransition:
    stable_regime: Regime | None
    candidate_regime: Regime | None
    candidate_count: int
    transition_active: bool
    flipped: bool
    reset_due_to_gap: bool


@dataclass(frozen=True)
class HysteresisDecision:
    selected_output: RegimeOutput
    effective_confidence: float
    transition: HysteresisTransition

"""The configuration of the engine: what a valid one says, and its complete form.

A body is a mapping as a TOML file gives it. `read_config` makes a `Config` of it or says what is
wrong with every key that is; `Config.body()` is the same again with every default in its place, so that
bodies which mean the same are equal.
"""
# ruff: noqa: RUF009 - the defaults are fields

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.engine.sections import (
    MOST_NAMES,
    Problems,
    Section,
    flag,
    key,
    name,
    names,
    one_of,
    plain,
    read_section,
    scalars,
    section,
    sections,
    short_text,
    stream,
    whole,
)
from models.kernel.errors import InvalidSettings

TIMER, BOUNDARY = "timer", "boundary"
TRUTH, HYSTERESIS = "truth", "hysteresis"

LONGEST_MS = 366 * 86_400_000
LONGEST_TIMEOUT_MS = 3_600_000
LAST_EPOCH = 1_000_000
MOST_ATTEMPTS = 1000
REFUSED = ":refused"  # after the subscription's stream: where entries go that are no events


@dataclass(frozen=True, kw_only=True)
class Source(Section):
    """Who may send, and events of which symbols."""

    source_id: str = key(name)
    symbols: tuple[str, ...] = key(names)


@dataclass(frozen=True, kw_only=True)
class Scheduler(Section):
    """When runs are planned."""

    mode: str = key(one_of(TIMER, BOUNDARY))
    timer_interval_ms: int | None = key(whole(1, LONGEST_MS), default=None)
    boundary_interval_ms: int | None = key(whole(1, LONGEST_MS), default=None)
    boundary_delay_ms: int | None = key(whole(0, LONGEST_MS), default=None)
    max_catch_up_ticks: int = key(whole(1, 100_000), default=480)

    @property
    def interval_ms(self) -> int:
        return (self.timer_interval_ms if self.mode == TIMER else self.boundary_interval_ms) or 1

    @property
    def delay_ms(self) -> int:
        return (self.boundary_delay_ms or 0) if self.mode == BOUNDARY else 0

    def problems(self) -> Problems:
        needed = {TIMER: ("timer_interval_ms",), BOUNDARY: ("boundary_interval_ms", "boundary_delay_ms")}
        for each in needed[self.mode]:
            if getattr(self, each) is None:
                yield each, f"is required when mode is {self.mode}"


@dataclass(frozen=True, kw_only=True)
class Engine(Section):
    """How the engine is called. `hysteresis` is its own configuration, as the engine knows it.

    A run is given the newest state that a run of its symbol left under the same `state_epoch`.
    """

    engine_mode: str = key(one_of(TRUTH, HYSTERESIS))
    alignment_ms: int = key(whole(1, LONGEST_MS), default=180_000)
    timeout_ms: int = key(whole(1, LONGEST_TIMEOUT_MS), default=10_000)
    memory_mb: int = key(whole(16, 1_048_576), default=512)
    hysteresis: dict[str, Any] | None = key(scalars, default=None)
    hysteresis_state_path: str | None = key(short_text, default=None)
    state_epoch: int = key(whole(0, LAST_EPOCH), default=0)

    def body(self) -> dict[str, Any]:
        """Without the first epoch: configurations that were accepted before there were any keep their digests."""
        whole_body = super().body()
        return whole_body if self.state_epoch else {n: v for n, v in whole_body.items() if n != "state_epoch"}


@dataclass(frozen=True, kw_only=True)
class Retry(Section):
    """Delays that double from the least to the greatest: one attempt for each, as long as their sum is allowed."""

    min_delay_ms: int = key(whole(1, LONGEST_MS), default=100)
    max_delay_ms: int = key(whole(1, LONGEST_MS), default=5000)
    max_attempts: int = key(whole(1, MOST_ATTEMPTS), default=5)
    max_elapsed_ms: int | None = key(whole(1, LONGEST_MS), default=None)

    def problems(self) -> Problems:
        if self.max_delay_ms < self.min_delay_ms:
            yield "max_delay_ms", f"must not be less than min_delay_ms ({self.min_delay_ms})"
        if self.max_elapsed_ms is not None and self.max_elapsed_ms < self.min_delay_ms:
            yield "max_elapsed_ms", f"allows no attempt: it is less than min_delay_ms ({self.min_delay_ms})"


@dataclass(frozen=True, kw_only=True)
class BufferRetention(Section):
    """How much of the log is kept."""

    max_records: int = key(whole(1), default=1_000_000)
    max_age_ms: int | None = key(whole(1), default=None)


@dataclass(frozen=True, kw_only=True)
class Subscription(Section):
    """The Redis Stream that events are read from; an empty name means none."""

    stream: str = key(stream, default="")
    group: str = key(name, default="orchestrator")


@dataclass(frozen=True, kw_only=True)
class OutputPublish(Section):
    """The Redis Stream that outputs are pushed to, and when waiting for it pauses the planning."""

    max_pending: int = key(whole(1), default=10_000)
    max_block_ms: int | None = key(whole(1, LONGEST_MS), default=None)
    stream: str = key(stream, default="")
    stream_max_len: int = key(whole(1), default=100_000)


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """One valid configuration."""

    autostart: bool = key(flag, default=True)
    sources: tuple[Source, ...] = sections(Source)
    scheduler: Scheduler = section(Scheduler, required=True)
    engine: Engine = section(Engine, required=True)
    ingestion_retry: Retry = section(Retry)
    buffer_retry: Retry = section(Retry)
    engine_retry: Retry = section(Retry)
    publish_retry: Retry = section(Retry)
    buffer_retention: BufferRetention = section(BufferRetention)
    subscription: Subscription = section(Subscription)
    output_publish: OutputPublish = section(OutputPublish)

    @property
    def symbols(self) -> tuple[str, ...]:
        """All symbols of all sources, in order."""
        return tuple(sorted({symbol for source in self.sources for symbol in source.symbols}))

    @property
    def symbols_by_source(self) -> dict[str, frozenset[str]]:
        return {source.source_id: frozenset(source.symbols) for source in self.sources}

    def problems(self) -> Problems:
        known: set[str] = set()
        for place, source in enumerate(self.sources):
            if source.source_id in known:
                yield f"sources[{place}].source_id", f"{source.source_id!r} is already there: ids must be unique"
            known.add(source.source_id)
        if len(self.symbols) > MOST_NAMES:
            yield "sources", f"name {len(self.symbols)} symbols: at most {MOST_NAMES} in all"
        interval, alignment = self.scheduler.boundary_interval_ms, self.engine.alignment_ms
        if self.scheduler.mode == BOUNDARY and interval and interval % alignment:
            yield "scheduler.boundary_interval_ms", f"must be a multiple of engine.alignment_ms ({alignment})"
        yield from self.crossed()

    def crossed(self) -> Problems:
        """Outputs in a stream that the subscription reads, or writes, would be taken for events and deleted."""
        taken, given = self.subscription.stream, self.output_publish.stream
        if taken and given == taken:
            yield "subscription.stream", "must not be output_publish.stream"
            yield "output_publish.stream", "must not be subscription.stream"
        if taken and given == taken + REFUSED:
            yield "output_publish.stream", f"must not be where subscription.stream's refused entries go ({REFUSED})"

    def body(self) -> dict[str, Any]:
        """Complete: every key with its value, sources and symbols in order."""
        ordered = sorted((plain(source) for source in self.sources), key=lambda source: source["source_id"])
        return {**super().body(), "sources": ordered}


def read_config(body: Mapping[str, Any]) -> Config:
    """The configuration that a body describes; raises InvalidSettings with one line for each key that is wrong."""
    wrong: list[str] = []
    config = read_section(Config, body, "", wrong)
    if wrong or not isinstance(config, Config):
        raise InvalidSettings("\n".join(wrong))
    return config

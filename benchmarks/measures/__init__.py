"""The measures, by what they are about. Each says what is measured, from which moment to which."""

from __future__ import annotations

from benchmarks.measures import backlogs, creates, executes, memory, sizes, streams, successes

ALL = (
    *creates.MEASURES,
    *executes.MEASURES,
    *backlogs.MEASURES,
    *sizes.MEASURES,
    *memory.MEASURES,
    *streams.MEASURES,
    *successes.MEASURES,
)

"""What one batch of events comes to: its rows as they are copied, and the facts that the log's books take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import attrgetter

from models.engine.contract import Received
from models.kernel.copying import DELIMITER, QUOTE
from models.kernel.session import to_json

KINDS, SYMBOL = attrgetter("source_id", "symbol", "event_type"), attrgetter("symbol")


def facts_of(received: Sequence[Received]) -> dict[str, str]:
    batch = Batch()
    batch.add(received)
    return batch.facts()


class Batch:
    """How many of what came so far, and at which place in the batch each symbol came first."""

    def __init__(self) -> None:
        self.n = 0
        self.kinds: Counter[tuple[str, str, str]] = Counter()
        self.places: dict[str, int] = {}

    def add(self, part: Sequence[Received]) -> None:
        self.kinds.update(map(KINDS, part))
        for place, symbol in enumerate(map(SYMBOL, part), self.n + 1):
            self.places.setdefault(symbol, place)
        self.n += len(part)

    def rows_of(self, part: Sequence[Received], first_seq: int, ingest_ts_ms: int) -> str:
        """The next part's rows as `copy_rows` takes them; it is counted too."""
        at = f"{DELIMITER}{ingest_ts_ms}{DELIMITER}"
        rows = [
            f"{seq}{at}{r.source_id}{DELIMITER}{r.symbol}{DELIMITER}{r.event_type}{DELIMITER}"
            f"{'' if r.snapshot_ts_ms is None else r.snapshot_ts_ms}{DELIMITER}{QUOTE}{r.event}{QUOTE}\n"
            for seq, r in enumerate(part, first_seq + self.n)
        ]
        self.add(part)
        return "".join(rows)

    def names(self) -> tuple[list[str], list[str]]:
        """The sources and symbols that came."""
        return sorted({source_id for source_id, _, _ in self.kinds}), sorted(self.places)

    def facts(self) -> dict[str, str]:
        """What the log's books take: counts by symbol and event type, totals by source and event type, first places."""
        counts: dict[str, dict[str, int]] = {}
        totals: Counter[tuple[str, str]] = Counter()
        for (source_id, symbol, event_type), n in self.kinds.items():
            of_symbol = counts.setdefault(symbol, {})
            of_symbol[event_type] = of_symbol.get(event_type, 0) + n
            totals[source_id, event_type] += n
        named = [{"source_id": name[0], "event_type": name[1], "events": n} for name, n in sorted(totals.items())]
        return {"counts": to_json(counts), "totals": to_json(named), "places": to_json(self.places)}

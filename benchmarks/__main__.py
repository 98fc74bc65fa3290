"""`python -m benchmarks`: the service beside its peers, measured in the same run on the same servers."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, plot, report
from benchmarks.bench import QUICK, Bench, Sizes
from benchmarks.harness import Found, Measure, carry_out
from benchmarks.measures import ALL


def say(text: str = "") -> None:
    print(text, flush=True)


def chosen(names: str | None) -> list[Measure]:
    """The measures by these names. Raises SystemExit naming what is not known."""
    known = {measure.name: measure for measure in ALL}
    wanted = names.split(",") if names else list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise SystemExit(f"no measure is called {unknown[0]}; there are: {', '.join(known)}")
    return [known[name] for name in wanted]


def run(measures: Sequence[Measure], rounds: int, sizes: Sizes) -> tuple[list[Found], dict[str, Any]]:
    facts: dict[str, Any] = {"machine": machine.describe(), "rounds": rounds, "quick": sizes is QUICK}
    began = time.monotonic()
    bench = Bench(sizes)
    try:
        bench.start()
        facts["durability"] = bench.durability()
        tell(facts)
        found = carry_out(measures, bench, rounds, say, judged=sizes is not QUICK)
    finally:
        bench.close()
    facts["seconds"] = round(time.monotonic() - began, 1)
    facts["load_after"] = "{:.2f} {:.2f} {:.2f}".format(*os.getloadavg())
    return found, facts


def tell(facts: dict[str, Any]) -> None:
    for name, value in facts["machine"].items():
        say(f"{name:12}{value}")
    say(f"{'durability':12}" + ", ".join(f"{name} {value}" for name, value in facts["durability"].items()))
    say(f"{'':12}the same servers, and so the same settings, for every system")
    say()


def read_arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--measures", help=f"only these, by comma: {', '.join(each.name for each in ALL)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every value of every round")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="an SVG of what was reached")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table for the README")
    return parser.parse_args(words)


def end_well(*_: object) -> None:
    """A termination ends the run as Ctrl-C does, so that nothing is left behind."""
    raise KeyboardInterrupt


def main() -> None:
    signal.signal(signal.SIGTERM, end_well)
    given = read_arguments(sys.argv[1:])
    found, facts = run(chosen(given.measures), given.rounds, QUICK if given.quick else Sizes())
    say()
    for line in report.lines(found):
        say(line)
    say()
    say(f"{facts['seconds']:g} s in all; load afterwards {facts['load_after']}")
    if given.quick:
        say("These were tiny sizes: the figures say nothing.")
    if given.json:
        given.json.write_text(report.dumps(report.document(found, facts)))
    if given.plot:
        given.plot.write_text(plot.svg(found, f"{facts['machine']['cores']}; {facts['rounds']} rounds"))
    if given.markdown:
        given.markdown.write_text(report.markdown(found) + "\n")
    if any(each.failed for each in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""The rules of the harness: what a ratio is, what a reach means, and that one failure stays one."""

from __future__ import annotations

import pytest

from benchmarks import plot, report
from benchmarks.__main__ import chosen
from benchmarks.harness import Found, Measure, MeasureFailed, Row, Values, alternate, carry_out, quantile
from benchmarks.measures import ALL
from benchmarks.service import watched
from orchestrator_cli.migrate import ROOT

FASTER = Row("rate", "mine", "/s", "theirs", at_least=2.0)
SOONER = Row("time", "mine", "ms", at_most=15)


def found(row: Row, **values: list[float]) -> Found:
    return Found(Measure("example", (row,), lambda _bench, _round: {}), values=dict(values))


def test_a_ratio_is_held_against_the_baseline_of_its_own_round() -> None:
    rounds = found(FASTER, mine=[10.0, 40.0, 90.0], theirs=[10.0, 20.0, 30.0])
    assert rounds.ratios("mine", "theirs") == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(("theirs", "verdict"), [(5.0, "met"), (5.1, "missed")])
def test_a_rate_is_met_from_its_reach_on(theirs: float, verdict: str) -> None:
    assert found(FASTER, mine=[10.0], theirs=[theirs]).verdict(FASTER) == verdict


@pytest.mark.parametrize(("mine", "verdict"), [(15.0, "met"), (15.1, "missed")])
def test_a_time_is_met_up_to_its_reach(mine: float, verdict: str) -> None:
    assert found(SOONER, mine=[mine]).verdict(SOONER) == verdict


def test_the_median_decides_and_not_the_best_round() -> None:
    assert found(SOONER, mine=[1.0, 20.0, 30.0]).verdict(SOONER) == "missed"


def test_tiny_sizes_are_judged_by_nothing_but_whether_they_ran() -> None:
    measures = [Measure("ran", (SOONER,), lambda _bench, _round: {"mine": 99.0}), Measure("failed", (SOONER,), empty)]
    ran, failed = carry_out(measures, None, 1, lambda _text: None, judged=False)
    assert (ran.verdict(SOONER), failed.verdict(SOONER)) == ("", "failed")
    assert not any(word in line for line in report.lines([ran]) for word in ("met", "missed"))
    assert not any(plot.COLOURS[verdict] in plot.svg([ran], "") for verdict in ("met", "missed"))


def empty(_bench: object, _round: int) -> Values:
    raise MeasureFailed("nothing was measured")


def test_every_round_begins_with_another_system() -> None:
    order: list[str] = []

    def act(name: str) -> Values:
        order.append(name)
        return {name: 1.0}

    acts = [lambda: act("a"), lambda: act("b"), lambda: act("c")]
    for number in range(3):
        alternate(number, acts)
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_a_measure_that_fails_says_why_and_the_others_go_on() -> None:
    def fails(_bench: object, _round: int) -> Values:
        raise MeasureFailed("the server answered 500")

    measures = [Measure("bad", (SOONER,), fails), Measure("good", (SOONER,), lambda _bench, _round: {"mine": 1.0})]
    bad, good = carry_out(measures, None, 2, lambda _text: None)
    assert (bad.verdict(SOONER), good.verdict(SOONER)) == ("failed", "met")
    assert good.values == {"mine": [1.0, 1.0]}
    assert any("the server answered 500" in line for line in report.lines([bad, good]))


def test_a_measure_that_is_capped_is_made_no_more_often() -> None:
    (once,) = carry_out([Measure("once", (SOONER,), lambda _b, _r: {"mine": 1.0}, rounds=1)], None, 3, lambda _t: None)
    assert once.values == {"mine": [1.0]}


def test_an_interrupted_run_keeps_what_it_found() -> None:
    def interrupted(_bench: object, _round: int) -> Values:
        raise KeyboardInterrupt

    measures = [Measure("good", (SOONER,), lambda _b, _r: {"mine": 1.0}), Measure("late", (SOONER,), interrupted)]
    good, late = carry_out(measures, None, 2, lambda _text: None)
    assert good.values == {"mine": [1.0]}
    assert (good.failed, late.failed) == (None, "the run was interrupted")


def test_the_quantile_of_few_values_is_one_of_them() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0


def test_the_plot_shows_each_measure_with_its_verdict() -> None:
    drawn = plot.svg([found(FASTER, mine=[10.0], theirs=[1.0]), found(SOONER, mine=[20.0])], "<two> cores")
    assert plot.COLOURS["met"] in drawn
    assert plot.COLOURS["missed"] in drawn
    assert "&lt;two&gt; cores" in drawn


def test_every_measure_says_what_it_measures_and_has_a_name_of_its_own() -> None:
    assert len({measure.name for measure in ALL}) == len(ALL)
    assert all(measure.run.__doc__ for measure in ALL)


def test_a_measure_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(SystemExit, match="no measure is called speed; there are: creates"):
        chosen("creates,speed")


def test_only_the_driver_of_the_io_worker_is_watched() -> None:
    original, made = (ROOT / "Procfile").read_text().splitlines(), watched((ROOT / "Procfile").read_text()).splitlines()
    changed = [(old, new) for old, new in zip(original, made, strict=True) if old != new]
    assert [old.partition(":")[0] for old, _ in changed] == ["io"]

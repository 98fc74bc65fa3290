"""The machines of all domains: sound, and drawn in docs/states.md as they are."""

from __future__ import annotations

import pytest

from models.kernel.machine import Machine
from orchestrator_cli import diagrams

MACHINES = [machine for domain in diagrams.domains() for machine in diagrams.machines(domain)]


def test_the_page_of_the_states_is_fresh() -> None:
    assert diagrams.PAGE.read_text() == diagrams.page(), "run: python -m orchestrator_cli.diagrams"


def test_every_domain_has_a_machine_and_no_kind_has_two() -> None:
    assert all(diagrams.machines(domain) for domain in diagrams.domains())
    kinds = [machine.kind for machine in MACHINES]
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.kind)
def test_every_state_can_be_reached_and_left_for_an_end(machine: Machine) -> None:
    reached = {machine.initial}
    while further := {target for state in reached for target in machine.edges[state]} - reached:
        reached |= further
    assert reached == machine.states
    ending = set(machine.terminal)
    while earlier := {state for state in machine.states if machine.edges[state] & ending} - ending:
        ending |= earlier
    assert ending == machine.states


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.kind)
def test_what_has_ended_moves_on_only_by_starting_again(machine: Machine) -> None:
    for state in machine.terminal:
        assert not machine.edges[state] & machine.terminal

"""A state machine as a value: which states there are and which moves are legal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """The states of one kind of subject.

    `edges` maps each state to the states it may move to; a state that maps to
    nothing but re-runs is terminal and is named in `terminal`.
    """

    kind: str
    initial: str
    edges: Mapping[str, frozenset[str]]
    terminal: frozenset[str]

    def __post_init__(self) -> None:
        named = {self.initial} | self.terminal | frozenset().union(*self.edges.values())
        if unknown := named - self.states:
            raise ValueError(f"{self.kind}: states without a line of their own: {sorted(unknown)}")

    @property
    def states(self) -> frozenset[str]:
        return frozenset(self.edges)

    def allows(self, source: str, target: str) -> bool:
        return target in self.edges.get(source, ())

    def check(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        """Raise ValueError unless every source may move to every target: a mistake of ours, found at import."""
        for source in sources:
            for target in targets:
                if not self.allows(source, target):
                    raise ValueError(f"{self.kind}: {source} -> {target} is no edge of the machine")

    def diagram(self) -> str:
        """The machine as a Mermaid state diagram."""
        lines = ["stateDiagram-v2", f"    [*] --> {self.initial}"]
        for source, targets in self.edges.items():
            lines += [f"    {source} --> {target}" for target in sorted(targets)]
        lines += [f"    {state} --> [*]" for state in sorted(self.terminal)]
        return "\n".join(lines)

"""What keeps the service from starting, each with what to do about it."""

from __future__ import annotations

from models.kernel.errors import OrchestratorError


class CannotStart(OrchestratorError):
    """The machine or its settings do not let the service start."""

    code = "cannot_start"

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.next_step = next_step

    def line(self) -> str:
        """Both halves in the one line that a terminal or a log shows."""
        return f"{self.message}; {self.next_step}" if self.next_step else self.message

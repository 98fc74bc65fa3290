"""What keeps a command from doing its work, each with what to do about it and the exit code that says so.

0   done
1   it cannot be done here, or a check found something wrong
2   wrong usage or wrong settings
3   the service refused it (4xx)
4   the service cannot be reached or cannot answer (5xx)
5   it was carried out and did not succeed
130 interrupted with Ctrl-C
"""

from __future__ import annotations

from typing import Any

from models.kernel.errors import OrchestratorError

CANNOT, WRONG_USAGE, REFUSED, UNREACHABLE, UNSUCCESSFUL, INTERRUPTED = 1, 2, 3, 4, 5, 130

EXIT_CODES = """\b
Exit codes:
  0    done
  1    it cannot be done here, or a check found something wrong
  2    wrong usage or wrong settings
  3    the service refused it (4xx)
  4    the service cannot be reached or cannot answer (5xx)
  5    it was carried out and did not succeed
  130  interrupted with Ctrl-C
"""


class CommandFailed(OrchestratorError):
    """A command ends here. `next_step` says what to do about it, `problem` is what the service said."""

    code = "cannot"
    exit_code = CANNOT

    def __init__(self, message: str, *, next_step: str = "", problem: dict[str, Any] | None = None) -> None:
        problem = problem or {}
        super().__init__(message, code=problem.get("code"))
        self.next_step = next_step
        self.problem = problem

    def line(self) -> str:
        """Both halves in the one line that a log shows."""
        return f"{self.message}; {self.next_step}" if self.next_step else self.message


class CannotStart(CommandFailed):
    """The machine or its settings do not let the service start, or let it be looked at."""

    code = "cannot_start"


class WrongUsage(CommandFailed):
    """The words on the command line make no sense together."""

    code = "wrong_usage"
    exit_code = WRONG_USAGE


class ServiceRefused(CommandFailed):
    """The service understood the request and said no."""

    code = "refused"
    exit_code = REFUSED


class ServiceUnreachable(CommandFailed):
    """Nobody answered, or somebody who could not."""

    code = "unreachable"
    exit_code = UNREACHABLE


class Unsuccessful(CommandFailed):
    """It was carried out, and ended otherwise than asked for."""

    code = "unsuccessful"
    exit_code = UNSUCCESSFUL

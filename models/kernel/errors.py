"""What can go wrong, as a tree.

    OrchestratorError
    ├── InvalidSettings     the environment does not describe a service that can run
    ├── Invalid             the request is understood and wrong; `errors` points at each field
    ├── Unauthenticated     no valid credential
    ├── Forbidden           a valid credential without the permission
    ├── NotFound            no such thing
    ├── Conflict            true now, perhaps not later
    │   ├── IllegalTransition   the machine has no such edge from the present state
    │   ├── InProgress          the same request is being carried out; come back after `retry_after` seconds
    │   └── LeaseLost           the fence is no longer the live one
    ├── Gone                it was here once, and is kept no longer
    ├── TooMany             the caller asks for more than its share; come back after `retry_after` seconds
    └── Unavailable         not now; come back after `retry_after` seconds

Every error has a stable `code` that a caller can act on; the web maps classes to
statuses in one place.
"""

from __future__ import annotations

from typing import Any


class OrchestratorError(Exception):
    """Something happened that the caller should know by its code."""

    code = "internal"

    def __init__(self, message: str, *, code: str | None = None, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.facts = facts


class InvalidSettings(OrchestratorError):
    """The environment does not describe a service that can run."""

    code = "invalid_settings"


class Invalid(OrchestratorError):
    """The request is understood and wrong."""

    code = "invalid"

    def __init__(self, message: str, errors: list[dict[str, Any]] | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.errors = errors or []


class Unauthenticated(OrchestratorError):
    """The request carries no valid credential."""

    code = "unauthenticated"


class Forbidden(OrchestratorError):
    """The credential is valid and does not hold the permission."""

    code = "forbidden"


class NotFound(OrchestratorError):
    """There is no such thing."""

    code = "not_found"


class Conflict(OrchestratorError):
    """The present state does not allow it."""

    code = "conflict"


class IllegalTransition(Conflict):
    """The machine has no such edge from the present state."""

    code = "illegal_transition"

    def __init__(self, message: str, *, state: str, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.state = state


class LeaseLost(Conflict):
    """The fence is no longer the live one: another attempt, or none, owns the work."""

    code = "lease_lost"


class InProgress(Conflict):
    """The same request is being carried out at this moment."""

    code = "in_progress"
    retry_after = 1.0


class Gone(OrchestratorError):
    """It was here once, and is kept no longer."""

    code = "gone"


class TooMany(OrchestratorError):
    """The caller asks for more than its share."""

    code = "too_many"

    def __init__(self, message: str, *, retry_after: float = 1.0, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.retry_after = retry_after


class Unavailable(OrchestratorError):
    """Not now."""

    code = "unavailable"

    def __init__(self, message: str, *, retry_after: float = 1.0, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.retry_after = retry_after

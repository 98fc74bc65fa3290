"""The operator's credential: a file in the home that only its owner may read."""

from __future__ import annotations

from orchestrator_cli.home import Home, write_secret


def ensure_token(home: Home) -> str:
    """Keep the token when it is still valid, issue one otherwise; returns what happened.

    Whoever starts the service on its home owns its data: a disabled `admin` is enabled again, and that is said.
    The kernel is imported here because it reads the environment once, which `up` completes first.
    """
    from models.kernel import clients

    present = home.token.read_text().strip() if home.token.exists() else ""
    if present and clients.key_is_valid(present):
        home.token.chmod(0o600)
        return "kept"
    was_disabled = clients.admin_is_disabled()
    write_secret(home.token, clients.issue_admin_key() + "\n")
    return "issued; admin was disabled: enabled, its old keys revoked" if was_disabled else "issued"

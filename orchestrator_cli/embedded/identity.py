"""Who Postgres runs as. It refuses root, and no system user is ever added for it.

An ordinary user is himself, unless the system has no name for his uid, as in many
containers: Postgres insists on one, so he borrows nobody's. Root becomes, in this order: a uid other than 0 inside a
user namespace of its own (files stay root's); nobody, by setpriv; nobody with the
right to pass through directories that are closed to nobody (a project under /root).
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from orchestrator_cli.errors import CannotStart

NOBODY = 65534
NAMESPACE = ("unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}", "--")
SETPRIV = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
# A change of uid forgets the parent-death signal, so setpriv has to ask for it again.
SWITCH = (*SETPRIV, "--pdeathsig", "INT", "--")
SWITCH_AND_PASS = (
    *SETPRIV,
    "--inh-caps=+dac_override",
    "--ambient-caps=+dac_override",
    "--pdeathsig",
    "INT",
    "--",
)


@dataclass(frozen=True)
class Identity:
    """Whose the data directory is, and what stands in front of a command that has to be that user."""

    uid: int
    prefix: tuple[str, ...] = ()

    def own(self, directory: Path) -> None:
        """Hand over a tree, once; only root ever has to."""
        if os.geteuid() != 0 or not directory.exists() or directory.stat().st_uid == self.uid:
            return
        for parent, directories, files in os.walk(directory):
            for name in (*directories, *files):
                os.chown(os.path.join(parent, name), self.uid, -1, follow_symlinks=False)
        os.chown(directory, self.uid, -1)


def choose(directory: Path, binary: str) -> Identity:
    """The first identity that can enter the directory and run the binary."""
    for identity in candidates(os.geteuid()):
        if not identity.prefix or serves(identity, directory, binary):
            return identity
    reason = (
        "Postgres does not run as root" if os.geteuid() == 0 else f"Postgres needs a user name for uid {os.geteuid()}"
    )
    raise CannotStart(
        f"{reason}, and nobody else may enter {directory}",
        next_step="run as an ordinary user, or name a server of your own in DATABASE_URL",
    )


def candidates(uid: int) -> tuple[Identity, ...]:
    if uid == 0:
        return Identity(0, NAMESPACE), Identity(NOBODY, SWITCH), Identity(NOBODY, SWITCH_AND_PASS)
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return (Identity(uid, NAMESPACE),)
    return (Identity(uid),)


def serves(identity: Identity, directory: Path, binary: str) -> bool:
    if shutil.which(identity.prefix[0]) is None:
        return False
    attempt = [*identity.prefix, "sh", "-c", 'cd "$1" && exec "$2" --version', "sh", str(directory), binary]
    return subprocess.run(attempt, capture_output=True, check=False).returncode == 0

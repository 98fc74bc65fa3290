"""The hash of the OpenAPI document that callers rely on. `python -m tests.web.golden` renews it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from orchestrator_web.app import create_app

FILE = Path(__file__).with_name("openapi.sha256")


def present_document() -> dict[str, Any]:
    answer = create_app().test_client().get("/openapi.json", buffered=True)
    document: dict[str, Any] = json.loads(answer.data)
    return document


def golden_hash(document: dict[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    FILE.write_text(golden_hash(present_document()) + "\n")

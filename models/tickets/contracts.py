"""The v1 contracts of what is sent to a robot and received from one.

The schemas lie beside this file, one for each name in `NAMES`. They are part of the
service's promise: `golden_hash` of each is held by a test, so that one cannot change
unnoticed. Keys that a schema does not name are allowed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.validators import extend

from models.kernel.errors import Invalid

NAMES: Final = ("actuator.v1", "imu.v1", "ultrasonic.v1", "metrics.v1", "run.v1")
SCHEMAS: Final = Path(__file__).parent / "schemas"
LONGEST_DETAIL: Final = 200
MOST_VIOLATIONS: Final = 20

RFC3339: Final = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[Tt](?P<minute>\d\d:\d\d):(?P<second>\d\d)(?:\.\d+)?(?P<zone>[Zz]|[+-]\d\d:\d\d)",
    re.ASCII,
)


class ContractViolated(Invalid):
    """A document does not keep the contract it was sent under."""

    code = "contract_violated"


def check(name: str, document: Any) -> None:
    """Hold a document to the contract called `name`.

    Raises ContractViolated; its message names the first place (a JSON pointer, `/`
    for the document itself) and `errors` lists each as pointer and detail.
    """
    found = sorted(validator(name).iter_errors(document), key=lambda error: [str(part) for part in error.absolute_path])
    if not found:
        return
    errors = [
        {"pointer": pointer(error.absolute_path), "detail": error.message[:LONGEST_DETAIL]}
        for error in found[:MOST_VIOLATIONS]
    ]
    raise ContractViolated(f"{name} violated at {errors[0]['pointer']}: {errors[0]['detail']}", errors, contract=name)


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of one contract. Raises KeyError for a name that is not in NAMES."""
    if name not in NAMES:
        raise KeyError(name)
    loaded: dict[str, Any] = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def golden_hash(document: dict[str, Any]) -> str:
    """SHA-256 of a schema whose keys are sorted and whose layout does not matter."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def is_date_time(text: str) -> bool:
    """Whether a text is an RFC 3339 date-time: with an offset or Z, on a day that exists."""
    match = RFC3339.fullmatch(text)
    if not match:
        return False
    second = "59" if match["second"] == "60" else match["second"]  # RFC 3339 knows leap seconds, datetime does not
    zone = match["zone"].upper().replace("Z", "+00:00")
    try:
        datetime.fromisoformat(f"{match['day']}T{match['minute']}:{second}{zone}")
    except ValueError:
        return False
    return True


@functools.cache
def validator(name: str) -> Any:
    """The compiled validator of one contract."""
    return CONTRACT_VALIDATOR(schema(name), format_checker=formats)


def pointer(path: Any) -> str:
    """A JSON pointer (RFC 6901) to a place in the document."""
    return "/" + "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in path)


def is_finite_number(_checker: Any, instance: Any) -> bool:
    """NaN and the infinities are not JSON, and no reading or limit can mean them."""
    if isinstance(instance, float):
        return math.isfinite(instance)
    return isinstance(instance, int) and not isinstance(instance, bool)


def has_date_time(instance: object) -> bool:
    """A format speaks of texts only; whether it had to be a text is for `type` to say."""
    return not isinstance(instance, str) or is_date_time(instance)


formats = FormatChecker(formats=())
formats.checks("date-time")(has_date_time)


CONTRACT_VALIDATOR: Final = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("number", is_finite_number),
)

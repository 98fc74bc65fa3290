"""Fields that take exactly what JSON and the API's document say, and nothing that merely looks like it."""

from __future__ import annotations

import re
from typing import Any

from marshmallow import fields

DIGITS = re.compile(r"-?[0-9]{1,9}")


class StrictBoolean(fields.Boolean):
    """true or false, and nothing that merely looks like it."""

    truthy = {True}  # noqa: RUF012
    falsy = {False}  # noqa: RUF012

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class StrictInteger(fields.Integer):
    """An integer as JSON Schema means it: 3 and 3.0, but neither a boolean, nor a text, nor 1.5."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise self.make_error("invalid", input=value)
        return super()._deserialize(value, attr, data, **kwargs)


class QueryInteger(fields.Integer):
    """A query parameter of plain digits: int() would also take 1_0, +5 and the digits of other scripts."""

    form = DIGITS

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if not self.form.fullmatch(value):
            raise self.make_error("invalid", input=value)
        return super()._deserialize(value, attr, data, **kwargs)


class BoundedList(fields.List):
    """A list whose own checks come before its items': of a million wrong ones none needs to be looked at."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if isinstance(value, list):
            self._validate(value)
        return super()._deserialize(value, attr, data, **kwargs)


class Json(fields.Dict):
    """A JSON object of any content."""

"""Fields of JSON bodies that take exactly one type, and say of themselves what they take.

Guarantees that what a field accepts and what its ``json_schema`` describes are the same set of values:
no number out of a string, no string out of a number, no text that cannot be stored or tokenized.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from rest_framework import serializers

from jobs.protocol import invalid

Schema = dict[str, Any]

# The longest that PostgreSQL and the ledger can hold: what is larger is certainly a mistake.
MAX_INTEGER = 2**31 - 1


class StrictInteger(serializers.IntegerField):
    """An integer that is one: neither true, nor 5.5, nor "5"."""

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool) or not isinstance(data, int):
            raise serializers.ValidationError("must be an integer.")
        return super().to_internal_value(data)

    def json_schema(self) -> Schema:
        """What is accepted."""
        return _bounded({"type": "integer"}, self)


class StrictNumber(serializers.FloatField):
    """A finite number, not a string and not a boolean."""

    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, bool) or not isinstance(data, int | float):
            raise serializers.ValidationError("must be a number.")
        try:
            return super().to_internal_value(data)
        except OverflowError as error:
            raise serializers.ValidationError("is too large.") from error

    def json_schema(self) -> Schema:
        """What is accepted."""
        return _bounded({"type": "number"}, self)


class StrictText(serializers.CharField):
    """A string as it came: not trimmed, not made from a number."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(trim_whitespace=False, **kwargs)

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            raise serializers.ValidationError("must be a string.")
        if not data.strip() and not self.allow_blank:
            raise serializers.ValidationError("must not be empty.")
        # A lone surrogate cannot be encoded, neither for the tokenizer nor in an answer.
        try:
            data.encode()
        except UnicodeEncodeError as error:
            raise serializers.ValidationError("must be valid Unicode text.") from error
        return data

    def json_schema(self) -> Schema:
        """What is accepted: no NUL, and something besides white space unless blank is allowed."""
        anything = "[^\\u0000]*"
        blanks = "\\s\\u001c-\\u001f\\u0085\\u0000"
        schema: Schema = {
            "type": "string",
            "pattern": f"^{anything}$" if self.allow_blank else f"^{anything}[^{blanks}]{anything}$",
        }
        if self.max_length is not None:
            schema["maxLength"] = self.max_length
        return schema


class StrictBoolean(serializers.BooleanField):
    """true or false, nothing that resembles them."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            raise serializers.ValidationError("must be true or false.")
        return data

    def json_schema(self) -> Schema:
        """What is accepted."""
        return {"type": "boolean"}


class StopStrings(serializers.Field[tuple[str, ...], Any, Any, Any]):
    """One string or a short list of them, at which a text ends."""

    most = 16
    longest = 200

    def to_internal_value(self, data: Any) -> tuple[str, ...]:
        strings = data if isinstance(data, list) else [data]
        if len(strings) > self.most:
            raise serializers.ValidationError(f"must be at most {self.most} strings.")
        single = StrictText(max_length=self.longest, allow_blank=True)
        for string in strings:
            if not single.run_validation(string):
                raise serializers.ValidationError("must not hold an empty string.")
        return tuple(strings)

    def to_representation(self, value: tuple[str, ...]) -> list[str]:
        return list(value)

    def json_schema(self) -> Schema:
        """What is accepted."""
        string = {"type": "string", "minLength": 1, "maxLength": self.longest, "pattern": "^[^\\u0000]+$"}
        return {"anyOf": [string, {"type": "array", "items": string, "maxItems": self.most}]}


class TokenIds(serializers.ListField):
    """A list of token ids, of which ``min_length`` at least."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(child=StrictInteger(min_value=0, max_value=MAX_INTEGER), **kwargs)

    def to_internal_value(self, data: Any) -> list[int]:
        if not isinstance(data, list):
            raise serializers.ValidationError("must be a list of token ids.")
        return [int(token) for token in super().to_internal_value(data)]

    def json_schema(self) -> Schema:
        """What is accepted."""
        item = {"type": "integer", "minimum": 0, "maximum": MAX_INTEGER}
        return {"type": "array", "items": item, "minItems": self.min_length or 0}


def _bounded(schema: Schema, field: StrictInteger | StrictNumber) -> Schema:
    if field.min_value is not None:
        schema["minimum"] = field.min_value
    if field.max_value is not None:
        schema["maximum"] = field.max_value
    return schema


def read_by(serializer: serializers.Serializer[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` as ``serializer`` reads them. Raises ``RequestError``.

    A serializer keeps nothing of what it validates, and making one copies all its fields: use one again.
    """
    try:
        read: dict[str, Any] = serializer.run_validation(dict(values))
    except serializers.ValidationError as error:
        message, field = problem_of(cast("dict[str, Any]", error.detail))
        raise invalid(message, field=field) from error
    return read


def problem_of(errors: Mapping[str, Any]) -> tuple[str, str]:
    """One readable sentence out of a serializer's errors, and the field it is about."""
    field, problem = next(iter(errors.items()))
    while isinstance(problem, dict | list):
        problem = next(iter(problem.values())) if isinstance(problem, dict) else next((p for p in problem if p), "")
    text = str(problem)
    return f"{field}: {text[:1].lower()}{text[1:]}", str(field)

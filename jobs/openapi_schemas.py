"""The smallest parts that the JSON schemas of the HTTP interface are made of."""

from __future__ import annotations

from jobs.strict_fields import Schema

TEXT: Schema = {"type": "string"}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}
TRUTH: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
MAYBE_COUNT: Schema = {"type": ["integer", "null"], "minimum": 0}
NUMBER: Schema = {"type": "number"}
NULL: Schema = {"type": "null"}
CHAIN_ID: Schema = {"type": "integer", "minimum": 1}
AMOUNT: Schema = {
    "type": "string",
    "pattern": "^[0-9]+$",
    "description": "A whole number in decimal, since it may be larger than what JSON's numbers hold.",
}
ADDRESS: Schema = {"type": "string", "pattern": "^0x[0-9a-fA-F]{40}$"}
HASH32: Schema = {"type": "string", "pattern": "^0x[0-9a-f]{64}$"}
UNIX_SECONDS: Schema = {**COUNT, "description": "Unix time in seconds."}


def object_of(*, optional: dict[str, Schema] | None = None, **properties: Schema) -> Schema:
    """An object that has all of ``properties``, may have ``optional`` ones, and no other."""
    return {
        "type": "object",
        "properties": {**properties, **(optional or {})},
        "required": list(properties),
        "additionalProperties": False,
    }


def list_of(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def by_name(value: Schema, *, names: Schema | None = None) -> Schema:
    """An object whose fields are not known beforehand, but what they hold, and perhaps which there may be."""
    schema: Schema = {"type": "object", "additionalProperties": value}
    return {**schema, "propertyNames": names} if names else schema


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, NULL]}


def ref(name: str) -> Schema:
    """A schema by its name in the document."""
    return {"$ref": f"#/components/schemas/{name}"}

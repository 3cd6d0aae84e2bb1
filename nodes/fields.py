"""Model fields for chain values: uint256, addresses and 32-byte hashes.

Guarantees that a uint256 survives the database exactly and orders correctly on PostgreSQL and
SQLite, and that addresses and hashes have one spelling (lower-case, 0x). They live in the lowest
app since jobs mirror chain amounts too. Sums belong in Python: SQLite cannot add these columns.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar, cast

from django.core.exceptions import ValidationError
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

MAX_UINT256 = 2**256 - 1
_DIGITS = 78

if TYPE_CHECKING:
    # What the type checker knows of a nullable field's value comes from these two.
    _SetT = TypeVar("_SetT", contravariant=True)
    _GetT = TypeVar("_GetT", covariant=True)
    _Field = models.Field
    _StrField = models.CharField[str, str]
else:
    _SetT = _GetT = object

    class _Field(models.Field):
        def __class_getitem__(cls, _types: object) -> type:
            return cls

    _StrField = models.CharField


class Uint256Field(_Field[_SetT, _GetT]):
    """An unsigned 256-bit integer (wei, token base units, job ids). ``int`` in Python.

    ``DecimalField(78)`` loses digits above 15 on SQLite, so there the column is text, zero-padded
    to 78 digits: comparisons, ordering, MAX and CHECK constraints then agree with the numbers.
    """

    if TYPE_CHECKING:
        _pyi_private_set_type: int
        _pyi_private_get_type: int
        _pyi_lookup_exact_type: int

    description = "unsigned 256-bit integer"

    def db_type(self, connection: BaseDatabaseWrapper) -> str:
        return "numeric(78, 0)" if connection.vendor == "postgresql" else f"char({_DIGITS})"

    def get_internal_type(self) -> str:
        return "Uint256Field"

    def to_python(self, value: Any) -> int | None:
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,78}", value.strip()):
            return int(value)
        raise ValidationError("Enter a whole number of 0 or more.")

    def from_db_value(self, value: Any, expression: Any, connection: BaseDatabaseWrapper) -> int | None:
        return None if value is None else int(value)

    def get_prep_value(self, value: Any) -> int | None:
        value = super().get_prep_value(value)
        if value is None:
            return None
        number = self.to_python(value)
        if number is None or not 0 <= number <= MAX_UINT256:
            raise ValueError(f"{self.name or 'value'} must be a uint256, got {value!r}")
        return number

    def get_db_prep_value(self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False) -> Any:
        number = value if prepared else self.get_prep_value(value)
        if number is None or connection.vendor == "postgresql":
            return number
        return str(number).zfill(_DIGITS)

    def value_to_string(self, obj: models.Model) -> str:
        return str(self.value_from_object(obj))


class _HexField(_StrField):
    digits: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["max_length"] = self.digits + 2
        super().__init__(*args, **kwargs)

    def deconstruct(self) -> Any:
        name, path, args, kwargs = super().deconstruct()
        del kwargs["max_length"]
        return name, path, args, kwargs

    def get_prep_value(self, value: Any) -> str | None:
        if value is None or value == "":
            return cast("str | None", value)
        text = str(value).lower()
        if not re.fullmatch(rf"0x[0-9a-f]{{{self.digits}}}", text):
            raise ValueError(f"{self.name} must be 0x and {self.digits} hex digits, got {value!r}")
        return text


class AddressField(_HexField):
    """A 20-byte account or contract address, stored in lower case."""

    description = "account address"
    digits = 40


class Hash32Field(_HexField):
    """A 32-byte hash, stored in lower case."""

    description = "32-byte hash"
    digits = 64

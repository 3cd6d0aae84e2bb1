"""Typed Python from ABIs: one module for each contract, and one each for structs, events and errors, which
contracts share. Guarantees that a definition met in several ABIs is emitted once and that two which
disagree are an error. The interfaces of other people's contracts, which reuse names for other shapes, get
one module each that holds all of theirs. Writes no file and computes no selector: the generated code does
so from the signatures at import.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

Abi = Sequence[Mapping[str, Any]]

HEADER = '''"""{summary}

Generated from settlement/contracts/src by `python -m settlement.contracts.compile`; do not edit.
"""

from __future__ import annotations

'''
# Names for the rows that functions with several outputs return; others are called <Function>Result.
RESULT_NAMES = {"sessionJobs": "SessionJob", "getNodeFullInfo": "NodeInfo", "depositLimits": "DepositLimits"}


class GenerateError(Exception):
    """The ABI holds something that the bindings have no typed form for."""


@dataclass(frozen=True, slots=True)
class Field:
    """One input or output: its Python name and type, its ABI type, and how a decoded value becomes it."""

    name: str
    kind: str
    annotation: str
    conversion: str


def generate_bindings(
    abis: Mapping[str, Abi], *, interfaces: Mapping[str, Abi], sources: Sequence[str]
) -> dict[str, str]:
    """Module name to text, from ABIs by contract name; the Solidity sources give the members of enums.

    ``interfaces`` are the ABIs of contracts that are not ours.
    """
    entries = [entry for abi in abis.values() for entry in abi]
    events = _distinct(entry for entry in entries if entry["type"] == "event")
    errors = _distinct(entry for entry in entries if entry["type"] == "error")
    modules = {snake(name): _contract_module(name, abi) for name, abi in abis.items()}
    modules |= {snake(name): _interface_module(name, abi) for name, abi in interfaces.items()}
    modules["structs"] = _structs_module(entries, _enums(sources))
    modules["events"] = _events_module(events)
    own = set(re.findall(r"^\s*error (\w+)\(", "\n".join(sources), flags=re.MULTILINE))
    modules["errors"] = _errors_module("The contracts' own errors.", errors, names=own)
    modules["library_errors"] = _errors_module("OpenZeppelin's errors.", errors, names=errors.keys() - own)
    modules["__init__"] = _package_module(
        list(abis),
        list(interfaces),
        list(events),
        {name: "errors" if name in own else "library_errors" for name in errors},
    )
    return modules


def snake(name: str) -> str:
    """camelCase to a Python name: `conversationCID` → conversation_cid, `from` → from_."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name.strip("_"))
    lowered = spaced.lower()
    return f"{lowered}_" if keyword.iskeyword(lowered) else lowered


def _distinct(entries: Iterator[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for entry in sorted(entries, key=lambda entry: str(entry["name"])):
        known = found.setdefault(entry["name"], entry)
        if _shape(known) != _shape(entry):
            raise GenerateError(f"two different definitions of {entry['name']}")
    return found


def _shape(entry: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    return [(item["name"], _canonical(item), item.get("indexed", False)) for item in entry["inputs"]]


def _canonical(item: Mapping[str, Any]) -> str:
    kind: str = item["type"]
    if not kind.startswith("tuple"):
        return kind
    return f"({','.join(_canonical(part) for part in item['components'])}){kind[len('tuple') :]}"


def _field(item: Mapping[str, Any], position: int) -> Field:
    name = snake(item["name"]) if item["name"] else f"arg{position}"
    annotation, conversion = _python_type(item, f"values[{position}]")
    return Field(name=name, kind=_canonical(item), annotation=annotation, conversion=conversion)


def _fields(items: Sequence[Mapping[str, Any]]) -> list[Field]:
    return [_field(item, position) for position, item in enumerate(items)]


def _python_type(item: Mapping[str, Any], value: str) -> tuple[str, str]:
    kind: str = item["type"]
    if kind.endswith("[]"):
        element, conversion = _python_type({**item, "type": kind[:-2]}, "item")
        return f"tuple[{element}, ...]", f"tuple({conversion} for item in {value})"
    if kind == "tuple":
        struct = _type_name(item)
        return struct, f"{struct}.from_values({value})"
    if item.get("internalType", "").startswith("enum "):
        enum = _type_name(item)
        return enum, f"{enum}({value})"
    if kind == "address":
        return "ChecksumAddress", f"to_checksum_address({value})"
    if kind.endswith("]"):
        raise GenerateError(f"arrays of fixed size are not supported: {kind}")
    plain = {"bool": "bool", "string": "str"}.get(kind, "bytes" if kind.startswith("bytes") else "int")
    return plain, value


def _type_name(item: Mapping[str, Any]) -> str:
    """`struct ModelRegistry.Model[]` → Model."""
    name: str = item["internalType"].split(" ")[-1].split(".")[-1]
    return name.removesuffix("[]")


def _strings(kinds: Sequence[str]) -> str:
    return f"({', '.join(repr(kind) for kind in kinds)}{',' if len(kinds) == 1 else ''})"


def _contract_module(name: str, abi: Abi) -> str:
    functions = sorted((entry for entry in abi if entry["type"] == "function"), key=lambda entry: str(entry["name"]))
    if len({entry["name"] for entry in functions}) != len(functions):
        raise GenerateError(f"{name} overloads a function, which has no typed form")
    structs = sorted({struct for entry in functions for struct in _used_structs(entry)})
    lines = [HEADER.format(summary=f"Calls of the {name} contract; what they do is told in {name}.sol.")]
    lines += ["from collections.abc import Mapping, Sequence", "from typing import ClassVar", ""]
    lines += ["from eth_typing import ChecksumAddress", ""]
    lines += ["from settlement.chain.contracts import Call, Contract, FunctionSpec, nothing, single"]
    lines += [f"from settlement.chain.bindings.structs import {', '.join(structs)}"] if structs else []
    return "\n".join([*lines, "", "", *_contract_class(name, functions)]) + "\n"


def _interface_module(name: str, abi: Abi) -> str:
    """Rows, events and calls of a contract that is not ours, in one module."""
    functions = sorted((entry for entry in abi if entry["type"] == "function"), key=lambda entry: str(entry["name"]))
    events = _distinct(entry for entry in abi if entry["type"] == "event")
    lines = [HEADER.format(summary=f"Rows, events and calls of {name}; what they mean is told in {name}.sol.")]
    lines += ["from collections.abc import Mapping, Sequence", "from dataclasses import dataclass"]
    lines += ["from typing import Any, ClassVar", "", "from eth_typing import ChecksumAddress", ""]
    lines += ["from settlement.chain.addresses import to_checksum_address"]
    lines += ["from settlement.chain.contracts import Call, Contract, ContractEvent, EventSpec, FunctionSpec"]
    lines += ["from settlement.chain.contracts import nothing, single", ""]
    for entry in functions:
        if any(_struct_items(entry)):
            raise GenerateError(f"{name}.{entry['name']} takes or returns a struct, which interfaces may not")
        if len(entry["outputs"]) > 1:
            lines += ["", *_struct(_result_name(entry), _fields(entry["outputs"])), ""]
    lines += _event_classes(events)
    return "\n".join([*lines, "", *_contract_class(name, functions)]) + "\n"


def _contract_class(name: str, functions: Abi) -> list[str]:
    lines = [
        f"class {name}(Contract):",
        f'    """A deployed {name}; amounts in smallest units."""',
        "",
    ]
    lines += ["    FUNCTIONS: ClassVar[Mapping[str, FunctionSpec]] = {"]
    for entry in functions:
        inputs = _strings([_canonical(item) for item in entry["inputs"]])
        outputs = _strings([_canonical(item) for item in entry["outputs"]])
        lines.append(f'        "{entry["name"]}": FunctionSpec("{entry["name"]}", {inputs}, {outputs}),')
    lines.append("    }")
    for entry in functions:
        lines += ["", *_method(entry)]
    return lines


def _used_structs(entry: Mapping[str, Any]) -> Iterator[str]:
    for item in (*entry["inputs"], *entry["outputs"]):
        if item["type"].startswith("tuple") or item.get("internalType", "").startswith("enum "):
            yield _type_name(item)
    if len(entry["outputs"]) > 1:
        yield _result_name(entry)


def _result_name(entry: Mapping[str, Any]) -> str:
    name: str = entry["name"]
    return RESULT_NAMES.get(name, f"{name[0].upper()}{name[1:]}Result")


def _method(entry: Mapping[str, Any]) -> list[str]:
    parameters, arguments = [], []
    for field, item in zip(_fields(entry["inputs"]), entry["inputs"], strict=True):
        array = re.fullmatch(r"tuple\[(.+), \.\.\.\]", field.annotation)
        annotation = f"Sequence[{array[1]}]" if array else field.annotation
        parameters.append(f"{field.name}: {annotation}")
        arguments.append(f"{field.name}.to_values()" if item["type"] == "tuple" else field.name)
    value = ""
    if entry["stateMutability"] == "payable":
        parameters.append("value: int")
        value = ", value=value"
    star = ["*"] if len(parameters) > 1 else []
    head = ", ".join(["self", *star, *parameters])
    answer, decoder = _answer(entry)
    given = f"({', '.join(arguments)}{',' if len(arguments) == 1 else ''})"
    return [
        f"    def {snake(entry['name'])}({head}) -> Call[{answer}]:",
        f'        return self._call("{entry["name"]}", {given}, {decoder}{value})',
    ]


def _answer(entry: Mapping[str, Any]) -> tuple[str, str]:
    outputs = _fields(entry["outputs"])
    if not outputs:
        return "None", "nothing"
    if len(outputs) > 1:
        return _result_name(entry), f"{_result_name(entry)}.from_values"
    if entry["outputs"][0]["type"] == "tuple":
        struct = outputs[0].annotation
        return struct, f"lambda values: {struct}.from_values(values[0])"
    return outputs[0].annotation, "single"


def _enums(sources: Sequence[str]) -> dict[str, list[str]]:
    found = re.findall(r"^\s*enum (\w+) \{([^}]*)\}", "\n".join(sources), flags=re.MULTILINE)
    return {name: [member.strip() for member in members.split(",")] for name, members in found}


def _structs_module(entries: Abi, enums: Mapping[str, Sequence[str]]) -> str:
    rows: dict[str, list[Field]] = {}
    taken = {_type_name(item) for entry in entries for item in _struct_items({"inputs": entry.get("inputs", ())})}
    for entry in entries:
        for item in _struct_items(entry):
            rows[_type_name(item)] = _fields(item["components"])
        if entry["type"] == "function" and len(entry["outputs"]) > 1:
            rows[_result_name(entry)] = _fields(entry["outputs"])
    lines = [HEADER.format(summary="Rows and enumerations that contract calls take and return.")]
    lines += [
        "from collections.abc import Sequence",
        "from dataclasses import dataclass",
        "from enum import IntEnum",
    ]
    lines += ["from typing import Any", "", "from eth_typing import ChecksumAddress", ""]
    lines += ["from settlement.chain.addresses import to_checksum_address", ""]
    for name, members in sorted(enums.items()):
        lines += ["", f"class {name}(IntEnum):", f'    """The contracts\' {name}."""', ""]
        lines += [f"    {snake(member).upper()} = {number}" for number, member in enumerate(members)]
        lines.append("")
    for name, fields in sorted(rows.items()):
        lines += ["", *_struct(name, fields), *(_to_values(fields) if name in taken else []), ""]
    return "\n".join(lines)


def _struct_items(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for item in (*entry.get("inputs", ()), *entry.get("outputs", ())):
        if item["type"].startswith("tuple"):
            yield item


def _struct(name: str, fields: Sequence[Field]) -> list[str]:
    conversions = [f"            {field.name}={field.conversion}," for field in fields]
    return [
        "@dataclass(frozen=True, slots=True)",
        f"class {name}:",
        f'    """The contracts\' {name}."""',
        "",
        *[f"    {field.name}: {field.annotation}" for field in fields],
        "",
        "    @classmethod",
        f"    def from_values(cls, values: Sequence[Any]) -> {name}:",
        '        """The row from its decoded values, in the order of the ABI."""',
        "        return cls(",
        *conversions,
        "        )",
    ]


def _to_values(fields: Sequence[Field]) -> list[str]:
    return [
        "",
        "    def to_values(self) -> tuple[Any, ...]:",
        '        """The values to encode, in the order of the ABI."""',
        f"        return ({', '.join(f'self.{field.name}' for field in fields)},)",
    ]


def _events_module(events: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [HEADER.format(summary="The contracts' events.")]
    lines += ["from dataclasses import dataclass", "from typing import ClassVar", ""]
    lines += ["from eth_typing import ChecksumAddress", ""]
    lines += ["from settlement.chain.contracts import ContractEvent, EventSpec", ""]
    return "\n".join([*lines, *_event_classes(events)])


def _event_classes(events: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines: list[str] = []
    for name, entry in events.items():
        indexed = tuple(item["indexed"] for item in entry["inputs"])
        if any(item["indexed"] and item["type"] in ("string", "bytes") for item in entry["inputs"]):
            raise GenerateError(f"{name} indexes a dynamic value, of which only a hash is kept")
        spec = f'EventSpec("{name}", {_strings([_canonical(item) for item in entry["inputs"]])}, {indexed!r})'
        lines += ["", "@dataclass(frozen=True, slots=True)", f"class {name}(ContractEvent):"]
        lines += [f"    SPEC: ClassVar[EventSpec] = {spec}", "    topic: ClassVar[bytes] = SPEC.topic"]
        lines += [*_plain_fields(entry), ""]
    return lines


def _errors_module(summary: str, errors: Mapping[str, Mapping[str, Any]], *, names: Set[str]) -> str:
    lines = [HEADER.format(summary=summary)]
    lines += ["from dataclasses import dataclass", "from typing import ClassVar", ""]
    lines += ["from eth_typing import ChecksumAddress", ""]
    lines += ["from settlement.chain.contracts import ContractRefusal, ErrorSpec", ""]
    for name, entry in ((name, entry) for name, entry in errors.items() if name in names):
        spec = f'ErrorSpec("{name}", {_strings([_canonical(item) for item in entry["inputs"]])})'
        lines += ["", "@dataclass(frozen=True, slots=True)", f"class {name}(ContractRefusal):"]
        lines += [f"    SPEC: ClassVar[ErrorSpec] = {spec}", "    SELECTOR: ClassVar[bytes] = SPEC.selector"]
        lines += [*_plain_fields(entry), ""]
    return "\n".join(lines)


def _plain_fields(entry: Mapping[str, Any]) -> list[str]:
    """Events and errors keep enumerations as numbers, so that an unknown member still decodes."""
    items = [{key: value for key, value in item.items() if key != "internalType"} for item in entry["inputs"]]
    return [f"    {field.name}: {field.annotation}" for field in _fields(items)]


def _package_module(
    contracts: Sequence[str], interfaces: Sequence[str], events: Sequence[str], errors: Mapping[str, str]
) -> str:
    lines = [HEADER.format(summary="Typed contracts, events and errors, and the tables to find them by.")]
    lines += [
        "from collections.abc import Mapping",
        "",
        "from settlement.chain.bindings import errors, events, library_errors",
    ]
    lines += [f"from settlement.chain.bindings.{snake(name)} import {name}" for name in (*contracts, *interfaces)]
    lines += ["from settlement.chain.contracts import ContractRefusal, ContractEvent, FunctionSpec", ""]
    lines += ["ALL_EVENTS: Mapping[bytes, type[ContractEvent]] = {"]
    lines += [f"    events.{name}.topic: events.{name}," for name in events]
    lines += ["}", "ALL_ERRORS: Mapping[bytes, type[ContractRefusal]] = {"]
    lines += [f"    {module}.{name}.SELECTOR: {module}.{name}," for name, module in errors.items()]
    lines += ["}", "SELECTORS: Mapping[bytes, FunctionSpec] = {"]
    lines += ["    function.selector: function"]
    lines += [
        # Ours come last: where another contract shares a selector, the answer decodes as ours.
        f"    for contract in ({', '.join((*interfaces, *contracts))})",
        "    for function in contract.FUNCTIONS.values()",
        "}",
        "",
    ]
    tables = ["ALL_ERRORS", "ALL_EVENTS", "SELECTORS"]
    exported = [*tables, *sorted((*contracts, *interfaces)), "errors", "events", "library_errors"]
    lines += [f"__all__ = [{', '.join(repr(name) for name in exported)}]", ""]
    return "\n".join(lines)

"""The rules of the house, read from the source itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from settlement.chain.bindings import ALL_ERRORS, SELECTORS
from settlement.chain.contracts import abi_hash

ROOT = Path(__file__).resolve().parents[2]
APPS = ("fabstir_site", "settlement", "jobs", "nodes")
GENERATED = ("migrations", "bindings")
LONGEST_FILE = 400
LONGEST_FUNCTION = 60
# The application and its commands tell Django which settings to read; that is all they may do with it.
SETTINGS_POINTERS = {"manage.py", "fabstir_site/asgi.py", "fabstir_site/celery.py"}
# Gives npm the environment it was started in, with node on the path; takes no setting from it.
HANDED_ON = {"settlement/chain/toolchain.py"}
# Speaks to the inference server that the operator names, if one is named.
ENGINE_ELSEWHERE = {"jobs/inference/openai_http_wire.py"}
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def _tracked(*patterns: str) -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(ROOT / line for line in listed if (ROOT / line).is_file())


SOURCES = [path for app in APPS for path in _tracked(f"{app}/**.py")] + [ROOT / "manage.py"]
WRITTEN = [path for path in SOURCES if not set(path.parts) & set(GENERATED)]
TESTS = _tracked("tests/**.py")
TREES = {path: ast.parse(path.read_text()) for path in {*WRITTEN, *TESTS}}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _functions(tree: ast.AST) -> Iterator[FunctionNode]:
    return (node for node in ast.walk(tree) if isinstance(node, FunctionNode))


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_the_import_contracts_hold() -> None:
    lint = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    done = subprocess.run(lint, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_only_the_environment_reads_the_environment() -> None:
    found = []
    for path in WRITTEN:
        for node in ast.walk(TREES[path]):
            read = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
            if read and isinstance(node.value, ast.Name) and node.value.id == "os":
                found.append(f"{_name(path)}:{node.lineno}")
    allowed = {"fabstir_site/environment.py", *SETTINGS_POINTERS, *HANDED_ON}
    assert [place for place in found if place.split(":")[0] not in allowed] == []
    for pointer in SETTINGS_POINTERS:
        lines = [line for line in (ROOT / pointer).read_text().splitlines() if "environ" in line]
        assert all('setdefault("DJANGO_SETTINGS_MODULE"' in line for line in lines)


def test_modules_are_named_for_what_they_keep() -> None:
    nameless = re.compile(r"(^|_)(utils?|helpers?|common|misc|services?)(_|$)")
    found = [_name(path) for path in {*SOURCES, *TESTS} if any(nameless.search(Path(part).stem) for part in path.parts)]
    assert found == []


@pytest.mark.parametrize("kind", ["code", "tests"])
def test_no_file_is_longer_than_one_can_read(kind: str) -> None:
    paths = WRITTEN if kind == "code" else TESTS
    lengths = {_name(path): len(path.read_text().splitlines()) for path in paths}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    found = [
        f"{_name(path)}:{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in WRITTEN
        for node in _functions(TREES[path])
        if node.end_lineno and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    ]
    assert found == []


def test_every_import_stands_at_the_top_of_its_module() -> None:
    found = [
        f"{_name(path)}:{node.lineno}"
        for path in {*WRITTEN, *TESTS}
        for function in _functions(TREES[path])
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    # Django's own manage.py explains a missing Django by importing it late.
    assert [place for place in found if not place.startswith("manage.py")] == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        _name(path)
        for path in WRITTEN
        if path.name not in ("__init__.py", "apps.py") and not ast.get_docstring(TREES[path])
    ]
    assert silent == []


def test_rows_are_locked_only_where_the_lock_is_within_its_transaction() -> None:
    """SQLite ignores ``select_for_update``; on PostgreSQL it needs a transaction around it."""
    for path in WRITTEN:
        for function in _functions(TREES[path]):
            text = ast.unparse(function)
            if "select_for_update" in text:
                assert re.search(r"with .*atomic\(|@.*atomic", text), f"{_name(path)}:{function.name}"
                assert "skip_locked" not in text
                assert "nowait" not in text


def test_jobs_and_nodes_do_not_talk_to_the_network() -> None:
    network = re.compile(
        r"^(requests|httpx|aiohttp|urllib\.request|urllib3|http\.client|web3|eth_account|ftplib|smtplib)\b"
    )
    found = [
        f"{_name(path)}: {module}"
        for path in WRITTEN
        if path.relative_to(ROOT).parts[0] in ("jobs", "nodes") and _name(path) not in ENGINE_ELSEWHERE
        for module in _imported(TREES[path])
        if network.match(module)
    ]
    assert found == []


def test_no_network_is_used_inside_a_transaction() -> None:
    """Chain calls go through ``client``: none of them stands in a ``with transaction.atomic()`` block."""
    found = [
        f"{_name(path)}:{block.lineno}"
        for path in WRITTEN
        for block in ast.walk(TREES[path])
        if isinstance(block, ast.With) and "atomic()" in ast.unparse(block.items[0])
        if re.search(r"\bclient\.\w+\(|\bengine\.\w+\(|requests\.\w+\(", ast.unparse(block))
    ]
    assert found == []


def test_every_test_asserts_something() -> None:
    proof = re.compile(r"\bassert\b|pytest\.raises|pytest\.fail|_assert\w*\(|assert_\w+\(|refusal_of\(|_refused\(")
    silent = []
    for path in TESTS:
        own = {node.name: ast.unparse(node) for node in _functions(TREES[path])}
        for name, text in own.items():
            called = [own[word] for word in re.findall(r"\b_?\w+(?=\()", text) if word in own and word != name]
            if name.startswith("test_") and not proof.search(text) and not any(map(proof.search, called)):
                silent.append(f"{_name(path)}:{name}")
    assert silent == []


def _pauses(tree: ast.AST) -> Iterator[float]:
    """Seconds that ``time.sleep`` is given as a number."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep":
            yield from (float(part.value) for part in node.args if isinstance(part, ast.Constant))


def test_no_test_sleeps_for_long_or_skips_without_a_reason() -> None:
    for path in (path for path in TESTS if path.name.startswith("test_")):
        text = path.read_text()
        assert all(pause <= 0.5 for pause in _pauses(TREES[path])), _name(path)
        assert not re.search(r"mark\.(skip|xfail)\b(?!if)(?!\(.*reason)", text), _name(path)


# Values that everybody may know: compiled contracts, digests of pinned downloads, transactions of the demo.
KNOWN_HEX = re.compile(
    r"\.(json|lock|txt|sol|svg)$|(^|/)(bindings|artifacts|abi)/|toolchain|model_store|(^|/)README\.md$"
)


def test_the_tree_holds_no_key() -> None:
    secret = re.compile(rb"(?<![0-9a-fA-F])(?:0x)?([0-9a-fA-F]{64})(?![0-9a-fA-F])")
    found = []
    for path in _tracked():
        if KNOWN_HEX.search(_name(path)):
            continue
        for match in secret.finditer(path.read_bytes()):
            digits = match.group(1).lower()
            if len(set(digits)) > 2:  # one or two digits over and over are an example
                found.append(f"{_name(path)}: {digits[:8].decode()}…")
    assert found == []


def test_no_file_holds_a_private_key_in_another_form() -> None:
    marks = ("-----BEGIN " + "PRIVATE KEY", "-----BEGIN " + "EC PRIVATE KEY", "AKIA" + "IOSF")
    found = [_name(path) for path in _tracked() for mark in marks if mark.encode() in path.read_bytes()]
    assert found == []


def test_selectors_come_from_the_abi() -> None:
    known = {selector.hex() for selector in (*SELECTORS, *ALL_ERRORS)}
    literal = re.compile(r"""(?:0x|\\x|["'])([0-9a-fA-F]{8})(?![0-9a-fA-F])""")
    found = [
        f"{_name(path)}: {value}"
        for path in WRITTEN
        if path.relative_to(ROOT).parts[0] == "settlement"
        for value in literal.findall(path.read_text())
        if value.lower() in known or re.search(rf"0x{value}", path.read_text())
    ]
    assert found == []


def test_the_contracts_interface_has_one_hash() -> None:
    code = "from settlement.chain.contracts import abi_hash; print(abi_hash())"
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert elsewhere == abi_hash()
    assert re.fullmatch(r"[0-9a-f]{64}", abi_hash())


def test_nothing_points_outside_the_checkout() -> None:
    places = ("/work/" + "shared", "../" + "shared", "/tmp/" + "contracts-api")
    found = [_name(path) for path in _tracked() for place in places if place.encode() in path.read_bytes()]
    assert found == []

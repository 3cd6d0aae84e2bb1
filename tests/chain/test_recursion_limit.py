"""The chain's libraries leave the interpreter's protection against deep nesting alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
before = sys.getrecursionlimit()
import settlement.chain.client, settlement.chain.signer, settlement.chain.deployment
assert sys.getrecursionlimit() == before, sys.getrecursionlimit()
"""


def test_importing_the_chain_leaves_the_recursion_limit_alone():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_deeply_nested_json_is_an_error_and_no_crash():
    program = (
        "import settlement.chain.client, json\n"
        "try: json.loads('[' * 1_000_000)\n"
        "except RecursionError: print('refused')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == "refused", ended.stderr


@pytest.mark.parametrize("module", ["fabstir_site.asgi", "fabstir_site.celery"])
def test_the_processes_start_with_the_usual_limit(module):
    program = f"import sys, {module}\nprint(sys.getrecursionlimit())"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert int(ended.stdout.split()[-1]) <= 1000, ended.stderr

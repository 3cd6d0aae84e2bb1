"""The embedded anvil: its command line, its controls and its end."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from web3 import HTTPProvider, Web3

from settlement.chain import local


def test_the_command_listens_on_loopback_and_keeps_to_its_folder(tmp_path: Path) -> None:
    command = local.anvil_command(
        binary=tmp_path / "anvil", port=1234, cache_dir=tmp_path / "cache", state_file=tmp_path / "state.json"
    )
    pairs = dict(itertools.pairwise(command))
    assert pairs["--host"] == "127.0.0.1"
    assert (pairs["--port"], pairs["--chain-id"]) == ("1234", "31337")
    assert (pairs["--state"], pairs["--state-interval"]) == (str(tmp_path / "state.json"), "2")
    assert pairs["--cache-path"] == str(tmp_path / "cache")
    assert "--silent" in command
    assert "--block-time" not in command


def test_an_idle_chain_does_not_grow(anvil_url: str) -> None:
    before = local.rpc(anvil_url, "eth_blockNumber")
    time.sleep(0.3)
    assert local.rpc(anvil_url, "eth_blockNumber") == before


def test_the_controls_do_what_they_say(anvil_url: str) -> None:
    before = local.snapshot(anvil_url)
    w3 = Web3(HTTPProvider(anvil_url))
    account = Web3.to_checksum_address("0x" + "ab" * 20)
    local.fund(anvil_url, address=account, wei=12345)
    assert w3.eth.get_balance(account) == 12345
    height, clock = w3.eth.block_number, w3.eth.get_block("latest")["timestamp"]
    local.mine(anvil_url, blocks=3)
    assert w3.eth.block_number == height + 3
    local.increase_time(anvil_url, seconds=1000)
    assert w3.eth.get_block("latest")["timestamp"] >= clock + 1000
    local.set_next_block_time(anvil_url, timestamp=clock + 5000)
    local.mine(anvil_url)
    assert w3.eth.get_block("latest")["timestamp"] == clock + 5000
    local.revert(anvil_url, snapshot_id=before)
    assert w3.eth.block_number == height
    with pytest.raises(local.LocalChainError, match="snapshot"):
        local.revert(anvil_url, snapshot_id="0xffff")


def test_a_transaction_waits_without_automine_and_vanishes_in_a_reorganisation(anvil_url: str) -> None:
    w3 = Web3(HTTPProvider(anvil_url))
    sender, recipient = local.accounts(anvil_url)[:2]
    local.set_automine(anvil_url, enabled=False)
    sent = w3.eth.send_transaction({"from": sender, "to": recipient, "value": 1, "gas": 21000})
    assert w3.eth.get_transaction(sent).get("blockNumber") is None
    local.set_automine(anvil_url, enabled=True)
    local.mine(anvil_url)
    mined = w3.eth.get_transaction_receipt(sent)["blockHash"]
    height = w3.eth.block_number
    local.reorganise(anvil_url, depth=1)
    assert w3.eth.block_number == height
    assert w3.eth.get_block(height)["hash"] != mined


def test_finality_follows_the_head_closely(anvil_url: str) -> None:
    w3 = Web3(HTTPProvider(anvil_url))
    local.mine(anvil_url, blocks=5)
    assert w3.eth.block_number - int(w3.eth.get_block("finalized")["number"]) <= 2


def test_a_chain_that_does_not_answer_is_an_error() -> None:
    url = f"http://127.0.0.1:{local.free_port()}"
    with pytest.raises(local.LocalChainError, match="no answer"):
        local.wait_until_answering(url, timeout=0.1)
    with pytest.raises(local.LocalChainError, match="no answer"):
        local.wait_until_answering(url, timeout=60, gave_up=lambda: True)


def test_a_refused_control_is_an_error(anvil_url: str) -> None:
    with pytest.raises(local.LocalChainError, match="no_such_method"):
        local.rpc(anvil_url, "no_such_method")


def test_a_binary_that_ends_at_once_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "anvil"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(local.LocalChainError), local.TemporaryAnvil(binary=broken):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_anvil_dies_with_the_process_that_started_it(anvil_binary: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from settlement.chain.local import TemporaryAnvil\n"
        "with TemporaryAnvil(binary=Path(sys.argv[1])) as anvil:\n"
        "    print(anvil._process.pid, flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(anvil_binary)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        psutil.wait_procs([child], timeout=30)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE

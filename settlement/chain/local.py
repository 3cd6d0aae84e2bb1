"""The embedded chain: how to start anvil, how to know that it answers, and the controls only a local chain
has. Guarantees that anvil listens on loopback only, keeps its files where it is told and prints no key.
Does not supervise a long-lived process (the site's process tree does) and must never be pointed at a chain
with value.
"""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import requests
from eth_typing import ChecksumAddress
from eth_utils.address import to_checksum_address
from web3 import HTTPProvider
from web3.exceptions import Web3Exception
from web3.types import RPCEndpoint

CHAIN_ID = 31337
STATE_INTERVAL = 2
"""Seconds between two writes of the state file: what a kill -9 may lose."""
_PR_SET_PDEATHSIG = 1


class LocalChainError(Exception):
    """The local chain did not start, did not answer or refused a control call."""


def anvil_command(
    *,
    binary: Path,
    port: int,
    cache_dir: Path,
    state_file: Path | None = None,
    chain_id: int = CHAIN_ID,
    accounts: int = 10,
) -> list[str]:
    """The command line of an anvil on 127.0.0.1 with `accounts` unlocked accounts.

    It mines a block for each transaction and none otherwise, so an idle chain does not grow. With a state
    file it resumes from there and writes it every STATE_INTERVAL seconds and at SIGTERM.
    """
    command = [str(binary), "--silent", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--chain-id", str(chain_id), "--accounts", str(accounts)]
    # One slot to an epoch: `safe` and `finalized` follow the head closely instead of lagging 64 blocks.
    command += ["--hardfork", "cancun", "--slots-in-an-epoch", "1", "--cache-path", str(cache_dir)]
    if state_file is not None:
        command += ["--state", str(state_file), "--state-interval", str(STATE_INTERVAL)]
    return command


def rpc(url: str, method: str, params: Sequence[Any] = ()) -> Any:
    """The result of one JSON-RPC call; raises LocalChainError when it is refused or the node is gone."""
    try:
        response = HTTPProvider(url, request_kwargs={"timeout": 30}).make_request(RPCEndpoint(method), list(params))
    except (requests.RequestException, Web3Exception, OSError) as problem:
        raise LocalChainError(f"{method} at {url}: {problem}") from problem
    if "error" in response:
        raise LocalChainError(f"{method} at {url}: {response['error']}")
    return response.get("result")


def wait_until_answering(url: str, *, timeout: float, gave_up: Callable[[], bool] = lambda: False) -> int:
    """Waits up to `timeout` seconds for the node to answer and returns its chain id.

    `gave_up` is asked between two tries, to stop early when the process has ended. Raises LocalChainError.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            return int(rpc(url, "eth_chainId"), 16)
        except LocalChainError as problem:
            if gave_up() or time.monotonic() > deadline:
                raise LocalChainError(f"no answer from the chain at {url} within {timeout} s") from problem
        time.sleep(0.02)


def accounts(url: str) -> list[ChecksumAddress]:
    """The unlocked accounts, each with 10 000 play ETH."""
    return [to_checksum_address(account) for account in rpc(url, "eth_accounts")]


def fund(url: str, *, address: ChecksumAddress, wei: int) -> None:
    """Sets the ETH balance of an address."""
    rpc(url, "anvil_setBalance", [address, hex(wei)])


def mine(url: str, *, blocks: int = 1) -> None:
    """Mines blocks, with the pending transactions in the first."""
    rpc(url, "anvil_mine", [hex(blocks)])


def increase_time(url: str, *, seconds: int) -> None:
    """Moves the chain's clock forward and mines a block at the new time."""
    rpc(url, "evm_increaseTime", [hex(seconds)])
    rpc(url, "evm_mine")


def set_next_block_time(url: str, *, timestamp: int) -> None:
    """Fixes the timestamp (seconds since 1970) of the next block."""
    rpc(url, "evm_setNextBlockTimestamp", [hex(timestamp)])


def set_automine(url: str, *, enabled: bool) -> None:
    """Whether each transaction is mined at once, or waits in the pool for `mine`."""
    rpc(url, "evm_setAutomine", [enabled])


def snapshot(url: str) -> str:
    """Remembers the chain's state; the result is for one `revert`."""
    return cast(str, rpc(url, "evm_snapshot"))


def revert(url: str, *, snapshot_id: str) -> None:
    """Goes back to a snapshot, which is used up by it."""
    if rpc(url, "evm_revert", [snapshot_id]) is not True:
        raise LocalChainError(f"the chain at {url} no longer knows the snapshot {snapshot_id}")


def reorganise(url: str, *, depth: int) -> None:
    """Replaces the newest `depth` blocks by empty ones; their transactions vanish."""
    rpc(url, "anvil_reorg", [depth, []])


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def die_with_parent() -> None:
    """In a child before exec: has Linux kill it when the thread that started it is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class TemporaryAnvil:
    """An anvil on a free port for the length of a `with` block, its files in a temporary folder."""

    def __init__(self, *, binary: Path, chain_id: int = CHAIN_ID, state_file: Path | None = None) -> None:
        self._binary = binary
        self._chain_id = chain_id
        self._state_file = state_file
        self._folder = tempfile.TemporaryDirectory(prefix="fabstir-anvil-")
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        for attempt in range(3):
            try:
                self._start()
            except LocalChainError:
                self._stop()
                if attempt == 2:
                    self._folder.cleanup()
                    raise
            else:
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._folder.cleanup()

    def _start(self) -> None:
        port = free_port()
        command = anvil_command(
            binary=self._binary,
            port=port,
            cache_dir=Path(self._folder.name),
            state_file=self._state_file,
            chain_id=self._chain_id,
        )
        process = subprocess.Popen(  # noqa: S603 - no shell; every argument is ours
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
        self._process = process
        self.url = f"http://127.0.0.1:{port}"
        wait_until_answering(self.url, timeout=30, gave_up=lambda: process.poll() is not None)

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

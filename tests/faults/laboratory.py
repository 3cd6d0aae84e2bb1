"""Nodes on one chain: each with a host account, a deployment file and a database of its own, and what became of it."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import psycopg
from eth_account import Account
from eth_account.signers.local import LocalAccount

from settlement.chain import local
from settlement.chain.bindings.events import ProofOfWork
from settlement.chain.bindings.structs import SessionStatus
from settlement.chain.signer import compressed_public_key
from tests.chain.world import World, build_world
from tests.faults.clock import SharedClock
from tests.faults.fork_server import ForkServer

PRICE = 2000
FEE_BASIS_POINTS = 1000
REHEARSED_TOKENS = 150


@dataclass
class Node:
    """A host with its books. ``description`` is what the forked processes are told."""

    account: LocalAccount
    folder: Path
    first_block: int
    first_nonce: int
    description: dict[str, Any]
    jobs: list[int] = field(default_factory=list)


class Laboratory:
    """A chain with contracts, a clock, and databases copied from one that is migrated once."""

    def __init__(self, url: str, *, folder: Path, **terms: Any) -> None:
        self.folder = folder
        self.world: World = build_world(url, **terms)
        self.clock = SharedClock(folder / "clock", url=url)
        self.clock.follow()
        self.postgres = os.environ.get("DATABASE_URL")
        self._names = 0
        self._databases: set[str] = set()
        self.server = self.new_server()
        self._template = self._database_name("template")
        if self.postgres:
            self._create(self._template)
        self.server.ask("migrate", database=self._template)
        self._rehearse()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.close()
        for database in list(self._databases):
            self._drop(database)

    def new_server(self) -> ForkServer:
        self._names += 1
        database = {"DATABASE_URL": self.postgres} if self.postgres else {}
        return ForkServer(folder=self.folder / f"server-{self._names}", environ=database)

    def _rehearse(self) -> None:
        node = self.new_node()
        _, session = self.open_job(node, tokens=2 * REHEARSED_TOKENS)
        self.server.rehearse("rehearse", node=node.description, session=session, tokens=REHEARSED_TOKENS)
        self.discard(node)

    # Databases ----------------------------------------------------------------------------------

    def _database_name(self, label: str) -> str:
        if self.postgres:
            return f"faults_{os.getpid()}_{self.folder.name}_{label}"
        return str(self.folder / f"{label}.sqlite3")

    def _create(self, name: str, *, template: str = "template1") -> None:
        with psycopg.connect(self.postgres, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        self._databases.add(name)

    def _drop(self, name: str) -> None:
        # "postgres" and not the URL's own: a database cannot be dropped by its own connection.
        url = urlunsplit(urlsplit(str(self.postgres))._replace(path="/postgres"))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        self._databases.discard(name)

    # Nodes --------------------------------------------------------------------------------------

    def new_node(self) -> Node:
        """A registered host that the chain has not seen before, and an empty database."""
        self._names += 1
        folder = self.folder / f"node-{self._names}"
        database = self._database_name(f"node-{self._names}")
        if self.postgres:
            self._create(database, template=self._template)
        else:
            shutil.copy(self._template, database)
        account, world = Account.create(), self.world
        local.fund(world.url, address=account.address, wei=100 * 10**18)
        local.rpc(world.url, "anvil_impersonateAccount", [account.address])
        metadata = json.dumps({"publicKey": compressed_public_key(account)})
        world.send(world.register(account.address, metadata=metadata), sender=account.address)
        local.rpc(world.url, "anvil_stopImpersonatingAccount", [account.address])
        head = world.w3.eth.get_block("latest")
        first = int(head["number"])
        # The node reads no events of the lives before its own.
        deployment = replace(world.deployment, deployed_at_block=first, block_hash="0x" + bytes(head["hash"]).hex())
        file = folder / "chain" / f"deployment-{local.CHAIN_ID}.json"
        file.parent.mkdir(parents=True)
        file.write_text(deployment.to_json())
        self.clock.follow()
        description = {
            "data_dir": str(folder),
            "url": world.url,
            "chain_id": local.CHAIN_ID,
            "key": "0x" + account.key.hex().removeprefix("0x"),
            "database": database,
            "clock": str(self.clock.path),
        }
        nonce = int(world.w3.eth.get_transaction_count(account.address))
        return Node(account, folder, first, nonce, description)

    def discard(self, node: Node) -> None:
        if self.postgres:
            self._drop(node.description["database"])
        else:
            for file in self.folder.glob(Path(node.description["database"]).name + "*"):
                file.unlink()
        shutil.rmtree(node.folder)

    def open_job(self, node: Node, *, tokens: int, **terms: Any) -> tuple[int, int]:
        """A USDC job that pays for so many tokens: its id, and its session's row id."""
        self.world.host = node.account.address
        job_id = self.world.open_usdc(deposit=tokens * PRICE, price=PRICE, **terms)
        self.clock.follow()
        node.jobs.append(job_id)
        return job_id, int(self.server.ask("open_job", node=node.description, job_id=job_id))

    # What became of it --------------------------------------------------------------------------

    def findings(
        self,
        node: Node,
        *,
        tokens: dict[int, int],
        status: SessionStatus = SessionStatus.COMPLETED,
        withdrawn: bool = True,
    ) -> list[str]:
        """Everything that is wrong, in the books or on the chain, once ``tokens`` of each job should be paid for.

        ``withdrawn``: with all that was earned in the host's own account.
        """
        books = self.server.ask("books", node=node.description)
        found = list(books["violations"])
        if not books["drained"]:
            found.append(f"not drained: {books['sessions']} {books['checkpoints']} {books['transactions']}")
        for job_id, tracked in tokens.items():
            found += self._unpaid(job_id, tokens=tracked, status=status)
        proofs = self.proofs(node)
        found += [f"the proof {name} was accepted {times} times" for name, times in proofs.items() if times > 1]
        if len(proofs) != len(books["checkpoints"]):
            found.append(f"{len(proofs)} proofs on the chain, {len(books['checkpoints'])} checkpoints")
        if withdrawn:
            found += self._not_withdrawn(node)
        return found + self._sent_twice(node, attempts=books["attempts"])

    def _not_withdrawn(self, node: Node) -> list[str]:
        world, host, earned = self.world, node.account.address, 0
        for job_id in node.jobs:
            earned += world.job(job_id).withdrawn_by_host
        left = world.read(world.earnings.get_balance(host=host, token=world.usdc.address))
        received = world.balance(host, world.usdc.address)
        return (
            [] if (left, received) == (0, earned) else [f"{earned} earned, {left} not withdrawn, {received} received"]
        )

    def _unpaid(self, job_id: int, *, tokens: int, status: SessionStatus) -> list[str]:
        job = self.world.job(job_id)
        gross = tokens * PRICE
        treasury = gross * FEE_BASIS_POINTS // 10_000
        expected = {
            "tokens": tokens,
            "host": gross - treasury,
            "treasury": treasury,
            "refund": job.deposit - gross if status == SessionStatus.COMPLETED else 0,
            "status": status,
        }
        actual = {
            "tokens": job.tokens_used,
            "host": job.withdrawn_by_host,
            "treasury": job.paid_to_treasury,
            "refund": job.refunded_to_user,
            "status": job.status,
        }
        return [f"job {job_id}: {name} is {actual[name]}, not {expected[name]}" for name in expected
                if actual[name] != expected[name]]  # fmt: skip

    def _sent_twice(self, node: Node, *, attempts: dict[str, str]) -> list[str]:
        """Mined transactions of the host that the books do not know, that repeat another, or that failed."""
        w3, found = self.world.w3, []
        mined: Counter[str] = Counter()
        for number in range(node.first_block + 1, int(w3.eth.block_number) + 1):
            for transaction in w3.eth.get_block(number, full_transactions=True)["transactions"]:
                if transaction["from"] != node.account.address:
                    continue
                name = "0x" + bytes(transaction["hash"]).hex()
                key = attempts.get(name)
                mined[key or name] += 1
                if key is None:
                    found.append(f"mined and unknown to the books: {name}")
                if w3.eth.get_transaction_receipt(transaction["hash"])["status"] != 1:
                    found.append(f"mined in vain: {key or name}, which {self._returned(name)}")
        found += [f"mined {times} times: {key}" for key, times in mined.items() if times > 1]
        count = self.mined(node)
        if count != sum(mined.values()):
            found.append(f"{count} nonces used, {sum(mined.values())} transactions found")
        return found

    def _returned(self, transaction_hash: str) -> str:
        options = {"disableStorage": True, "disableMemory": True, "disableStack": True}
        trace = local.rpc(self.world.url, "debug_traceTransaction", [transaction_hash, options])
        return f"returned {trace['returnValue']} for {int(trace['gas'])} gas"

    def mined(self, node: Node) -> int:
        """How many transactions of this host the chain holds, by its nonce."""
        return int(self.world.w3.eth.get_transaction_count(node.account.address)) - node.first_nonce

    def proofs(self, node: Node) -> Counter[str]:
        """How often each proof of this host's jobs was accepted, by the marketplace's own events."""
        logs = self.world.w3.eth.get_logs(
            {
                "address": self.world.marketplace.address,
                "fromBlock": node.first_block,
                "topics": ["0x" + ProofOfWork.topic.hex()],
            }
        )
        events = [ProofOfWork.decode(log).event for log in logs]
        return Counter(bytes(event.proof_hash).hex() for event in events if event.job_id in node.jobs)

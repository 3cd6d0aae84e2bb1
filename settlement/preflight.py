"""Preflight: prove the whole way to the money before the first job, one line per check.

Guarantees that each failing line names its remedy, and that a check which cannot run (because the
chain is away, say) fails rather than passes. Changes nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

import redis
from django.conf import settings
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

from jobs.engine_choice import make_engine
from jobs.inference.engine import ChatMessage, EngineError, GenerationRequest
from nodes.models import ServedModel
from settlement.amounts import EVERYTHING, format_basis_points
from settlement.chain.client import CallReverted, ChainUnavailable, NodeRefused
from settlement.chain.contracts import CodecError
from settlement.chain.deployment import addresses
from settlement.chain.marketplace import UnsupportedGeneration
from settlement.chain.marketplaces import known_generations
from settlement.chain.signer import KeyUnusable, compressed_public_key
from settlement.host_chain import NoDeployment, chain_client, configured_deployment, host_account, host_chain
from settlement.proofs.prover import ProverUnavailable
from settlement.proofs.registry import accepted_prover
from settlement.registration import registered_node

# A claim costs about 200,000 gas; with less than a hundred of them a host should be told.
_CLAIMS_OF_GAS = 100
_GAS_PER_CLAIM = 300_000
_ADDRESS_VARIABLES = {
    "job_marketplace": "CONTRACT_JOB_MARKETPLACE",
    "host_earnings": "CONTRACT_HOST_EARNINGS",
    "proof_system": "CONTRACT_PROOF_SYSTEM",
    "node_registry": "CONTRACT_NODE_REGISTRY",
    "model_registry": "CONTRACT_MODEL_REGISTRY",
    "usdc": "USDC_TOKEN",
}
_NAMED_IF_UNKNOWN = ("host_earnings", "proof_system", "node_registry")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line: what was checked, what was found, and what to do if that is not good."""

    name: str
    passed: bool
    found: str
    remedy: str = ""


class _Failed(Exception):
    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.found = found
        self.remedy = remedy


_CHAIN_FAILURES = (
    ChainUnavailable,
    NodeRefused,
    CallReverted,
    CodecError,
    UnsupportedGeneration,
    NoDeployment,
    KeyUnusable,
    ProverUnavailable,
)


def run() -> Iterator[Check]:
    """Every check, in the order in which they build on each other."""
    for name, check in _CHECKS:
        yield _run(name, check)


def _run(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name=name, passed=True, found=check())
    except _Failed as failed:
        return Check(name=name, passed=False, found=failed.found, remedy=failed.remedy)
    except _CHAIN_FAILURES as failure:
        return Check(
            name=name,
            passed=False,
            found=str(failure),
            remedy="Check RPC_URL, CHAIN_ID and the CONTRACT_* variables.",
        )


def _database() -> str:
    try:
        connection.ensure_connection()
    except DatabaseError as error:
        raise _Failed(f"does not answer: {error}", "Start the database, or correct DATABASE_URL.") from error
    return f"{connection.vendor} answers"


def pending_migrations() -> int:
    """How many migrations are not applied. Raises ``DatabaseError``."""
    executor = MigrationExecutor(connection)
    return len(executor.migration_plan(executor.loader.graph.leaf_nodes()))


def _migrations() -> str:
    try:
        pending = pending_migrations()
    except DatabaseError as error:
        raise _Failed(f"cannot be read: {error}", "Start the database.") from error
    if pending:
        raise _Failed(f"{pending} not applied", "Run `manage.py migrate`.")
    return "all applied"


def _redis() -> str:
    try:
        client = redis.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=2, socket_timeout=2)
        answered = client.ping()
    except redis.RedisError as error:
        raise _Failed(f"does not answer: {error}", "Start Redis, or correct REDIS_URL.") from error
    return "answers" if answered else "answers oddly"


def _model() -> str:
    default = ServedModel.objects.filter(is_default=True).first()
    if default is None:
        raise _Failed("none is served", "Run `manage.py models add smollm2-135m-instruct`.")
    return f"{default.id} is the default of {ServedModel.objects.enabled().count()}"


def _engine() -> str:
    try:
        loaded = asyncio.run(_loaded_models())
    except EngineError as error:
        raise _Failed(
            f"does not answer: {error}", "Start it with `manage.py engine`; its log says why it ended."
        ) from error
    return "; ".join(loaded) or "no model loaded"


async def _loaded_models() -> list[str]:
    engine = make_engine()
    try:
        return [
            f"{model.model} on {model.device} ({model.compute_type}, {model.replicas} replicas)"
            for model in await engine.models()
        ]
    finally:
        await engine.close()


def _canary() -> str:
    default = ServedModel.objects.filter(is_default=True).first()
    if default is None:
        raise _Failed("no model to ask", "Add a model.")
    try:
        text, tokens = asyncio.run(_ask(default.id))
    except EngineError as error:
        raise _Failed(f"{default.id} fails: {error}", "Run `manage.py models verify`; see the engine's log.") from error
    if not tokens or not text.strip():
        raise _Failed(f"{default.id} answers nothing", "The model's files or template are wrong: add it again.")
    return f"{default.id} answers {tokens} tokens: {text.strip()[:40]!r}"


async def _ask(model: str) -> tuple[str, int]:
    engine = make_engine()
    text, tokens = "", 0
    prompt = (ChatMessage(role="user", content="Say hello."),)
    request = GenerationRequest(
        request_id="preflight-canary", model=model, messages=prompt, max_tokens=8, temperature=0.0
    )
    try:
        async with aclosing(engine.generate(request)) as chunks:
            async for chunk in chunks:
                text += chunk.text
                tokens += chunk.count
    finally:
        await engine.close()
    return text, tokens


def _chain_id() -> str:
    reported, wanted = chain_client().reported_chain_id(), settings.ENVIRONMENT.chain_id
    if reported != wanted:
        raise _Failed(
            f"the node is of chain {reported}, CHAIN_ID is {wanted}",
            "Set RPC_URL and CHAIN_ID to the same chain.",
        )
    return str(reported)


def _contracts() -> str:
    client, deployment = chain_client(), configured_deployment()
    for name, address in addresses(deployment).items():
        if not client.code(address):
            raise _Failed(
                f"no code at {name} {address}",
                f"Set {_ADDRESS_VARIABLES.get(name, name)} to the contract's address.",
            )
    unknown = [
        variable
        for name, variable in _ADDRESS_VARIABLES.items()
        if name not in addresses(deployment) and name in _NAMED_IF_UNKNOWN
    ]
    # Whether the node needs it there, the checks that follow find out.
    also = f"; not known here: {', '.join(unknown)}" if unknown else ""
    return f"{len(addresses(deployment))} contracts have code ({deployment.generation}){also}"


def _selectors() -> str:
    chain = host_chain()
    code = chain.client.code(chain.deployment.job_marketplace)
    needed = chain.marketplace.needed_selectors()
    missing = [signature for signature, selector in needed.items() if selector not in code]
    if missing:
        raise _Failed(
            f"{chain.deployment.job_marketplace} does not answer {', '.join(missing)}",
            "CONTRACT_JOB_MARKETPLACE is not the JobMarketplace, or of another generation "
            f"than FABSTIR_CONTRACT_GENERATION says (this release settles with {', '.join(known_generations())}).",
        )
    return f"{len(needed)} functions are answered by the marketplace"


def _fee() -> str:
    chain = host_chain()
    terms = chain.marketplace.terms(chain.client)
    if terms.fee_basis_points >= EVERYTHING:
        raise _Failed("the marketplace keeps everything", "Do not serve on this marketplace.")
    share = format_basis_points(EVERYTHING - terms.fee_basis_points)
    return f"{terms.fee_basis_points} basis points to {terms.treasury}: the host keeps {share}"


def _prover() -> str:
    chain = host_chain()
    prover = accepted_prover(chain.client, chain.marketplace)
    if prover.name == "mock" and not settings.ENVIRONMENT.embedded_chain:
        raise _Failed("the proof system accepts mock proofs", "For testing only: do not take jobs with value on it.")
    return prover.probe()


_NO_KEY = "no key (HOST_KEYSTORE): this node serves and tracks tokens, but never claims"


def _registered() -> str:
    chain = host_chain()
    host = chain.host
    if host is None:
        return _NO_KEY
    if chain.deployment.node_registry is None:
        return f"{host}; no registry is known to look it up in (CONTRACT_NODE_REGISTRY)"
    node = registered_node(chain.client, chain.deployment, host=host)
    if node is None:
        raise _Failed(f"{host} is not registered", "Run `manage.py register_host`.")
    account = host_account()
    if account is not None and _public_key(node.metadata) != compressed_public_key(account):
        raise _Failed(
            "the registry holds another public key for this host",
            "Update the metadata's publicKey in the registry.",
        )
    return f"{host} with its own public key, {'active' if node.active else 'inactive'}"


def _public_key(metadata: str) -> str:
    try:
        parsed = json.loads(metadata)
    except ValueError:
        return ""
    return str(parsed.get("publicKey", "")) if isinstance(parsed, dict) else ""


def _gas() -> str:
    chain = host_chain()
    host = chain.host
    if host is None:
        return _NO_KEY
    balance = chain.client.balance(host)
    head = chain.client.head()
    claims = balance // max(1, _GAS_PER_CLAIM * (head.base_fee + chain.client.priority_fee()))
    if claims < _CLAIMS_OF_GAS:
        raise _Failed(f"{balance} wei pay for about {claims} claims", f"Send gas money to {host}.")
    return f"{balance} wei, about {claims} claims"


_CHECKS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("database", _database),
    ("migrations", _migrations),
    ("redis", _redis),
    ("model", _model),
    ("engine", _engine),
    ("canary prompt", _canary),
    ("chain id", _chain_id),
    ("contract code", _contracts),
    ("selectors", _selectors),
    ("fee", _fee),
    ("prover", _prover),
    ("host", _registered),
    ("gas", _gas),
)

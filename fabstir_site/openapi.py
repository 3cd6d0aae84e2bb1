"""What the document of the HTTP interface says of the node's health and identity."""

from __future__ import annotations

from jobs.openapi_operations import Operation, Part, content_of, json_of, reading
from jobs.openapi_schemas import (
    ADDRESS,
    AMOUNT,
    CHAIN_ID,
    COUNT,
    MAYBE_COUNT,
    TEXT,
    TRUTH,
    by_name,
    list_of,
    object_of,
    or_null,
    ref,
)
from jobs.strict_fields import Schema
from settlement.chain.endpoints import Standing
from settlement.violations import INVARIANTS

_TEXTS = list_of(TEXT)
_CONTRACTS = by_name(ADDRESS)


def part() -> Part:
    """Everything that ``health`` answers."""
    health = _asked("readHealth", "How the node is, for clients", answer="Health")
    legacy = {**health, "operationId": "readHealthHere", "summary": "The same, where older clients ask"}
    ready = _asked("isReady", "Whether a paid prompt can be served now", answer="Readiness")
    ready["responses"]["503"] = {
        **ready["responses"]["200"],
        "description": "Not now; the answer says why.",
        "content": content_of(json_of("Readiness")),
    }
    return Part(
        tags={"Node": "How the node is, and which build it is."},
        paths={
            "/v1/health": {"get": health},
            "/health": {"get": legacy},
            "/status": {"get": _asked("readStatus", "What a host's own tools show", answer="Status")},
            "/livez": {"get": _asked("isAlive", "Whether the process answers", answer="Alive")},
            "/readyz": {"get": ready},
            "/v1/version": {"get": _asked("readVersion", "Build, chain and contracts", answer="Version")},
            "/v1/chains": {"get": _asked("listChains", "The chain whose jobs are served", answer="Chains")},
        },
        schemas=_schemas(),
    )


def _asked(operation_id: str, summary: str, *, answer: str) -> Operation:
    return reading(operation_id, summary, tag="Node", answer=answer)


def _schemas() -> dict[str, Schema]:
    return {
        "Alive": object_of(status={"const": "ok"}),
        "Readiness": object_of(status={"enum": ["ok", "unready"]}, issues=_TEXTS),
        "Health": object_of(
            status={"enum": ["healthy", "degraded", "unhealthy"]},
            healthy=TRUTH,
            issues=_TEXTS,
            chain_id=CHAIN_ID,
            settlement=ref("Settlement"),
            optional={"warnings": {**_TEXTS, "minItems": 1}},
        ),
        "Status": _status(),
        "Settlement": _settlement(),
        "Chains": object_of(
            chains=list_of(object_of(chain_id=CHAIN_ID, contracts=_CONTRACTS, contract_generation=TEXT)),
            default_chain=CHAIN_ID,
        ),
        "Version": _version(),
    }


def _status() -> Schema:
    return object_of(
        status={"enum": ["active", "maintenance"]},
        node_id={**TEXT, "pattern": "^(0x[0-9a-fA-F]{40})?$", "description": "The host's address, if it has a key."},
        uptime_seconds=COUNT,
        active_sessions=COUNT,
        total_jobs_completed=COUNT,
        tokens_tracked=AMOUNT,
        tokens_claimed=AMOUNT,
        claiming=TRUTH,
        note=TEXT,
        capabilities=object_of(
            inference=TRUTH, encryption=TRUTH, rag=TRUTH, s5_vector_loading=TRUTH, proof_generation=TEXT
        ),
        models_loaded=_TEXTS,
        chain_id=CHAIN_ID,
        version=TEXT,
        health_issues=_TEXTS,
        health_warnings=_TEXTS,
        settlement=ref("Settlement"),
    )


def _settlement() -> Schema:
    rpc_node = object_of(
        name=TEXT,
        standing={"enum": [standing.value for standing in Standing]},
        reason=TEXT,
        last_block=MAYBE_COUNT,
        failures=COUNT,
        resting_seconds=COUNT,
    )
    return object_of(
        rpc_nodes=list_of(rpc_node),
        sender_paused=TEXT,
        gas_spent_wei=or_null(AMOUNT),
        gas_budget_wei=or_null(AMOUNT),
        ledger=object_of(
            violations=by_name(COUNT, names={"enum": list(INVARIANTS)}),
            mismatches=COUNT,
            checked_at=by_name({**TEXT, "format": "date-time"}),
        ),
    )


def _version() -> Schema:
    return object_of(
        version=TEXT,
        build=TEXT,
        git_revision=TEXT,
        chain_id=CHAIN_ID,
        chains=list_of(CHAIN_ID),
        contracts=_CONTRACTS,
        contract_generation=TEXT,
        abi_sha256={**TEXT, "pattern": "^[0-9a-f]{64}$"},
        features=_TEXTS,
        breaking_changes=_TEXTS,
        endpoints=_TEXTS,
    )

"""Health and identity of the running node.

``/livez`` says that the process answers and touches nothing else; ``/readyz`` asks everything a
prompt needs; ``/health`` and ``/status`` keep the shapes that existing clients read, and say how
settlement stands; ``/v1/version`` names the build, the chain and the contracts, so that nobody has to
guess which one runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from django.conf import settings
from django.db import DatabaseError
from django.db.models import Sum
from django.http import HttpRequest, JsonResponse

from fabstir_site import standing
from fabstir_site.logs import redact
from fabstir_site.serving import SERVING
from fabstir_site.version import VERSION, git_revision
from jobs.host_key import HostKeyMissing
from jobs.inference.engine import EngineError
from jobs.models import Session, SessionState
from nodes.database import in_database_thread
from settlement.chain.client import ChainUnavailable, NodeRefused
from settlement.chain.contracts import abi_hash
from settlement.chain.deployment import addresses
from settlement.chain.marketplace import UnsupportedGeneration
from settlement.chain.signer import KeyUnusable
from settlement.host_chain import NoDeployment, chain_client, configured_deployment, host_chain
from settlement.host_key import HOST_KEY
from settlement.preflight import pending_migrations

_STARTED = time.monotonic()
_FEATURES = ["inference", "streaming", "session-init", "encrypted-sessions", "stream-cancel", "checkpoints"]


async def livez(request: HttpRequest) -> JsonResponse:
    """200 while the process answers."""
    return JsonResponse({"status": "ok"})


async def readyz(request: HttpRequest) -> JsonResponse:
    """200 if a paid prompt can be served now, else 503 with the reasons."""
    issues = await _issues()
    return JsonResponse({"status": "unready" if issues else "ok", "issues": issues}, status=503 if issues else 200)


async def health(request: HttpRequest) -> JsonResponse:
    """Always 200: healthy, degraded (one issue) or unhealthy, as existing clients expect."""
    issues = await _issues()
    status = ("healthy", "degraded")[len(issues)] if len(issues) < 2 else "unhealthy"
    settlement = await _settlement()
    body: dict[str, Any] = {
        "status": status,
        "healthy": not issues,
        # Always a list: a client that joins it stops at anything else.
        "issues": issues,
        "chain_id": settings.ENVIRONMENT.chain_id,
        "settlement": settlement.as_json(),
    }
    if warnings := _redacted(settlement.warnings):
        body["warnings"] = warnings
    return JsonResponse(body)


async def status(request: HttpRequest) -> JsonResponse:
    """What a host's own tools show of a node."""
    issues = await _issues()
    counts = await in_database_thread(_session_counts)()
    host, tracking_only = await asyncio.to_thread(_host)
    models = await _loaded_models()
    settlement = await _settlement()
    return JsonResponse(
        {
            "status": "maintenance" if issues else "active",
            "node_id": host or "",
            "uptime_seconds": int(time.monotonic() - _STARTED),
            "active_sessions": counts["open"],
            "total_jobs_completed": counts["completed"],
            "tokens_tracked": str(counts["tracked"]),
            "tokens_claimed": str(counts["claimed"]),
            "claiming": not tracking_only,
            "note": "No host key: tokens are tracked and never claimed." if tracking_only else "",
            "capabilities": {
                "inference": True,
                "encryption": await asyncio.to_thread(_has_key),
                "rag": False,
                "s5_vector_loading": False,
                "proof_generation": "simple",
            },
            "models_loaded": models,
            "chain_id": settings.ENVIRONMENT.chain_id,
            "version": VERSION,
            "health_issues": issues,
            "health_warnings": _redacted(settlement.warnings),
            "settlement": settlement.as_json(),
        }
    )


async def chains(request: HttpRequest) -> JsonResponse:
    """The one chain that this host serves jobs of."""
    contracts, generation = await asyncio.to_thread(_contracts)
    chain_id = settings.ENVIRONMENT.chain_id
    chain = {"chain_id": chain_id, "contracts": contracts, "contract_generation": generation}
    return JsonResponse({"chains": [chain], "default_chain": chain_id})


async def version(request: HttpRequest) -> JsonResponse:
    """Build, chain, contracts and the hash of their interface."""
    contracts, generation = await asyncio.to_thread(_contracts)
    revision = await asyncio.to_thread(git_revision)
    return JsonResponse(
        {
            "version": VERSION,
            "build": f"v{VERSION}-{revision[:12]}",
            "git_revision": revision,
            "chain_id": settings.ENVIRONMENT.chain_id,
            "chains": [settings.ENVIRONMENT.chain_id],
            "contracts": contracts,
            "contract_generation": generation,
            "abi_sha256": abi_hash(),
            "features": _FEATURES,
            "breaking_changes": [],
            "endpoints": [
                "/v1/inference",
                "/v1/ws",
                "/v1/chat/completions",
                "/v1/completions",
                "/v1/models",
                "/v1/openapi.json",
                "/v1/auth/challenge",
                "/v1/session-auth",
                "/v1/usage",
                "/v1/checkpoints/{session}",
                "/v1/chains",
                "/v1/health",
                "/v1/version",
                "/health",
                "/status",
                "/livez",
                "/readyz",
                "/admin/",
            ],
        }
    )


async def _issues() -> list[str]:
    checks: tuple[Callable[[], Awaitable[str]], ...] = (
        in_database_thread(_database_issue),
        _engine_issue,
        lambda: asyncio.to_thread(_chain_issue),
    )
    return _redacted(issue for issue in await asyncio.gather(*(check() for check in checks)) if issue)


def _redacted(lines: Iterable[str]) -> list[str]:
    return [redact(line) for line in lines]


async def _settlement() -> standing.SettlementStanding:
    return await in_database_thread(standing.read)()


def _database_issue() -> str:
    try:
        pending = pending_migrations()
    except DatabaseError as error:
        return f"The database does not answer: {error}"
    return f"{pending} migrations are not applied. Run manage.py migrate." if pending else ""


async def _engine_issue() -> str:
    try:
        models = await SERVING.engine.models()
    except EngineError as error:
        return f"The engine does not answer: {error}"
    return "" if models else "The engine has no model loaded."


def _chain_issue() -> str:
    try:
        reported = chain_client().reported_chain_id()
    except (ChainUnavailable, NodeRefused) as error:
        return f"The chain does not answer: {error}"
    if reported != settings.ENVIRONMENT.chain_id:
        return f"RPC_URL is a node of chain {reported}, not of CHAIN_ID {settings.ENVIRONMENT.chain_id}."
    return ""


async def _loaded_models() -> list[str]:
    try:
        return [model.model for model in await SERVING.engine.models()]
    except EngineError:
        # Named in health_issues already.
        return []


def _session_counts() -> dict[str, int]:
    sessions = Session.objects.with_job()
    totals = sessions.aggregate(tracked=Sum("tokens_tracked", default=0), claimed=Sum("tokens_claimed", default=0))
    return {
        "open": Session.objects.open().with_job().count(),
        "completed": sessions.filter(state=SessionState.COMPLETED).count(),
        "tracked": totals["tracked"],
        "claimed": totals["claimed"],
    }


def _host() -> tuple[str | None, bool]:
    try:
        host = host_chain().host
    except (NoDeployment, UnsupportedGeneration, KeyUnusable):
        return None, True
    return host, host is None


def _has_key() -> bool:
    try:
        HOST_KEY.identity()
    except HostKeyMissing:
        return False
    return True


def _contracts() -> tuple[dict[str, str], str]:
    try:
        deployment = configured_deployment()
    except NoDeployment:
        return {}, ""
    return {name: str(address) for name, address in addresses(deployment).items()}, deployment.generation

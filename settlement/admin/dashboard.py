"""The admin's front page: what an operator wants to know first.

Guarantees that its numbers come from the database alone, so that it opens while the chain is away, and
that figures of money and tokens are those of ``settlement.statements``, as everywhere else.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db.models import Count, F, Sum
from django.http import HttpRequest
from django.urls import reverse

from jobs.models import Session
from nodes.models import Host
from nodes.read_only_admin import NOTHING
from settlement import statements
from settlement.admin.links import address_value
from settlement.admin.states import checkpoint_badge
from settlement.amounts import format_amount, format_shares
from settlement.chain.deployment import DeploymentError
from settlement.chain.marketplace import UnsupportedGeneration
from settlement.chain.signer import KeyUnusable
from settlement.host_chain import NoDeployment, host_chain
from settlement.models import Checkpoint, CheckpointState, ContractDeployment, LedgerCheck

_NEEDS_OPERATOR = (CheckpointState.FAILED, CheckpointState.PAUSED)


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Unfold's callback: what ``templates/admin/index.html`` shows."""
    context.update(
        cards=_cards(),
        host=_host(),
        money=_money(),
        ledger=_ledger(),
        checkpoints=_checkpoints(),
        failed_checkpoints_link=_checkpoint_list(CheckpointState.FAILED),
    )
    return context


def _cards() -> list[dict[str, Any]]:
    with_job = Session.objects.with_job()
    tokens = statements.token_counts()
    sessions = reverse("admin:jobs_session_changelist")
    without_job = Session.objects.open().filter(job_id__isnull=True).count()
    given_up = Checkpoint.objects.filter(state=CheckpointState.FAILED).aggregate(
        tokens=Sum(F("to_token") - F("from_token"), default=0)
    )["tokens"]
    on_their_way = tokens.sealed - tokens.claimed - given_up
    return [
        {
            "title": "Sessions open",
            "value": with_job.open().count(),
            "note": f"{with_job.closing().count()} closing, {without_job} without a job",
            "href": f"{sessions}?state__exact=open",
        },
        {"title": "Tokens tracked", "value": tokens.tracked, "note": "of jobs", "href": sessions},
        {
            "title": "Tokens sealed",
            "value": tokens.sealed,
            "note": f"{tokens.tracked - tokens.sealed} not sealed yet",
            "href": reverse("admin:settlement_checkpoint_changelist"),
        },
        {
            "title": "Tokens claimed",
            "value": tokens.claimed,
            "note": f"{on_their_way} on their way" + (f", {given_up} given up" if given_up else ""),
            "href": reverse("admin:settlement_checkpoint_changelist"),
        },
    ]


def _host() -> dict[str, Any]:
    """Who this host is and whether it can claim. Reads files and keys, not the network."""
    environment = settings.ENVIRONMENT
    found: dict[str, Any] = {
        "chain_id": environment.chain_id,
        "embedded": environment.embedded_chain,
        "address": NOTHING,
        "problem": "",
        "registered": False,
        "fee": "",
        "key": "",
    }
    try:
        chain = host_chain()
    except (NoDeployment, UnsupportedGeneration, KeyUnusable, DeploymentError) as problem:
        found["problem"] = str(problem)
        return found
    fee = (
        ContractDeployment.objects.filter(deployment=chain.key, name="job_marketplace")
        .values_list("fee_basis_points", flat=True)
        .first()
    )
    found["fee"] = "" if fee is None else format_shares(fee)
    if chain.host is None:
        found["problem"] = "No host key: tokens are tracked and never claimed."
        return found
    found["address"] = address_value(chain.host, chain_id=environment.chain_id)
    found["registered"] = Host.objects.filter(
        chain_id=environment.chain_id, address=chain.host.lower(), registered=True
    ).exists()
    return found


def _money() -> list[dict[str, Any]]:
    """One row per deployment and token, one amount per column."""
    lines = list(statements.statement())
    several = len({line.deployment for line in lines}) > 1
    return [
        {
            "symbol": line.unit.symbol,
            # Tokens that the node knows nothing about are told apart by their addresses.
            "token": line.token if line.unit.decimals == 0 else "",
            "deployment": line.deployment if several else "",
            "amounts": [format_amount(amount, line.unit) if amount else NOTHING for amount in _columns(line)],
        }
        for line in lines
    ]


def _columns(line: statements.Line) -> tuple[int, ...]:
    return (line.accrued, line.host, line.treasury, line.refund, line.gas, line.withdrawn, line.swept)


def _ledger() -> list[dict[str, Any]]:
    """The last check of each part of the ledger, in plain words."""
    return [
        {
            "part": "the chain" if check.part == "chain" else "the database",
            "at": check.at,
            "violations": sum(check.counts.values()),
            "findings": check.findings,
        }
        for check in LedgerCheck.objects.all()
    ]


def _checkpoints() -> list[dict[str, Any]]:
    counts = dict(Checkpoint.objects.order_by().values_list("state").annotate(Count("pk")))
    return [
        {
            "badge": checkpoint_badge(state),
            "count": counts[state],
            "href": _checkpoint_list(state),
            "alarming": state in _NEEDS_OPERATOR,
        }
        for state in CheckpointState
        if state in counts
    ]


def _checkpoint_list(state: CheckpointState) -> str:
    return f"{reverse('admin:settlement_checkpoint_changelist')}?state__exact={state.value}"

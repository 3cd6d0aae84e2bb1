"""Sealing: cut the counted tokens that are due to be claimed into checkpoints.

Guarantees that a job has at most one claim on its way into a block, while its mined ones wait for
finality; and that a pass asks the database once, however many sessions are open.
"""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.db.models import DateTimeField, Exists, F, OuterRef, Q, QuerySet, Subquery

from jobs.models import InferenceRequest, RequestState, Session, SessionState, TokenUsage
from settlement import checkpoints, pacing, policy
from settlement.host_chain import HostChain
from settlement.models import Checkpoint


def seal_due(chain: HostChain) -> int:
    """Seal what the policy says is due; returns the number of new checkpoints."""
    candidates = list(_candidates(chain))
    if not candidates:
        return 0
    environment = settings.ENVIRONMENT
    rule = policy.SealingRule(
        threshold=environment.checkpoint_threshold,
        max_age=timedelta(seconds=environment.checkpoint_max_age_seconds),
        value_to_gas=environment.value_to_gas_ratio,
    )
    pace = pacing.read_pace(chain)
    sealed = 0
    for session in candidates:
        decision = policy.seal(
            _unsealed(session, pace=pace),
            now=pace.now,
            rule=rule,
            terms=pace.terms,
            capabilities=chain.marketplace.capabilities,
        )
        if decision and checkpoints.seal(session, tokens=decision.tokens, closing=decision.closing):
            sealed += 1
    return sealed


def _candidates(chain: HostChain) -> QuerySet[Session]:
    """Sessions that may have something to seal, each with ``oldest_at`` and ``running``.

    Not those whose job has ended: nobody pays for their tokens any more.
    """
    minimum = chain.marketplace.capabilities.minimum_claim
    ending = Q(state=SessionState.CLOSING)
    first_of_job = Q(tokens_sealed__gt=0) | Q(tokens_tracked__gte=F("first_claim_tokens"))
    enough = Q(state=SessionState.OPEN, tokens_tracked__gte=F("tokens_sealed") + minimum) & first_of_job
    on_their_way = Checkpoint.objects.unmined().filter(session=OuterRef("pk"))
    running = InferenceRequest.objects.filter(session=OuterRef("pk"), state=RequestState.RUNNING)
    oldest = TokenUsage.objects.filter(session=OuterRef("pk"), first_index__gte=OuterRef("tokens_sealed"))
    return (
        Session.objects.unsealed()
        .filter(ending | enough, deployment=chain.key)
        .exclude(closing__ended_status__gt="")
        .filter(~Exists(on_their_way))
        .annotate(
            oldest_at=Subquery(
                oldest.order_by("first_index").values("created_at")[:1], output_field=DateTimeField(null=True)
            ),
            running=Exists(running),
        )
        .order_by("id")
    )


def _unsealed(session: Session, *, pace: pacing.Pace) -> policy.Unsealed:
    oldest_at = getattr(session, "oldest_at", None)
    running = getattr(session, "running", False)
    return policy.Unsealed(
        tokens=session.tokens_unsealed,
        oldest_at=oldest_at or session.last_activity_at,
        last_claim_at=pacing.last_claim_at(session),
        ending=session.state == SessionState.CLOSING and not running,
        tokens_per_second=session.tokens_per_second,
        first_claim_tokens=session.first_claim_minimum,
        forced_at=pacing.forced_at(session),
        dispute_until=pace.dispute_until(session),
        value=pace.token_value(session),
        usual_cost=pace.usual_cost,
    )

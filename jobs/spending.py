"""Who may spend a job's deposit: the policy, and the binding of a session to whoever it was opened for.

Guarantees that under ``depositor`` nobody prompts on a job who has not shown its depositor's key or the
depositor's authorisation; that under ``first-claim`` nobody but the first (and those two) does; and that a
refusal changes nothing, so that a job's number alone neither spends nor blocks it. Trusts the ``Caller``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jobs import session_authorization
from jobs.access_rules import SpendingPolicy
from jobs.callers import Caller
from jobs.job_source import ChainJob
from jobs.models import Session, SessionBinding
from jobs.protocol import BillingNote, RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """Leave to spend, and by what: to be bound to the session (``bind``). Empty where anybody may."""

    by: SessionBinding | None = None
    to: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """``token`` is a new secret for a caller who was first and has nothing else to be known by; else empty."""

    token: str = field(default="", repr=False)


def leave_of(job: ChainJob, *, caller: Caller, policy: SpendingPolicy) -> Leave | None:
    """What ``caller`` has shown for ``job``; ``None`` if only being first may still let it spend.

    Raises ``RequestError`` (403) if it may not. Reads the database only if the caller has shown something.
    """
    depositor = job.depositor.lower()
    if depositor in caller.addresses:
        return Leave(by=SessionBinding.DEPOSITOR, to=depositor)
    if policy is SpendingPolicy.OPEN:
        return Leave()
    if (row_id := session_authorization.access_to(job, caller=caller)) is not None:
        return Leave(by=SessionBinding.AUTHORIZATION, to=str(row_id))
    if policy is SpendingPolicy.DEPOSITOR:
        raise _not_depositor(job)
    return None


def bind(session: Session, *, job: ChainJob, caller: Caller, leave: Leave | None) -> Bound:
    """Remember for whom the session was opened first; with no ``leave`` of his own, let only him go on.

    Raises ``RequestError`` (403). Call it in the transaction that opens the session.
    """
    if leave is not None:
        if leave.by is not None and not session.bound_by:
            _take(session, by=leave.by, to=leave.to)
        return Bound()
    if _is_bound_to(session, caller):
        return Bound()
    if not session.bound_by:
        by, to, token = _first(job, caller=caller)
        if _take(session, by=by, to=to):
            return Bound(token=token)
        # Somebody else was faster: perhaps another request of the same caller.
        session.refresh_from_db(fields=["bound_by", "bound_to"])
        if _is_bound_to(session, caller):
            return Bound(token=token)
    raise _not_depositor(job)


def handing_out(refusal: RequestError, billing: BillingNote | None) -> RequestError:
    """``refusal`` with the billing note in its details, if that has a new token: it is told once, here or never."""
    if billing is None or not billing.session_token:
        return refusal
    return replace(refusal, details={**refusal.details, "billing": billing.body()})


def _first(job: ChainJob, *, caller: Caller) -> tuple[SessionBinding, str, str]:
    """What the first caller is known by from now on, and the token for one who may come back as a stranger."""
    if caller.addresses:
        return SessionBinding.ADDRESS, min(caller.addresses), ""
    if caller.api_key is not None:
        return SessionBinding.API_KEY, str(caller.api_key), ""
    row_id, token = session_authorization.first_claim(job)
    if caller.connection:
        return SessionBinding.CONNECTION, caller.connection, token
    return SessionBinding.TOKEN, str(row_id), token


def _is_bound_to(session: Session, caller: Caller) -> bool:
    held = {
        SessionBinding.ADDRESS: caller.addresses,
        SessionBinding.API_KEY: {str(caller.api_key)},
        SessionBinding.CONNECTION: {caller.connection},
    }
    return bool(session.bound_to) and session.bound_to in held.get(SessionBinding(session.bound_by), ())


def _take(session: Session, *, by: SessionBinding, to: str) -> bool:
    """Bind, unless somebody else has just done so."""
    return bool(Session.objects.filter(pk=session.pk, bound_by="").update(bound_by=by, bound_to=to))


def _not_depositor(job: ChainJob) -> RequestError:
    depositor = job.depositor.lower()
    return RequestError(
        code="not_depositor",
        message=f"Only the depositor of job {job.job_id} ({depositor}) and whom it authorises may prompt on it. Sign "
        "an authorisation with that account and POST it to /v1/session-auth, then send the session_token of the "
        "answer as Authorization: Bearer, or as session_token in session_init; or open an encrypted session with "
        "that account's key.",
        status=403,
        details={"job_id": str(job.job_id), "depositor": depositor, "authorize_at": "/v1/session-auth"},
    )

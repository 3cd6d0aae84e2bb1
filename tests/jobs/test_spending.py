"""What the database itself refuses of access to jobs, and how a session is bound to its first caller."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from jobs import session_authorization, spending
from jobs.access_rules import SpendingPolicy
from jobs.callers import ANYBODY, Caller
from jobs.job_source import ChainJob, JobStatus
from jobs.models import KeptAnswer, Session, SessionAuthorization
from jobs.protocol import RequestError
from tests import factories

pytestmark = pytest.mark.django_db

STRANGER = "0x" + "57" * 20
CLIENT = "0x" + "c7" * 20


def job(session: Session, **changes: Any) -> ChainJob:
    now = timezone.now()
    terms: dict[str, Any] = {
        "deployment": session.deployment,
        "chain_id": factories.CHAIN_ID,
        "job_id": session.job_id,
        "host": factories.HOST,
        # As the chain's library gives it: with the capitals of a checksum.
        "depositor": "0x" + "D0" * 20,
        "payment_token": factories.USDC,
        "deposit": 10**6,
        "price_per_token": 2000,
        "price_precision": 1,
        "tokens_per_second": 100,
        "tokens_used": 0,
        "token_budget": 500,
        "status": JobStatus.ACTIVE,
        "started_at": now,
        "expires_at": now + timedelta(hours=1),
        "idle_timeout_seconds": None,
        "chain_time": now,
    }
    return ChainJob(**(terms | changes))


def let_in(session: Session, caller: Caller, policy: SpendingPolicy) -> str:
    """What a caller is let in by; "refused" if it is not. New tokens end in "+token"."""
    session.refresh_from_db()
    chain_job = job(session)
    try:
        with transaction.atomic():
            leave = spending.leave_of(chain_job, caller=caller, policy=policy)
            bound = spending.bind(session, job=chain_job, caller=caller, leave=leave)
    except RequestError as refusal:
        assert (refusal.code, refusal.status) == ("not_depositor", 403)
        return "refused"
    session.refresh_from_db()
    return session.bound_by + ("+token" if bound.token else "")


def authorization(session: Session, **changes: Any) -> SessionAuthorization:
    now = timezone.now()
    values: dict[str, Any] = {
        "deployment": session.deployment,
        "job_id": session.job_id,
        "scheme": "eip191",
        "signer": factories.DEPOSITOR,
        "client_address": CLIENT,
        "token_hash": "ab" * 32,
        "created_at": now,
        "expires_at": now + timedelta(hours=1),
    }
    return SessionAuthorization.objects.create(**(values | changes))


@pytest.mark.parametrize("policy", [SpendingPolicy.DEPOSITOR, SpendingPolicy.FIRST_CLAIM])
def test_the_depositor_is_known_in_any_spelling(policy: SpendingPolicy) -> None:
    caller = ANYBODY.with_address("0x" + "D0" * 20)
    assert let_in(factories.make_session(), caller, policy) == "depositor"


@pytest.mark.parametrize(
    "caller",
    [
        ANYBODY,
        Caller(addresses=frozenset({STRANGER})),
        Caller(connection="one"),
        Caller(authorizations=frozenset({10**6})),
        Caller(remote_address="198.51.100.7"),
    ],
    ids=["nobody", "a stranger", "a socket", "an unknown authorisation", "an address"],
)
def test_nobody_else_is_let_in_by_the_depositor_s_policy(caller: Caller) -> None:
    session = factories.make_session()
    assert let_in(session, caller, SpendingPolicy.DEPOSITOR) == "refused"
    assert session.bound_by == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "authorization"),
        ({"expires_at": datetime(2026, 1, 2, tzinfo=UTC), "created_at": datetime(2026, 1, 1, tzinfo=UTC)}, "refused"),
        ({"job_id": 999_999_999}, "refused"),
        ({"deployment": "31337:0x" + "b2" * 20}, "refused"),
    ],
    ids=["as it is", "expired", "another job", "another marketplace"],
)
@pytest.mark.parametrize("by", ["token", "address"])
def test_an_authorisation_is_for_one_job_and_a_time(by: str, changes: dict[str, Any], expected: str) -> None:
    session = factories.make_session()
    row = authorization(session, **changes)
    caller = Caller(authorizations=frozenset({row.pk})) if by == "token" else ANYBODY.with_address(CLIENT)
    assert let_in(session, caller, SpendingPolicy.DEPOSITOR) == expected


@pytest.mark.parametrize(
    ("first", "again", "other", "bound"),
    [
        (
            Caller(addresses=frozenset({CLIENT}), connection="one"),
            Caller(addresses=frozenset({CLIENT})),
            Caller(addresses=frozenset({STRANGER}), connection="one"),
            "address",
        ),
        (Caller(api_key=7), Caller(api_key=7, connection="two"), Caller(api_key=8), "api_key"),
        (Caller(connection="one"), Caller(connection="one"), Caller(connection="two"), "connection+token"),
    ],
    ids=["by its address", "by its key", "by its socket"],
)
def test_the_first_is_known_again(first: Caller, again: Caller, other: Caller, bound: str) -> None:
    session = factories.make_session()
    assert let_in(session, other, SpendingPolicy.DEPOSITOR) == "refused"
    assert let_in(session, first, SpendingPolicy.FIRST_CLAIM) == bound
    assert let_in(session, again, SpendingPolicy.FIRST_CLAIM) == bound.removesuffix("+token")
    assert let_in(session, other, SpendingPolicy.FIRST_CLAIM) == "refused"
    assert let_in(session, ANYBODY, SpendingPolicy.FIRST_CLAIM) == "refused"


def test_one_who_is_too_late_leaves_no_token_behind() -> None:
    session = factories.make_session()
    stale = Session.objects.get(pk=session.pk)
    let_in(session, Caller(connection="one"), SpendingPolicy.FIRST_CLAIM)
    with pytest.raises(RequestError), transaction.atomic():
        spending.bind(stale, job=job(stale), caller=ANYBODY, leave=None)
    assert SessionAuthorization.objects.count() == 1


def test_two_first_requests_of_one_caller_do_not_lock_it_out() -> None:
    session = factories.make_session()
    stale = Session.objects.get(pk=session.pk)
    caller = ANYBODY.with_address(CLIENT)
    assert let_in(session, caller, SpendingPolicy.FIRST_CLAIM) == "address"
    with transaction.atomic():
        assert spending.bind(stale, job=job(stale), caller=caller, leave=None).token == ""


def test_the_open_policy_asks_nobody_and_binds_nothing() -> None:
    session = factories.make_session()
    assert let_in(session, ANYBODY, SpendingPolicy.OPEN) == ""


def test_what_has_expired_is_forgotten_after_a_day() -> None:
    session = factories.make_session()
    authorization(session)
    now = timezone.now()
    assert session_authorization.forget_expired(now=now + timedelta(hours=24)) == 0
    assert session_authorization.forget_expired(now=now + timedelta(hours=26)) == 1


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"token_hash": "", "client_address": ""}, "an_authorization_is_for_somebody"),
        ({"signer": ""}, "an_authorization_was_signed"),
        ({"token_hash": "fst_in_the_clear"}, "a_session_token_is_kept_as_sha256"),
        ({"expires_at": datetime(2026, 1, 1, tzinfo=UTC)}, "an_authorization_expires_after_it_was_made"),
    ],
)
def test_the_database_refuses_an_authorisation_that_is_none(changes: dict[str, Any], constraint: str) -> None:
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        authorization(factories.make_session(), **changes)


@pytest.mark.parametrize("field", [{"token_hash": "cd" * 32}, {"message_hash": "0x" + "cd" * 32, "token_hash": ""}])
def test_a_token_and_a_signed_message_are_used_once(field: dict[str, Any]) -> None:
    session = factories.make_session()
    authorization(session, **field)
    with pytest.raises(IntegrityError), transaction.atomic():
        authorization(session, **field)


@pytest.mark.parametrize("changes", [{"bound_by": "token"}, {"bound_to": "7"}])
def test_a_session_is_bound_by_something_and_to_somebody(changes: dict[str, Any]) -> None:
    session = factories.make_session()
    with pytest.raises(IntegrityError, match="a_bound_session_says_to_whom"), transaction.atomic():
        Session.objects.filter(pk=session.pk).update(**changes)


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"state": "kept"}, "a_kept_answer_has_a_status"),
        ({"status": 200}, "a_kept_answer_has_a_status"),
        ({"state": "not_kept"}, "an_answer_not_kept_has_its_reason"),
        ({"reason": "why"}, "an_answer_not_kept_has_its_reason"),
        ({"caller": "198.51.100.7"}, "a_caller_is_kept_as_sha256"),
        ({"fingerprint": "the prompt"}, "a_fingerprint_is_sha256"),
    ],
)
def test_the_database_refuses_an_answer_that_is_none(changes: dict[str, Any], constraint: str) -> None:
    now = timezone.now()
    values = {"caller": "aa" * 32, "key": "k", "fingerprint": "bb" * 32, "created_at": now, "alive_at": now}
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        KeptAnswer.objects.create(**(values | changes))

"""Jobs that could never pay this host are refused before any work: what a first claim demands of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobs.job_source import ChainJob, JobStatus
from jobs.protocol import RequestError
from jobs.sessions import check_payable

HOST = "0x" + "1a" * 20
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def job(**changes: Any) -> ChainJob:
    """2000 base units a token; the deposit pays for 500 tokens."""
    terms: dict[str, Any] = {
        "deployment": "here",
        "chain_id": 1,
        "job_id": 7,
        "host": HOST,
        "depositor": "0x" + "2b" * 20,
        "payment_token": "0x" + "3c" * 20,
        "deposit": 1_000_000,
        "price_per_token": 2_000_000,
        "price_precision": 1000,
        "tokens_per_second": 100,
        "tokens_used": 0,
        "token_budget": 500,
        "status": JobStatus.ACTIVE,
        "started_at": NOW,
        "expires_at": NOW + timedelta(hours=1),
        "idle_timeout_seconds": None,
        "chain_time": NOW,
    }
    return ChainJob(**(terms | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"first_claim_tokens": 500},
        {"first_claim_tokens": 501, "tokens_used": 1},
        {"first_claim_tokens": 500, "exposure_limit": 1_000_000},
        {"first_claim_tokens": 500, "exposure_limit": 1, "tokens_used": 1},
        {"exposure_limit": 0},
    ],
)
def test_a_job_whose_first_claim_can_be_made_or_is_made_is_served(changes: dict[str, Any]) -> None:
    served = job(**changes)
    check_payable(served, host=HOST)
    with pytest.raises(RequestError, match="ended on the chain"):
        check_payable(job(**changes, status=JobStatus.COMPLETED), host=HOST)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"first_claim_tokens": 501}, "its deposit pays for 500"),
        ({"first_claim_tokens": 500, "exposure_limit": 999_999}, "these are worth 1000000 base units"),
    ],
)
def test_a_job_whose_first_claim_can_never_be_made_is_refused_with_what_would_help(
    changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(RequestError) as caught:
        check_payable(job(**changes), host=HOST)
    refused = caught.value
    assert (refused.code, refused.status) == ("first_claim_too_large", 409)
    assert why in refused.message and "larger deposit or a smaller proof interval" in refused.message
    assert refused.details == {"job_id": "7", "first_claim_tokens": str(changes["first_claim_tokens"])}

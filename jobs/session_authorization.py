"""Authorisations of depositors: what they sign, who may then use their job, and until when.

Guarantees that a signature counts for one host, one chain, one marketplace, one job and one client, for
at most a day, and once (a platform's own scheme apart, which only ever names a client). Tokens are kept
as SHA-256. Recovers no signer itself: ``SignatureCheck`` is a port, so that this app needs no chain
library. Wallets that are contracts (ERC-1271) cannot sign here: they have no key whose use could be seen.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from jobs.api_keys import sha256_of
from jobs.callers import Caller
from jobs.job_source import ChainJob
from jobs.models import AuthorizationScheme, SessionAuthorization
from jobs.protocol import RequestError

TOKEN_START = "fst_"  # noqa: S105 - how every token begins
LONGEST_LIFETIME = timedelta(hours=24)
_CLOCK_DIFFERENCE = timedelta(seconds=60)


class BadSignature(ValueError):
    """The text is not a signature at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """Whose signature it is (lower case) and the 32-byte hash that was signed (0x and hex)."""

    signer: str
    message_hash: str


class SignatureCheck(Protocol):
    """Recovers who signed. ``signature`` is the hex of 65 bytes; each raises ``BadSignature``."""

    def of_text(self, text: str, *, signature: str) -> Recovered:
        """EIP-191 ``personal_sign``."""
        ...

    def of_typed_data(self, data: Mapping[str, Any], *, signature: str) -> Recovered:
        """EIP-712 ``eth_signTypedData_v4``."""
        ...

    def of_plain_hash(self, text: str, *, signature: str) -> Recovered:
        """Keccak-256 of the text, with no prefix."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a depositor signs: ``client`` may use ``job_id`` at ``host`` until ``expires_at`` (Unix seconds)."""

    host: str
    chain_id: int
    marketplace: str
    job_id: int
    client: str
    issued_at: int
    expires_at: int

    def text(self) -> str:
        """For ``personal_sign``. Addresses in lower case, numbers in decimal, lines end with a line feed."""
        return (
            "Fabstir: let this client use my session\n"
            f"Host: {self.host}\n"
            f"Chain: {self.chain_id}\n"
            f"Marketplace: {self.marketplace}\n"
            f"Session: {self.job_id}\n"
            f"Client: {self.client}\n"
            f"Issued at: {self.issued_at}\n"
            f"Expires at: {self.expires_at}"
        )

    def typed_data(self) -> dict[str, Any]:
        """For ``eth_signTypedData_v4``."""
        fields = (
            ("host", "address"),
            ("sessionId", "uint256"),
            ("client", "address"),
            ("issuedAt", "uint256"),
            ("expiresAt", "uint256"),
        )
        domain = (("name", "string"), ("version", "string"), ("chainId", "uint256"), ("verifyingContract", "address"))
        return {
            "types": {
                "EIP712Domain": [{"name": name, "type": kind} for name, kind in domain],
                "SessionAuthorization": [{"name": name, "type": kind} for name, kind in fields],
            },
            "primaryType": "SessionAuthorization",
            "domain": {
                "name": "Fabstir Host",
                "version": "1",
                "chainId": self.chain_id,
                "verifyingContract": self.marketplace,
            },
            "message": {
                "host": self.host,
                "sessionId": self.job_id,
                "client": self.client,
                "issuedAt": self.issued_at,
                "expiresAt": self.expires_at,
            },
        }

    def platform_text(self) -> str:
        """What platforms that deposit for their users sign in existing clients: names nothing but job and client."""
        return f"FC1-SESSION-AUTH:{self.job_id}:{self.client}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """``token`` is the secret itself, nowhere else kept; empty where only the client's key opens the job."""

    expires_at: datetime
    token: str = field(default="", repr=False)


def authorize(
    grant: Grant,
    *,
    job: ChainJob,
    scheme: AuthorizationScheme,
    signature: str,
    check: SignatureCheck,
    platforms: Mapping[str, Collection[str]],
) -> Authorization:
    """Give ``grant.client`` access to ``job``. Raises ``RequestError`` (401) unless the signature allows it.

    ``platforms`` are addresses that may sign for a depositor, by depositor, all in lower case.
    """
    recovered = _recovered(grant, scheme=scheme, signature=signature, check=check)
    depositor = job.depositor.lower()
    delegated = recovered.signer in platforms.get(depositor, ())
    # The platforms' text names no host, chain or time: a depositor's signature of it would open other jobs too.
    if not delegated and (scheme is AuthorizationScheme.FC1 or recovered.signer != depositor):
        raise _refused(
            f"The signature is by {recovered.signer} or of another text; job {job.job_id} was deposited by "
            f"{depositor}. Sign exactly what /v1/session-auth asks for, with that account's key. Contract wallets "
            "(ERC-1271) are not supported."
        )
    if scheme is AuthorizationScheme.FC1:
        return _client_named(grant, job=job, signer=recovered.signer)
    return _token_given(grant, job=job, scheme=scheme, recovered=recovered)


def _recovered(grant: Grant, *, scheme: AuthorizationScheme, signature: str, check: SignatureCheck) -> Recovered:
    try:
        if scheme is AuthorizationScheme.EIP191:
            return check.of_text(grant.text(), signature=signature)
        if scheme is AuthorizationScheme.EIP712:
            return check.of_typed_data(grant.typed_data(), signature=signature)
        return check.of_plain_hash(grant.platform_text(), signature=signature)
    except BadSignature as failure:
        raise _refused(f"The signature cannot be read: {failure}") from failure


def check_times(grant: Grant, *, now: datetime) -> None:
    """Raise ``RequestError`` (401) unless the grant is of now and of a bounded life."""
    seconds = int(now.timestamp())
    if grant.issued_at > seconds + _CLOCK_DIFFERENCE.total_seconds():
        raise _refused("issuedAt lies in the future. Correct the client's clock.")
    if grant.expires_at <= seconds:
        raise _refused("The authorisation has expired. Sign a new one.")
    if not 0 < grant.expires_at - grant.issued_at <= LONGEST_LIFETIME.total_seconds():
        raise _refused("expiresAt must be after issuedAt, by 24 hours at most. Sign a shorter authorisation.")


def _token_given(grant: Grant, *, job: ChainJob, scheme: AuthorizationScheme, recovered: Recovered) -> Authorization:
    now = timezone.now()
    check_times(grant, now=now)
    token = TOKEN_START + secrets.token_urlsafe(32)
    expires_at = datetime.fromtimestamp(grant.expires_at, tz=UTC)
    try:
        with transaction.atomic():
            SessionAuthorization.objects.create(
                deployment=job.deployment,
                job_id=job.job_id,
                scheme=scheme,
                signer=recovered.signer,
                client_address=grant.client,
                message_hash=recovered.message_hash,
                token_hash=sha256_of(token),
                created_at=now,
                expires_at=expires_at,
            )
    except IntegrityError as used:
        raise _refused("This signature was used before. Sign a new authorisation, with the present issuedAt.") from used
    return Authorization(expires_at=expires_at, token=token)


def _client_named(grant: Grant, *, job: ChainJob, signer: str) -> Authorization:
    """No token: whoever has seen the signature can send it again, and gives the same client the same access."""
    now = timezone.now()
    expires_at = now + LONGEST_LIFETIME
    SessionAuthorization.objects.update_or_create(
        deployment=job.deployment,
        job_id=job.job_id,
        scheme=AuthorizationScheme.FC1,
        client_address=grant.client,
        defaults={"signer": signer, "expires_at": expires_at},
        create_defaults={"signer": signer, "created_at": now, "expires_at": expires_at},
    )
    return Authorization(expires_at=expires_at)


def first_claim(job: ChainJob) -> tuple[int, str]:
    """Access for whoever is the first to use ``job``: the row's id and the token."""
    now = timezone.now()
    token = TOKEN_START + secrets.token_urlsafe(32)
    row = SessionAuthorization.objects.create(
        deployment=job.deployment,
        job_id=job.job_id,
        scheme=AuthorizationScheme.FIRST_CLAIM,
        token_hash=sha256_of(token),
        created_at=now,
        # As long as the job may last; one that is about to end lasts until it is refused for that.
        expires_at=max(job.expires_at, now + timedelta(minutes=1)),
    )
    return row.pk, token


def access_to(job: ChainJob, *, caller: Caller) -> int | None:
    """The row id of an authorisation of ``caller`` for ``job`` that counts now."""
    if not caller.authorizations and not caller.addresses:
        return None
    rows = SessionAuthorization.objects.filter(
        deployment=job.deployment, job_id=job.job_id, expires_at__gt=timezone.now()
    )
    held = Q(pk__in=caller.authorizations) | Q(client_address__in=caller.addresses)
    return rows.filter(held).values_list("pk", flat=True).first()


def authorization_of(token: str) -> int:
    """The row id that ``token`` stands for. Raises ``RequestError`` (401)."""
    now = timezone.now()
    rows = SessionAuthorization.objects.filter(token_hash=sha256_of(token), expires_at__gt=now)
    found = rows.values_list("pk", flat=True).first()
    if found is None:
        raise unknown_token()
    return found


def forget_expired(*, now: datetime) -> int:
    """Delete authorisations that have expired, but for a day in which their signatures might come again."""
    deleted, _ = SessionAuthorization.objects.filter(expires_at__lt=now - LONGEST_LIFETIME).delete()
    return deleted


def unknown_token() -> RequestError:
    return RequestError(
        code="invalid_session_token",
        message="This session token is unknown or has expired. Get a new one from POST /v1/session-auth.",
        status=401,
    )


def _refused(message: str) -> RequestError:
    return RequestError(code="authorization_refused", message=message, status=401)

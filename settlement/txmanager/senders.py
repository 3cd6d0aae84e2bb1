"""Senders: who broadcasts for an account just now, and whether the account has to pause.

Guarantees one broadcaster per sender (invariant 4): a lease that is taken by compare-and-set, ends by
itself, and carries a fence, checked and extended in the very database transaction that assigns nonces
or stores signed bytes. A holder whose process has ended on this machine loses its lease at once.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.utils import timezone

from settlement.models import Sender

logger = logging.getLogger(__name__)

LEASE = timedelta(minutes=2)
PAUSE = timedelta(minutes=1)


class LeaseLost(Exception):
    """Another broadcaster took over while this one was away; nothing of its work was stored."""


class SenderPaused(Exception):
    """Nothing new is sent for the account for now; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to assign an account's nonces, until another takes it."""

    chain_id: int
    address: str
    holder: str
    fence: int


def acquire(*, chain_id: int, address: str) -> Lease | None:
    """Take the account's lease. ``None`` while another has it."""
    row, _ = Sender.objects.get_or_create(chain_id=chain_id, address=address)
    now = timezone.now()
    free = Q(holder="") | Q(leased_until__lte=now)
    if row.holder and _has_ended(row.holder):
        free |= Q(holder=row.holder, fence=row.fence)
    holder = f"{_process(os.getpid())}/{secrets.token_hex(4)}"
    taken = Sender.objects.filter(free, pk=row.pk, fence=row.fence).update(
        holder=holder, fence=F("fence") + 1, leased_until=now + LEASE
    )
    return Lease(chain_id=chain_id, address=address, holder=holder, fence=row.fence + 1) if taken else None


def hold(lease: Lease) -> None:
    """Check and extend the lease. Call first inside ``atomic()``: what follows is then fenced. Raises ``LeaseLost``."""
    held = _row(lease).update(leased_until=timezone.now() + LEASE)
    if not held:
        raise LeaseLost(f"{lease.address}: another broadcaster took over")


def release(lease: Lease) -> None:
    """Give the lease back, if it is still this one."""
    _row(lease).update(holder="", leased_until=None)


def pause(lease: Lease, *, reason: str, event: str) -> SenderPaused:
    """Send nothing new for a while; returns the exception for the caller to raise. ``event`` is the log's."""
    with transaction.atomic():
        hold(lease)
        Sender.objects.filter(chain_id=lease.chain_id, address=lease.address).update(
            paused_until=timezone.now() + PAUSE, paused_reason=reason[:500]
        )
    logger.error("%s sends nothing new: %s", lease.address, reason, extra={"event": event})
    return SenderPaused(reason)


def pause_reason(*, chain_id: int, address: str) -> str:
    """Why the account pauses now; empty if it does not."""
    row = Sender.objects.filter(chain_id=chain_id, address=address, paused_until__gt=timezone.now()).first()
    return row.paused_reason if row else ""


def resume(*, chain_id: int, address: str) -> None:
    """The pause is over."""
    Sender.objects.filter(chain_id=chain_id, address=address).exclude(paused_reason="").update(
        paused_until=None, paused_reason=""
    )


def _row(lease: Lease) -> QuerySet[Sender]:
    return Sender.objects.filter(chain_id=lease.chain_id, address=lease.address, holder=lease.holder, fence=lease.fence)


def _process(pid: int) -> str:
    """Names a process of this machine, apart from any other that had or will have its number."""
    return f"{socket.gethostname()[:60]}/{_namespace()}/{pid}/{_started(pid)}"


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """The kernel's start time of a process; empty if there is none by that number, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _has_ended(holder: str) -> bool:
    """Whether the process that took the lease is known to be gone. Not known for another machine's."""
    machine, namespace, pid, _started_at, _token = holder.split("/") if holder.count("/") == 4 else ("",) * 5
    ours = _namespace()
    if not ours or (machine, namespace) != (socket.gethostname()[:60], ours):
        return False
    return not holder.startswith(_process(int(pid)) + "/") or not _started(int(pid))

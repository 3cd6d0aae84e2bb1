"""`manage.py transactions list|show|bump|cancel`: what is on its way to the chain, and to hurry or stop it."""

from __future__ import annotations

import getpass
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from settlement.models import Sender, Transaction, TransactionState
from settlement.txmanager import commands


class Command(BaseCommand):
    help = "List and show transactions, offer more for one (bump) or cancel it. Both are audited."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        listing = verbs.add_parser("list", help="unfinished ones, in the order of nonces")
        listing.add_argument("--state", choices=TransactionState.values, help="those of one state instead")
        listing.add_argument("--limit", type=int, default=50)
        for verb, purpose in (
            ("show", "everything about one"),
            ("bump", "offer more for one that waits to be mined"),
            ("cancel", "have one never run; what is with a node already may be mined all the same"),
        ):
            one = verbs.add_parser(verb, help=purpose)
            one.add_argument("id", type=int)
            if verb != "show":
                one.add_argument("--actor", default="", help="who asks; your system user by default")
            if verb == "cancel":
                one.add_argument("--reason", required=True)

    def handle(self, *args: Any, **options: Any) -> None:
        {"list": self._list, "show": self._show, "bump": self._bump, "cancel": self._cancel}[options["verb"]](options)

    def _list(self, options: dict[str, Any]) -> None:
        for sender in Sender.objects.filter(paused_until__gt=timezone.now()):
            self.stdout.write(
                f"{sender.address} is paused until {sender.paused_until:%H:%M:%S}: {sender.paused_reason}"
            )
        rows = Transaction.objects.unfinished()
        if options["state"]:
            rows = Transaction.objects.filter(state=options["state"])
        for row in rows.order_by("nonce", "id")[: options["limit"]]:
            nonce = "-" if row.nonce is None else row.nonce
            self.stdout.write(f"{row.pk}  {row.state}  nonce {nonce}  {row.kind}  {row.key}  {row.reason}".rstrip())

    def _show(self, options: dict[str, Any]) -> None:
        row = _row(options["id"])
        self.stdout.write(f"{row.key}\n{row.get_kind_display()}, {row.state}, nonce {row.nonce}, {row.retries} retries")
        if row.reason or row.revert:
            self.stdout.write(f"{row.revert} {row.reason}".strip())
        for attempt in row.attempts.all():
            fees = f"{attempt.max_fee_per_gas} / {attempt.max_priority_fee_per_gas} wei"
            words = f"{attempt.outcome} {attempt.error}".strip()
            self.stdout.write(
                f"  {attempt.kind} {attempt.hash} {attempt.state}, fee and tip cap {fees}, "
                f"handed over {attempt.sends} times {words}".rstrip()
            )
        for event in row.events.all():
            self.stdout.write(f"  {event.at:%Y-%m-%d %H:%M:%S} {event.what} by {event.actor} {event.reason}".rstrip())

    def _bump(self, options: dict[str, Any]) -> None:
        row = _row(options["id"])
        if not commands.bump(row.pk, actor=options["actor"] or getpass.getuser()):
            raise CommandError(f"transaction {row.pk} is {row.state}: there is nothing to bump, or it is asked already")
        self.stdout.write("the next broadcast offers more")

    def _cancel(self, options: dict[str, Any]) -> None:
        row = _row(options["id"])
        if not commands.cancel(row.pk, actor=options["actor"] or getpass.getuser(), reason=options["reason"]):
            raise CommandError(f"transaction {row.pk} is {row.state}: too late, or being cancelled already")
        row.refresh_from_db()
        done = row.state == TransactionState.CANCELLED
        self.stdout.write("cancelled" if done else "the next broadcast sends nothing under its nonce instead")


def _row(transaction_id: int) -> Transaction:
    try:
        return Transaction.objects.get(pk=transaction_id)
    except Transaction.DoesNotExist:
        raise CommandError(f"there is no transaction {transaction_id}") from None

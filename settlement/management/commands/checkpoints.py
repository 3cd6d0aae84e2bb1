"""`manage.py checkpoints list|pause|resume|retry`: what is held or given up, and to hold or move it by hand."""

from __future__ import annotations

import getpass
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from settlement import checkpoints
from settlement.checkpoints import StepRefused
from settlement.models import Checkpoint, CheckpointState

_SAID = {
    "pause": "paused: nothing happens to it until it is resumed",
    "resume": "resumed: the worker takes its next step",
    "retry": "the worker tries it once more",
}


class Command(BaseCommand):
    help = "List checkpoints, hold one (pause), let it go on (resume) or try one that failed again. All are audited."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        listing = verbs.add_parser("list", help="those that only an operator moves: paused and failed ones")
        listing.add_argument("--state", choices=CheckpointState.values, help="those of one state instead")
        listing.add_argument("--job", type=int, help="those of one job, in any state unless --state says which")
        listing.add_argument("--limit", type=int, default=50)
        for verb, purpose in (
            ("pause", "hold one that no transaction carries; cancel the transaction of any other"),
            ("resume", "let a paused one go on"),
            ("retry", "try a failed one once more"),
        ):
            one = verbs.add_parser(verb, help=purpose)
            one.add_argument("id", type=int)
            one.add_argument("--actor", default="", help="who asks; your system user by default")
            one.add_argument("--reason", required=verb != "resume", default="")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["verb"] == "list":
            self._list(options)
        else:
            self._step(options["verb"], options)

    def _list(self, options: dict[str, Any]) -> None:
        rows = Checkpoint.objects.select_related("session")
        if options["job"] is not None:
            rows = rows.filter(session__job_id=options["job"])
        if options["state"]:
            rows = rows.filter(state=options["state"])
        elif options["job"] is None:
            rows = rows.filter(state__in=checkpoints.HELD)
        for row in rows.order_by("id")[: options["limit"]]:
            self.stdout.write(f"{row.pk}  {row.state}  {row.tokens} tokens  {row}  {row.reason}".rstrip())

    def _step(self, verb: str, options: dict[str, Any]) -> None:
        step = {"pause": checkpoints.pause, "resume": checkpoints.resume, "retry": checkpoints.retry}[verb]
        row = _row(options["id"])
        try:
            done = step(row, actor=options["actor"] or getpass.getuser(), reason=options["reason"])
        except StepRefused as refused:
            raise CommandError(str(refused)) from refused
        if not done:
            raise CommandError(f"{row} has just moved on from {row.state}: look again")
        self.stdout.write(_SAID[verb])


def _row(checkpoint_id: int) -> Checkpoint:
    try:
        return Checkpoint.objects.select_related("session").get(pk=checkpoint_id)
    except Checkpoint.DoesNotExist:
        raise CommandError(f"there is no checkpoint {checkpoint_id}") from None

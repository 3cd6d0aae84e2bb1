"""`manage.py verify_ledger`: the exit code is the number of broken invariants found."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from settlement import ledger, ledger_rows
from settlement.chain.client import ChainUnavailable, NodeRefused
from settlement.host_chain import NoDeployment, host_chain

# Exit codes end at 255, and shells use those above 250 themselves: more violations must not wrap to success.
_HIGHEST_CODE = 250


class Command(BaseCommand):
    help = "Check the ledger's invariants in the database and against the chain."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--database-only", action="store_true", help="leave the chain out")
        parser.add_argument(
            "--rebuild-totals", action="store_true", help="first add the earning rows up anew (stop the workers before)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["rebuild_totals"]:
            self.stdout.write(f"{ledger_rows.rebuild_totals()} totals rebuilt")
        try:
            violations = list(ledger.verify_database()) if options["database_only"] else ledger.verify(host_chain())
        except (ChainUnavailable, NodeRefused, NoDeployment) as failure:
            raise CommandError(f"the chain cannot be read: {failure}") from failure
        for violation in violations:
            self.stdout.write(f"{violation.invariant}  {violation.message}\n    → {violation.remedy}")
        self.stdout.write(f"{len(violations)} violations")
        if violations:
            sys.exit(min(len(violations), _HIGHEST_CODE))

"""`manage.py verify_ledger`: the exit code is the number of broken invariants found."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from settlement import ledger
from settlement.chain.client import ChainUnavailable, NodeRefused
from settlement.host_chain import NoDeployment, host_chain


class Command(BaseCommand):
    help = "Check the ledger's invariants in the database and against the chain."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            violations = ledger.verify(host_chain())
        except (ChainUnavailable, NodeRefused, NoDeployment) as failure:
            raise CommandError(f"the chain cannot be read: {failure}") from failure
        for violation in violations:
            self.stdout.write(f"{violation.invariant}  {violation.message}")
        self.stdout.write(f"{len(violations)} violations")
        if violations:
            # Exit codes end at 255; more violations than that must not wrap around to success.
            sys.exit(min(len(violations), 255))

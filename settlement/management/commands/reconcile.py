"""`manage.py reconcile`: repair what is out of step with the chain, and say what was done and why."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from settlement import recovery
from settlement.chain.client import ChainUnavailable, NodeRefused
from settlement.host_chain import NoDeployment, host_chain


class Command(BaseCommand):
    help = "Compare this node's jobs with the chain and repair what is out of step; one line for each thing done."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            lines = recovery.recover(host_chain(), complete=True)
        except (ChainUnavailable, NodeRefused, NoDeployment) as failure:
            raise CommandError(f"the chain cannot be read: {failure}") from failure
        for line in lines:
            self.stdout.write(line)
        if not lines:
            self.stdout.write("nothing to do")

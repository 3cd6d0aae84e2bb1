"""`manage.py preflight [--json]`: is this node ready to be paid?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from settlement import preflight


class Command(BaseCommand):
    help = "Check everything between a prompt and its payment. Exit code 1 if a check fails."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")

    def handle(self, *args: Any, **options: Any) -> None:
        checks = []
        for check in preflight.run():
            checks.append(check)
            if not options["json"]:
                mark = "ok  " if check.passed else "FAIL"
                remedy = f"\n       → {check.remedy}" if check.remedy else ""
                self.stdout.write(f"{mark}  {check.name}: {check.found}{remedy}")
        passed = all(check.passed for check in checks)
        if options["json"]:
            self.stdout.write(json.dumps({"passed": passed, "checks": [asdict(check) for check in checks]}, indent=2))
        if not passed:
            sys.exit(1)

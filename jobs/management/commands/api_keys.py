"""``manage.py api_keys create|list|revoke``: keys of customers who pay for no job."""

from __future__ import annotations

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from jobs import api_keys
from jobs.api_keys import Limits, Scope
from jobs.models import ApiKey


class Command(BaseCommand):
    """Translates the command line; ``api_keys`` does the work."""

    help = "Create, list or revoke the API keys of direct customers."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Three sub-commands. A limit that is not given is the host's own, or none."""
        actions = parser.add_subparsers(dest="action", required=True)
        create = actions.add_parser("create", help="make a key and show it, once")
        create.add_argument("name", help="whose key it is")
        scopes = [scope.value for scope in Scope]
        create.add_argument(
            "--scope", action="append", choices=scopes, help="may be repeated (default: inference, models)"
        )
        create.add_argument("--days", type=_positive, help="how long it may be used (default: until it is revoked)")
        create.add_argument("--requests-per-minute", type=_positive)
        create.add_argument("--tokens-per-minute", type=_positive)
        create.add_argument("--tokens-per-day", type=_positive, help="prompt and completion tokens of a UTC day")
        actions.add_parser("list", help="show the keys' beginnings, limits and use of today")
        revoke = actions.add_parser("revoke", help="refuse a key from now on")
        revoke.add_argument("prefix", help="the beginning of the key, as the list shows it")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run one sub-command."""
        actions = {"create": self._create, "list": self._list, "revoke": self._revoke}
        actions[options["action"]](options)

    def _create(self, options: dict[str, Any]) -> None:
        scopes = options["scope"] or [Scope.INFERENCE, Scope.MODELS]
        new = api_keys.create(
            name=options["name"],
            scopes=[Scope(scope) for scope in scopes],
            lifetime=timedelta(days=options["days"]) if options["days"] else None,
            limits=Limits(
                requests_per_minute=options["requests_per_minute"],
                tokens_per_minute=options["tokens_per_minute"],
                tokens_per_day=options["tokens_per_day"],
            ),
        )
        self.stderr.write("Keep this key: it is not stored and is not shown again.")
        self.stdout.write(new.secret)

    def _list(self, options: dict[str, Any]) -> None:
        now = timezone.now()
        for row in ApiKey.objects.order_by("pk"):
            used, _ = api_keys.tokens_today(row.pk, now=now)
            of = "" if row.tokens_per_day is None else f" of {row.tokens_per_day}"
            self.stdout.write(
                f"{row.prefix}  {_state(row)}  {row.name}  may: {', '.join(api_keys.scopes_of(row))}  "
                f"tokens today: {used}{of}  last used: {row.last_used_at or '-'}"
            )

    def _revoke(self, options: dict[str, Any]) -> None:
        prefix = options["prefix"].rstrip("…")
        row = ApiKey.objects.filter(prefix=prefix).first()
        if row is None:
            raise CommandError(f"No key begins with {prefix}. See manage.py api_keys list.")
        if not api_keys.revoke(row.pk):
            raise CommandError(f"The key {prefix}… was revoked at {row.revoked_at}.")
        self.stdout.write(f"Revoked {row}.")


def _state(row: ApiKey) -> str:
    if row.revoked_at is not None:
        return "revoked"
    return "expired" if row.expires_at is not None and row.expires_at <= timezone.now() else "usable"


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("must be 1 or more")
    return number

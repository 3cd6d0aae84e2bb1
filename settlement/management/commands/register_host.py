"""`manage.py register_host`: enter this host into the node registry."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from hexbytes import HexBytes

from settlement.chain.client import ChainUnavailable, NodeRefused
from settlement.host_chain import NoDeployment, host_chain
from settlement.registration import RegistrationFailed, register


class Command(BaseCommand):
    help = "Register this host with its key, stake, models and minimum prices."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--api-url", required=True, help="where clients reach this host, e.g. https://host.example")
        parser.add_argument("--model-id", action="append", required=True, help="approved model id (32 bytes, hex)")
        parser.add_argument("--min-price-native", type=int, required=True, help="wei per token")
        parser.add_argument(
            "--min-price-stable", type=int, required=True, help="base units of a stable token per token"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            done = register(
                host_chain(),
                api_url=options["api_url"],
                model_ids=[bytes(HexBytes(model_id)) for model_id in options["model_id"]],
                min_price_native=options["min_price_native"],
                min_price_stable=options["min_price_stable"],
                timeout_seconds=300,
            )
        except (RegistrationFailed, ChainUnavailable, NodeRefused, NoDeployment) as error:
            raise CommandError(str(error)) from error
        self.stdout.write("registered" if done else "was registered already")

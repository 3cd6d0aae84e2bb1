"""`manage.py withdraw`: earnings from the contract to the host."""

from __future__ import annotations

import getpass
import uuid
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from settlement import withdrawals
from settlement.amounts import ETH, format_amount
from settlement.chain.client import ChainUnavailable, NodeRefused
from settlement.host_chain import HostChain, NoDeployment, host_chain
from settlement.withdrawals import Preview, WithdrawalRefused


class Command(BaseCommand):
    help = "Withdraw earnings to the host's account, after showing what it moves and costs."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--token", default="all", help="native, usdc, all, or a token's address")
        parser.add_argument("--amount", type=int, help="base units; everything if left out")
        parser.add_argument("--preview", action="store_true", help="show it and do nothing")
        parser.add_argument("--force", action="store_true", help="also if the gas is worth more than the rule allows")
        parser.add_argument("--key", help="names this request: a repetition with the same key withdraws nothing more")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            self._withdraw(host_chain(), options)
        except (WithdrawalRefused, ChainUnavailable, NodeRefused, NoDeployment) as refused:
            raise CommandError(str(refused)) from refused

    def _withdraw(self, chain: HostChain, options: dict[str, Any]) -> None:
        tokens = withdrawals.tokens_named(chain, options["token"])
        for line in described(withdrawals.preview(chain, tokens=tokens, amount=options["amount"])):
            self.stdout.write(line)
        if options["preview"]:
            return
        row = withdrawals.request(
            chain,
            tokens=tokens,
            amount=options["amount"],
            request_key=options["key"] or f"command:{uuid.uuid4()}",
            actor=f"manage.py by {getpass.getuser()}",
            force=options["force"],
        )
        self.stdout.write(f"{row} is {row.state}; the worker sends it and waits until it is final.")


def described(preview: Preview) -> list[str]:
    """A preview in lines of text."""
    lines = [
        f"{format_amount(holding.amount, holding.unit)} of {format_amount(holding.balance, holding.unit)} "
        f"({holding.token})"
        for holding in preview.holdings
    ]
    if preview.gas:
        lines.append(
            f"gas: about {format_amount(preview.expected_cost, ETH)} ({preview.gas} gas), "
            f"at most {format_amount(preview.worst_cost, ETH)}"
        )
        sign = "-" if preview.net_native < 0 else ""
        lines.append(f"net of native coin: {sign}{format_amount(abs(preview.net_native), ETH)}")
    if preview.objection:
        lines.append(preview.objection)
    return lines

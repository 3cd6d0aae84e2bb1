"""`manage.py earnings`: what was earned, by job, day or token, and every movement behind it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from settlement import earnings, exports, statements
from settlement.amounts import format_amount, format_digits
from settlement.host_chain import NoDeployment, host_chain
from settlement.models import Earning
from settlement.statements import Grouping, Line


class Command(BaseCommand):
    help = "Show what was earned, from the chain's events."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--by", choices=[str(kind) for kind in Grouping], default=str(Grouping.TOKEN))
        parser.add_argument("--rows", action="store_true", help="every movement instead of sums (CSV or JSON)")
        parser.add_argument("--since", type=_day, help="first day, YYYY-MM-DD (UTC), with --by day")
        parser.add_argument("--until", type=_day, help="last day, YYYY-MM-DD (UTC), with --by day")
        parser.add_argument("--csv", action="store_true", help="CSV; amounts in base units")
        parser.add_argument("--json", action="store_true", help="JSON; amounts in base units")
        parser.add_argument("--book-gas", action="store_true", help="first look for gas that was never booked")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["book_gas"]:
            try:
                booked = earnings.book_gas_due(host_chain(), from_start=True)
            except NoDeployment as missing:
                raise CommandError(str(missing)) from missing
            self.stderr.write(f"gas of {booked} transactions booked")
        bounded = options["since"] is not None or options["until"] is not None
        if bounded and options["by"] != Grouping.DAY:
            raise CommandError("--since and --until go with --by day.")
        if options["rows"]:
            self._write(exports.earning_records(Earning.objects.all()), exports.EARNING_COLUMNS, options)
            return
        lines = statements.statement(by=Grouping(options["by"]), since=options["since"], until=options["until"])
        if options["csv"] or options["json"]:
            self._write(exports.statement_records(lines), exports.STATEMENT_COLUMNS, options)
            return
        for line in lines:
            self.stdout.write(_described(line))

    def _write(self, records: Iterator[exports.Record], columns: tuple[str, ...], options: dict[str, Any]) -> None:
        pieces = exports.json_pieces(records) if options["json"] else exports.csv_lines(records, columns=columns)
        for piece in pieces:
            self.stdout.write(piece, ending="")


def _day(text: str) -> date:
    return date.fromisoformat(text)


def _described(line: Line) -> str:
    unit = line.unit
    group = f"{line.day} " if line.day else f"job {line.job_id} " if line.job_id is not None else ""
    net = format_digits(abs(line.net), unit)
    return (
        f"{group}{unit.symbol} {line.token}\n"
        f"  tokens      {line.tokens_tracked} tracked, {line.tokens_claimed} claimed\n"
        f"  accrued     {format_amount(line.accrued, unit)}\n"
        f"  claimed     {format_amount(line.claimed, unit)}\n"
        f"  credited    {format_amount(line.host, unit)}\n"
        f"  withdrawn   {format_amount(line.withdrawn, unit)}\n"
        f"  treasury    {format_amount(line.treasury, unit)}\n"
        f"  refunded    {format_amount(line.refund, unit)}\n"
        f"  gas         {format_amount(line.gas, unit)}\n"
        f"  net         {'-' if line.net < 0 else ''}{net} {unit.symbol}"
    )

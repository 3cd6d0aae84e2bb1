"""Exports: statements and earning rows as CSV or JSON, piece by piece, for spreadsheets and bookkeeping.

Guarantees that amounts are exact integers in base units, with the unit's symbol and decimals beside them;
that no text can act as a formula in a spreadsheet; and that a large ledger is never held in memory whole.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping

from django.db.models import QuerySet

from settlement.amounts import unit_of
from settlement.models import ContractDeployment, Earning
from settlement.statements import Line

Cell = int | str | None
Record = Mapping[str, Cell]

STATEMENT_COLUMNS = (
    *("deployment", "job_id", "day", "token", "symbol", "decimals", "tokens_tracked", "tokens_claimed"),
    *("accrued", "claimed", "credited", "withdrawable", "withdrawn", "swept", "treasury", "refund", "gas", "net"),
)
EARNING_COLUMNS = (
    *("id", "at", "kind", "reverses", "deployment", "job_id", "token", "symbol", "decimals", "amount"),
    *("transaction_hash", "log_index", "block_number", "block_hash"),
)
# What makes a spreadsheet read a cell as a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def statement_records(lines: Iterable[Line]) -> Iterator[Record]:
    """One record per line."""
    for line in lines:
        yield {
            "deployment": line.deployment,
            "job_id": line.job_id,
            "day": None if line.day is None else line.day.isoformat(),
            "token": line.token,
            "symbol": line.unit.symbol,
            "decimals": line.unit.decimals,
            "tokens_tracked": line.tokens_tracked,
            "tokens_claimed": line.tokens_claimed,
            "accrued": line.accrued,
            "claimed": line.claimed,
            "credited": line.host,
            "withdrawable": line.withdrawable,
            "withdrawn": line.withdrawn,
            "swept": line.swept,
            "treasury": line.treasury,
            "refund": line.refund,
            "gas": line.gas,
            "net": line.net,
        }


def earning_records(rows: QuerySet[Earning]) -> Iterator[Record]:
    """One record per movement, oldest first; what was taken back after a reorg is negative."""
    usdc = set(ContractDeployment.objects.filter(name="usdc").values_list("deployment", "address"))
    for row in rows.order_by("id").select_related("session").iterator():
        unit = unit_of(row.token, is_usdc=(row.deployment, row.token) in usdc)
        yield {
            "id": row.pk,
            "at": row.at.isoformat(),
            "kind": row.kind,
            "reverses": row.reverses_id,
            "deployment": row.deployment,
            "job_id": None if row.session is None else row.session.job_id,
            "token": row.token,
            "symbol": unit.symbol,
            "decimals": unit.decimals,
            "amount": row.signed_amount,
            "transaction_hash": row.transaction_hash,
            "log_index": row.log_index,
            "block_number": row.block_number,
            "block_hash": row.block_hash,
        }


def csv_lines(records: Iterable[Record], *, columns: tuple[str, ...]) -> Iterator[str]:
    """CSV (RFC 4180), the header first."""
    yield _csv_line(columns)
    for record in records:
        yield _csv_line([_csv_cell(record[column]) for column in columns])


def json_pieces(records: Iterable[Record]) -> Iterator[str]:
    """One JSON array. Integers are strings: a uint256 does not survive a reader's double."""
    separator = "[\n"
    for record in records:
        cells = {name: str(cell) if isinstance(cell, int) else cell for name, cell in record.items()}
        yield separator + json.dumps(cells)
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


def _csv_cell(cell: Cell) -> str:
    """Numbers are this node's own and stay numbers; text may come from anybody."""
    if cell is None:
        return ""
    if isinstance(cell, int):
        return str(cell)
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell


def _csv_line(cells: Iterable[str]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue()

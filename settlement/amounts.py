"""Amounts as people read them, by integer arithmetic only: no digit of a uint256 is lost or invented.

Pure; knows neither database nor chain. Amounts are base units of a token, fees basis points.
"""

from __future__ import annotations

from dataclasses import dataclass

NATIVE_TOKEN = "0x" + "00" * 20
EVERYTHING = 10_000
"""basis points"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What an amount is shown in: ``symbol``, worth ten to the power of ``decimals`` base units."""

    symbol: str
    decimals: int


ETH = Unit(symbol="ETH", decimals=18)
GWEI = Unit(symbol="gwei", decimals=9)
USDC = Unit(symbol="USDC", decimals=6)
BASE_UNITS = Unit(symbol="base units", decimals=0)


def unit_of(token: str, *, is_usdc: bool) -> Unit:
    """The unit of a token's amounts; plain base units for a token that the node knows nothing about."""
    if is_usdc:
        return USDC
    return ETH if token.lower() == NATIVE_TOKEN else BASE_UNITS


def format_digits(amount: int, unit: Unit) -> str:
    """``360000`` of USDC is ``0.360000``: all decimals, always. Raises ``ValueError`` below zero."""
    if amount < 0:
        raise ValueError(f"amounts are not negative, got {amount}")
    if unit.decimals == 0:
        return str(amount)
    whole, fraction = divmod(amount, 10**unit.decimals)
    return f"{whole}.{fraction:0{unit.decimals}d}"


def format_amount(amount: int, unit: Unit) -> str:
    """``0.360000 USDC``."""
    return f"{format_digits(amount, unit)} {unit.symbol}"


def format_split(*, host: int, treasury: int, unit: Unit) -> str:
    """How a claim was shared: ``0.360000 + 0.040000 = 0.400000 USDC``, host first."""
    return f"{format_digits(host, unit)} + {format_digits(treasury, unit)} = {format_amount(host + treasury, unit)}"


def treasury_share(gross: int, *, fee_basis_points: int) -> int:
    """What the marketplace keeps of a claim, rounded as the contract rounds: down."""
    return gross * fee_basis_points // EVERYTHING


def format_basis_points(basis_points: int) -> str:
    """``1000`` is ``10.00 %``."""
    whole, fraction = divmod(basis_points, 100)
    return f"{whole}.{fraction:02d} %"


def format_shares(fee_basis_points: int) -> str:
    """The host's and the treasury's part: ``90.00 % / 10.00 %``."""
    return f"{format_basis_points(EVERYTHING - fee_basis_points)} / {format_basis_points(fee_basis_points)}"

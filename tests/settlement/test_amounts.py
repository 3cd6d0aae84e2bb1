"""Amounts as people read them: exact at every size."""

from __future__ import annotations

import pytest

from nodes.fields import MAX_UINT256
from settlement import amounts
from settlement.amounts import BASE_UNITS, ETH, USDC


@pytest.mark.parametrize(
    ("amount", "unit", "text"),
    [
        (0, USDC, "0.000000 USDC"),
        (1, USDC, "0.000001 USDC"),
        (360_000, USDC, "0.360000 USDC"),
        (1_000_000, USDC, "1.000000 USDC"),
        (10**18 + 1, ETH, "1.000000000000000001 ETH"),
        (1, ETH, "0.000000000000000001 ETH"),
        (12_345, BASE_UNITS, "12345 base units"),
    ],
)
def test_amount_has_all_decimals_of_its_unit(amount: int, unit: amounts.Unit, text: str) -> None:
    assert amounts.format_amount(amount, unit) == text


def test_largest_uint256_keeps_every_digit() -> None:
    digits = amounts.format_digits(MAX_UINT256, ETH)
    assert digits.replace(".", "") == str(MAX_UINT256)
    assert len(digits.partition(".")[2]) == 18


def test_amount_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="not negative"):
        amounts.format_digits(-1, USDC)


def test_split_of_the_mission_example() -> None:
    """200 tokens at 0.002 USDC: 0.36 to the host, 0.04 to the treasury."""
    treasury = amounts.treasury_share(200 * 2000, fee_basis_points=1000)
    text = amounts.format_split(host=400_000 - treasury, treasury=treasury, unit=USDC)
    assert text == "0.360000 + 0.040000 = 0.400000 USDC"


def test_treasury_share_rounds_down_as_the_contract_does() -> None:
    assert amounts.treasury_share(19, fee_basis_points=1000) == 1


@pytest.mark.parametrize(
    ("fee", "text"),
    [(1000, "90.00 % / 10.00 %"), (0, "100.00 % / 0.00 %"), (1, "99.99 % / 0.01 %"), (10_000, "0.00 % / 100.00 %")],
)
def test_shares_come_from_basis_points(fee: int, text: str) -> None:
    assert amounts.format_shares(fee) == text


def test_unit_of_a_token() -> None:
    assert amounts.unit_of(amounts.NATIVE_TOKEN, is_usdc=False) == ETH
    assert amounts.unit_of("0x" + "c1" * 20, is_usdc=True) == USDC
    assert amounts.unit_of("0x" + "c1" * 20, is_usdc=False) == BASE_UNITS

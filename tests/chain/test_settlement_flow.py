"""What a session pays, in ETH and USDC: on each claim, at its end, and where a payer refuses its refund."""

from __future__ import annotations

import pytest

from settlement.chain.bindings import events
from settlement.chain.bindings.structs import SessionStatus
from settlement.chain.deployment import is_deployed
from tests.chain.world import ETH, World, refusal_of


@pytest.fixture(params=["eth", "usdc"])
def currency(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def open_job(world: World, currency: str, *, deposit: int = 10**15, price: int = 2000) -> tuple[int, str]:
    if currency == "eth":
        return world.open_eth(deposit=deposit, price=price * 10**6), ETH
    return world.open_usdc(deposit=1_000_000, price=price), world.usdc.address


def test_the_local_deployment_is_recognised_by_its_code(world: World) -> None:
    assert is_deployed(world.w3, world.deployment)


def test_each_claim_pays_host_and_treasury_at_once_and_completion_refunds(world: World, currency: str) -> None:
    job_id, token = open_job(world, currency)
    unit = 10**6 if currency == "eth" else 1
    deposit = world.job(job_id).deposit
    world.pass_time(10)
    receipt = world.send(world.claim(job_id, 200), sender=world.host)

    (credited,) = world.events(receipt, events.EarningsCredited)
    assert credited == events.EarningsCredited(world.host, token, 360_000 * unit, 360_000 * unit)
    (fee,) = world.events(receipt, events.TreasuryCredited)
    assert fee == events.TreasuryCredited(job_id, token, 40_000 * unit)
    (claimed,) = world.events(receipt, events.ProofOfWork)
    assert (claimed.job_id, claimed.host, claimed.tokens_claimed) == (job_id, world.host, 200)
    assert world.balance(world.earnings.address, token) == 360_000 * unit

    held = world.balance(world.user, token)
    receipt = world.send(world.complete(job_id), sender=world.host)
    refund = deposit - 400_000 * unit
    assert world.events(receipt, events.SessionCompleted) == [
        events.SessionCompleted(job_id, 200, 360_000 * unit, refund)
    ]
    assert world.balance(world.user, token) - held == refund
    job = world.job(job_id)
    assert job.status is SessionStatus.COMPLETED
    assert (job.withdrawn_by_host, job.paid_to_treasury) == (360_000 * unit, 40_000 * unit)
    assert (job.refunded_to_user, job.conversation_cid) == (refund, "cid")


def test_host_and_treasury_withdraw_what_they_earned(world: World, currency: str) -> None:
    job_id, token = open_job(world, currency)
    unit = 10**6 if currency == "eth" else 1
    world.pass_time(10)
    world.send(world.claim(job_id, 200), sender=world.host)
    world.send(world.complete(job_id), sender=world.user)

    receipt = world.send(world.earnings.withdraw(amount=60_000 * unit, token=token), sender=world.host)
    assert world.events(receipt, events.EarningsWithdrawn) == [
        events.EarningsWithdrawn(world.host, token, 60_000 * unit, 300_000 * unit)
    ]
    world.send(world.earnings.withdraw_multiple([token, world.stranger]), sender=world.host)
    assert world.read(world.earnings.get_balances(host=world.host, tokens=[token])) == (0,)
    held = world.balance(world.treasury, token)
    receipt = world.send(world.marketplace.withdraw_treasury(token), sender=world.treasury)
    gas = receipt["gasUsed"] * receipt["effectiveGasPrice"] if currency == "eth" else 0
    assert world.balance(world.treasury, token) - held + gas == 40_000 * unit
    assert world.read(world.marketplace.treasury_balance(token)) == 0
    assert world.balance(world.marketplace.address, token) == 0
    assert world.balance(world.earnings.address, token) == 0


@pytest.mark.parametrize("tokens", [1, 99, 100, 500])
def test_the_closing_claim_may_be_smaller_than_the_minimum(world: World, tokens: int) -> None:
    job_id = world.open_usdc()
    world.pass_time(10)
    receipt = world.send(world.close(job_id, tokens), sender=world.host)
    gross = tokens * 2000
    assert world.events(receipt, events.SessionCompleted) == [
        events.SessionCompleted(job_id, tokens, gross - gross // 10, 1_000_000 - gross)
    ]
    assert world.read(world.earnings.get_balance(host=world.host, token=world.usdc.address)) == gross * 9 // 10


def test_earlier_claims_count_against_the_deposit(world: World) -> None:
    job_id = world.open_usdc()
    world.pass_time(10)
    world.send(world.claim(job_id, 400), sender=world.host)
    world.pass_time(10)
    assert world.read(world.marketplace.affordable_tokens(job_id)) == 100
    for call in (world.claim(job_id, 101), world.close(job_id, 101)):
        refused = world.refusal(call, sender=world.host)
        assert str(refused) == "ExceedsDeposit(claimed=101, affordable=100)"
    world.send(world.close(job_id, 100), sender=world.host)
    job = world.job(job_id)
    assert (job.tokens_used, job.refunded_to_user) == (500, 0)
    assert job.withdrawn_by_host + job.paid_to_treasury == job.deposit


def test_a_payer_that_rejects_ether_does_not_block_settlement(world: World) -> None:
    payer = world.deploy("RejectingPayer", world.marketplace.address, False, value=10**18)
    job_id = world.read(world.marketplace.next_job_id())
    open_call(world, payer, deposit=10**16, price=10**12)
    world.pass_time(10)
    world.send(world.claim(job_id, 200), sender=world.host)
    receipt = world.send(world.complete(job_id), sender=world.host)

    refund = 10**16 - 200 * 10**12
    assert world.events(receipt, events.RefundCredited) == [events.RefundCredited(job_id, payer, ETH, refund)]
    assert world.job(job_id).status is SessionStatus.COMPLETED
    assert world.read(world.marketplace.pending_refund(requester=payer, token=ETH)) == refund
    assert refuse(world, payer, "withdrawRefund()", b"") == "PaymentFailed"

    recipient = "0x00000000000000000000000000000000000000AA"
    invoke(world, payer, "withdrawRefundTo(address)", bytes.fromhex(recipient[2:]).rjust(32, b"\0"))
    assert world.balance(recipient, ETH) == refund
    assert world.read(world.marketplace.pending_refund(requester=payer, token=ETH)) == 0


def test_a_payer_cannot_complete_again_from_within_its_refund(world: World) -> None:
    payer = world.deploy("RejectingPayer", world.marketplace.address, True, value=10**18)
    job_id = world.read(world.marketplace.next_job_id())
    open_call(world, payer, deposit=10**16, price=10**12)
    world.send(world.complete(job_id), sender=world.host)
    assert world.job(job_id).refunded_to_user == 10**16
    assert world.balance(payer, ETH) == 10**18
    assert not int.from_bytes(invoke_read(world, payer, "attackSucceeded()"), "big")


def test_a_payer_blocked_by_its_token_may_withdraw_later(world: World) -> None:
    token = world.deploy("AwkwardToken")
    accept(world, token)
    world.mint(1_000_000, token=token)
    job_id = world._open(world.create_usdc(token=token))
    flag = world.user[2:].rjust(64, "0")
    invoke(world, token, "setBlocked(address,bool)", bytes.fromhex(flag) + (1).to_bytes(32, "big"))
    receipt = world.send(world.complete(job_id), sender=world.host)
    assert world.events(receipt, events.RefundCredited) == [events.RefundCredited(job_id, world.user, token, 1_000_000)]
    invoke(world, token, "setBlocked(address,bool)", bytes.fromhex(flag) + bytes(32))
    world.send(world.marketplace.withdraw_refund(token), sender=world.user)
    assert world.balance(world.user, token) == 1_000_000


def test_a_token_that_keeps_a_fee_is_refused(world: World) -> None:
    token = world.deploy("AwkwardToken")
    accept(world, token)
    invoke(world, token, "setTakesFee(bool)", (1).to_bytes(32, "big"))
    world.mint(1_000_000, token=token)
    refused = world.refusal(world.create_usdc(token=token), sender=world.user)
    assert str(refused) == "DepositNotReceived(expected=1000000, received=990000)"


def accept(world: World, token: str) -> None:
    call = world.marketplace.set_accepted_token(token=token, minimum=1, maximum=10**12)
    world.send(call, sender=world.owner)


def open_call(world: World, payer: str, *, deposit: int, price: int) -> None:
    words = bytes.fromhex(world.host[2:]).rjust(32, b"\0") + deposit.to_bytes(32, "big") + price.to_bytes(32, "big")
    invoke(world, payer, "open(address,uint256,uint256)", words)


def invoke(world: World, to: str, signature: str, arguments: bytes) -> None:
    data = world.w3.keccak(text=signature)[:4] + arguments
    transaction = world.w3.eth.send_transaction({"from": world.owner, "to": to, "data": data})
    assert world.w3.eth.wait_for_transaction_receipt(transaction)["status"] == 1


def invoke_read(world: World, to: str, signature: str) -> bytes:
    return bytes(world.w3.eth.call({"to": to, "data": world.w3.keccak(text=signature)[:4]}))


def refuse(world: World, to: str, signature: str, arguments: bytes) -> str:
    data = world.w3.keccak(text=signature)[:4] + arguments
    return refusal_of(lambda: world.w3.eth.call({"from": world.owner, "to": to, "data": data})).name

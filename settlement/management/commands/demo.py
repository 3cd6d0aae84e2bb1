"""`manage.py demo`: a paid job from deposit to refund, with a receipt read back from the chain."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from settlement.chain.local import die_with_parent
from settlement.demonstration import DemonstrationFailed, Receipt, run
from settlement.host_chain import host_chain

_START_SECONDS = 300


class Command(BaseCommand):
    help = "Play a user on the embedded chain: deposit, chat, close; then print the receipt. Exit code 1 if it differs."

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.ENVIRONMENT.embedded_chain:
            raise CommandError("The demo spends play money: unset RPC_URL to run it on the embedded chain.")
        if not _answers():
            # The addresses of the embedded parts are read at start-up: start the node, then look again.
            self.stdout.write("no node is running: starting one for the demo")
            with _node():
                sys.exit(subprocess.run([sys.executable, "manage.py", "demo"], check=False).returncode)
        try:
            receipt = run(host_chain(), progress=self.stdout.write)
        except DemonstrationFailed as failure:
            raise CommandError(
                f"{failure}; the node's logs are in {settings.ENVIRONMENT.data_dir / 'log'}"
            ) from failure
        for line in receipt_lines(receipt):
            self.stdout.write(line)
        if receipt.differences:
            for difference in receipt.differences:
                self.stdout.write(f"DIFFERENT  {difference}")
            sys.exit(1)
        self.stdout.write("ledger == chain")


def receipt_lines(receipt: Receipt) -> Iterator[str]:
    """The receipt as a table. USDC amounts in base units (6 decimals), gas in wei."""
    job = receipt.job
    yield ""
    yield f"job {job.job_id}   host {job.host}   user {job.requester}"
    unit = "token" if job.price_precision == 1 else f"{job.price_precision} tokens"
    yield f"deposit {job.deposit}   price {job.price_per_token} per {unit}   tokens per prompt {receipt.prompts}"
    yield ""
    amounts = f"{'gross':>10} {'host':>10} {'treasury':>10}"
    yield f"{'claim':<6} {'block':>7} {'tokens':>7} {amounts}  transaction / proof hash"
    for number, claim in enumerate(receipt.claims, start=1):
        gross = claim.host_amount + claim.treasury_amount
        amounts = f"{gross:>10} {claim.host_amount:>10} {claim.treasury_amount:>10}"
        where = claim.position
        yield f"{number:<6} {where.block_number:>7} {claim.tokens:>7} {amounts}  {where.transaction_hash}"
        yield f"{'':<54}  {claim.proof_hash}"
    yield ""
    yield f"tokens    {job.tokens_used:>12}"
    yield f"host      {job.paid_to_host:>12}"
    yield f"treasury  {job.paid_to_treasury:>12}"
    yield f"refund    {job.refunded:>12}"
    yield f"gas (wei) {receipt.gas:>12}"
    yield ""


def _answers() -> bool:
    try:
        answer = requests.get(f"{settings.ENVIRONMENT.local_url}/readyz", timeout=3)
    except requests.RequestException:
        return False
    return answer.status_code == 200


@contextmanager
def _node() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "fabstir_site.embedded"], preexec_fn=die_with_parent)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise CommandError("the node did not start (see above)")
            time.sleep(0.3)
        yield
    finally:
        process.terminate()
        process.wait()

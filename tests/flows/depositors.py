"""Accounts with keys that open jobs, and what they sign for the clients that may use them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from eth_account import Account
from eth_account.messages import encode_defunct, encode_typed_data
from eth_account.signers.local import LocalAccount
from eth_utils import keccak

from jobs.session_authorization import Grant
from settlement.chain import local
from tests.flows.clients import Answer
from tests.flows.flow import Flow


def hex_of(raw: bytes) -> str:
    return "0x" + raw.hex().removeprefix("0x")


@dataclass
class Depositor:
    """``grant`` is what ``sign`` signs; each call of ``authorize`` posts one signature to the host."""

    flow: Flow
    account: LocalAccount = field(default_factory=Account.create)

    @property
    def address(self) -> str:
        return str(self.account.address).lower()

    def open_job(self, *, deposit: int = 10**18) -> int:
        world = self.flow.world
        local.fund(world.url, address=self.account.address, wei=10 * 10**18)
        self.flow.chain_world.impersonate(self.account.address)
        job_id = world.read(world.marketplace.next_job_id())
        world.send(world.create_eth(deposit=deposit), sender=self.account.address)
        local.rpc(world.url, "anvil_stopImpersonatingAccount", [self.account.address])
        return job_id

    def grant(self, job_id: int, **changes: Any) -> Grant:
        now = int(self.flow.chain_world.clock.now().timestamp())
        chain = self.flow.chain
        grant = Grant(
            host=str(chain.host).lower(),
            chain_id=local.CHAIN_ID,
            marketplace=chain.deployment.job_marketplace.lower(),
            job_id=job_id,
            client=self.address,
            issued_at=now,
            expires_at=now + 3600,
        )
        return replace(grant, **changes)

    def sign(self, grant: Grant, *, scheme: str = "eip191") -> str:
        if scheme == "eip191":
            return hex_of(self.account.sign_message(encode_defunct(text=grant.text())).signature)
        if scheme == "eip712":
            return hex_of(self.account.sign_message(encode_typed_data(full_message=grant.typed_data())).signature)
        return hex_of(self.account.unsafe_sign_hash(keccak(text=grant.platform_text())).signature)

    def authorize(self, grant: Grant, *, scheme: str = "eip191", signed: Grant | None = None, **fields: Any) -> Answer:
        """Post ``grant``, signed as it is or, where given, as ``signed``."""
        body: dict[str, Any] = {
            "sessionId": str(grant.job_id),
            "clientAddress": grant.client,
            "scheme": scheme,
            "signature": self.sign(signed or grant, scheme=scheme),
            "issuedAt": grant.issued_at,
            "expiresAt": grant.expires_at,
            **fields,
        }
        return self.flow.post(body, path="/v1/session-auth")

    def token(self, job_id: int) -> str:
        answer = self.authorize(self.grant(job_id, issued_at=int(self.flow.chain_world.clock.now().timestamp())))
        assert answer.status == 200, answer.json
        return str(answer.json["session_token"])

"""What a proof is made from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """The facts of one checkpoint. ``timestamp_ms`` is when it was sealed, milliseconds since 1970."""

    chain_id: int
    marketplace: str
    job_id: int
    host: str
    checkpoint_index: int
    from_token: int
    tokens_claimed: int
    timestamp_ms: int

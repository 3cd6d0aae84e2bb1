"""The claims of one job as its client checks them against the chain.

Guarantees that an entry's ``index`` is the position of its proof among those the marketplace accepted, as
far as this host's ledger goes back; claims that are not in a block are not listed.
"""

from __future__ import annotations

from typing import Any

from settlement.host_chain import NoDeployment, host_chain
from settlement.models import Checkpoint, CheckpointState
from settlement.models.checkpoint import PAID_STATES


def checkpoint_index(job_id: int) -> list[dict[str, Any]]:
    """Entries in order; none for a job that is not known here. Times in milliseconds, ranges half open.

    ``deltaCid`` is empty: this host publishes no conversations.
    """
    try:
        deployment = host_chain().key
    except NoDeployment:
        return []
    accepted = Checkpoint.objects.filter(
        session__deployment=deployment,
        session__job_id=job_id,
        state__in=(CheckpointState.MINED, *PAID_STATES),
    ).order_by("from_token")
    rows = accepted.values_list("proof_hash", "from_token", "to_token", "confirmed_at", "created_at")
    return [
        {
            "index": position,
            "proofHash": proof_hash,
            "deltaCid": "",
            "tokenRange": [first, end],
            "timestamp": int((confirmed_at or created_at).timestamp() * 1000),
        }
        for position, (proof_hash, first, end, confirmed_at, created_at) in enumerate(rows)
    ]

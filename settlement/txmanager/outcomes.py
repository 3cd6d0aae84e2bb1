"""What a node's answer to a sent transaction means: a closed set of outcomes and the table for it.

Clients word the same refusal differently; the patterns are matched case-insensitively anywhere in
the message. What no row matches is ``UNKNOWN``: the same bytes are sent again, never a new nonce.
"""

from __future__ import annotations

import re
from enum import StrEnum


class SendOutcome(StrEnum):
    ACCEPTED = "accepted"
    ALREADY_KNOWN = "already_known"
    NONCE_TOO_LOW = "nonce_too_low"
    NONCE_TOO_HIGH = "nonce_too_high"
    UNDERPRICED = "underpriced"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    GAS_TOO_HIGH = "gas_too_high"
    REVERTED = "reverted"
    UNAVAILABLE = "unavailable"
    UNKNOWN = "unknown"


_TABLE = (
    (
        SendOutcome.ALREADY_KNOWN,
        r"already known|already imported|known transaction|alreadyknown|already in mempool",
    ),
    (
        SendOutcome.NONCE_TOO_LOW,
        r"nonce too low|nonce has already been used|invalid nonce.*too low|ownnoncealreadyused",
    ),
    (SendOutcome.NONCE_TOO_HIGH, r"nonce too high|nonce gap|noncegap"),
    (
        SendOutcome.UNDERPRICED,
        r"underpriced|fee too low|less than block base fee|max fee per gas less|feetoolow",
    ),
    (SendOutcome.INSUFFICIENT_FUNDS, r"insufficient (funds|balance)|insufficientfunds|upfront cost exceeds"),
    (
        SendOutcome.GAS_TOO_HIGH,
        r"exceeds block gas limit|gas limit reached|gas limit too high|intrinsic gas too low",
    ),
    (SendOutcome.REVERTED, r"execution reverted|revert"),
    (SendOutcome.UNAVAILABLE, r"rate limit|too many requests|timeout|timed out|temporarily unavailable"),
)


def classify(message: str) -> SendOutcome:
    """The outcome that a node's error message states."""
    for outcome, pattern in _TABLE:
        if re.search(pattern, message, re.IGNORECASE):
            return outcome
    return SendOutcome.UNKNOWN


# The transaction is with the network, or its nonce is decided: receipts tell the rest.
LEFT_THE_NODE = frozenset({SendOutcome.ACCEPTED, SendOutcome.ALREADY_KNOWN, SendOutcome.NONCE_TOO_LOW})

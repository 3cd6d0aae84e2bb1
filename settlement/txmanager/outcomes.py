"""What a node's answer to a sent transaction means: a closed set of outcomes and the table for it.

Clients word the same refusal differently; the patterns are matched case-insensitively anywhere in
the message, the first row that fits. What no row matches is ``UNKNOWN``: the same bytes are sent
again, never with a new nonce. The words are those of geth and op-geth (``core/txpool/errors.go``),
reth, erigon, nethermind (``AcceptTxResult``), besu (``TransactionInvalidReason``), anvil and gateways.
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
    REPLACEMENT_UNDERPRICED = "replacement_underpriced"
    FEE_BELOW_BASE = "fee_below_base"
    FEE_OVER_NODE_CAP = "fee_over_node_cap"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    GAS_TOO_HIGH = "gas_too_high"
    REVERTED = "reverted"
    FATAL = "fatal"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    UNKNOWN = "unknown"


# Order matters where one message holds the words of another: a replacement is "underpriced" too, and a
# gateway's "rate limit" may come with "exceeded".
_TABLE = (
    (
        SendOutcome.ALREADY_KNOWN,
        r"already known|already imported|known transaction|alreadyknown|already in (the )?(mem)?pool|already exists"
        r"|already been added to the pool|transaction_already_known",
    ),
    (
        SendOutcome.NONCE_TOO_LOW,
        r"nonce (is )?too low(:|,|\.|$|\s)|nonce has already been used|ownnoncealreadyused|oldnonce|nonce_too_low"
        r"|invalid nonce.*too low|nonce too low",
    ),
    (
        SendOutcome.REPLACEMENT_UNDERPRICED,
        r"replacement transaction underpriced|could not replace existing|replacementnotallowed|replacement not allowed"
        r"|transaction_replacement_underpriced|insufficient gas price to replace|gas price.*too low to replace"
        r"|max fee per gas.*(replace|bump)|replacement transaction.*too low",
    ),
    (
        SendOutcome.NONCE_TOO_HIGH,
        r"nonce (is )?too high|nonce gap|noncegap|nonce too distant|nonce_too_high|nonce_too_far|nonce is too distant"
        r"|future nonce|in-flight transaction limit reached|gapped.nonce",
    ),
    (
        SendOutcome.FEE_BELOW_BASE,
        r"max fee per gas less than block base fee|less than block base fee|fee cap less than block base fee"
        r"|maxfeepergas.*(less|lower|below).*base ?fee|base fee exceeds gas limit|below current base fee"
        r"|gas price below (the )?base ?fee|price_too_low_for_base_fee|feecap below chain minimum",
    ),
    (
        SendOutcome.FEE_OVER_NODE_CAP,
        r"exceeds the configured cap|tx fee \([^)]*\) exceeds|exceeds tx fee cap|transaction fee cap exceeded"
        r"|exceeds (the )?(node's )?(maximum|max) (tx |transaction )?fee|fee_cap_exceeded|tx_feecap_exceeded",
    ),
    (
        SendOutcome.UNDERPRICED,
        r"transaction underpriced|underpriced|fee too low|feetoolow|gas price too low|gas_price_too_low"
        r"|gas price below (configured )?minimum|tip cap.*(below|too low)|priority fee.*(below|too low)"
        r"|gastipcap.*too low|effective.*fee.*too low",
    ),
    (
        SendOutcome.INSUFFICIENT_FUNDS,
        r"insufficient funds|insufficient balance|insufficientfunds|insufficient_funds|upfront cost exceeds"
        r"|upfront_cost_exceeds_balance|not enough (funds|balance)|insufficient eth"
        r"|gas required exceeds allowance \(0\)"
        r"|sender doesn't have enough funds|lack of funds",
    ),
    (
        SendOutcome.GAS_TOO_HIGH,
        r"exceeds block gas limit|gas limit reached|gas limit too high|gaslimitexceeded|exceeds_block_gas_limit"
        r"|exceeds the block gas limit|transaction gas limit too high|exceeds maximum.*gas|gas limit.*(too high|cap)"
        r"|intrinsic gas too low|intrinsic gas too high|intrinsic_gas_exceeds|intrinsicgastoolow|floor data gas",
    ),
    (
        SendOutcome.RATE_LIMITED,
        r"rate limit|ratelimit|too many requests|request limit|exceeded.*(limit|quota|capacity)|daily request count"
        r"|compute units|throttl|over capacity",
    ),
    (SendOutcome.REVERTED, r"execution reverted|vm execution error|\brevert(ed)?\b"),
    (
        SendOutcome.FATAL,
        r"invalid sender|invalid signature|invalidsignature|invalid_signature|transaction type not supported"
        r"|tx type not supported|unsupported transaction type|oversized data|oversizeddata|exceeds max(imum)? size"
        r"|txsizeexceeded|rlp: |rlp decod|invalid chain id|wrong_chain_id|wrong chain ?id|chain id mismatch"
        r"|invalid_transaction_format|sender not an eoa|senderiscontract|max initcode size"
        r"|max priority fee per gas higher than max fee per gas|tip higher than fee cap|gas uint64 overflow"
        r"|negative value|incompatible eip155|only replay-protected|blacklist|banned",
    ),
    (
        SendOutcome.UNAVAILABLE,
        r"timeout|timed out|deadline exceeded|temporarily unavailable|service unavailable|bad gateway|gateway time"
        r"|internal (server )?error|connection (refused|reset)|txpool is full|pool is full|mempool is full|syncing"
        r"|no backend|backend.*(unhealthy|offline)|header not found|try again",
    ),
)
_PATTERNS = tuple((outcome, re.compile(pattern, re.IGNORECASE)) for outcome, pattern in _TABLE)


def classify(message: str) -> SendOutcome:
    """The outcome that a node's error message states."""
    for outcome, pattern in _PATTERNS:
        if pattern.search(message):
            return outcome
    return SendOutcome.UNKNOWN


LEFT_THE_NODE = frozenset({SendOutcome.ACCEPTED, SendOutcome.ALREADY_KNOWN, SendOutcome.NONCE_TOO_LOW})
"""The transaction is with the network, or its nonce is decided: receipts tell the rest."""

PRICED_TOO_LOW = frozenset({SendOutcome.UNDERPRICED, SendOutcome.REPLACEMENT_UNDERPRICED, SendOutcome.FEE_BELOW_BASE})
"""The same bytes would be refused again; the next attempt with this nonce has to offer more."""

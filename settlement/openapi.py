"""What the document of the HTTP interface says of the host's key and claims."""

from __future__ import annotations

from jobs.openapi_operations import WITH_BODY, Part, in_path, json_of, operation, reading, refusal, request_body
from jobs.openapi_schemas import COUNT, HASH32, MAYBE_TEXT, TEXT, list_of, object_of, ref
from jobs.openapi_shapes import JOB_ID
from jobs.strict_fields import Schema
from settlement.views import CHALLENGE

_HOST: Schema = {"type": "string", "pattern": "^0x[0-9a-f]{40}$"}


def part() -> Part:
    """``/v1/auth/challenge`` and ``/v1/checkpoints/{session}``."""
    challenge = operation(
        "proveKey",
        "Proof of the host's key, and with it its public key",
        tag="Host",
        answer=json_of("KeyProof"),
        refusals=(503, *WITH_BODY),
    )
    checkpoints = reading(
        "listCheckpoints",
        "The claims of a job that the chain has",
        tag="Host",
        answer="Checkpoints",
        refusals=(404, 503),
    )
    checkpoints["parameters"] += [in_path("session", JOB_ID["anyOf"][1])]
    checkpoints["responses"]["404"] = refusal(404, envelope="NoCheckpoints")
    return Part(
        tags={"Host": "Who this host is, and what it claimed."},
        paths={
            "/v1/auth/challenge": {"post": {**challenge, "security": [], "requestBody": request_body("Challenge")}},
            "/v1/checkpoints/{session}": {"get": checkpoints},
        },
        schemas=_schemas(),
    )


def _schemas() -> dict[str, Schema]:
    return {
        "Challenge": {
            "type": "object",
            "properties": {"challenge": {"type": "string", "pattern": f"^{CHALLENGE}$"}},
            "required": ["challenge"],
        },
        "KeyProof": object_of(
            signature={**TEXT, "pattern": "^[0-9a-f]{128}$", "description": "r and low s, of the challenge's SHA-256."},
            recid={"enum": [0, 1, 2, 3]},
            hostAddress=_HOST,
            publicKey={**TEXT, "pattern": "^0x0[23][0-9a-f]{64}$"},
        ),
        "Checkpoints": object_of(
            sessionId={**TEXT, "pattern": "^[1-9][0-9]*$"},
            hostAddress=_HOST,
            checkpoints={**list_of(ref("CheckpointEntry")), "minItems": 1},
            hostSignature={
                **TEXT,
                "pattern": "^0x[0-9a-f]{130}$",
                "description": "EIP-191, of the list with sorted keys and without spaces.",
            },
        ),
        "CheckpointEntry": object_of(
            index=COUNT,
            proofHash=HASH32,
            deltaCid=TEXT,
            tokenRange={**list_of(COUNT), "minItems": 2, "maxItems": 2},
            timestamp={**COUNT, "description": "Unix time in milliseconds."},
        ),
        "NoCheckpoints": object_of(
            error=TEXT, error_type={"const": "not_found"}, message=TEXT, request_id=MAYBE_TEXT, details={"type": "null"}
        ),
    }

"""What clients ask of a host's key and of its claims, over HTTP. They translate and delegate."""

from __future__ import annotations

import asyncio
import re

from django.http import HttpRequest, JsonResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from jobs import request_ids
from jobs.host_key import HostKeyMissing
from jobs.http_bodies import json_object
from jobs.protocol import RequestError, invalid, job_id_of
from nodes.database import in_database_thread
from settlement.chain.identity import HostIdentity
from settlement.checkpoint_index import checkpoint_index
from settlement.host_key import HOST_KEY

CHALLENGE = "(0[xX])?[0-9a-fA-F]{64}"


@method_decorator(csrf_exempt, name="dispatch")
class ChallengeView(View):
    """``POST /v1/auth/challenge``: proof that this host holds the key of its address, and with it its public key."""

    http_method_names = ["post", "options"]

    async def post(self, request: HttpRequest) -> JsonResponse:
        challenge = json_object(request).get("challenge")
        if not isinstance(challenge, str) or not re.fullmatch(CHALLENGE, challenge):
            raise invalid("challenge must be 32 bytes in hex: 64 digits of your own choice.", field="challenge")
        identity = await _identity()
        signed = await asyncio.to_thread(identity.sign_challenge, bytes.fromhex(challenge[-64:]))
        return JsonResponse(
            {
                "signature": signed.signature.hex(),
                "recid": signed.recovery_id,
                "hostAddress": identity.address,
                "publicKey": "0x" + identity.public_key.hex(),
            }
        )


@method_decorator(csrf_exempt, name="dispatch")
class CheckpointsView(View):
    """``GET /v1/checkpoints/{session}``: the claims of a job that the chain has, signed by the host."""

    http_method_names = ["get", "head", "options"]

    async def get(self, request: HttpRequest, session: str) -> JsonResponse:
        job_id = job_id_of(session, field="session")
        identity = await _identity()
        entries = await in_database_thread(checkpoint_index)(job_id)
        if not entries:
            return _nothing(f"No checkpoint of session {job_id} is on the chain yet.")
        signature = await asyncio.to_thread(identity.sign_statement, entries)
        return JsonResponse(
            {
                "sessionId": str(job_id),
                "hostAddress": identity.address,
                "checkpoints": entries,
                "hostSignature": signature,
            }
        )


def _nothing(message: str) -> JsonResponse:
    """Existing clients read ``error``, which no other refusal has."""
    refusal = RequestError(code="not_found", message=message, status=404)
    body = {**refusal.body(request_id=request_ids.current.get() or None), "error": message}
    return JsonResponse(body, status=refusal.status)


async def _identity() -> HostIdentity:
    try:
        return await asyncio.to_thread(HOST_KEY.identity)
    except HostKeyMissing as missing:
        raise RequestError(
            code="service_unavailable",
            message=f"This host cannot sign: {missing} Ask its operator to set HOST_KEYSTORE.",
            status=503,
        ) from missing

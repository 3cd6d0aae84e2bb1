"""What the messages of a WebSocket mean: both client dialects, the second in the clear and encrypted.

(a) ``inference`` has everything in one message. (b) ``session_init`` before every ``prompt``, or
``encrypted_session_init`` before every ``encrypted_message``. Guarantees that an init may be repeated at
any time; that what an encrypted init proves about its sender counts only for what is encrypted with its
key; and that conversations in the clear and encrypted ones never mix. Billing is the completion's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jobs import answers, encryption, sessions
from jobs.answering import Answering, Told
from jobs.answers import EncryptedAnswer, PlainAnswer
from jobs.callers import Caller
from jobs.connection import Connection, Handler, Waiting
from jobs.conversations import Conversation
from jobs.encryption import OpenedInit, refused
from jobs.host_key import HostKeyMissing
from jobs.http_callers import with_session_token
from jobs.kept_keys import EncryptedSession, GivenAnswer
from jobs.models import DeliveryPath
from jobs.protocol import RequestError, SessionReference, invalid, wire_job_id
from jobs.serializers import completion_request
from jobs.sessions import OpenedSession
from jobs.sockets import Sockets
from nodes.database import in_database_thread

# What a prompt of dialect (b) may leave out.
_PROMPT_DEFAULTS = {"model": "default", "max_tokens": 4000, "temperature": 0.7, "stream": True}
_PROMPT_FIELDS = ("prompt", "model", "max_tokens", "temperature", "images")


class Dialects:
    """The messages of one connection."""

    def __init__(self, connection: Connection, *, sockets: Sockets) -> None:
        self._connection = connection
        self._sockets = sockets
        self._answering = Answering(connection, sockets=sockets)
        self._reference = SessionReference()
        self._encrypted: EncryptedSession | None = None
        # The job that was named last, and whether it exists.
        self._known_job: tuple[int | None, bool] = (None, False)

    @property
    def handlers(self) -> dict[str, Handler]:
        """By message type."""
        return {
            "inference": self._inference,
            "session_init": self._session_init,
            "prompt": self._prompt,
            "session_end": self._session_end,
            "encrypted_session_init": self._encrypted_session_init,
            "encrypted_message": self._encrypted_message,
        }

    async def _inference(self, waiting: Waiting) -> None:
        """Dialect (a): everything is in the message."""
        body = waiting.message.get("request")
        if not isinstance(body, dict):
            raise invalid("request must be an object with model, prompt and max_tokens.", field="request")
        _refuse_images(body)
        reference = SessionReference.read({**waiting.message, **body}).merged_with(self._reference)
        request, _ = completion_request(body, path=DeliveryPath.WS_INFERENCE, reference=reference)
        caller = await self._caller({**waiting.message, **body})
        told = await self._answering.answer(
            waiting, replace(request, caller=caller), PlainAnswer(waiting.message), named=_name_of(reference)
        )
        self._answering.finish(told)

    async def _session_init(self, waiting: Waiting) -> None:
        """Dialect (b), sent before every prompt: checks the job and remembers the session."""
        reference = SessionReference.read(waiting.message)
        caller = await self._caller(waiting.message)
        opened = await self._sockets.serving.open_session(reference, caller=caller)
        self._reference = reference
        if opened.billing.claimable:  # else it may still be there
            self._known_job = reference.job_id, True
        if reference.job_id is not None:
            await self._sockets.bind(self._connection, opened.id, named=_name_of(reference))
        acknowledged = self._acknowledgement(reference, opened, "Session initialized successfully")
        await self._connection.send(answers.encode(answers.with_id(acknowledged, waiting.message)))

    async def _prompt(self, waiting: Waiting) -> None:
        """Dialect (b): fields in ``request`` or in the message; the session is that of the last init."""
        message = waiting.message
        body = message.get("request") or {}
        if not isinstance(body, dict):
            raise invalid("request must be an object.", field="request")
        own = {name: message[name] for name in _PROMPT_FIELDS if name in message}
        body = {**_PROMPT_DEFAULTS, **own, **body}
        _refuse_images(body)
        reference = SessionReference.read({**message, **body}).merged_with(self._reference)
        caller = await self._caller({**message, **body})
        conversation = await self._conversation(reference, caller)
        request, values = completion_request(
            body, path=DeliveryPath.WS_PROMPT, reference=reference, history=tuple(conversation.turns)
        )
        told = await self._answering.answer(
            waiting,
            replace(request, caller=caller),
            PlainAnswer(message),
            named=_name_of(reference),
            conversation=conversation,
        )
        self._answering.finish(told, conversation=conversation, prompt=values["prompt"])

    async def _session_end(self, waiting: Waiting) -> None:
        """The client is done: close the sessions of this socket without waiting for the grace period."""
        closing = self._sockets.bound_sessions(self._connection)
        for session_id in closing:
            await in_database_thread(sessions.close_session)(session_id, reason="client ended the session")
        ended = {"type": "session_end_ack", "status": "success", "sessions_closed": len(closing)}
        await self._connection.send(answers.encode(answers.with_id(ended, waiting.message)))

    # Encrypted ------------------------------------------------------------------------------------

    async def _encrypted_session_init(self, waiting: Waiting) -> None:
        """As ``session_init``, with a session key: a new one before every message."""
        message = waiting.message
        named = SessionReference.read({**message, "job_id": None, "jobId": None})
        try:
            init = await asyncio.to_thread(
                encryption.open_init, message.get("payload"), host_key=self._sockets.host_key
            )
        except HostKeyMissing as missing:
            raise refused(
                "ENCRYPTION_NOT_SUPPORTED",
                f"This host has no key to encrypt to ({missing}). Use session_init and prompt.",
            ) from missing
        if not named.session_id and init.values.get("jobId") is None:
            raise refused("MISSING_SESSION_ID", "The init names no session. Send session_id.")
        session = await self._session_of(init, named=named, message=message)
        opened = await self._sockets.serving.open_session(session.reference, caller=session.caller)
        self._encrypted = self._sockets.keys.keep(session, session_id=session.reference.session_id)
        acknowledged = self._acknowledgement(session.reference, opened, "Encrypted session initialized successfully")
        acknowledged["client_address"] = init.client_address
        await self._connection.send(answers.encode(answers.with_id(acknowledged, message)))

    async def _session_of(
        self, init: OpenedInit, *, named: SessionReference, message: Mapping[str, Any]
    ) -> EncryptedSession:
        """The session that an init opens. What it holds encrypted goes before what stands beside it."""
        inner = SessionReference.read({"job_id": init.values.get("jobId"), "session_id": named.session_id})
        if inner.job_id is None:
            inner = SessionReference.read({**message, "session_id": named.session_id})
        reference = replace(inner, session_id=named.session_id or str(inner.job_id))
        caller = (await self._caller(message)).with_address(init.client_address)
        model = init.values.get("modelName")
        return EncryptedSession(
            key=init.key, reference=reference, caller=caller, model=model if isinstance(model, str) else ""
        )

    async def _encrypted_message(self, waiting: Waiting) -> None:
        """A prompt, encrypted with the key of the connection's last init."""
        message = waiting.message
        session = self._session_for(message)
        inner = await asyncio.to_thread(session.key.open_message, message.get("payload"))
        self._sockets.keys.touch(session)
        if inner.get("action") == "image_generation":
            raise RequestError(
                code="IMAGE_GENERATION_NOT_SUPPORTED",
                message="This host generates no images. Ask for text.",
                status=400,
            )
        nonce = str(message["payload"]["nonceHex"])
        answer = EncryptedAnswer(message, key=session.key)
        if (earlier := session.earlier_answer(nonce)) is not None:
            await self._answering.repeat(earlier, answer)
            return
        try:
            told = await self._encrypted_answer(waiting, session, inner, answer)
        except BaseException:
            session.failed(nonce)
            raise
        if told is None or told.finish_reason == "error":
            session.failed(nonce)
        elif told.end is not None:
            given = GivenAnswer(text=told.text, tokens=told.tokens, finish_reason=told.finish_reason, end=told.end)
            session.answered(nonce, given)

    async def _encrypted_answer(
        self, waiting: Waiting, session: EncryptedSession, inner: dict[str, Any], answer: EncryptedAnswer
    ) -> Told | None:
        body = {**_PROMPT_DEFAULTS, **({"model": session.model} if session.model else {}), **inner}
        _refuse_images(body)
        # The key was proven by whoever made the init; this socket's own address and id are its own.
        caller = replace(
            session.caller,
            remote_address=self._connection.caller.remote_address,
            connection=self._connection.caller.connection,
        )
        conversation = await self._conversation(session.reference, caller)
        request, values = completion_request(
            body, path=DeliveryPath.WS_ENCRYPTED, reference=session.reference, history=tuple(conversation.turns)
        )
        told = await self._answering.answer(
            waiting,
            replace(request, caller=caller),
            answer,
            named=_name_of(session.reference),
            conversation=conversation,
        )
        self._answering.finish(told, conversation=conversation, prompt=values["prompt"])
        return told

    def _session_for(self, message: Mapping[str, Any]) -> EncryptedSession:
        """By the connection: some clients name their first session while they use another's key."""
        if self._encrypted is not None:
            return self._encrypted
        session_id = SessionReference.read({"session_id": message.get("session_id")}).session_id
        if not session_id:
            raise refused("MISSING_SESSION_ID", "The message names no session, and this socket has none.")
        session = self._sockets.keys.find(session_id)
        if session is None:
            raise refused(
                "SESSION_KEY_NOT_FOUND",
                f"The host has no key for session {session_id}. Send encrypted_session_init first.",
            )
        return session

    # Both -----------------------------------------------------------------------------------------

    async def _caller(self, message: Mapping[str, Any]) -> Caller:
        """The connection's client, with a session token that the message may bring."""
        if message.get("session_token") is not None:
            self._connection.caller = await with_session_token(self._connection.caller, message["session_token"])
        return self._connection.caller

    async def _conversation(self, reference: SessionReference, caller: Caller) -> Conversation:
        """What was said before, by this client about this job; of nobody else."""
        if reference.job_id is None and not reference.session_id:
            about = f"socket {self._connection.id}"
        else:
            about = f"job {reference.job_id}" if reference.job_id is not None else f"session {reference.session_id}"
        key = (about, await self._who(reference, caller))
        self._sockets.converses(self._connection, key)
        return self._sockets.conversations.of(key)

    async def _who(self, reference: SessionReference, caller: Caller) -> str:
        """Who has a conversation, by the strongest of what it has proven. Raises ``RequestError``."""
        if caller.addresses:
            return ",".join(sorted(caller.addresses))
        if caller.api_key is not None:
            return f"key {caller.api_key}"
        if reference.job_id is not None and await self._exists(reference.job_id):
            # Only whoever may spend the job gets as far as its history, and not always with the same token.
            return f"from {caller.remote_address}"
        if caller.authorizations:
            return f"authorization {min(caller.authorizations)}"
        # Strangers behind one proxy share its address, and may choose the same name for a session.
        return f"socket {self._connection.id}"

    async def _exists(self, job_id: int) -> bool:
        """Whether there is such a job: its number may be no more than a client's name for a session."""
        if self._known_job[0] != job_id:
            self._known_job = job_id, await self._sockets.serving.find_job(job_id) is not None
        return self._known_job[1]

    def _acknowledgement(self, reference: SessionReference, opened: OpenedSession, text: str) -> dict[str, Any]:
        return {
            "type": "session_init_ack",
            "status": "success",
            "session_id": _name_of(reference),
            "job_id": wire_job_id(reference.job_id),
            "chain_id": self._sockets.serving.jobs.chain_id,
            "message": text,
            "billing": opened.billing.body(),
        }


def _name_of(reference: SessionReference) -> str:
    """As clients call the session: by the id they gave it, or by its job's."""
    return reference.session_id or (str(reference.job_id) if reference.job_id else "")


def _refuse_images(body: Mapping[str, Any]) -> None:
    """An answer that did not look at an image would be worse than none."""
    if body.get("images"):
        raise invalid("images cannot be read by this host's models. Send text only.", field="images")

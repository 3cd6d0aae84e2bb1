"""From a conversation to prompt token ids, by the model's own chat template.

Guarantees: the template runs in Jinja's immutable sandbox with a budget of characters, loop steps
and seconds, so a hostile template can neither reach Python nor take the machine; text of a message
never becomes a control token, whatever it contains. Does not truncate: the caller compares the
length with the context.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from tokenizers import Tokenizer

from jobs.inference.engine import ChatMessage, RequestRefused

MAX_TEMPLATE_CHARACTERS = 65_536
MAX_LOOP_STEPS = 10_000
MAX_SECONDS = 5.0
_OVERHEAD_CHARACTERS = 32_768
_OVERHEAD_PER_MESSAGE = 1_024

_GREEDY_FILTERS = ("center", "format", "indent", "urlize", "wordwrap", "xmlattr", "random", "pprint")
_GREEDY_METHODS = frozenset({"center", "expandtabs", "format", "format_map", "ljust", "rjust", "zfill"})


class ChatTemplateError(Exception):
    """The chat template cannot be used; the text says why."""


class _ChatEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, also without the operations that make a large value out of a small template."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        for name in _GREEDY_FILTERS:
            del self.filters[name]
        self.globals = {"namespace": Namespace}
        self.filters["tojson"] = _to_json

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if not numbers or operator == "**":
            raise ChatTemplateError(f"the operator {operator} is allowed between small numbers only")
        return super().call_binop(context, operator, left, right)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"access to {attribute!r} of a {type(obj).__name__} is not allowed")

    def wrap_str_format(self, value: Any) -> None:
        """Leave ``str.format`` to ``is_safe_attribute``, which refuses it."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _GREEDY_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)


class _Shield:
    """Hides the control tokens that a user wrote, while the template's own are being encoded."""

    def __init__(self, control_tokens: Mapping[str, tuple[int, ...]]) -> None:
        self._control_tokens = control_tokens
        self._nonce = secrets.randbelow(10**12)
        self._covered: list[tuple[int, ...]] = []

    def cover(self, message: ChatMessage) -> ChatMessage:
        content = message.content
        for token, ids in self._control_tokens.items():
            while token in content:
                mark = f"\ue000{self._nonce}-{len(self._covered)}\ue001"
                content = content.replace(token, mark, 1)
                self._covered.append(ids)
        return replace(message, content=content)

    def pieces(self, rendered: str) -> Iterator[str | tuple[int, ...]]:
        """Texts to be encoded with control tokens, and between them ready ids."""
        for number, piece in enumerate(re.split(f"\ue000{self._nonce}-(\\d+)\ue001", rendered)):
            if number % 2:
                yield self._covered[int(piece)]
            elif piece:
                yield piece


class PromptTemplate:
    """A model's chat template together with its tokenizer. May be used from several threads.

    Raises ``ChatTemplateError`` at construction if the template is too long, not valid Jinja or
    unable to render a plain greeting.
    """

    def __init__(self, source: str, *, tokenizer: Tokenizer, bos_token: str = "", eos_token: str = "") -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise ChatTemplateError(
                f"The chat template has {len(source)} characters; {MAX_TEMPLATE_CHARACTERS} are allowed."
            )
        self._tokenizer = tokenizer
        self._control_tokens = _plain_encodings(tokenizer)
        self._constants = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = _ChatEnvironment().from_string(source)
        except TemplateError as error:
            raise ChatTemplateError(f"The chat template is not valid: {error}.") from error
        self._render([{"role": "user", "content": "Hello"}], limit=_OVERHEAD_CHARACTERS)

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The prompt as text, ending where the assistant's answer begins. Raises ``RequestRefused``."""
        plain = [{"role": message.role, "content": message.content} for message in messages]
        size = sum(len(message["content"]) for message in plain)
        limit = 2 * size + len(plain) * _OVERHEAD_PER_MESSAGE + _OVERHEAD_CHARACTERS
        try:
            return self._render(plain, limit=limit)
        except ChatTemplateError as error:
            raise RequestRefused(f"The model's chat template refused the conversation: {error}") from error

    def encode(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Prompt token ids. Control tokens written inside a message are encoded as plain text.

        Raises ``RequestRefused``.
        """
        shield = _Shield(self._control_tokens)
        return self._ids(shield, self.render([shield.cover(message) for message in messages]))

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of ``text`` without the template; control tokens written in it are plain text."""
        shield = _Shield(self._control_tokens)
        return self._ids(shield, shield.cover(ChatMessage(role="user", content=text)).content)

    def _ids(self, shield: _Shield, rendered: str) -> tuple[int, ...]:
        ids: list[int] = []
        for piece in shield.pieces(rendered):
            if isinstance(piece, str):
                ids.extend(self._tokenizer.encode(piece, add_special_tokens=False).ids)
            else:
                ids.extend(piece)
        return tuple(ids)

    def _render(self, messages: list[dict[str, str]], *, limit: int) -> str:
        deadline = time.monotonic() + MAX_SECONDS
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(
                messages=messages,
                add_generation_prompt=True,
                range=_budgeted_range(deadline),
                raise_exception=_refuse,
                strftime_now=_now,
                **self._constants,
            ):
                pieces.append(piece)
                size += len(piece)
                if size > limit or time.monotonic() > deadline:
                    raise ChatTemplateError("it produces too much text or takes too long.")
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise ChatTemplateError(f"{error}") from error
        return "".join(pieces)


def _plain_encodings(tokenizer: Tokenizer) -> dict[str, tuple[int, ...]]:
    """Each control token's text, and the ids of that text as if it were ordinary."""
    specials = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    tokenizer.encode_special_tokens = True
    encodings = {text: tuple(tokenizer.encode(text, add_special_tokens=False).ids) for text in specials}
    tokenizer.encode_special_tokens = False
    return encodings


def _budgeted_range(deadline: float) -> Callable[..., range]:
    steps = 0

    def bounded(*arguments: int) -> range:
        nonlocal steps
        numbers = range(*arguments)
        steps += len(numbers) + 1
        if steps > MAX_LOOP_STEPS or time.monotonic() > deadline:
            raise ChatTemplateError("it loops too often or takes too long.")
        return numbers

    return bounded


def _refuse(message: object) -> NoReturn:
    raise ChatTemplateError(str(message))


def _now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _to_json(value: Any, indent: int | None = None) -> str:
    if indent is not None and not 0 <= indent <= 8:
        raise ChatTemplateError("tojson takes an indent of at most 8.")
    return json.dumps(value, ensure_ascii=False, indent=indent)

"""Rate limits as the ``openai`` client meets them: headers on every answer, and its own exception at the limit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import requests

from settlement.chain import local
from tests.flows.node import Node, drop_node, make_node

ALLOWED = 6


@pytest.fixture
def node(anvil_binary: Path) -> Iterator[Node]:
    with local.TemporaryAnvil(binary=anvil_binary) as anvil:
        node = make_node(anvil.url)
        node.environ["FABSTIR_REQUESTS_PER_MINUTE"] = str(ALLOWED)
        node.start("broker", "web")
        yield node
        drop_node(node)


def test_a_limit_is_told_before_it_is_met_and_then_is_the_exception_for_it(node: Node) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    with openai.OpenAI(base_url=node.address("/v1"), api_key="none", max_retries=0) as client:
        left = []
        with pytest.raises(openai.RateLimitError) as refused:
            for number in range(2 * ALLOWED):
                raw = client.chat.completions.with_raw_response.create(
                    model="scripted", messages=messages, max_tokens=1, stream=bool(number % 2)
                )
                left.append(int(raw.headers["x-ratelimit-remaining-requests"]))
                assert int(raw.headers["x-ratelimit-limit-requests"]) == ALLOWED
                raw.http_response.read()
    assert left[0] == ALLOWED - 1
    assert left == sorted(left, reverse=True)
    assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert int(refused.value.response.headers["Retry-After"]) > 0
    limited = requests.post(node.address("/tokenize"), json={"model": "default", "prompt": "x"}, timeout=30)
    assert (limited.status_code, limited.json()["error"]["type"]) == (429, "rate_limit_error")
    # What costs nothing is not limited.
    assert requests.get(node.address("/v1/models"), timeout=30).status_code == 200

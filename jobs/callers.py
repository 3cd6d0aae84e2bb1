"""Who sends a request, as far as it was proven.

Guarantees nothing about a job: ``spending`` decides what a caller may do with one. Everything in a
``Caller`` was verified by whoever made it; what a client merely says about itself is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The sender of one request.

    ``remote_address`` is its network address (empty if unknown). ``addresses`` are the chain addresses
    (lower case) whose keys it has shown to hold. ``authorizations`` are the row ids of the session
    authorisations whose tokens it sent; which job each is for, and whether it still is, is looked up when
    the job is spent. ``api_key`` is the row id of the API key that it sent, and ``requests_per_minute`` and
    ``tokens_per_minute`` what that key allows (``None``: as the host allows anybody). ``connection`` is
    its WebSocket's id, empty over HTTP.
    """

    remote_address: str = ""
    addresses: frozenset[str] = frozenset()
    authorizations: frozenset[int] = frozenset()
    api_key: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    connection: str = ""

    def with_address(self, address: str) -> Caller:
        """This caller, having shown to hold the key of ``address`` as well."""
        return replace(self, addresses=self.addresses | {address.lower()})


ANYBODY = Caller()

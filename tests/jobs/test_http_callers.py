"""The network address of a client behind proxies, some of which are to be believed."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from jobs.http_callers import client_address

PROXIES = (ip_network("10.0.0.0/8"), ip_network("192.0.2.9"))


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "expected"),
    [
        ("198.51.100.7", "", "198.51.100.7"),
        ("198.51.100.7", "203.0.113.1", "198.51.100.7"),  # no proxy of ours: its word counts for nothing
        ("10.0.0.1", "203.0.113.1", "203.0.113.1"),
        ("10.0.0.1", "1.1.1.1, 203.0.113.1", "203.0.113.1"),  # the client's own invention is left of it
        ("10.0.0.1", "1.1.1.1, 203.0.113.1, 192.0.2.9", "203.0.113.1"),
        ("10.0.0.1", "10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("", "203.0.113.1", ""),
    ],
)
def test_only_configured_proxies_are_believed(peer: str, forwarded_for: str, expected: str) -> None:
    assert client_address(peer, forwarded_for=forwarded_for, trusted=PROXIES) == expected

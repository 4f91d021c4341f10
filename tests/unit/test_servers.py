"""Ports for servers of our own."""

import socket
from pathlib import Path

import pytest

from cli.servers import LOOPBACK, free_port

LENT = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_a_free_port_is_another_each_time_and_none_that_an_outgoing_connection_may_borrow() -> None:
    if not LENT.exists():
        pytest.skip("only Linux says which ports it lends")
    first, last = map(int, LENT.read_text().split())
    ports = [free_port(0) for _ in range(500)]
    assert len(set(ports)) == len(ports)
    assert not [port for port in ports if first <= port <= last]


def test_where_the_preferred_port_is_taken_it_is_the_next() -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, free_port(0)))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) > port
    assert free_port(port) == port

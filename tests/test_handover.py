"""Hand-over: an event reaches the one owner, once, and not a byte is taken on the way."""

import os
import select
import socket
from collections.abc import Iterator

import pytest

from isowsgi.handover import ARM_EDGE, ARM_ONCE, Port


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's end and ours."""
    client, ours = socket.socketpair()
    with client, ours:
        yield client, ours


@pytest.fixture
def owner() -> Iterator[select.epoll]:
    with select.epoll() as epoll:
        yield epoll


def test_bytes_that_came_before_the_hand_over_are_seen_after_it(
    owner: select.epoll, connection: tuple[socket.socket, socket.socket]
) -> None:
    """The acceptor has peeked at the request by then; there will be no other event for it."""
    client, ours = connection
    client.sendall(b"GET")

    Port(owner, ARM_ONCE).give(ours.fileno())

    assert owner.poll(1) == [(ours.fileno(), select.EPOLLIN)]
    assert ours.recv(10) == b"GET"


def test_an_instance_has_one_event_until_it_arms_the_connection_again(
    owner: select.epoll, connection: tuple[socket.socket, socket.socket]
) -> None:
    """Otherwise a second thread would be told of a connection that the first one serves."""
    client, ours = connection
    Port(owner, ARM_ONCE).give(ours.fileno())
    client.sendall(b"a")
    assert len(owner.poll(1)) == 1

    client.sendall(b"b")
    assert owner.poll(0) == []

    owner.modify(ours.fileno(), ARM_ONCE)
    assert len(owner.poll(1)) == 1


def test_the_acceptor_has_one_event_for_each_arrival(owner: select.epoll, connection: tuple[socket.socket, socket.socket]) -> None:
    """With the bytes so far left in the buffer, level-triggered readiness would never end."""
    client, ours = connection
    Port(owner, ARM_EDGE).give(ours.fileno())

    for _ in range(3):
        client.sendall(b"a")
        assert len(owner.poll(1)) == 1
        assert owner.poll(0) == []

    assert ours.recv(10) == b"aaa"


@pytest.mark.parametrize("arm", [ARM_ONCE, ARM_EDGE])
def test_an_owner_learns_that_the_client_sends_no_more(
    owner: select.epoll, connection: tuple[socket.socket, socket.socket], arm: int
) -> None:
    client, ours = connection
    Port(owner, arm).give(ours.fileno())

    client.shutdown(socket.SHUT_WR)

    assert owner.poll(1)[0][1] & select.EPOLLRDHUP


def test_a_port_opened_by_descriptor_leads_to_the_same_set(owner: select.epoll, connection: tuple[socket.socket, socket.socket]) -> None:
    """That is all that an instance gets: an int."""
    client, ours = connection
    client.sendall(b"a")

    Port.open(owner.fileno(), ARM_ONCE).give(ours.fileno())

    assert owner.poll(1) == [(ours.fileno(), select.EPOLLIN)]


def test_a_port_that_goes_away_leaves_the_set_to_its_owner(owner: select.epoll) -> None:
    """`epoll.fromfd` closes its descriptor when it is collected, so a port must not hold the owner's."""
    port = Port.open(owner.fileno(), ARM_ONCE)
    del port

    os.fstat(owner.fileno())


def test_a_connection_that_is_still_armed_cannot_be_given_again(
    owner: select.epoll, connection: tuple[socket.socket, socket.socket]
) -> None:
    """Two owners would be the end of all order: better an error at the spot."""
    _, ours = connection
    port = Port(owner, ARM_ONCE)
    port.give(ours.fileno())

    with pytest.raises(FileExistsError):
        port.give(ours.fileno())

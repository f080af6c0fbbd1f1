"""Hand-over: an event reaches the one owner, once, and not a byte is taken on the way."""

import errno
import gc
import os
import resource
import select
import socket
from collections.abc import Iterator

import pytest

from isowsgi.shared.handover import ARM_EDGE, CLOSED_THERE, LINGERING, RETURNED, Loans, Mail, Port, SameProcess, dup_of, key_of, number_of
from isowsgi.shared.rows import CLOSED
from isowsgi.shared.scoreboard import Scoreboard


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

    Port(owner, ARM_EDGE).give(ours.fileno())

    assert owner.poll(1) == [(ours.fileno(), select.EPOLLIN)]
    assert ours.recv(10) == b"GET"


def test_an_owner_has_one_event_for_each_arrival(owner: select.epoll, connection: tuple[socket.socket, socket.socket]) -> None:
    """With the bytes so far left in the buffer, level-triggered readiness would never end."""
    client, ours = connection
    Port(owner, ARM_EDGE).give(ours.fileno())

    for _ in range(3):
        client.sendall(b"a")
        assert len(owner.poll(1)) == 1
        assert owner.poll(0) == []

    assert ours.recv(10) == b"aaa"


def test_an_owner_learns_that_the_client_sends_no_more(owner: select.epoll, connection: tuple[socket.socket, socket.socket]) -> None:
    client, ours = connection
    Port(owner, ARM_EDGE).give(ours.fileno())

    client.shutdown(socket.SHUT_WR)

    assert owner.poll(1)[0][1] & select.EPOLLRDHUP


def test_a_port_opened_by_descriptor_leads_to_the_same_set(owner: select.epoll, connection: tuple[socket.socket, socket.socket]) -> None:
    """That is all that an instance gets: an int."""
    client, ours = connection
    client.sendall(b"a")

    Port.open(owner.fileno(), ARM_EDGE).give(ours.fileno())

    assert owner.poll(1) == [(ours.fileno(), select.EPOLLIN)]


def test_a_port_that_goes_away_leaves_the_set_to_its_owner(owner: select.epoll) -> None:
    """`epoll.fromfd` closes its descriptor when it is collected, so a port must not hold the owner's."""
    port = Port.open(owner.fileno(), ARM_EDGE)
    del port

    os.fstat(owner.fileno())


def test_a_connection_that_is_still_armed_cannot_be_given_again(
    owner: select.epoll, connection: tuple[socket.socket, socket.socket]
) -> None:
    """Two owners would be the end of all order: better an error at the spot."""
    _, ours = connection
    port = Port(owner, ARM_EDGE)
    port.give(ours.fileno())

    with pytest.raises(FileExistsError):
        port.give(ours.fileno())


# By mail, to a child process.


class Post:
    """Both ends of the mail in one process; the child's descriptors are duplicates, as SCM_RIGHTS makes them."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.ours, self.theirs = ours, theirs
        self.wants: list[bool] = []
        self.loans, self.mail = Loans(ours, self.wants.append), Mail(theirs)

    def deliver(self) -> list[int]:
        """Take out all that has come, as the child does in as many turns as that needs."""
        came: list[int] = []
        while batch := self.mail.receive():
            came += batch
        return came

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def post() -> Iterator[Post]:
    post = Post()
    yield post
    post.close()


def open_fds() -> int:
    gc.collect()  # what another test has left
    return len(os.listdir("/proc/self/fd"))


def test_a_lent_connection_is_another_descriptor_of_the_same(post: Post, connection: tuple[socket.socket, socket.socket]) -> None:
    client, ours = connection
    client.sendall(b"GET")

    post.loans.give(ours.fileno())
    [theirs] = post.mail.receive()

    assert post.mail.worker_fd(theirs) == ours.fileno() != theirs
    assert not os.get_inheritable(theirs)
    assert os.read(theirs, 10) == b"GET"
    os.close(theirs)


@pytest.mark.parametrize("fate", [RETURNED, LINGERING, CLOSED_THERE])
def test_a_child_says_what_became_of_a_connection_and_keeps_nothing_of_it(
    post: Post, connection: tuple[socket.socket, socket.socket], fate: bytes
) -> None:
    _, ours = connection
    before = open_fds()
    post.loans.give(ours.fileno())
    [theirs] = post.mail.receive()

    if fate == RETURNED:
        post.mail.give_back(theirs)
    elif fate == LINGERING:
        post.mail.linger(theirs)
    else:
        post.mail.close(socket.socket(fileno=theirs), theirs, memoryview(b""))

    assert post.loans.read_fates() == [(fate, ours.fileno())]
    assert post.loans.take_back_all() == []
    assert open_fds() == before
    os.fstat(ours.fileno())  # it is still the worker's


@pytest.mark.parametrize("fate", [RETURNED, LINGERING, CLOSED_THERE])
def test_a_connection_that_comes_under_the_number_of_one_just_closed_is_another(
    post: Post, connection: tuple[socket.socket, socket.socket], fate: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may poll between two calls of the one that closes. The worker was told then that the new one was closed; nobody
    closed the old one, and the end of the new one was a KeyError.
    """
    _, ours = connection
    client, second = socket.socketpair()
    post.loans.give(ours.fileno())
    [theirs] = post.mail.receive()
    close_now = os.close

    def close_and_receive(fd: int) -> None:
        close_now(fd)
        post.loans.give(second.fileno())
        assert post.mail.receive() == [fd]

    class Closing:
        def close(self) -> None:
            close_and_receive(theirs)

    monkeypatch.setattr(os, "close", close_and_receive)
    if fate == CLOSED_THERE:
        post.mail.close(Closing(), theirs, memoryview(b""))
    else:
        (post.mail.give_back if fate == RETURNED else post.mail.linger)(theirs)
    monkeypatch.undo()

    assert post.loans.read_fates() == [(fate, ours.fileno())]
    assert post.mail.worker_fd(theirs) == second.fileno()
    post.mail.give_back(theirs)
    client.close()
    second.close()


def test_the_same_descriptor_may_be_lent_again_and_again(post: Post, connection: tuple[socket.socket, socket.socket]) -> None:
    """A number means the connection that was lent last: 10,000 come and go, and no descriptor stays open on either side."""
    _, ours = connection
    before = open_fds()
    for _ in range(10_000):
        post.loans.give(ours.fileno())
        [theirs] = post.mail.receive()
        post.mail.give_back(theirs)
        assert post.loans.read_fates() == [(RETURNED, ours.fileno())]

    assert open_fds() == before


def test_what_the_mail_has_no_room_for_waits_in_order(post: Post) -> None:
    pairs = [socket.socketpair() for _ in range(400)]
    before = open_fds()
    for _, ours in pairs:
        post.loans.give(ours.fileno())
    assert post.wants[-1] is True

    came = post.deliver()
    assert 0 < len(came) < len(pairs)
    post.loans.send_waiting()
    came += post.deliver()

    assert [post.mail.worker_fd(fd) for fd in came] == [ours.fileno() for _, ours in pairs]
    assert post.wants[-1] is False
    for fd in came:
        post.mail.give_back(fd)
        post.loans.read_fates()
    assert open_fds() == before
    for pair in pairs:
        pair[0].close()
        pair[1].close()


def test_one_that_can_never_be_sent_does_not_block_those_behind_it(post: Post) -> None:
    """Its error came again with each try, and no connection given after it reached the child."""
    pairs = [socket.socketpair() for _ in range(400)]
    numbers = [ours.fileno() for _, ours in pairs]
    unsent: list[int] = []
    post.loans._on_unsent = unsent.append
    for number in numbers:
        post.loans.give(number)
    came = post.deliver()
    first_that_waits = numbers[len(came)]
    pairs[len(came)][1].close()  # as an app in the main interpreter may do

    with pytest.raises(OSError, match="Bad file descriptor"):
        post.loans.send_waiting()
    came += post.deliver()
    while post.wants[-1]:
        post.loans.send_waiting()
        came += post.deliver()

    assert unsent == [first_that_waits]
    assert [post.mail.worker_fd(fd) for fd in came] == [number for number in numbers if number != first_that_waits]
    for fd in came:
        os.close(fd)
    for pair in pairs:
        pair[0].close()
        pair[1].close()


def test_those_that_were_not_sent_yet_can_be_taken_back(post: Post) -> None:
    pairs = [socket.socketpair() for _ in range(400)]
    for _, ours in pairs:
        post.loans.give(ours.fileno())

    waiting = post.loans.take_back_waiting()
    came = post.deliver()

    assert [post.mail.worker_fd(fd) for fd in came] + waiting == [ours.fileno() for _, ours in pairs]
    assert post.loans.take_back_all() == sorted(post.mail.worker_fd(fd) for fd in came)
    for fd in came:
        os.close(fd)
    for pair in pairs:
        pair[0].close()
        pair[1].close()


def test_a_child_that_dies_with_unread_mail_leaves_every_connection_to_the_worker(post: Post) -> None:
    pairs = [socket.socketpair() for _ in range(400)]
    before = open_fds()
    for _, ours in pairs[:399]:
        post.loans.give(ours.fileno())
    post.theirs.close()
    assert open_fds() == before - 1
    post.loans.send_waiting()
    post.loans.give(pairs[399][1].fileno())  # its end is not known yet

    assert post.loans.read_fates() == []
    assert post.loans.take_back_all() == sorted(ours.fileno() for _, ours in pairs)
    assert post.loans.take_back_all() == []
    for client, ours in pairs:
        client.sendall(b"a")
        assert ours.recv(1) == b"a"
        client.close()
        ours.close()


def test_a_child_without_free_descriptors_has_the_worker_close_the_connection(
    post: Post, connection: tuple[socket.socket, socket.socket]
) -> None:
    """Otherwise the packet would come without its descriptor, and its client would wait for ever."""
    _, ours = connection
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    post.loans.give(ours.fileno())
    free = os.dup(ours.fileno())
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        assert post.mail.receive() == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert post.loans.read_fates() == [(CLOSED_THERE, ours.fileno())]


def test_too_many_descriptors_on_their_way_are_sent_later(connection: tuple[socket.socket, socket.socket]) -> None:
    """The kernel bounds how many one user may have on their way (ETOOMANYREFS); once that passed for the child's end, for ever."""
    _, ours = connection
    refusals = [OSError(errno.ETOOMANYREFS, "too many references")]

    class FullOnce:
        sent = 0

        def sendmsg(self, *packet: object) -> None:
            if refusals:
                raise refusals.pop()
            self.sent += 1

    sock = FullOnce()
    wants: list[bool] = []
    later: list[bool] = []
    loans = Loans(sock, wants.append, lambda: later.append(True))  # type: ignore[arg-type] # all that it uses

    loans.give(ours.fileno())
    assert (sock.sent, wants, later) == (0, [False], [True]), "the socket has room: who waits for that spins"
    loans.send_waiting()

    assert (sock.sent, wants, later) == (1, [False, False], [True])


def test_what_is_said_twice_of_a_loan_is_believed_once(post: Post, connection: tuple[socket.socket, socket.socket]) -> None:
    """The worker closed a descriptor twice: EBADF ended it, or it was a neighbour's by then."""
    _, ours = connection
    post.loans.give(ours.fileno())
    [theirs] = post.mail.receive()
    serial, _ = post.mail._loans[theirs]
    post.mail.give_back(theirs)
    assert post.loans.read_fates() == [(RETURNED, ours.fileno())]
    post.loans.give(ours.fileno())  # again, so its number is lent while the old loan's fate is told once more

    post.mail._say(CLOSED_THERE, serial)
    post.theirs.send(b"of another length")

    assert post.loans.read_fates() == []
    [theirs] = post.mail.receive()
    post.mail.give_back(theirs)
    assert post.loans.read_fates() == [(RETURNED, ours.fileno())]


def test_a_child_that_the_app_has_forked_speaks_for_no_connection(post: Post, connection: tuple[socket.socket, socket.socket]) -> None:
    _, ours = connection
    post.loans.give(ours.fileno())
    [theirs] = post.mail.receive()

    with pytest.MonkeyPatch.context() as patch:  # what such a copy sees; a fork of the test would copy its threads' locks
        patch.setattr(os, "getpid", lambda: 1)
        post.mail._say(CLOSED_THERE, post.mail._loans[theirs][0])

    assert post.loans.read_fates() == []
    post.mail.give_back(theirs)


def test_a_key_names_a_connection_and_not_who_has_its_number_next() -> None:
    client, ours = socket.socketpair()
    number = ours.fileno()
    key = key_of(ours, number)
    assert number_of(key) == number
    dup = dup_of(key)
    assert dup is not None
    assert key_of(dup, number) == key
    dup.close()

    os.dup2(client.fileno(), number)
    assert dup_of(key) is None
    ours.close()
    assert dup_of(key) is None
    client.close()


@pytest.mark.parametrize("key", [0, -1, (1 << 63) - 1, 1 << 24])
def test_what_is_no_key_names_nothing(key: int) -> None:
    """A child process may write anything into its rows."""
    assert dup_of(key) is None


def test_what_is_no_socket_names_no_connection_and_leaves_no_descriptor() -> None:
    file = os.eventfd(0)
    before = open_fds()

    assert dup_of(file + 1) is None

    assert open_fds() == before
    os.close(file)


def test_a_connection_whose_number_the_app_has_closed_is_counted_all_the_same(
    post: Post, owner: select.epoll, connection: tuple[socket.socket, socket.socket]
) -> None:
    """The worker would take one connection less from then on."""
    board = Scoreboard()
    row, port = board.row(1).words, Port.open(owner.fileno(), ARM_EDGE)
    exchange = SameProcess(port, port, board.row(0).words, lambda: None)
    client, sock = socket.socketpair()
    client.close()
    os.close(fd := sock.fileno())

    with pytest.raises(OSError, match="Bad file descriptor"):
        exchange.close(sock, fd, row)

    assert row[CLOSED] == 1

    post.loans.give(connection[0].fileno())
    [fd] = post.mail.receive()
    lent = socket.socket(fileno=fd)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        post.mail.close(lent, fd, row)
    assert post.loans.read_fates() == [(CLOSED_THERE, connection[0].fileno())]


def test_a_loan_that_fails_is_the_givers_still(post: Post, connection: tuple[socket.socket, socket.socket]) -> None:
    """Noted as lent as well, it would have two owners, and each of them would close it."""
    _, ours = connection
    closed = os.dup(ours.fileno())
    os.close(closed)

    with pytest.raises(OSError, match="Bad file descriptor"):
        post.loans.give(closed)

    assert not post.loans.has_lent(closed)
    post.loans.give(ours.fileno())  # nothing stands in its way
    assert len(post.deliver()) == 1
    assert post.loans.take_back_all() == [ours.fileno()]


def test_a_loan_that_was_sent_is_lent_whatever_fails_then(connection: tuple[socket.socket, socket.socket]) -> None:
    _, ours = connection
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def fail(wants: bool) -> None:
        raise OSError(errno.ENOENT, "no such descriptor in the set")

    with here, there:
        loans = Loans(here, fail)
        loans.give(ours.fileno())

        assert loans.has_lent(ours.fileno())


def test_a_child_that_writes_without_end_is_read_in_turns(post: Post) -> None:
    """Else one child would have the loop for itself."""
    post.ours.setblocking(False)
    for _ in range(5):
        post.theirs.send(b"noise")

    assert post.loans.read_fates(3) == []

    assert post.ours.recv(10) == b"noise"


def test_a_child_that_closes_its_end_is_known_to_be_cut_off(post: Post) -> None:
    post.loans.read_fates()
    assert not post.loans.is_cut_off

    post.theirs.close()
    post.loans.read_fates()

    assert post.loans.is_cut_off

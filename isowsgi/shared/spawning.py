"""What a worker and its spawner say to each other, the process that stays root to start those of mounts with a user of their own.

0. The spawner sends `READY` once it can start processes; the worker waits for it.
1. The worker makes a socket pair for each process, the birth, and sends the spawner one end of it with a `Start` as a file, and the
   descriptors that the process is to have, in a packet of one byte. A `Start` names a mount, and says where on the scoreboard the process
   writes. What is run, by whom, where and behind which walls is not the worker's to say: the spawner has it from the config file, as
   gunicorn's master has read it.
2. On the birth the spawner says `Started`, with a descriptor of the process (pidfd), or `Refused`. A process that cannot become what it
   is to be says `Refused` there itself, and ends.
3. A packet from the worker on the birth has the process killed, as has its end. When the process has ended, the spawner says `Ended`.

The spawner trusts nothing of what it is sent: the worker may have been taken over.
"""

from isowsgi.shared import wire
from isowsgi.shared.messages import BootOrder, Descriptors, Limits
from isowsgi.shared.routing import Route
from isowsgi.shared.wire import MessageError, Value, plain

# The place in the packet of descriptors that the process is to have; before it are the birth, and the file of the `Start`.
FIRST_PLACE = 2

# Longest `Start`, mostly routes: some 40 bytes for each, of which a worker has 16,384 at most.
MOST_START_BYTES = 4 << 20

# What the spawner sends first, on its own socket; nothing else comes there.
READY = b"r"

# What the worker sends on the birth for an end; the kernel tells no packet of no byte from the end of the socket.
KILL = b"k"


class Start(Value):
    """What the worker asks for: one more process of a mount, or of a group."""

    name: str  # of the mount or group
    slot: int
    generation: int
    members: list[tuple[str, int, str | None]]  # pattern, number and warm-up of each mount, in the order of their rows
    first_row: int
    routes: list[Route]
    limits: Limits
    has_time: bool
    fds: Descriptors  # by their places in the packet
    log_files: dict[str, int]  # the same, by path


class Started(Value):
    """There is a process."""

    pid: int


class Refused(Value):
    """There is none, or not what it was to be."""

    error: str


class Ended(Value):
    """The process has ended."""

    status: int  # as `subprocess` has it: negative for a signal


Answer = Started | Refused | Ended

_KINDS: dict[str, type[Answer]] = {kind.__name__: kind for kind in (Started, Refused, Ended)}


def start_of(order: BootOrder, places: dict[int, int]) -> Start:
    """Return what is asked for to have a boot order carried out.

    Args:
        places: in the packet, of the order's descriptors.
    """
    order = order.renumbered(places)
    assert order.fds is not None, "the worker passes some on"
    return Start(
        name=order.name,
        slot=order.slot,
        generation=order.generation,
        members=[(member.pattern, member.mount, member.warmup) for member in order.members],
        first_row=order.place.first_row,
        routes=order.serving.routes,
        limits=order.serving.limits,
        has_time=order.loading.pause_s > 0,
        fds=order.fds,
        log_files=order.log_files,
    )


def encode(message: Answer) -> bytes:
    """Return an answer as it travels."""
    return wire.encode({"is": type(message).__name__, **plain(message)})


def decode(packet: bytes) -> Answer:
    """Return the answer in a packet.

    Raises:
        MessageError: it is none.
    """
    facts = wire.decode(packet)
    name = facts.pop("is", None) if isinstance(facts, dict) else None
    if (kind := _KINDS.get(name) if isinstance(name, str) else None) is None:
        raise MessageError(f"expected one of {', '.join(_KINDS)}, got {wire.shown(name)}")
    return wire.read(facts, kind)


def read_start(data: bytes) -> Start:
    """Return what a worker asks for.

    Raises:
        MessageError: it makes no sense.
    """
    start = wire.read(wire.decode(data), Start)
    if start.fds.channel < 0 or start.fds.mail < 0:
        raise MessageError("expected a channel and mail")
    return start

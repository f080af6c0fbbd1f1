"""What a profile of one instance says: a tree of calls, each with the time that was spent there."""

from isowsgi.shared.wire import Value


class CallTree(Value):
    """Which calls led where, and how long it took there.

    A node is a call from another one: (the other's place in `nodes`, or -1 for none; its place in `frames`; microseconds there, without
    those in the calls from it). A node comes behind the one that it was called from.
    """

    samples: int
    seconds: float  # that were sampled
    is_cut: bool  # whether there was more than is told; its time is told as that of whatever called it
    frames: list[tuple[str, str, int]]  # function, file, line; a request has its line for a function, and no file
    nodes: list[tuple[int, int, int]]

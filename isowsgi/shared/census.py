"""What an instance says of its objects at one moment, for `isowsgi memory`."""

from isowsgi.shared.wire import Value


class Census(Value):
    """The objects of one interpreter or process, by type and by what holds them. Sizes are bytes."""

    at: float  # monotonic seconds when the last object was counted
    took_s: float  # CPU time
    is_cut: bool  # whether there was more than is told
    types: list[tuple[str, int, int]]  # name, how many, size of all
    holders: list[tuple[str, str, int, int, int]]  # name, file of its module, which object it is, its length, estimated size
    lines: list[tuple[str, int, int, int]]  # file, line, blocks that were allocated there since the last census and not freed, their size
    traced: str  # "": nothing was traced; "whole"; or why not

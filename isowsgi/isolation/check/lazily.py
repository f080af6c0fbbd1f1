"""`isowsgi check --lazy`: what lazy imports would save an app, and whether it works with them; it is loaded both ways, once each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from isowsgi.isolation.trial import Outcome
from isowsgi.shared.messages import BootOrder

# Runs a trial of an order, told what for.
Run = Callable[[BootOrder, str], Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """An app with its imports carried out at once, and with lazy imports; in one isolation, with its warm-up and the same paths.

    Attributes:
        eager: what was left out of it.
        problem: why it does not work with lazy imports, or cannot be compared; "" if it does.
        saved_mib: of its memory once the paths were answered; below 0: it takes more.
    """

    eager: tuple[str, ...]
    normal: Outcome
    lazy: Outcome

    @property
    def problem(self) -> str:
        if not self.normal.loaded:
            return f"it does not load without them either: {self.normal.failure.line}"
        if not self.lazy.loaded:
            return f"it does not load with them: {self.lazy.failure.line}"
        for (pattern, path, before), (_, _, after) in zip(self.normal.answers, self.lazy.answers, strict=False):
            if before[:3] != after[:3]:
                return f"{path!r} of {pattern} is answered {after!r} with them, and {before!r} without"
        return ""

    @property
    def saved_mib(self) -> float:
        return self.normal.memory_mib - self.lazy.memory_mib


def compare(order: BootOrder, paths: Sequence[str], run: Run) -> Comparison:
    """Load an app both ways; blocks.

    Args:
        order: its own, whose `eager` counts.
        paths: below the mount, that are asked for once it is loaded.
    """
    loading = order.loading.replace(asked=list(paths))
    normal = run(order.replace(loading=loading.replace(lazy_imports="normal")), "without lazy imports")
    lazy = run(order.replace(loading=loading.replace(lazy_imports="all")), "with lazy imports")
    return Comparison(eager=tuple(order.loading.eager), normal=normal, lazy=lazy)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return it as values that JSON has."""
    sides = {
        name: {
            "loaded": side.loaded,
            "error": side.error,
            "traceback": side.traceback,
            "load_s": side.load_s,
            "memory_mib": side.memory_mib,
            "answers": [{"pattern": pattern, "path": path, "status": status} for pattern, path, status in side.answers],
        }
        for name, side in (("normal", comparison.normal), ("all", comparison.lazy))
    }
    return {"problem": comparison.problem, "eager": list(comparison.eager), **sides}

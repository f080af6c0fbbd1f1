"""The isolation of an app is the best one with which it loads, and the reason says why it is no better one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isowsgi.isolation import decision
from isowsgi.isolation.decision import Verdict
from isowsgi.isolation.sharing import Sharing
from isowsgi.isolation.trial import Outcome
from isowsgi.shared import interpreters
from isowsgi.shared.interpreters import PROCESS
from isowsgi.shared.messages import BootOrder
from tests.conftest import DEADLINE_S
from tests.orders import REFUSES_OWN_GIL, any_order, copy_extension, order_for

OWN, SHARED = "own-gil", "shared-gil"
REFUSED = "ImportError: module x._c does not support loading in subinterpreters"
ONCE = "ImportError: cannot load module more than once per process"
HAS_OWN_GIL = interpreters.best_isolation() == OWN
needs_own_gil = pytest.mark.skipif(not HAS_OWN_GIL, reason="needs an own GIL")


class FakeTrials:
    """Trials with outcomes that the test knows; remembers which were run."""

    def __init__(self, **outcomes: Any) -> None:
        self._outcomes = {name.replace("_", "-"): outcome for name, outcome in outcomes.items()}
        self.ran: list[tuple[str, int]] = []

    def __call__(self, order: BootOrder, isolation: str, *, copies: int, timeout_s: float) -> Outcome:
        self.ran.append((isolation, copies))
        facts = self._outcomes[isolation]
        if facts is True:
            return Outcome(isolation=isolation, loaded=True)
        facts = {"error": facts} if isinstance(facts, str) else facts
        return Outcome(isolation=isolation, **{"loaded": False, "failed_copy": 0 if facts.get("loaded") else 1, **facts})


def decide(trials: FakeTrials, **order: Any) -> Verdict:
    return decision.decide(any_order(**order), timeout_s=1, run=trials)


@pytest.fixture(autouse=True)
def newest_python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules are the same everywhere; where an own GIL is sound, it comes first."""
    if "tmp_path" not in request.fixturenames:
        monkeypatch.setattr(interpreters, "best_isolation", lambda: OWN)


def test_an_own_gil_is_the_best_isolation() -> None:
    trials = FakeTrials(own_gil=True)

    verdict = decide(trials)

    assert (verdict.isolation, verdict.reason) == (OWN, "it loads")
    assert trials.ran == [(OWN, 1)]


def test_where_it_is_not_sound_a_shared_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreters, "best_isolation", lambda: SHARED)
    trials = FakeTrials(shared_gil=True)

    assert decide(trials).isolation == SHARED
    assert trials.ran == [(SHARED, 2)]


def test_a_refusal_moves_on_to_a_shared_gil() -> None:
    verdict = decide(FakeTrials(own_gil=REFUSED, shared_gil=True))

    assert (verdict.isolation, verdict.reason) == (SHARED, "x._c refuses an own GIL")


def test_what_loads_once_per_process_gets_a_process() -> None:
    refused = [("numpy._core", "/x.so", ONCE)]
    verdict = decide(FakeTrials(own_gil=REFUSED, shared_gil={"error": ONCE, "failed_copy": 2, "refused": refused}, process=True))

    assert (verdict.isolation, verdict.reason) == (PROCESS, "numpy._core loads once per process")


def test_a_file_that_alone_rules_all_interpreters_out_is_named_for_other_apps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreters, "best_isolation", lambda: OWN)
    once, fine = (str(tmp_path / name) for name in ("once.so", "fine.so"))
    for path in (once, fine):
        Path(path).touch()
    own = {"error": REFUSED, "refused": [("x.once", once, REFUSED)], "extensions": [("x.fine", fine)]}
    twice = {"error": ONCE, "failed_copy": 2, "refused": [("x.once", once, ONCE)]}

    verdict = decide(FakeTrials(own_gil=own, shared_gil=twice, process=True))
    several = decide(FakeTrials(own_gil={**own, "refused": [*own["refused"], ("x.fine", fine, REFUSED)]}, shared_gil=twice, process=True))
    other = decide(FakeTrials(own_gil={**own, "refused": [("x.fine", fine, REFUSED)]}, shared_gil=twice, process=True))
    worse = decide(FakeTrials(own_gil={**own, "error": "", "loaded": True}, shared_gil=twice, process=True))

    assert (verdict.isolation, [*verdict.unfit], [*verdict.own_gil]) == (PROCESS, [once], [])
    assert (worse.isolation, [*worse.unfit], [*worse.own_gil]) == (PROCESS, [once], [fine])
    assert [(each.isolation, each.unfit) for each in (several, other)] == [(PROCESS, {}), (PROCESS, {})]


def test_so_does_what_fails_the_second_time_in_words_that_nobody_knows() -> None:
    trials = FakeTrials(own_gil=REFUSED, shared_gil={"error": "KeyError: 1", "failed_copy": 2}, process=True)

    assert decide(trials).reason == "shared GIL: a second copy cannot be loaded, so the app could not be replaced: KeyError: 1"


def test_a_broken_app_is_not_tried_elsewhere() -> None:
    trials = FakeTrials(own_gil={"error": "SyntaxError: invalid syntax", "traceback": "the app's own"})

    verdict = decide(trials)

    assert (verdict.isolation, verdict.error, verdict.traceback) == (None, "SyntaxError: invalid syntax", "the app's own")
    assert trials.ran == [(OWN, 1)]


def test_a_harmless_fallback_does_not_make_a_broken_app_a_refused_one() -> None:
    refused = [("yaml._yaml", "/y.so", REFUSED)]
    trials = FakeTrials(own_gil={"error": "SyntaxError: invalid syntax", "refused": refused})
    assert decide(trials).isolation is None
    assert trials.ran == [(OWN, 1)]

    missing = "ModuleNotFoundError: No module named 'x'"
    trials = FakeTrials(own_gil={"error": missing, "refused": refused}, process=missing)
    assert decide(trials).error == missing
    assert trials.ran == [(OWN, 1), (PROCESS, 1)]


def test_a_refusal_that_the_app_swallowed_is_the_reason_for_what_came_of_it() -> None:
    refused = [("numpy._core", "/n.so", REFUSED)]
    failed = "isowsgi.inside.loading.WarmUpError: the warm-up request '/' was answered '500'"

    assert decide(FakeTrials(own_gil={"error": failed, "refused": refused}, shared_gil=True)).reason == "numpy._core refuses an own GIL"


def test_an_unclear_failure_is_settled_in_a_process() -> None:
    trials = FakeTrials(own_gil="KeyError: 'DATABASE'", process="KeyError: 'DATABASE'")

    assert decide(trials).error == "KeyError: 'DATABASE'"
    assert trials.ran == [(OWN, 1), (PROCESS, 1)]


def test_what_a_process_loads_was_refused() -> None:
    trials = FakeTrials(own_gil="KeyError: 1", shared_gil=True, process=True)

    verdict = decide(trials)

    assert (verdict.isolation, verdict.reason) == (SHARED, "own GIL: KeyError: 1")
    assert trials.ran == [(OWN, 1), (PROCESS, 1), (SHARED, 2)]


def test_a_crash_in_interpreters_alone_leads_to_a_process() -> None:
    died = {"error": "it crashed the process by SIGSEGV when it was loaded", "signal": "SIGSEGV"}
    trials = FakeTrials(own_gil=died, shared_gil=died, process=True)

    verdict = decide(trials)

    assert verdict.isolation == PROCESS
    assert "SIGSEGV" in verdict.reason
    assert trials.ran == [(OWN, 1), (PROCESS, 1), (SHARED, 2)]


def test_a_crash_everywhere_is_the_apps() -> None:
    died = {"error": "it crashed", "signal": "SIGSEGV", "output": "Fatal Python error"}
    verdict = decide(FakeTrials(own_gil=died, process=died))

    assert (verdict.isolation, verdict.error, verdict.traceback) == (None, "it crashed", "Fatal Python error")


def test_an_app_that_would_miss_a_package_in_an_interpreter_gets_a_process() -> None:
    """It caught the refusal, or what it uses did, so it loads: requests without charset-normalizer guessed wrong encodings."""
    swallowed = {"loaded": True, "refused": (("nh3.nh3", "/n.so", REFUSED),), "lost": ("nh3.nh3",)}

    verdict = decide(FakeTrials(own_gil=swallowed, shared_gil=swallowed, process=True))

    assert (verdict.isolation, verdict.reason) == (PROCESS, "nh3.nh3 cannot be loaded with a shared GIL, and the app would run without it")


def test_a_fallback_that_gives_the_same_results_will_do_and_is_told() -> None:
    verdict = decide(FakeTrials(own_gil={"loaded": True, "refused": (("markupsafe._speedups", "/m.so", REFUSED),)}))

    assert (verdict.isolation, verdict.reason) == (OWN, "it loads; without markupsafe._speedups (optional)")


def test_a_fallback_of_somebody_else_will_not_do() -> None:
    """The package itself is gone: what took over is another one, or nothing."""
    lost = {"loaded": True, "refused": (("markupsafe._speedups", "/m.so", REFUSED),), "lost": ("markupsafe._speedups",)}

    assert decide(FakeTrials(own_gil=lost, shared_gil=True)).isolation == SHARED


def test_modules_that_share_state_lead_to_a_process() -> None:
    shares = {"loaded": True, "shared": (Sharing("psycopg2._psycopg", "/p.so", "gives all interpreters the same dict adapters"),)}

    verdict = decide(FakeTrials(own_gil=REFUSED, shared_gil=shares, process=True))

    assert (verdict.isolation, verdict.reason) == (PROCESS, "psycopg2._psycopg gives all interpreters the same dict adapters")


def test_an_app_that_loads_in_no_process_keeps_the_interpreter_that_it_loads_in() -> None:
    lost = {"loaded": True, "refused": (("nh3.nh3", "/n.so", REFUSED),), "lost": ("nh3.nh3",)}

    verdict = decide(FakeTrials(own_gil=lost, shared_gil=lost, process="OSError: no database"))

    assert verdict.isolation == OWN
    assert verdict.reason.startswith("it does not load in a process; nh3.nh3 cannot be loaded")


def test_what_was_imported_late_is_part_of_the_verdict() -> None:
    assert decide(FakeTrials(own_gil=True), imports=["faulthandler"]).imports == ("faulthandler",)


def test_an_address_or_a_number_makes_no_other_failure() -> None:
    trials = FakeTrials(own_gil="ValueError: <object at 0x7f01> 12", process="ValueError: <object at 0x7f02> 13")

    assert decide(trials).isolation is None
    assert trials.ran == [(OWN, 1), (PROCESS, 1)]


def test_an_app_that_each_isolation_refuses_for_another_reason_has_none() -> None:
    verdict = decide(FakeTrials(own_gil=REFUSED, shared_gil=ONCE, process="OSError: no database"))

    assert (verdict.isolation, verdict.error) == (None, "OSError: no database")


def test_a_mount_with_a_python_of_its_own_is_tried_in_a_process_only() -> None:
    trials = FakeTrials(process=True)

    assert decide(trials, python="/opt/python").isolation == PROCESS
    assert trials.ran == [(PROCESS, 1)]


# With real trials.


def test_a_pure_app_gets_an_interpreter(tmp_path: Path) -> None:
    verdict = decision.decide(order_for(tmp_path, "import json"), timeout_s=DEADLINE_S)

    assert verdict.isolation == interpreters.best_isolation()


@needs_own_gil
def test_a_verdict_rests_on_the_files_that_loaded_and_refused(tmp_path: Path) -> None:
    paths = [copy_extension(name, tmp_path) for name in ("xxlimited", REFUSES_OWN_GIL)]

    verdict = decision.decide(order_for(tmp_path, f"import xxlimited, {REFUSES_OWN_GIL}"), timeout_s=DEADLINE_S)

    assert (verdict.isolation, verdict.reason) == (SHARED, f"{REFUSES_OWN_GIL} refuses an own GIL")
    assert verdict.extensions == {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


@pytest.mark.skipif(interpreters.VERSION < (3, 14), reason="_curses loads once per process from 3.14 on")
def test_an_extension_that_loads_once_leads_to_a_process(tmp_path: Path) -> None:
    copy_extension("_curses", tmp_path)

    verdict = decision.decide(order_for(tmp_path, "import _curses"), timeout_s=DEADLINE_S)

    assert (verdict.isolation, verdict.reason) == (PROCESS, "_curses loads once per process")


def test_an_app_that_forks_gets_a_process(tmp_path: Path) -> None:
    code = "import os\nif (child := os.fork()) == 0:\n    os._exit(0)\nos.waitpid(child, 0)"

    verdict = decision.decide(order_for(tmp_path, code), timeout_s=DEADLINE_S)

    assert (verdict.isolation, verdict.reason[:9]) == (PROCESS, "it forks:")

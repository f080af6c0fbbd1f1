"""The text by which workers agree on a table: the first decides, and whoever finds another decision in force is told so."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from isowsgi import configuration
from isowsgi.cli.comparison import other_releases
from isowsgi.configuration import Mount, included, partial, stored, values
from isowsgi.configuration.values import Certificate, Config
from isowsgi.master import tlscontext, workerplan
from isowsgi.master.tlscontext import Reading, Ready
from isowsgi.shared.applied import MAX_BYTES, Applied, Deciding, LastApplied, Outvoted
from isowsgi.shared.certificates import Files, Pair
from isowsgi.shared.containment import Containment
from isowsgi.shared.controlmessages import Answer, Drop, Prepare, Refusal, RenewedCertificate, Switch, TableOutcome
from isowsgi.worker.certificates import Certificates
from isowsgi.worker.change import Problem
from isowsgi.worker.control.applying import Applying
from isowsgi.worker.control.server import AT_ONCE, Errand
from isowsgi.worker.tlshosts import Hosts
from tests.test_livetable import Site, config, mount


def table(serial: str, base: int = 1, config: Any = None) -> Applied:
    return Applied(base, serial, config)


def test_the_first_decides_and_the_others_follow() -> None:
    last = LastApplied()
    assert last.read() is None
    turn = last.turn()

    last.decide(table("a", config={"mounts": ["/caf\udc80"]}), before="")
    last.decide(table("a"), before="")  # another worker, told the same

    assert last.read() == table("a", config={"mounts": ["/caf\udc80"]})
    assert last.turn() != turn


def test_who_did_not_know_of_the_decision_in_force_is_outvoted() -> None:
    last = LastApplied()
    last.decide(table("a"), before="")

    with pytest.raises(Outvoted):
        last.decide(table("b"), before="")

    last.decide(table("b"), before="a")
    assert last.read() == table("b")


def test_a_decision_for_an_earlier_reading_of_the_file_binds_nobody() -> None:
    last = LastApplied()
    last.decide(table("a", base=1), before="")

    last.decide(table("b", base=2), before="")

    assert last.read() == table("b", base=2)


def test_a_table_that_is_too_long_changes_nothing() -> None:
    last = LastApplied()
    last.decide(table("a"), before="")

    with pytest.raises(ValueError, match="too long"):
        last.decide(table("b", config="x" * MAX_BYTES), before="a")

    assert last.read() == table("a")


def decided_in_the_end(last: LastApplied, wanted: Applied) -> None:
    while True:
        try:
            last.decide(wanted, before="")
            return
        except Deciding:
            time.sleep(0.001)


@contextlib.contextmanager
def another_is_deciding(last: LastApplied, byte: int = 0) -> Iterator[None]:
    """Hold the place of a worker that decides, as another process; or, with byte 1, of the one that watches."""
    code = "import fcntl, sys; fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX, 1, int(sys.argv[2])); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(last._fd), str(byte)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[last._fd]) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        holder.stdout.readline()
        yield
        holder.stdin.close()


def test_who_comes_while_another_decides_asks_again_and_the_same_decision_is_its_own() -> None:
    last = LastApplied()
    with another_is_deciding(last), pytest.raises(Deciding):
        last.decide(table("a"), before="")

    last.decide(table("a"), before="")

    assert last.read() == table("a")


def another_may_watch(last: LastApplied) -> bool:
    code = "import fcntl, sys; fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1)"
    command = [sys.executable, "-c", code, str(last._fd)]
    return subprocess.run(command, pass_fds=[last._fd], stderr=subprocess.DEVNULL, check=False).returncode == 0


def test_one_process_watches_also_once_it_has_decided_and_another_one_when_it_has_ended() -> None:
    last = LastApplied()
    with another_is_deciding(last, byte=1):
        assert not last.may_watch()
        last.decide(table("a"), before="")

    assert another_may_watch(last)
    assert last.may_watch()
    last.decide(table("b"), before="a")
    assert not another_may_watch(last)
    assert last.may_watch()


def test_a_worker_that_is_told_to_switch_while_another_decides_switches_a_moment_later(tmp_path: Any) -> None:
    """All workers are told at once; one that found another deciding answered an error, although the table was applied."""
    (tmp_path / "isowsgi.toml").write_text('[mounts]\n"/" = "a"\n')
    config = configuration.load(tmp_path / "isowsgi.toml")
    switched: list[float] = []
    change = SimpleNamespace(
        is_ready=lambda: True, added=[], changed=[], removed=[], adjusted=[], new=SimpleNamespace(mounts=[], config=config)
    )
    live: Any = SimpleNamespace(
        table=SimpleNamespace(config=config), plan=lambda config: change, begin=lambda now: None, switch=switched.append
    )
    last = LastApplied()
    applying = Applying(live, last, base=1, serial="", log=logging.getLogger("test"))
    [*_, prepared] = steps(applying.prepare(Prepare(serial="a", config=stored.plain(config), hold_s=60.0)))
    assert isinstance(prepared, TableOutcome)

    switch = applying.switch(Switch(serial="a"))
    with another_is_deciding(last):
        assert next(switch) is None
        assert next(switch) is None
        assert switched == []

    [*_, answer] = steps(switch)
    assert isinstance(answer, TableOutcome)
    assert answer.outcome == "applied"
    assert len(switched) == 1


class Worker:
    """What decides in one worker, with fake instances."""

    def __init__(self, last: LastApplied) -> None:
        self.site = Site(mount("/a"), mount("/b"))
        self.applying = Applying(self.site.live, last, base=1, serial="", log=logging.getLogger("test"))

    def prepare(self, *mounts: Mount, tls: tuple[Certificate, ...] = (), **settings: Any) -> Any:
        """Load what is new; return the answer."""
        wanted = stored.plain(config(*mounts, tls=tls))
        errand = self.applying.prepare(Prepare(serial="s", config=wanted, hold_s=60.0, **settings))
        answers: list[Any] = []
        for answer in steps(errand):
            answers.append(answer)
            self.site.all_load()
        return answers[-1]


def test_who_sees_what_was_decided_keeps_what_it_has_loaded_and_does_without_the_rest() -> None:
    """All of it was dropped and loaded again if the worker saw the text before the word to switch."""
    last = LastApplied()
    decides, follows = Worker(last), Worker(last)
    new = (mount("/b", threads=2), mount("/x"), mount("/a"))
    assert [worker.prepare(*new).outcome for worker in (decides, follows)] == ["prepared"] * 2
    made = list(follows.site.around.made)

    [*_, answer] = steps(decides.applying.switch(Switch(serial="s", without=["/x"])))
    follows.applying.tick()

    assert isinstance(answer, TableOutcome)
    for worker in (decides, follows):
        assert [(each.pattern, each.threads) for each, _ in worker.site.live.table.mounts] == [("/b", 2), ("/a", None)]
    assert follows.site.around.made == made
    assert [*steps(follows.applying.switch(Switch(serial="s", without=["/x"])))] == [answer]


def planned(worker: Worker, wanted: Config) -> Errand:
    """Begin to have a table prepared, up to where nothing of what is new is being loaded yet."""
    errand = worker.applying.prepare(Prepare(serial="s", config=stored.plain(wanted), hold_s=60.0))
    before = len(worker.site.live.all())
    while len(worker.site.live.all()) == before:
        next(errand)
    assert len(worker.site.around.made) == before
    return errand


def test_a_command_that_goes_before_anything_is_loaded_leaves_nothing_behind() -> None:
    """Its table would have been in the way of all others for an hour."""
    worker = Worker(LastApplied())
    planned(worker, config(mount("/a"), mount("/x"))).close()

    assert [each.name for each in worker.site.live.all() if each.slots.all()] == ["/a", "/b"]
    assert worker.prepare(mount("/a"), mount("/y")).outcome == "prepared"


def test_what_another_worker_decides_before_anything_is_loaded_is_loaded_without_the_command() -> None:
    last = LastApplied()
    decides, follows = Worker(last), Worker(last)
    decides.prepare(mount("/a"), mount("/x"))
    errand = planned(follows, config(mount("/a"), mount("/x")))
    [*_] = steps(decides.applying.switch(Switch(serial="s")))
    follows.applying.tick()
    errand.close()
    follows.site.all_load()
    follows.applying.tick()

    assert [each.pattern for each, _ in follows.site.live.table.mounts] == ["/a", "/x"]
    assert len(follows.site.of("/x").slots.serving()) == 1


def test_a_command_that_goes_between_the_decision_and_the_switch_is_not_needed() -> None:
    last = LastApplied()
    worker = Worker(last)
    worker.prepare(mount("/a"), mount("/x"))
    switch = worker.applying.switch(Switch(serial="s"))
    assert next(switch) is AT_ONCE
    decided = last.read()
    switch.close()
    served = [each.pattern for each, _ in worker.site.live.table.mounts]
    worker.applying.tick()

    assert decided is not None
    assert (decided.serial, served) == ("s", ["/a", "/b"])
    assert [each.pattern for each, _ in worker.site.live.table.mounts] == ["/a", "/x"]


def test_a_table_is_switched_to_once_if_a_tick_comes_between_the_decision_and_the_switch() -> None:
    worker = Worker(LastApplied())
    worker.prepare(mount("/a"), mount("/x"))
    switch = worker.applying.switch(Switch(serial="s"))
    next(switch)
    worker.applying.tick()

    [*_, answer] = steps(switch)
    assert isinstance(answer, TableOutcome)
    assert (answer.outcome, len(worker.site.switched)) == ("applied", 1)


def test_a_problem_of_nothing_that_could_be_left_out_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker asked again and again what was wrong, and did nothing else any more."""
    monkeypatch.setattr("isowsgi.worker.change.Change.problems", lambda change: [Problem(["/none"], "E: x", "")])

    with pytest.raises(Refusal, match="E: x"):
        Worker(LastApplied()).prepare(mount("/a"), mount("/b"), mount("/x"), keep_going=True)


class FakeContexts:
    """Makes what stands for TLS contexts, of all pairs but one.

    Args:
        unusable: the certificate of that pair.
    """

    def __init__(self, unusable: str = "") -> None:
        self.unusable = unusable
        self.made: list[Any] = []

    def __call__(self, cfg: Any, pair: Pair) -> Any:
        if pair.certificate == self.unusable or pair in self.made:  # each is made once: at the switch it could fail
            raise tlscontext.ContextError("no ca_certs")
        self.made.append(pair)
        return SimpleNamespace(sni_callback=None)


OWN = Files("/c.pem", "/c.key")
RENEWED = RenewedCertificate(certificate="C", key="K")


def certificates(number: int = 1) -> Certificates:
    context: Any = SimpleNamespace(sni_callback=None)
    reading = Reading(number=number, own=context, files=OWN, ready={OWN: Ready(context, "digest", None)})
    found = Certificates(None, reading, Hosts(Containment(None, memoryview(bytearray()))), logging.getLogger("test"))
    assert found.take(Applied(1, "", None), ())
    return found


def test_a_certificate_that_one_worker_cannot_use_stays_as_it_was_in_all_and_the_rest_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """It blocked every other change."""
    last = LastApplied()
    can, cannot = Worker(last), Worker(last)
    can.applying.certificates, cannot.applying.certificates = certificates(), certificates()

    monkeypatch.setattr(tlscontext, "renewed", FakeContexts())
    answers = [can.prepare(mount("/a"), mount("/b"), mount("/x"), certificate=RENEWED)]
    monkeypatch.setattr(tlscontext, "renewed", FakeContexts("C"))
    answers.append(cannot.prepare(mount("/a"), mount("/b"), mount("/x"), certificate=RENEWED))
    [*_, answer] = steps(can.applying.switch(Switch(serial="s", without=answers[1].stays)))

    assert [each.stays for each in answers] == [[], ["certificate /c.pem"]]
    assert [each.text for each in answers[1].failed] == ["the renewed certificate /c.pem cannot be used: no ca_certs"]
    assert isinstance(answer, TableOutcome)
    decided = last.read()
    assert decided is not None
    assert decided.certificates is None
    assert can.applying.certificates.digest(OWN) == "digest"
    assert "/x" in {each.pattern for each, _ in can.site.live.table.mounts}


def test_a_worker_that_cannot_take_up_a_decided_certificate_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It served the old one for good."""
    worker = Worker(LastApplied())
    worker.applying.certificates = certificates()
    monkeypatch.setattr(tlscontext, "renewed", FakeContexts())
    worker.prepare(mount("/a"), mount("/b"), certificate=RENEWED)
    monkeypatch.setattr(Certificates, "take", lambda *args: False)

    list(steps(worker.applying.switch(Switch(serial="s"))))

    assert "certificate" in worker.applying.restart_reason


def test_a_certificate_is_made_ready_once_and_counts_for_one_reading_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was read again at the switch, when that could fail; and it outlived a SIGHUP that read what the master had before."""
    monkeypatch.setattr(tlscontext, "renewed", made := FakeContexts())
    worker, later = certificates(1), certificates(2)
    facts, faults, _ = worker.look_at([RENEWED], (), ())
    decided = Applied(1, "s", None, facts)

    assert faults == []
    assert worker.take(decided, ())
    assert later.take(decided, ())

    assert len(made.made) == 1
    assert (worker.digest(OWN), later.digest(OWN)) == (Pair("C", "K").digest, "digest")


def test_what_another_worker_tells_of_certificates_is_taken_for_none_if_it_is_malformed() -> None:
    for facts in ("x", {"instead_of": 1}, {"instead_of": 1, "pairs": [["a"]]}, {"instead_of": 1, "pairs": 7}):
        assert certificates().take(Applied(1, "s", None, facts), ())


SHOP = Certificate(hosts=("shop.example.com",), certificate="/shop.pem", key="/shop.key")


def test_a_table_of_tls_is_added_with_its_certificate_and_not_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tlscontext, "renewed", FakeContexts())
    worker = Worker(LastApplied())
    worker.applying.certificates = certificates()
    new = [RenewedCertificate(certificate="C", key="K", path="/shop.pem", key_path="/shop.key")]

    lacking = worker.prepare(mount("/a"), mount("/b"), tls=(SHOP,))
    list(worker.applying.drop(Drop(serial="s")))
    answer = worker.prepare(mount("/a"), mount("/b"), tls=(SHOP,), certificates=new)
    list(steps(worker.applying.switch(Switch(serial="s"))))

    assert (lacking.stays, [each.text for each in lacking.failed]) == (["[[tls]]"], ["[[tls]]: no certificate for /shop.pem"])
    assert (answer.stays, answer.failed) == ([], [])
    assert [(each.hosts, each.path) for each in worker.applying.certificates.told()] == [((), "/c.pem"), (SHOP.hosts, "/shop.pem")]


def test_tls_is_not_switched_on_by_a_table() -> None:
    """Apps were told that it is off when they were loaded, and clients speak without it."""
    with pytest.raises(Refusal, match=r"\[\[tls\]\] switches TLS on"):
        Worker(LastApplied()).prepare(mount("/a"), mount("/b"), tls=(SHOP,))


def steps(errand: Errand) -> Iterator[Answer | bool | None]:
    answer = yield from errand
    yield answer


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # each child does one thing and ends
def test_of_many_processes_one_decides() -> None:
    last = LastApplied()
    start, go = os.pipe()
    children = []
    for number in range(8):
        pid = os.fork()
        if pid == 0:
            os.read(start, 1)
            try:
                decided_in_the_end(last, table(str(number)))
            except Outvoted:
                os._exit(1)
            except BaseException:
                os._exit(2)
            os._exit(0)
        children.append(pid)
    os.write(go, b"x" * 8)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    os.close(start)
    os.close(go)

    assert sorted(codes) == [0] + [1] * 7
    decided = last.read()
    assert decided is not None
    assert decided.serial == str(codes.index(0))


@pytest.mark.parametrize("text", [b"{", b"[]", b"7", b'{"base": 1}', b"[" * 100_000, b"\xff"])
def test_what_somebody_wrote_over_it_is_no_decision(text: bytes) -> None:
    last = LastApplied()
    last._text.write(text)

    assert last.read() is None


def test_a_config_comes_back_as_it_was(tmp_path: Any) -> None:
    settings = 'app = "b:make(1)", env = { A = "1" }, policy = { exit = "deny" }, threads = 3, max_age = 2.5, lazy = true'
    tables = '[worker]\nmax_rss = 9\n[status]\nallow = ["10.0.0.0/8"]\n'
    (tmp_path / "isowsgi.toml").write_text(f'{tables}[mounts]\n"/" = "a"\n"a.example/caf\u00e9" = {{ {settings} }}\n')
    config = configuration.load(tmp_path / "isowsgi.toml")

    restored = stored.restore(stored.plain(config))

    assert restored == config
    assert isinstance(restored.mounts[0].pythonpath, tuple)


def test_what_is_as_it_is_by_default_is_not_told() -> None:
    """200 mounts with all their defaults were 0.2 MB of JSON, which each worker took in several times at each apply, between requests."""
    [told] = stored.plain(config(mount("/a", threads=3)))["mounts"]

    assert told.keys() == {"pattern", "prefix", "app", "threads", "isolation"}
    assert stored.restore(stored.plain(config(mount("/a", env={}, threads=None)))).mounts == config(mount("/a")).mounts


@pytest.mark.parametrize("facts", [None, [], "x", {}, {"path": "/x"}, {"path": "/x", "mounts": [{}]}, {"path": "", "mounts": [], "odd": 1}])
def test_what_is_no_config_is_refused(facts: Any) -> None:
    if isinstance(facts, dict):
        facts = {**facts, "form": stored.plain(config())["form"]}
    with pytest.raises(stored.NotAConfig):
        stored.restore(facts)


def test_configs_differ_by_mounts_and_their_order_is_nothing() -> None:
    one = stored.plain(config(mount("/a"), mount("/b", env={"A": "1"}, preload=("m",)), mount("/c", threads=1)))
    other = config(mount("/b", env={"A": "1"}, preload=("m",), file="/moved"), mount("/c", threads=2), mount("/d"))

    assert stored.differing(one, json.loads(json.dumps(stored.plain(other)))) == {"/a", "/c", "/d"}
    assert stored.differing(one, json.loads(json.dumps(one))) == set()
    assert stored.differing(one, stored.plain(attrs.evolve(other, head_timeout=9.0))) is None
    nothings: list[Any] = [None, [], {}, {"mounts": 7}, {"mounts": [7]}, {"mounts": [{"pattern": []}]}, {"mounts": [], "path": {}}]
    for nothing in nothings:
        assert stored.differing(one, nothing) is None


def test_a_pattern_is_there_once() -> None:
    with pytest.raises(stored.NotAConfig, match="the same pattern"):
        stored.restore(stored.plain(config(mount("/a"), mount("/a"))))


def test_each_mount_of_a_new_worker_has_a_number_of_its_own(tmp_path: Any) -> None:
    """A table whose mounts all have the same number would send all requests to one app; plain values have none."""
    (tmp_path / "isowsgi.toml").write_text('[mounts]\n"/" = "a"\n')
    decided = configuration.load(tmp_path / "isowsgi.toml")
    plan = workerplan.Plan()
    plan._base, plan._last_applied = 1, LastApplied()
    plan._last_applied.decide(Applied(1, "s", stored.plain(attrs.evolve(decided, mounts=(mount("/b"), mount("/a")))), None), before="")

    plan._take_applied(logging.getLogger(__name__))

    assert plan._config is not None
    assert [(each.pattern, each.number) for each in plan._config.mounts] == [("/b", 0), ("/a", 1)]


def test_mounts_have_the_same_numbers_whether_they_were_known_or_not() -> None:
    """They were numbered only where nothing was known."""
    facts = stored.plain(config(mount("/new"), mount("/a")))

    fresh, again = stored.restore(facts), stored.restore(facts, {"/other": ({}, mount("/other"))})

    assert [each.number for each in fresh.mounts] == [each.number for each in again.mounts]


def test_a_config_of_a_release_with_other_defaults_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is as it is by default is not told, so a worker of the release before would have served it with its own defaults."""
    told = stored.plain(config(mount("/a")))
    assert stored.restore(told).mounts == (mount("/a"),)
    stored.form.cache_clear()

    @attrs.frozen(kw_only=True)
    class Mount(values.Mount):
        queue: int = values.QUEUE + 1

    with monkeypatch.context() as patch:
        patch.setattr(stored, "Mount", Mount)
        with pytest.raises(stored.NotAConfig, match="if isowsgi was upgraded, restart gunicorn"):
            stored.restore(told)
    stored.form.cache_clear()

    with pytest.raises(stored.NotAConfig, match="restart gunicorn"):
        stored.restore({name: value for name, value in told.items() if name != "form"})


def test_a_plan_says_that_defaults_may_differ() -> None:
    """What is as it is by default is not told of a mount, so no difference shows a default that has changed."""

    def answer(form: str) -> Any:
        return SimpleNamespace(answer=SimpleNamespace(form=form))

    said = ["gunicorn runs another release of isowsgi, whose defaults may differ: restart gunicorn; apply is refused until then"]
    assert other_releases([answer(stored.form()), answer("")]) == said
    assert other_releases([answer(stored.form())]) == []


def test_a_decision_of_an_earlier_reading_does_not_replace_a_later_one() -> None:
    last = LastApplied()
    last.decide(table("b", base=2), before="")

    with pytest.raises(Outvoted):
        last.decide(table("a", base=1), before="")


def test_a_reader_does_not_wait_for_a_writer_that_never_pauses() -> None:
    last = LastApplied()
    last.decide(table("a"), before="")

    class Restless:
        def __init__(self) -> None:
            self.turn = 0

        def __getitem__(self, place: int) -> int:
            self.turn += 1
            return self.turn if place == 0 else 10

    last._text._head = Restless()  # type: ignore[assignment]

    assert last.read() is None


def test_what_a_worker_serves_already_is_not_made_again_of_a_config() -> None:
    """Reading 200 mounts took the thread that routes 4 ms, and comparing them 6: as long as the p99 of a quiet server."""
    before = config(*(mount(f"/{name}") for name in "abcd"))
    after = config(mount("/b"), mount("/c", threads=9), mount("/d"), mount("/new"))

    restored = stored.restore(json.loads(json.dumps(stored.plain(after))), stored.known(before, stored.plain(before)["mounts"]))

    assert restored == stored.restore(stored.plain(after)) == after
    kept = {each.pattern: each for each in before.mounts}
    assert restored.mounts[0] is kept["/b"]
    assert restored.mounts[2] is kept["/d"]
    assert included.keep_faulty(restored, before) is restored
    assert partial.leave_out(restored, before, partial.staying(restored, before, [])) is restored

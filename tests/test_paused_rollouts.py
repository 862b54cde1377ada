"""Ranks that the rollouts' thread has called are lost, and brought back: the same groups come, asked for once."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from actors.group import GroupError
from algorithms.rollouts import rollouts as rollouts_module
from algorithms.rollouts.groups import ScoredGroup
from algorithms.rollouts.limits import Limits
from algorithms.rollouts.ready_reads import NoReads
from algorithms.rollouts.rollouts import Rollouts
from tests.fake_engines import After, FakeEngines
from tests.test_rollouts import OK, PAIR, Driver, prompts, rows

LOST = "policy[0].send: the process died"


class Mending:
    """As a loop survives: `met` are the errors, of which so many are mended."""

    def __init__(self, rollouts: Rollouts, mends: int, beside: Callable[[], object] = lambda: None) -> None:
        self.rollouts, self.mends, self.beside = rollouts, mends, beside
        self.met: list[str] = []
        rollouts.survive = self.survive

    def survive(self, wait: Callable[[], list[ScoredGroup]]) -> list[ScoredGroup]:
        """What is waited for."""
        while True:
            try:
                return wait()
            except GroupError as error:
                self.met.append(str(error))
                if len(self.met) > self.mends:
                    raise
                with self.rollouts.mending():
                    self.beside()


class Fails:
    """Raises at the calls with these numbers, from 1 on."""

    def __init__(self, *at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls in self.at:
            raise GroupError(LOST)


class Reads(NoReads):
    """What it sends may fail."""

    def __init__(self, *at: int) -> None:
        self.send = Fails(*at)


def with_reads(engines: FakeEngines, reads: Any, max_staleness: int = 0) -> Rollouts:
    limits = Limits(silence_s=30.0)
    more: Any = {"groups_per_step": 2, "max_staleness": max_staleness, "reads": reads, "clock": engines.monotonic}
    return Rollouts(engines, None, prompts(), PAIR, limits, groups_in_run=6, **more)


def welcoming(welcome: Callable[[], None], *script: After) -> Driver:
    engines = FakeEngines(After(0), *script)
    driver = Driver(engines)
    engines.awaited = lambda: driver.rollouts._wanted is not None  # else nobody is welcomed
    driver.rollouts.welcome = welcome
    return driver


def test_engines_are_welcomed_by_a_policy_that_is_back() -> None:
    """What was asked for is not asked for again, and the next step is as ever."""
    script = [After(1, dict.fromkeys(range(4), OK)), After(1, dict.fromkeys(range(4, 8), OK))]
    driver = welcoming(Fails(1), *script)
    mending = Mending(driver.rollouts, mends=1)
    assert rows(driver.take(4)) == [0, 1, 2, 3]
    thread = driver.rollouts._thread
    assert rows(driver.take(4)) == [4, 5, 6, 7] and driver.rollouts._thread is thread
    assert mending.met == [LOST] and driver.rollouts.training.asked == driver.rollouts.training.taken == 8
    driver.rollouts.close()


def test_an_evaluation_goes_on_as_well() -> None:
    rollouts = with_reads(FakeEngines(After(1, dict.fromkeys(range(3), OK))), Reads(1))
    mending = Mending(rollouts, mends=1)
    groups, failures = rollouts.evaluate(list(prompts(3)), PAIR, seed=1)
    assert rows(groups) == [0, 1, 2] and failures.samples == 0 and mending.met == [LOST]
    rollouts.close()


def test_what_is_not_mended_ends_the_run_with_its_cause() -> None:
    """Every time that it is asked for groups; and the thread ends when all is closed."""
    rollouts = with_reads(FakeEngines(), Reads(1, 2))
    mending = Mending(rollouts, mends=1)
    for _ in range(2):
        with pytest.raises(GroupError, match=r"^policy\[0\]\.send: the process died$"):
            rollouts.take(2, 0, seed=1)
    assert mending.met == [LOST] * 3
    thread = rollouts._thread
    assert thread and thread.is_alive()
    rollouts.close()
    assert not thread.is_alive()


def test_what_was_met_beside_training_is_met_by_the_next_step() -> None:
    """Though all that it wants is ready; then what is made ahead is made on."""
    engines = FakeEngines(After(1, dict.fromkeys(range(4), OK)), After(0), After(1, {4: OK, 5: OK}))
    failed = threading.Event()

    class Reading(NoReads):
        @property
        def busy(self) -> bool:
            return bool(rollouts.training.taken) and not failed.is_set()

        def send(self) -> None:
            if self.busy:
                failed.set()
                raise GroupError(LOST)

    rollouts = with_reads(engines, Reading(), max_staleness=1)
    mending = Mending(rollouts, mends=1)
    assert rows(rollouts.take(2, 0, seed=1)) == [0, 1]
    engines.version = 1
    rollouts.published(1)
    assert failed.wait(10)
    assert not mending.met and len(rollouts.training.ready) == 2
    assert rows(rollouts.take(2, 1, seed=2)) == [2, 3] and mending.met == [LOST]
    assert rows(rollouts.take(2, 2, seed=3)) == [4, 5] and mending.met == [LOST]
    rollouts.close()


def test_engines_are_not_late_for_as_long_as_nobody_has_listened() -> None:
    engines = FakeEngines(After(1, {0: OK}), After(1), After(1, {1: OK}))
    reads = Reads(2)
    rollouts = with_reads(engines, reads)

    def hour() -> None:
        engines.now += 3600

    mending = Mending(rollouts, mends=1, beside=hour)
    assert rows(rollouts.take(2, 0, seed=1)) == [0, 1] and mending.met == [LOST]
    assert not engines.condemned
    rollouts.close()


def test_an_error_in_the_middle_of_what_has_happened_is_the_end() -> None:
    """What came with it was not passed on: whatever else is mended, groups would be missed."""
    engines = FakeEngines(After(1, {0: OK, 1: OK}, refused={2: "too long"}))
    driver = Driver(engines)
    mending = Mending(driver.rollouts, mends=2)
    with pytest.raises(GroupError, match="data row 102 was refused"):
        driver.take(4)
    assert len(mending.met) == 3
    driver.rollouts.close()


def test_no_rank_is_called_while_some_are_brought_back() -> None:
    """They may have no model yet."""
    reads, engines = Reads(), FakeEngines(After(0), After(0))
    rollouts = with_reads(engines, reads)
    reads.busy = True
    with rollouts.mending():
        rollouts._flow.wait(0)
        assert not reads.send.calls
    rollouts._flow.wait(0)
    assert reads.send.calls == 1


def test_a_hung_transfer_to_an_engine_does_not_keep_the_end_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread has the lock meanwhile."""
    monkeypatch.setattr(rollouts_module, "_CLOSE_S", 0.1)
    begun, over = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        over.wait(60)

    driver = welcoming(hang, After(0), After(0))

    def take() -> None:
        with pytest.raises(GroupError, match="closed"):
            driver.take(1)

    taking = threading.Thread(target=take)
    taking.start()
    assert begun.wait(10)
    closing = threading.Thread(target=driver.rollouts.close)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
    over.set()
    taking.join(10)
    assert not taking.is_alive()

"""What samples had before their engine was lost: noted beside their work, and gone on from elsewhere."""

from typing import Any

import pytest

from actors.group import GroupError
from actors.rollout.host import NoWeights
from actors.rollout.types import BegunInfo, Request
from algorithms.rollouts import notes as notes_module
from algorithms.rollouts import ray_engines as engines_module
from algorithms.rollouts.engines import Refused
from algorithms.rollouts.groups import BegunGroup
from algorithms.rollouts.membership import Membership
from algorithms.rollouts.notes import Notes
from algorithms.rollouts.ray_engines import RayEngines
from tests.fake_engines import After, FakeEngines
from tests.test_rollouts import OK, PAIR, Driver, rows


class FakeGroup:
    """Engines that answer when told; `asked`: (engine, requests)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[int, list[int]]] = []
        self.answers: dict[str, Any] = {}
        monkeypatch.setattr(notes_module.ray, "wait", self.wait)

    def wait(self, calls: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        assert timeout == 0 and num_returns == len(calls)
        return [call for call in calls if call in self.answers], []

    def submit(self, engine: int, method: Any, requests: list[int], num_returns: int) -> list[str]:
        assert method.__name__ == "progress" and num_returns == 1 + len(requests)
        self.asked.append((engine, requests))
        return [f"told {len(self.asked)}", *(f"samples of {request} in {len(self.asked)}" for request in requests)]

    def answer(self, engine: int, told: str, what: str) -> Any:
        if isinstance(self.answers[told], GroupError):
            raise self.answers[told]
        return self.answers[told]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def info(tokens: int, *, ended: bool = False) -> BegunInfo:
    return BegunInfo(tokens=tokens, oldest_version=3 if tokens else -1, ended=ended)


def test_only_what_has_run_for_a_while_is_asked_for_and_one_question_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    group, clock = FakeGroup(monkeypatch), Clock()
    any_group: Any = group
    notes = Notes(any_group, 2.0, clock)
    notes.given(0, [1, 2])
    notes.given(1, [3])
    notes.ask(0, [1, 2])
    assert group.asked == []
    clock.now += 1.5
    notes.given(0, [4])
    clock.now += 0.5
    for engine, requests in ((0, [1, 2, 4]), (1, [3])):
        notes.ask(engine, requests)
        notes.ask(engine, requests)
    assert group.asked == [(0, [1, 2]), (1, [3])]
    clock.now += 2
    notes.ask(0, [1, 2, 4])
    assert len(group.asked) == 2, "it has not answered yet"
    group.answers = {"told 1": {1: (info(5), info(0)), 2: (info(0), info(0))}, "told 2": GroupError("it died")}
    notes.take_in()
    notes.ask(0, [1, 4])
    assert group.asked[2:] == [(0, [1, 4])]
    assert notes.lost(1, [3]) == {}
    # Of 2 there is nothing to go on from; what the last question is answered before the end is taken along.
    found = notes.lost(0, [1, 2, 4])
    assert {request: each.samples for request, each in found.items()} == {1: "samples of 1 in 1"}
    assert found[1].infos == (info(5), info(0)) and notes.lost(0, [1]) == {}


def test_newer_notes_take_the_place_of_older_ones_and_what_has_ended_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    group, clock = FakeGroup(monkeypatch), Clock()
    any_group: Any = group
    notes = Notes(any_group, 2.0, clock)
    notes.given(0, [1, 2])
    for tokens in (5, 9):
        clock.now += 2
        notes.ask(0, [1, 2])
        group.answers[f"told {len(group.asked)}"] = {1: (info(tokens),), 2: (info(tokens),)}
        notes.take_in()
    notes.ended([2])
    clock.now += 2
    notes.ask(0, [1])
    group.answers["told 3"] = {1: (info(12),), 2: (info(12),)}  # it had been asked of both
    assert {request: each.infos for request, each in notes.lost(0, [1, 2]).items()} == {1: (info(12),)}


def test_nothing_is_noted_where_nothing_may_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    group, clock = FakeGroup(monkeypatch), Clock()
    any_group: Any = group
    notes = Notes(any_group, None, clock)
    notes.given(0, [1])
    clock.now += 100
    notes.ask(0, [1])
    assert group.asked == [] and notes.lost(0, [1]) == {}


def test_who_is_about_to_go_is_asked_of_all_it_has_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short a request has run, and after what it was asked before; where it has nothing, that is all."""
    group, clock = FakeGroup(monkeypatch), Clock()
    any_group: Any = group
    notes = Notes(any_group, 2.0, clock)
    assert notes.ask(0, [], last=True) and group.asked == []
    notes.given(0, [1])
    clock.now += 2
    assert not notes.ask(0, [1])
    notes.given(0, [2])
    assert not notes.ask(0, [1, 2], last=True) and len(group.asked) == 1, "it has not answered yet"
    group.answers["told 1"] = {1: (info(5),)}
    notes.take_in()
    for _ in range(2):
        assert not notes.ask(0, [1, 2], last=True) and group.asked[1:] == [(0, [1, 2])]
    group.answers["told 2"] = {1: (info(7),), 2: (info(3),)}
    notes.take_in()
    assert notes.ask(0, [1, 2], last=True) and len(group.asked) == 2
    assert {request: each.infos for request, each in notes.lost(0, [1, 2]).items()} == {1: (info(7),), 2: (info(3),)}
    notes.given(0, [3])
    assert not notes.ask(0, [3], last=True) and len(group.asked) == 3, "its next process"
    assert Notes(any_group, None, clock).ask(0, [1], last=True), "nothing may be noted"


def test_groups_go_on_elsewhere_from_what_is_noted() -> None:
    samples: Any = ("one", "other")
    begun = BegunGroup(samples=samples, infos=(info(4, ended=True), info(7)))
    engines = FakeEngines(After(1, {0: "the process died"}), After(1, {1: OK, 2: OK}), engines=2)
    engines.begun = {0: begun}
    driver = Driver(engines, attempts=2)
    given: dict[int, Any] = {}
    submit = engines.submit

    def noting(engine: int, requests: Any, seed: int | None, begun: Any = {}) -> None:  # noqa: B006
        given.update(begun)
        submit(engine, requests, seed, begun)

    engines.submit = noting  # type: ignore[method-assign]
    assert rows(driver.take(2)) == [0, 1]
    assert given == {2: samples}


def test_what_an_engine_has_refused_leaves_no_note_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs elsewhere, by another number."""
    monkeypatch.setattr(engines_module, "_done", lambda calls, *_: {"submit"} & {*calls})
    monkeypatch.setattr(engines_module.ray, "wait", lambda calls, **_: (calls, []))

    class Refuses:
        def __len__(self) -> int:
            return 1

        def submit(self, engine: int, method: Any, *_: Any, num_returns: int = 1) -> Any:
            return method.__name__ if num_returns == 1 else [method.__name__, *[""] * (num_returns - 1)]

        def answer(self, *_: Any) -> None:
            raise GroupError("rollout[0].submit: NoWeights") from cause

    cause: Any = RuntimeError()
    cause.cause = NoWeights()
    members, refuses = Membership(1), Refuses()
    members.on_lost = lambda engine, error: None
    group: Any = refuses
    engines = RayEngines(group, members, note_every_s=2.0)
    requests = [Request(id=number, token_ids=[5], sampling=PAIR) for number in (7, 8)]
    engines.submit(0, requests, None)
    assert {*engines.notes._given} == {7, 8}
    assert Refused(0, [7, 8]) in engines.wait((), 0.0)
    assert not engines.notes._given and engines.lacking_weights() == 1

"""Engines behind Ray actors as the driver sees them: what it hears of aborted requests, and what stays of them.

The actors are those of simulated engines.
"""

import time
from collections.abc import Iterator

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from actors.group import ActorGroup, GroupError, Slot
from actors.rollout.simulated import SimulatedRolloutWorker, Table
from actors.rollout.types import Finished, Request, Sampling
from actors.rollout.worker import CONCURRENCY
from algorithms.rollouts import ray_engines
from algorithms.rollouts.engines import Back, Ended, Event, Lost, Out
from algorithms.rollouts.membership import Membership, Parted
from algorithms.rollouts.ray_engines import RayEngines

LONG = 10**6


class Worker(SimulatedRolloutWorker):
    """A simulated engine that tells what its actor has kept."""

    @ray.method(concurrency_group="control")
    async def left(self) -> list[int]:
        """How many requests are open, aborted, and ended but not collected."""
        return [len(each) for each in (self._open, self._aborted, self._ended)]


@pytest.fixture(scope="module")
def group(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ActorGroup[Worker]]:
    """Two engines, of one slot each, that take a millisecond for a token."""
    placement = placement_group([{"CPU": 1.0}])
    assert placement.wait(30)
    slot = Slot(placement=placement, bundle=0, cpus=0.1, gpus=0, threads=1)
    directory = str(tmp_path_factory.mktemp("logs"))
    made = ActorGroup("rollout", Worker, [slot] * 2, timeout_s=60, log_directory=directory, concurrency=CONCURRENCY)
    made.spawn(Table(lengths=(LONG,), token_s=0.001, slots=1))
    made.call(Worker.stats)  # they are there
    yield made
    made.shutdown()
    remove_placement_group(placement)


def request(number: int, tokens: int) -> Request:
    return Request(id=number, token_ids=[5, 6], sampling=Sampling(samples=1, temperature=1.0, max_tokens=tokens))


def told(engines: RayEngines, count: int) -> dict[int, Finished]:
    """Of so many requests, that they have ended."""
    found: dict[int, Finished] = {}
    until = time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < until, (found, kept(engines))
        for event in engines.wait((), 1.0):
            assert isinstance(event, Ended), event
            found[event.finished.request] = event.finished
    return found


def kept(engines: RayEngines) -> list[object]:
    """By the driver and by all actors, of requests that are over."""
    return [engines._here, engines._unwanted, engines._waiting, engines.group.call(Worker.left)]


NOTHING = [{}, set(), [set(), set()], [[0, 0, 0], [0, 0, 0]]]


def test_what_is_aborted_is_told_and_kept_only_where_that_was_asked_for(group: ActorGroup[Worker]) -> None:
    engines = RayEngines(group)
    engines.submit(0, [request(1, LONG), request(2, LONG)], None)
    engines.submit(1, [request(3, LONG)], None)
    engines.abort(0, [2, 99])
    engines.abort(1, [3], keep=True)
    found = told(engines, 2)
    assert {number: finished.aborted for number, finished in found.items()} == {2: True, 3: True}
    [[episode]] = ray.get(engines.collect(1, [3]))
    assert episode.sampled_tokens == found[3].infos[0].sampled_tokens
    engines.abort(0, [1])
    assert told(engines, 1)[1].aborted
    assert kept(engines) == NOTHING


def test_one_that_has_ended_before_it_could_be_aborted_is_told_of_as_aborted(group: ActorGroup[Worker]) -> None:
    """Whether the news are on their way, with its responses or without, or have come."""
    engines = RayEngines(group)
    before, until = group.call(Worker.stats)[0].generated_tokens, time.monotonic() + 30
    engines.submit(0, [request(number, 3) for number in range(12)], None)
    while group.call(Worker.stats)[0].generated_tokens < before + 36:
        assert time.monotonic() < until
    engines.abort(0, list(range(12)))
    found = told(engines, 12)
    assert all(each.aborted and each.infos[0].sampled_tokens == 3 for each in found.values())
    engines.submit(0, [request(20, 3), request(21, 3)], None)
    found = told(engines, 2)
    assert not any(each.aborted for each in found.values())
    engines.abort(0, [20])
    assert len(ray.get(engines.collect(0, [21]))[0]) == 1
    assert kept(engines) == NOTHING


def test_requests_with_tokens_of_older_weights_are_aborted(group: ActorGroup[Worker]) -> None:
    """On the engine that is asked; one that has waited for a slot has none."""
    engines = RayEngines(group)
    for engine in range(2):
        engines.submit(engine, [request(30 + engine, LONG), request(32 + engine, 3)], None)
    until = time.monotonic() + 30
    while any(each.running < 1 or each.waiting < 1 for each in group.call(Worker.stats)):
        assert time.monotonic() < until
    time.sleep(0.1)
    group.call(Worker.use, 7)
    engines.abort_older(1, 0)
    engines.abort_older(0, 7)
    found = told(engines, 2)
    assert (found[30].aborted, found[30].infos[0].oldest_version) == (True, 0)
    assert (found[32].aborted, found[32].infos[0].oldest_version) == (False, 7)
    [[episode]] = ray.get(engines.collect(0, [32]))
    assert episode.sampled_tokens == 3
    engines.abort(1, [31, 33])
    told(engines, 2)
    assert kept(engines) == NOTHING


def heard(engines: RayEngines, kind: type[Event], most_s: float = 30) -> Event:
    """The next event of a kind."""
    until = time.monotonic() + most_s
    while time.monotonic() < until:
        for event in engines.wait((), 0.1):
            if isinstance(event, kind):
                return event
    raise AssertionError(f"no {kind.__name__}")


def with_responses_on_the_way(
    group: ActorGroup[Worker], members: Membership, engine: int, monkeypatch: pytest.MonkeyPatch
) -> RayEngines:
    """A request has ended on this engine, and its responses do not arrive before this is undone."""
    engines, done = RayEngines(group, members), ray_engines._done
    monkeypatch.setattr(ray_engines, "_done", lambda calls, *within: done(calls, *within) - {*engines._arriving})
    engines.submit(engine, [request(60, 3)], None)
    until = time.monotonic() + 30
    while not engines._arriving:
        assert engines.wait((), 0.1) == [] and time.monotonic() < until
    return engines


@pytest.mark.parametrize("there", [True, False])
def test_responses_of_a_lost_engine_that_are_on_the_way_arrive_or_are_forgotten(
    group: ActorGroup[Worker], monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """They may have been lost with it; then nothing of them stays."""
    members = Membership(2)
    with monkeypatch.context() as patch:
        engines = with_responses_on_the_way(group, members, 0, patch)
    members.lose(0, GroupError("rollout[0].poll: the process died"), 0)
    monkeypatch.setattr(ray_engines, "_is_there", lambda _: there)
    told = engines.wait((), 0.1)
    assert [type(event) for event in told] == [Ended] * there + [Lost]
    if there:
        assert len(ray.get(engines.collect(0, [60]))[0]) == 1
    assert kept(engines)[:3] == NOTHING[:3] and engines._arriving == {}


def test_one_that_is_about_to_go_waits_for_responses_on_the_way(
    group: ActorGroup[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node has the only copy."""
    members = Membership(2)
    with monkeypatch.context() as patch:
        engines = with_responses_on_the_way(group, members, 1, patch)
        assert members.part(1)
        for _ in range(5):
            engines.wait((), 0.1)
        assert not members.wait_until_noted(1, 0)
    assert isinstance(heard(engines, Ended), Ended)
    engines.collect(1, [60])
    until = time.monotonic() + 30
    while not members.wait_until_noted(1, 0):
        engines.wait((), 0.1)
        assert time.monotonic() < until


def test_one_that_is_about_to_go_hands_over_what_it_has_to_one_that_has_joined(group: ActorGroup[Worker]) -> None:
    """All of its tokens, also of what it was given a moment ago; it gets no more meanwhile, and the new one, whose
    process starts beside, serves when it is told to."""
    members = Membership(2)
    engines = RayEngines(group, members, note_every_s=100.0)
    number = members.join()
    assert (number, group.add(group.slots[0])) == (2, 2) and len(engines) == 2
    engines.submit(1, [request(50, LONG)], None)
    until = time.monotonic() + 60
    while engines.progress({1: [50]}, 30)[50].infos[0].tokens < 20:
        assert time.monotonic() < until
    assert members.part(1)
    assert heard(engines, Out) == Out(1)
    while not members.wait_until_noted(1, 0):
        engines.wait((), 0.1)
        assert time.monotonic() < until
    members.lose(1, Parted("its node goes"), 0)
    group.retire(1)
    members.ended(1)
    lost = heard(engines, Lost)
    assert isinstance(lost, Lost) and lost.engine == 1 and isinstance(lost.error, Parted)
    sampled = lost.begun[50].infos[0].tokens
    assert sampled >= 20
    members.ready(2)
    members.serve([2], 0, list(members.losses))
    assert heard(engines, Back) == Back(2) and len(engines) == 3
    engines.submit(2, [request(51, sampled + 5)], None, {51: lost.begun[50].samples})
    [finished] = told(engines, 1).values()
    assert finished.infos[0].sampled_tokens == sampled + 5
    assert ray.get(group.submit(2, Worker.stats)).sampled_tokens == 5, "it went on"

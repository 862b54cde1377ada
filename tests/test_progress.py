"""What running requests have so far, and requests that were begun: simulated engines, their host and their actors.

`tests/test_continued.py` has real engines.
"""

import asyncio
import time
from concurrent.futures import Future
from typing import Any, get_args

import numpy as np
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.util.placement_group import placement_group, remove_placement_group

from actors.episodes import VersionSpan
from actors.group import ActorGroup, GroupError, Slot
from actors.rollout.simulated import SimulatedEngine, SimulatedRolloutWorker, Table
from actors.rollout.types import Begun, BegunInfo, Finish, Finished, Request, Sampling, Segment
from actors.rollout.worker import CONCURRENCY
from algorithms.rollouts.engines import Ended
from algorithms.rollouts.groups import BegunGroup
from algorithms.rollouts.ray_engines import RayEngines
from tests.simulated_engines import Clock, Host, SimulatedEngines


def request(number: int, samples: int = 1, *begun: Begun, most: int = 40) -> Request:
    sampling = Sampling(samples=samples, temperature=1.0, max_tokens=most)
    return Request(id=number, token_ids=[5, 6], sampling=sampling, begun=begun)


def begun(*spans: tuple[int, int, int], **how: Any) -> Begun:
    """Spans are (version, start, end); tokens are numbered from 100."""
    tokens = spans[-1][2] if spans else 0
    versions = [VersionSpan(version=version, start=start, end=end) for version, start, end in spans]
    logprobs = -np.arange(tokens, dtype=np.float32)
    return Begun(token_ids=np.arange(100, 100 + tokens, dtype=np.int32), logprobs=logprobs, versions=versions, **how)


def shown(sample: Begun | Segment) -> Any:
    spans = [(span.version, span.start, span.end) for span in sample.versions]
    tokens, logprobs = [*sample.token_ids], sample.logprobs.tolist()
    return tokens, logprobs, spans, sample.finish, sample.ended_by, sample.text, sample.error


@pytest.mark.parametrize(
    "spans", [[], [(1, 0, 1)], [(1, 0, 3)], [(1, 1, 2)], [(1, 0, 1), (2, 0, 2)], [(1, 0, 2), (2, 2, 2)]]
)
def test_a_sample_has_one_version_and_one_logprob_of_each_token(spans: list[tuple[int, int, int]]) -> None:
    versions = [VersionSpan(version=version, start=start, end=end) for version, start, end in spans]
    with pytest.raises(ValueError, match="a sample needs one version of each of its 2 tokens, got"):
        Begun(token_ids=np.array([1, 2]), logprobs=np.zeros(2, np.float32), versions=versions)
    fine = [VersionSpan(version=1, start=0, end=2)]
    with pytest.raises(ValueError, match="a sample needs one logprob per token, got 1 of 2"):
        Begun(token_ids=np.array([1, 2]), logprobs=np.zeros(1, np.float32), versions=fine)


def test_a_request_is_begun_in_all_of_its_samples_or_in_none() -> None:
    with pytest.raises(ValueError, match="request 7 has 3 samples, got 2 begun ones"):
        request(7, 3, begun(), begun())


@pytest.mark.parametrize("finish", get_args(Finish))
def test_what_was_asked_to_end_or_is_held_has_not_ended(finish: Finish) -> None:
    segment = Segment(
        request=1, index=0, token_ids=[7], logprobs=np.array([-1], np.float32), finish=finish, ended_by="x",
        versions=[VersionSpan(version=2, start=0, end=1)], text="said", error="why",
    )  # fmt: skip
    again = None if finish in ("abort", "held") else finish
    assert shown(segment.begun) == ([7], [-1.0], [(2, 0, 1)], again, "x", "said" if again else "", "why")


class Run:
    """One simulated engine, and time that passes when it is told."""

    def __init__(self, *lengths: int, slots: int = 8) -> None:
        self.clock = Clock()
        self.engine = SimulatedEngine(Table(lengths=lengths, token_s=1.0, slots=slots), self.clock)

    def until(self, now: float) -> list[Segment]:
        """What has ended by then, as a poll tells it."""
        self.clock.now = now
        return sorted(self.engine.poll(0), key=lambda segment: (segment.request, segment.index))

    def progress(self, *requests: int) -> list[Segment]:
        found = self.engine.progress(list(requests)).result(0)
        return sorted(found, key=lambda segment: (segment.request, segment.index))


def test_samples_tell_what_they_have_and_go_on() -> None:
    """One that runs, one that waits for a slot, one that has ended; those of other requests are left out."""
    run = Run(4, 9, 5, slots=2)
    run.engine.submit([request(1, 3), request(2)], None)
    run.clock.now = 3.5
    assert [len(each.token_ids) for each in run.progress(1)] == [3, 3, 0]
    run.clock.now = 6.5
    run.engine.use(4)
    first, second, third = run.progress(1, 77)
    assert shown(first) == ([6] * 4, [-1.0] * 4, [(0, 0, 4)], "stop", None, "", "")
    assert shown(second) == ([6] * 6, [-1.0] * 6, [(0, 0, 6)], "abort", None, "", "")
    assert shown(third) == ([6] * 2, [-1.0] * 2, [(0, 0, 2)], "abort", None, "", "")
    run.clock.now = 8.5
    assert [shown(each)[2] for each in run.progress(1)][1:] == [[(0, 0, 6), (4, 6, 8)], [(0, 0, 2), (4, 2, 4)]]
    ended = run.until(99)
    assert [len(each.token_ids) for each in ended] == [4, 9, 5, 4] and {each.finish for each in ended} == {"stop"}


def test_what_the_last_poll_has_given_is_still_told() -> None:
    """Whoever polled may not have got it yet."""
    run = Run(2, 5)
    run.engine.submit([request(1, 2)], None)
    assert [each.index for each in run.until(3)] == [0]
    assert [each.finish for each in run.progress(1)] == ["stop", "abort"]
    assert run.until(4) == []
    assert [each.index for each in run.progress(1)] == [1]


def test_a_lost_engine_tells_nothing_but_what_ended_it() -> None:
    run = Run(5)
    run.engine.submit([request(1)], None)
    run.engine.lose("it died")
    with pytest.raises(RuntimeError, match="it died"):
        run.progress(1)


@settings(max_examples=150, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 15), max_size=4),
    length=st.integers(1, 12),
    most=st.integers(1, 14),
    slots=st.integers(1, 3),
)
def test_a_sample_that_is_cut_goes_on_elsewhere(cuts: list[int], length: int, most: int, slots: int) -> None:
    """Cut any number of times, each engine with weights of its own: in the end it has all tokens, with the version
    that sampled each, and engines have counted as many as they are."""
    now, generated, versions, had = 0.0, 0, [], begun()
    for version, tokens in enumerate(cuts):
        run = Run(length, slots=slots)
        run.engine.use(version)
        run.engine.submit([request(1, 1, had, most=most)], None)
        run.clock.now = now = float(tokens)
        before, [seen] = len(had.token_ids), run.progress(1)
        run.engine.abort([1])
        [cut] = run.engine.poll(0)
        assert shown(cut) == shown(seen)
        had = cut.begun
        generated += run.engine.stats().generated_tokens
        versions += [version] * (len(had.token_ids) - before)
    run = Run(length, slots=slots)
    run.engine.use(9)
    run.engine.submit([request(1, 1, had, most=most)], None)
    [whole] = run.until(now + 99)
    generated += run.engine.stats().generated_tokens
    tokens = len(whole.token_ids)
    versions += [9] * (tokens - len(had.token_ids))
    assert [span.version for span in whole.versions for _ in range(span.start, span.end)] == versions
    assert whole.finish == ("length" if tokens == most else "stop")
    # One more than it had, at least, each time that it went on to its end.
    assert min(length, most) <= tokens == generated <= most and whole.token_ids == [6] * tokens


def test_versions_of_what_goes_on_with_the_same_weights_are_one_span() -> None:
    run = Run(8)
    run.engine.use(3)
    run.engine.submit([request(1, 2, begun((2, 0, 1), (3, 1, 4)), begun((2, 0, 4)))], None)
    same, other = run.until(9)
    assert shown(same)[:3] == ([100, 101, 102, 103] + [6] * 4, [0, -1, -2, -3] + [-1] * 4, [(2, 0, 1), (3, 1, 8)])
    assert shown(other)[2] == [(2, 0, 4), (3, 4, 8)]


def test_what_starts_again_has_not_begun() -> None:
    clock = Clock()
    engine = SimulatedEngine(Table(lengths=(8,), token_s=1.0), clock, on_update="restart")
    engine.submit([request(1, 1, begun((2, 0, 4)))], None)
    clock.now = 2.5
    engine.use(7)
    clock.now = 99
    [whole] = engine.poll(0)
    assert shown(whole)[:3] == ([6] * 8, [-1.0] * 8, [(7, 0, 8)])
    stats = engine.stats()
    assert (stats.generated_tokens, stats.discarded_tokens, stats.sampled_tokens) == (8, 2, 10)


def test_samples_that_have_ended_come_back_and_take_no_slot() -> None:
    run = Run(8, slots=1)
    samples = (
        begun((2, 0, 2), finish="stop", ended_by=";", text="so"),
        begun((2, 0, 5)),
        begun((2, 0, 6)),
        begun((2, 0, 3)),
    )
    run.engine.submit([request(1, 4, *samples, most=5)], None)
    assert run.engine.stats().running == 1
    stopped, full, more, went_on = run.until(9)
    assert shown(stopped) == shown(samples[0])
    assert shown(full) == (*shown(samples[1])[:3], "length", None, "", "")
    assert (more.finish, more.error) == (
        "refused",
        "ValueError: sample 2 has begun with 6 tokens, more than the 5 that it may have",
    )
    assert (went_on.finish, len(went_on.token_ids), run.engine.stats().generated_tokens) == ("length", 5, 2)


def asked(host: Any, *requests: int) -> Any:
    told, *samples = asyncio.run(host.progress(list(requests)))
    found = {number: each for number, each in zip(requests, samples, strict=True) if each is not None}
    assert told == {number: tuple(map(BegunInfo.of, each)) for number, each in found.items()}
    return {number: [(len(each.token_ids), each.finish) for each in samples] for number, samples in found.items()}


def test_a_host_tells_of_what_has_ended_too_and_of_nothing_that_a_poll_tells() -> None:
    run = Run(2, 5, 7, 1)
    host = Host(run.engine)
    host.add([request(1, 2), request(2, 1), request(3, 1)])
    run.clock.now = 3
    assert asked(host, 1, 2, 3, 9) == {1: [(2, "stop"), (3, None)], 2: [(3, None)], 3: [(1, "stop")]}
    assert [each.request for each in host.poll()] == [3]
    assert asked(host, 1, 2, 3, 9) == {1: [(2, "stop"), (3, None)], 2: [(3, None)]}
    run.clock.now = 4
    assert host.poll() == []
    assert asked(host, 1, 3) == {1: [(2, "stop"), (4, None)]}


def test_a_group_is_held_only_where_nothing_else_has_become_of_it() -> None:
    """A sample that has failed, an abort with what there is, or without, just after it was held: as of others, and what
    was held with them has not failed for it. What is held can be collected as what goes on, and a sample that has ended
    keeps how it did."""
    run = Run(2, 9, 9, 9)
    host = Host(run.engine)
    limit = Sampling(samples=2, temperature=1.0, max_tokens=40, max_step_tokens=3)
    parts = {2: (begun((0, 0, 2), finish="error", error="why"), begun()), 3: (), 4: (), 5: ()}
    for number, had in ({1: ()} | parts).items():
        host.add([Request(id=number, token_ids=[5, 6], sampling=limit, begun=had)])
    run.clock.now = 99
    host._end([3], keep=True)
    host._end([4], keep=False)
    told = {each.request: each for each in host.poll()}
    assert [each for each, finished in told.items() if finished.held] == [1, 5]
    assert not told[2].aborted and told[3].aborted and told[4].aborted, "what is held is not all of a response"
    assert [info.status for each in (2, 3) for info in told[each].infos] == ["failed", *["truncated"] * 2, "ok"]
    first, second = host.ended.pop(1)
    assert (first.finish, second.finish) == ("stop", None) and told[1].held == (
        BegunInfo.of(first),
        BegunInfo.of(second),
    )
    assert host.ended.keys() == {2, 3, 5}


def test_what_ends_while_the_host_asks_counts_as_ended() -> None:
    """The engine answers; before the host goes on, a sample ends and comes to it, and a request ends and is gone."""
    run = Run(2, 5, 3)
    host = Host(run.engine)
    host.add([request(1, 2), request(2)])
    run.clock.now = 1
    ask = run.engine.progress

    def progress(requests: list[int]) -> "Future[list[Segment]]":
        answer = ask(requests)
        run.clock.now = 3
        assert [each.request for each in host.poll()] == [2]
        return answer

    run.engine.progress = progress  # type: ignore[method-assign]
    assert asked(host, 1, 2) == {1: [(2, "stop"), (1, None)]}


def test_an_episode_of_a_sample_that_was_begun_has_all_of_it() -> None:
    """The prompt is what it was, whatever the engine reads; the oldest version is that of the first tokens."""
    engines = SimulatedEngines([Table(lengths=(6,), token_s=1.0)], Clock())
    engines.use(5)
    engines.submit(0, [request(1, 1, begun((2, 0, 4)))], None)
    [told] = engines.wait((), 99)
    assert isinstance(told, Ended)
    info = told.finished.infos[0]
    assert (info.sampled_tokens, info.oldest_version, info.carried_tokens) == (6, 2, 4)
    engines.collect(0, [1])
    [turn] = engines.rollouts[1][0].turns
    assert (turn.given_token_ids.tolist(), len(turn.sampled_token_ids)) == ([5, 6], 6)
    assert turn.versions == [VersionSpan(version=2, start=0, end=4), VersionSpan(version=5, start=4, end=6)]


class Slow(SimulatedRolloutWorker):
    """An engine that answers late."""

    @ray.method(concurrency_group="requests")
    async def progress(self, requests: list[int]) -> Any:
        await asyncio.sleep(30)
        raise AssertionError("nobody waits so long")


@pytest.fixture
def started(local_ray: None, tmp_path: Any) -> Any:
    """Makes groups of two engines, and ends them."""
    placement = placement_group([{"CPU": 0.2}] * 2)
    assert placement.wait(30)
    groups: list[ActorGroup[Any]] = []

    def start(worker: Any) -> ActorGroup[Any]:
        slots = [Slot(placement=placement, bundle=number, cpus=0.1, gpus=0, threads=1) for number in range(2)]
        group = ActorGroup("rollout", worker, slots, timeout_s=60, log_directory=str(tmp_path), concurrency=CONCURRENCY)
        # A tenth of a second for each token of 400: they run as long as the test needs.
        group.spawn(Table(lengths=(1, 400), token_s=0.1))
        groups.append(group)
        return group

    yield start
    for group in groups:
        group.shutdown()
    remove_placement_group(placement)


def test_all_engines_are_asked_at_once(started: Any) -> None:
    """Of their requests that run; what they tell can be sent to another, and goes on there."""
    engines = RayEngines(started(SimulatedRolloutWorker))
    engines.submit(0, [request(1, 2, most=900)], None)
    engines.submit(1, [request(2, 2, most=900), request(3, 1, most=900)], None)
    until, found = time.monotonic() + 60, dict[int, BegunGroup]()
    while not (found.keys() == {1, 2} and all(each.infos[1].tokens > 1 for each in found.values())):
        assert time.monotonic() < until, found
        engines.wait((), 0.2)
        found = engines.progress({0: [1], 1: [2, 99]}, 30.0)
    for each in found.values():
        samples = ray.get(each.samples, timeout=30)
        assert each.infos == tuple(map(BegunInfo.of, samples)) and each.infos[0].ended and each.going_on == 1
        assert (len(samples[0].token_ids), samples[0].finish) == (1, "stop")
    had = [each.token_ids.tolist() for each in ray.get(found[1].samples, timeout=30)]
    engines.submit(1, [request(4, 2, most=len(had[1]) + 2)], None, {4: found[1].samples})
    events: list[Any] = []
    while not any(isinstance(each, Ended) and each.finished.request == 4 for each in events):
        assert time.monotonic() < until
        events += engines.wait((), 0.2)
    [reference] = engines.collect(1, [4])
    first, second = ray.get(reference, timeout=30)
    assert [turn.sampled_token_ids.tolist() for turn in first.turns] == had[:1]
    assert second.turns[0].sampled_token_ids.tolist() == had[1] + [6] * 2
    assert engines.progress({0: [], 1: []}, 30.0) == {}


def test_what_is_held_goes_from_one_engine_to_another_and_not_by_the_driver(started: Any) -> None:
    """Which sees how many tokens there are; a sample that has ended comes back with the others, its tokens where they
    were."""
    engines = RayEngines(started(SimulatedRolloutWorker))
    limit = Sampling(samples=2, temperature=1.0, max_tokens=900, max_step_tokens=3)
    engines.submit(0, [Request(id=1, token_ids=[5, 6], sampling=limit)], None)
    told = _first(engines)
    assert told == Finished(
        request=1,
        infos=[],
        held=(
            BegunInfo(tokens=1, oldest_version=0, ended=True),
            BegunInfo(tokens=3, oldest_version=0, ended=False),
        ),
    )
    [reference] = engines.collect(0, [1])
    assert isinstance(reference, ray.ObjectRef)
    engines.group.call(SimulatedRolloutWorker.use, 1)
    engines.submit(1, [request(2, 2, most=5)], None, {2: reference})
    assert [(info.sampled_tokens, info.carried_tokens) for info in _first(engines).infos] == [(1, 0), (4, 3)]
    one, other = ray.get(engines.collect(1, [2])[0], timeout=30)
    assert [one.status, other.status, one.sampled_tokens] == ["ok", "ok", 1]
    spans = [VersionSpan(version=0, start=0, end=3), VersionSpan(version=1, start=3, end=4)]
    assert other.turns[0].versions == spans and len(other.turns[0].rollout_logprobs) == 4


def _first(engines: RayEngines) -> Finished:
    """What ends next."""
    until, events = time.monotonic() + 60, list[Any]()
    while not events:
        assert time.monotonic() < until
        events += engines.wait((), 0.2)
    [event] = events
    assert isinstance(event, Ended)
    return event.finished


def test_a_late_engine_is_named_and_so_is_a_dead_one(started: Any) -> None:
    late = RayEngines(started(Slow))
    with pytest.raises(GroupError, match=r"^rollout.progress: no answer from rank\(s\) \[1\] within 2 s"):
        late.progress({1: [1]}, 2.0)
    ray.kill(late.group.handles[1])
    with pytest.raises(GroupError, match=r"^rollout\[1\].progress: the process died"):
        late.progress({1: [1]}, 20.0)

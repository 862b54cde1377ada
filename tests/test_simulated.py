"""The engine that samples nothing: what new weights do to what it has, and which requests it ends as too old."""

import pytest

from actors.config_rollout import OnUpdate
from actors.rollout.simulated import SimulatedEngine, Table
from actors.rollout.types import Request, Segment
from actors.rollout.types import Sampling as How
from tests.simulated_engines import Clock


def engine(on_update: OnUpdate = "recompute", **table: object) -> tuple[SimulatedEngine, Clock]:
    clock = Clock()
    return SimulatedEngine(Table(token_s=1.0, **table), clock, on_update), clock  # type: ignore[arg-type]


def request(number: int, samples: int = 1) -> Request:
    return Request(id=number, token_ids=[5, 6], sampling=How(samples=samples, temperature=1.0, max_tokens=1000))


def spans(segment: Segment) -> list[tuple[int, int, int]]:
    return [(span.version, span.start, span.end) for span in segment.versions]


@pytest.mark.parametrize("on_update", ["recompute", "keep_cache"])
def test_running_samples_go_on_with_new_weights(on_update: OnUpdate) -> None:
    made, clock = engine(on_update, lengths=(10,))
    made.submit([request(1)], None)
    clock.now = 4
    made.use(1)
    clock.now = 10
    [segment] = made.poll(0)
    assert spans(segment) == [(0, 0, 4), (1, 4, 10)] and made.stats().discarded_tokens == 0


def test_restarted_samples_are_of_one_version_and_take_their_time_again() -> None:
    """What they had is counted as thrown away; one that waits has lost nothing."""
    made, clock = engine("restart", lengths=(10, 6), slots=1, start_s=1.0)
    made.submit([request(1), request(2)], None)
    clock.now = 5.5
    made.use(1)
    clock.now = 16
    assert made.poll(0) == []
    clock.now = 16.5
    [first] = made.poll(0)
    clock.now = 23.5
    [second] = made.poll(0)
    assert (spans(first), spans(second)) == ([(1, 0, 10)], [(1, 0, 6)])
    assert (made.stats().discarded_tokens, made.stats().generated_tokens) == (4, 16)


def test_requests_with_tokens_of_older_weights_are_ended() -> None:
    """One that waits has none, though it was submitted as early."""
    made, clock = engine(lengths=(20,), slots=2)
    made.submit([request(1, 2), request(2)], None)
    clock.now = 2
    made.abort_older(0)
    made.use(1)
    assert made.poll(0) == []
    made.abort_older(1)
    assert [(each.request, each.finish, spans(each)) for each in made.poll(0)] == [(1, "abort", [(0, 0, 2)])] * 2
    made.abort_older(1)
    clock.now = 22
    assert [(each.request, each.finish, spans(each)) for each in made.poll(0)] == [(2, "stop", [(1, 0, 20)])]


def test_a_sample_that_has_ended_makes_its_request_old() -> None:
    """Its other one has begun with the new weights."""
    made, clock = engine(lengths=(3, 20), slots=1)
    made.submit([request(1, 2)], None)
    clock.now = 3
    made.use(1)
    clock.now = 5
    made.abort_older(1)
    found = [(each.index, each.finish, spans(each)) for each in made.poll(0)]
    assert found == [(0, "stop", [(0, 0, 3)]), (1, "abort", [(1, 0, 2)])]


def test_weights_that_have_sampled_nothing_make_no_request_old() -> None:
    """Of a version that came and went before a first token, or since the last one."""
    made, clock = engine(lengths=(20,), start_s=5.0)
    made.submit([request(1)], None)
    clock.now = 3
    made.use(1)
    clock.now = 6
    made.use(2)
    made.abort_older(1)
    assert made.poll(0) == []
    made.abort_older(2)
    [segment] = made.poll(0)
    assert (segment.finish, spans(segment)) == ("abort", [(1, 0, 1)])

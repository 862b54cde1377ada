"""Engines in virtual time: they decode as their speed says, and a run with them is the same every time."""

from itertools import count, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.episodes import Prompt, VersionSpan
from actors.rollout.types import Request, Sampling
from algorithms.rollouts.engines import Ended
from algorithms.rollouts.limits import Limits
from algorithms.rollouts.rollouts import Rollouts
from benchmarks.lengths import CHAT, Lengths
from benchmarks.virtual import Speed, VirtualEngines


class Asked:
    """Rollouts of which somebody always waits for more: time goes on whenever engines are waited for."""

    def __init__(self, engines: VirtualEngines) -> None:
        self.rollouts = Rollouts(
            engines, None, iter(()), Sampling(samples=1, temperature=1.0, max_tokens=9), Limits(silence_s=1e9),
            groups_per_step=1, clock=engines.clock,
        )  # fmt: skip
        self.rollouts._closed = True
        engines.watch(self.rollouts)


def engines_of(lengths: dict[int, list[int]], *speeds: Speed) -> VirtualEngines:
    """Request -> lengths of its responses."""
    engines = VirtualEngines(speeds, lambda request: lengths[request.id])
    Asked(engines)
    return engines


def request(number: int, samples: int, most: int = 10**6) -> Request:
    return Request(
        id=number, token_ids=[number, 7], sampling=Sampling(samples=samples, temperature=1.0, max_tokens=most)
    )


def told(engines: VirtualEngines, times: int) -> list[tuple[float, int, list[int]]]:
    """When which request ended, and how long its responses are."""
    found = []
    while len(found) < times:
        for event in engines.wait((), 1e9):
            assert isinstance(event, Ended)
            lengths = [info.sampled_tokens for info in event.finished.infos]
            found.append((engines.now, event.finished.request, lengths))
    return found


def naive_ends(lengths: list[int], speed: Speed) -> list[float]:
    """When each sample ends that is there at 0: all that run get the same share of a token, until the first has all."""
    left, ends, now = [float(length) for length in lengths], [0.0] * len(lengths), 0.0
    waiting, running = list(range(len(lengths))), list[int]()
    while waiting or running:
        while waiting and len(running) < speed.slots:
            running.append(waiting.pop(0))
        each = min(left[number] for number in running)
        now += each * (speed.step_s + speed.sample_s * len(running))
        for number in running:
            left[number] -= each
        for number in [number for number in running if left[number] < 1e-9]:
            running.remove(number)
            ends[number] = now
    return ends


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    step_s=st.sampled_from([0.01, 0.5]),
    sample_s=st.sampled_from([0.0, 0.003]),
    slots=st.integers(1, 8),
)
def test_samples_end_when_their_share_of_the_steps_says(
    lengths: list[int], step_s: float, sample_s: float, slots: int
) -> None:
    speed = Speed(step_s=step_s, sample_s=sample_s, slots=slots)
    engines = engines_of({number: [length] for number, length in enumerate(lengths)}, speed)
    engines.submit(0, [request(number, 1) for number in range(len(lengths))], None)
    found = {number: now for now, number, _ in told(engines, len(lengths))}
    assert [found[number] for number in range(len(lengths))] == pytest.approx(naive_ends(lengths, speed))
    with engines.looked_at():
        assert engines.engines[0].busy_s == pytest.approx(max(found.values()))


def test_a_group_ends_with_its_longest_response_and_is_cut_at_the_limit() -> None:
    engines = engines_of({1: [3, 20, 5], 2: [4, 4]}, *[Speed(step_s=1.0, sample_s=0.0, slots=9)] * 2)
    engines.submit(1, [request(1, 3, most=20)], None)
    engines.submit(0, [request(2, 2)], None)
    (event,) = engines.wait((), 1e9)
    assert isinstance(event, Ended) and (engines.now, event.engine, event.finished.request) == (4.0, 0, 2)
    assert not engines.wait((), 10.0) and engines.now == 14.0, "nothing ends within ten seconds"
    (event,) = engines.wait((), 1e9)
    assert isinstance(event, Ended) and engines.now == 20.0
    assert [info.status for info in event.finished.infos] == ["ok", "truncated", "ok"]
    assert event.finished.infos[1].tokens == 22 and event.finished.infos[1].prompt_tokens == 2


def test_what_is_held_leaves_its_slot_and_goes_on_with_what_it_had() -> None:
    """Under other weights, with tokens of both; under the same it comes back at once."""
    engines = engines_of({1: [2, 9], 3: [4]}, Speed(step_s=1.0, sample_s=0.0, slots=1))
    sampling = Sampling(samples=2, temperature=1.0, max_tokens=50, max_step_tokens=5)
    engines.submit(0, [Request(id=1, token_ids=[1], sampling=sampling), request(3, 1)], None)
    (event,) = engines.wait((), 1e9)
    assert isinstance(event, Ended) and engines.now == 7.0 and not event.finished.infos
    assert [(each.tokens, each.ended) for each in event.finished.held] == [(2, True), (5, False)]
    cuts = engines.collect(0, [1])
    assert told(engines, 1) == [(11.0, 3, [4])], "the slot is free"
    engines.submit(0, [Request(id=2, token_ids=[1], sampling=sampling)], None, {2: cuts[0]})
    (event,) = engines.wait((), 1e9)
    assert isinstance(event, Ended) and engines.now == 11.0 and event.finished.held[1].tokens == 5
    engines.use(1)
    engines.submit(0, [Request(id=4, token_ids=[1], sampling=sampling)], None, {4: engines.collect(0, [2])[0]})
    assert told(engines, 1) == [(15.0, 4, [2, 9])]
    ((_, spans),) = engines.collect(0, [4])
    assert spans == [VersionSpan(version=0, start=0, end=5), VersionSpan(version=1, start=5, end=9)]


def test_new_weights_sample_from_the_middle_of_a_response_on() -> None:
    engines = engines_of({1: [2, 9], 2: [6]}, Speed(step_s=1.0, sample_s=0.0, slots=2))
    engines.submit(0, [request(1, 2)], None)
    engines.wait((), 3.5)
    engines.use(1)  # of 3.5 tokens the fourth is of these
    engines.submit(0, [request(2, 1)], None)
    engines.wait((), 1.5)
    engines.use(2)
    assert [number for _, number, _ in told(engines, 2)] == [1, 2]
    first, second = engines.collect(0, [1, 2])
    assert first == [
        [VersionSpan(version=0, start=0, end=2)],
        [
            VersionSpan(version=0, start=0, end=3),
            VersionSpan(version=1, start=3, end=5),
            VersionSpan(version=2, start=5, end=9),
        ],
    ]
    # Started at 3.5, beside the long one: its first token is there at 4.5.
    assert second == [[VersionSpan(version=1, start=0, end=1), VersionSpan(version=2, start=1, end=6)]]


def test_aborted_requests_are_told_of_and_their_slots_are_free() -> None:
    engines = engines_of({1: [9, 9], 2: [5], 3: [5]}, Speed(step_s=1.0, sample_s=0.0, slots=2))
    engines.submit(0, [request(number, 2 if number == 1 else 1) for number in (1, 2, 3)], None)
    engines.wait((), 2.0)
    engines.abort(0, [1, 3], keep=True)
    events = [event for event in engines.wait((), 1e9) if isinstance(event, Ended)]
    assert [(event.finished.request, event.finished.aborted) for event in events] == [(1, True), (3, True)]
    assert [[info.sampled_tokens for info in event.finished.infos] for event in events] == [[2, 2], [0]]
    assert engines.collect(0, [1]) == [[[VersionSpan(version=0, start=0, end=2)]] * 2]
    assert told(engines, 1) == [(7.0, 2, [5])], "it started when the first was ended"


def test_requests_with_older_tokens_end_and_those_that_wait_do_not() -> None:
    engines = engines_of({1: [1, 9], 2: [9], 3: [4]}, Speed(step_s=1.0, sample_s=0.0, slots=2))
    engines.submit(0, [request(1, 2)], None)
    engines.wait((), 1.0)
    engines.submit(0, [request(2, 1), request(3, 1)], None)
    engines.use(1)
    engines.wait((), 1.0)
    engines.abort_older(0, 0)
    assert not engines.wait((), 0.0)
    engines.abort_older(0, 1)
    (event,) = engines.wait((), 0.0)
    assert isinstance(event, Ended) and event.finished.request == 1 and event.finished.aborted
    with pytest.raises(KeyError):
        engines.collect(0, [1])
    assert [number for _, number, _ in told(engines, 2)] == [3, 2]


def trained(staleness: int, groups: int, steps: int) -> list[tuple[float, list[tuple[int, int]]]]:
    """When each step was taken, with its prompts and their oldest versions."""
    engines = VirtualEngines([Speed(step_s=0.01, sample_s=1e-4, slots=6)] * 5, Lengths.lognormal(median=60, sigma=1.0))
    prompts = (Prompt(index=number, token_ids=[number], text="", row={}) for number in count())
    rollouts = Rollouts(
        engines, None, prompts, Sampling(samples=3, temperature=1.0, max_tokens=500), Limits(silence_s=1e9, starts=3),
        groups_per_step=groups, max_staleness=staleness, clock=engines.clock,
    )  # fmt: skip
    engines.watch(rollouts)
    found = []
    for version in range(steps):
        taken = rollouts.take(groups, version, seed=version)
        found.append((engines.now, [(group.prompt.index, group.oldest_version or 0) for group in taken]))
        engines.train(0.7)
        engines.use(version + 1)
        rollouts.published(version + 1)
    rollouts.close()
    return found


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_run_is_the_same_every_time(staleness: int) -> None:
    first = trained(staleness, 8, 12)
    assert all(trained(staleness, 8, 12) == first for _ in range(4))
    assert len({now for now, _ in first}) == 12


def test_training_takes_its_time_where_engines_have_nothing_to_do() -> None:
    times = [now for now, _ in trained(0, 1, 4)]
    assert all(later - now > 0.7 for now, later in pairwise(times))


def test_lengths_are_as_published_and_a_prompts_are_alike() -> None:
    lengths = Lengths.lognormal(median=600, sigma=1.0, alike=0.5)
    asked = [lengths(request(number, 16)) for number in range(3000)]
    logs = np.log(asked)
    assert np.median(asked) == pytest.approx(600, rel=0.05)
    assert logs.std() == pytest.approx(1.0, rel=0.05)
    assert np.corrcoef(logs[:, 0], logs[:, 1])[0, 1] == pytest.approx(0.5, abs=0.06)
    again = np.log([lengths(request(number, 16)) for number in range(3000)])
    assert np.corrcoef(logs.mean(axis=1), again.mean(axis=1))[0, 1] > 0.9, "a prompt that comes again is as long"
    assert not np.allclose(logs, again)
    drawn = lengths.drawn(3000, 2, 16, 900, seed=1)
    assert drawn.shape == (3000, 2, 16) and drawn.max() == 900 and np.median(drawn) == pytest.approx(600, rel=0.05)
    observed = Lengths.observed(CHAT)
    chat = np.array([observed(request(number, 4)) for number in range(2000)])
    assert np.quantile(chat, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(CHAT, [0.1, 0.5, 0.9]), rel=0.1)

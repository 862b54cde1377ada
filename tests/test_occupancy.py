"""What the seconds of an engine went to, to the second: by a clock of its own, on simulated engines and alone."""

from hypothesis import given
from hypothesis import strategies as st

from actors.rollout.occupancy import Occupancy
from actors.rollout.simulated import SimulatedEngine, Table
from actors.rollout.types import EngineStats, Request, Sampling
from tests.simulated_engines import Clock


def ask(engine: SimulatedEngine, number: int, samples: int, most: int = 99) -> None:
    sampling = Sampling(samples=samples, temperature=1.0, max_tokens=most)
    engine.submit([Request(id=number, token_ids=[7], sampling=sampling)], None)


def seconds(stats: EngineStats) -> list[float]:
    """idle, busy, underfilled, paused"""
    return [stats.idle_s, stats.busy_s, stats.underfilled_s, stats.paused_s]


def test_a_simulated_engine_counts_each_second_once() -> None:
    """Nobody looks while samples end: the moments at which they did count all the same."""
    clock = Clock()
    engine = SimulatedEngine(Table(lengths=(4, 8, 10, 20), token_s=1.0, slots=4), clock)
    clock.now = 5.0
    ask(engine, 0, 4)
    clock.now = 11.0  # one has ended after 4 seconds; 4 + 6 + 6 + 6 tokens
    assert engine.stats().sampled_tokens == 22 and engine.stats().generated_tokens == 4
    clock.now = 40.0  # 4, 3 and 2 samples until 10 seconds after the start, then one, until 20 after it
    assert seconds(engine.stats()) == [5 + 15, 20, 10, 0]
    assert engine.stats().sampled_tokens == engine.stats().generated_tokens == 42


def test_samples_that_wait_take_the_slots_of_those_that_end() -> None:
    clock = Clock()
    engine = SimulatedEngine(Table(lengths=(3,), token_s=2.0, slots=2), clock)
    ask(engine, 0, 5)
    clock.now = 100.0
    # Two, two and one; one of two slots is half of them.
    assert seconds(engine.stats()) == [100 - 18, 18, 0, 0]


def test_a_slot_that_nobody_saw_becoming_free_was_empty_until_somebody_came() -> None:
    clock = Clock()
    engine = SimulatedEngine(Table(lengths=(4,), token_s=1.0, slots=1), clock)
    ask(engine, 0, 1)
    clock.now = 10.0
    ask(engine, 1, 1)
    assert engine.next_end() == 14.0
    clock.now = 20.0
    assert seconds(engine.stats()) == [6 + 6, 8, 0, 0]


def test_a_pause_takes_the_time_of_samples_only_where_there_are_some() -> None:
    """None of them gets a token in it; what comes meanwhile begins after it."""
    clock = Clock()
    engine = SimulatedEngine(Table(lengths=(10,), token_s=1.0, slots=4), clock)
    engine.pause()
    clock.now = 3.0
    engine.resume()
    ask(engine, 0, 1)
    clock.now = 7.0
    engine.pause()
    clock.now = 12.0
    engine.pause()  # which changes nothing
    ask(engine, 1, 1)
    assert engine.next_end() == float("inf") and engine.stats().sampled_tokens == 4
    clock.now = 17.0
    assert engine.poll(0) == []
    engine.use(1)
    engine.resume()
    assert engine.next_end() == 23.0
    clock.now = 50.0
    found = {each.request: each for each in engine.poll(0)}
    assert [(each.version, each.start, each.end) for each in found[0].versions] == [(0, 0, 4), (1, 4, 10)]
    # Alone for 4 seconds, with the other one for 6, which is then alone for 4.
    assert seconds(engine.stats()) == [3 + (50 - 27), 4 + 10, 4 + 4, 10]


def test_a_lost_engine_has_nothing_to_do() -> None:
    clock = Clock()
    engine = SimulatedEngine(Table(lengths=(10,), token_s=1.0, slots=1), clock)
    ask(engine, 0, 1)
    clock.now = 4.0
    engine.lose("it died")
    clock.now = 9.0
    assert seconds(engine.stats()) == [5, 4, 0, 0]


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 9), st.booleans()), max_size=30), st.integers(1, 8))
def test_the_seconds_of_all_states_are_all_seconds(changes: list[tuple[float, int, bool]], slots: int) -> None:
    """Whatever comes; and each is that of the state that was noted last."""
    clock = Clock()
    counted, expected = Occupancy(slots, clock), {"idle_s": 0.0, "busy_s": 0.0, "underfilled_s": 0.0, "paused_s": 0.0}
    state: tuple[str, ...] = ("idle_s",)
    for passed, samples, steps in changes:
        clock.now += passed
        for each in state:
            expected[each] += passed
        counted.note(samples, steps=steps)
        busy = ("busy_s", "underfilled_s") if samples < slots / 2 else ("busy_s",)
        state = ("idle_s",) if not samples else busy if steps else ("paused_s",)
        found = counted.seconds()
        assert all(abs(found[each] - expected[each]) < 1e-9 for each in expected)
        assert abs(found["idle_s"] + found["busy_s"] + found["paused_s"] - clock.now) < 1e-9


def test_a_moment_before_the_last_one_takes_no_second_back() -> None:
    clock = Clock()
    counted = Occupancy(1, clock)
    clock.now = 5.0
    counted.note(1, steps=True)
    counted.note(0, steps=True, at=2.0)
    clock.now = 3.0  # two threads may read a clock in another order
    assert counted.seconds() == {"idle_s": 5.0, "busy_s": 0.0, "underfilled_s": 0.0, "paused_s": 0.0}

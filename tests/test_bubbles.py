"""The bubble account of a step: what engines have counted, and the loop has timed, since the step before."""

from typing import Any

import numpy as np
import pytest

from actors.episodes import Prompt
from actors.rollout.simulated import Table
from actors.rollout.types import Request, Sampling
from algorithms.rl.bubbles import Bubbles, tokens_lost
from algorithms.rollouts.rollouts import Limits, Rollouts
from tests.simulated_engines import Clock, SimulatedEngines

SECONDS = {"time/rollout": 3.0, "time/score": 0.5, "time/update": 9.0, "time/step": 13.0}
SHARES = ("idle", "underfilled", "paused")


def shares(found: dict[str, float]) -> list[float]:
    """Of the engines' time: idle, underfilled, paused."""
    return [found[f"bubble/engine_{name}_fraction"] for name in SHARES]


def ask(engines: SimulatedEngines, engine: int, number: int, samples: int) -> None:
    sampling = Sampling(samples=samples, temperature=1.0, max_tokens=99)
    engines.submit(engine, [Request(id=number, token_ids=[7], sampling=sampling)], None)


def measured(bubbles: Bubbles) -> dict[str, float]:
    bubbles.ask()
    return bubbles.metrics(SECONDS)


def test_a_step_has_what_has_come_to_it_since_the_step_before() -> None:
    """Two engines over 20 seconds: one works 8, of which 4 with one sample of four slots; the other one does nothing.
    In the next 20 one is paused for 5 with two samples, which get two tokens a second."""
    clock = Clock()
    engines = SimulatedEngines([Table(lengths=(4, 8), token_s=1.0, slots=4)] * 2, clock)
    clock.now = 7.0  # before the first step, and in none
    bubbles = Bubbles(engines)
    bubbles.begin()
    ask(engines, 0, 0, 2)
    clock.now = 27.0
    assert measured(bubbles) == {
        "bubble/trainer_wait_seconds": 3.5,
        "bubble/engines_unheard": 0,
        "bubble/engine_idle_fraction": 32 / 40,
        "bubble/engine_underfilled_fraction": 4 / 40,
        "bubble/engine_paused_fraction": 0,
        "bubble/sync_tokens_lost": 0,
    }
    ask(engines, 1, 1, 2)
    clock.now = 29.0
    engines.engines[1].pause()
    clock.now = 34.0
    engines.engines[1].resume()
    clock.now = 47.0
    found = measured(bubbles)
    assert shares(found) == [27 / 40, 4 / 40, 5 / 40]
    assert found["bubble/sync_tokens_lost"] == pytest.approx(5 * 12 / 8)


def test_what_new_weights_throw_away_is_told_where_there_is_some() -> None:
    """Two samples of which each has three tokens when it begins anew."""
    clock = Clock()
    engines = SimulatedEngines([Table(lengths=(8,), token_s=1.0, slots=4)], clock, "restart")
    bubbles = Bubbles(engines)
    bubbles.begin()
    ask(engines, 0, 0, 2)
    clock.now = 3.0
    engines.use(1)
    assert measured(bubbles)["bubble/tokens_discarded"] == 6
    clock.now = 4.0
    assert "bubble/tokens_discarded" not in measured(bubbles), "a step tells what is new in it"


def test_tokens_are_lost_at_the_speed_of_the_engine_that_stood_still() -> None:
    """And at none where it has not worked: no number that is no number."""
    grown = np.array([[0.0, 10, 0, 2, 500], [0, 5, 0, 1, 50], [0, 0, 0, 3, 0], [9, 0, 0, 0, 0]])
    assert tokens_lost(grown) == 2 * 50 + 1 * 10
    assert tokens_lost(grown[2:]) == 0
    assert tokens_lost(np.empty((0, 5))) == 0


class Told:
    """Engines of which it is said what they have counted."""

    def __init__(self, *answers: list[Any]) -> None:
        self.answers = list(answers)

    def stats(self, within_s: float) -> Any:
        found = self.answers.pop(0)
        return lambda: found


def counted(*numbers: float) -> Any:
    """idle, busy, underfilled, paused, tokens"""
    [engine] = SimulatedEngines([Table(lengths=(1,), token_s=1.0)], Clock()).engines
    names = ("idle_s", "busy_s", "underfilled_s", "paused_s", "sampled_tokens")
    stats = engine.stats()
    for name, number in zip(names, numbers, strict=True):
        object.__setattr__(stats, name, number)
    return stats


def test_an_engine_that_does_not_answer_is_left_out() -> None:
    """Until it has answered twice: then what it has counted since the last time counts. One with another process in its
    place begins anew."""
    engines: Any = Told(
        [counted(5, 5, 0, 0, 100), None, counted(50, 50, 0, 0, 9)],
        [counted(15, 5, 0, 0, 100), None, counted(80, 80, 0, 0, 9)],
        [None, counted(1, 1, 0, 0, 1), counted(2, 1, 0, 0, 1)],
        [counted(15, 35, 0, 0, 400), counted(1, 41, 40, 0, 900), counted(2, 21, 0, 0, 2)],
        [None, None, None],
    )
    bubbles = Bubbles(engines)
    bubbles.begin()
    first, second, third, last = (measured(bubbles) for _ in range(4))
    assert [each["bubble/engines_unheard"] for each in (first, second, third, last)] == [1, 3, 0, 3]
    assert shares(first) == [40 / 70, 0, 0]
    assert shares(third) == [0, 40 / 90, 0]
    for found in (second, last):
        assert found == {"bubble/trainer_wait_seconds": 3.5, "bubble/engines_unheard": 3}


def test_on_policy_engines_idle_while_the_trainer_trains() -> None:
    """20 seconds of rollout on two engines, 60 of training."""
    clock = Clock()
    tables = [Table(lengths=(10,), token_s=1.0, slots=2), Table(lengths=(10, 20), token_s=1.0, slots=4)]
    engines = SimulatedEngines(tables, clock)
    prompts = (Prompt(index=number, token_ids=[1], text="", row={}) for number in range(100))
    sampling = Sampling(samples=4, temperature=1.0, max_tokens=99)
    rollouts = Rollouts(engines, None, prompts, sampling, Limits(silence_s=1e9), groups_per_step=2, clock=clock)
    bubbles = Bubbles(engines)
    bubbles.begin()
    for version in range(4):
        rollouts.take(2, version, seed=version)
        clock.now += 60
        engines.use(version + 1)
        found = measured(bubbles)
        # The first engine has two samples all the time, the second one four, then two: at least half of their slots.
        assert shares(found) == [0.75, 0, 0] and found["bubble/engines_unheard"] == 0
    rollouts.close()
    assert clock.now == 4 * 80

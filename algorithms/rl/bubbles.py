"""The bubble account: where time goes while engines generate and the trainer trains.

A bubble is time in which one side has nothing to do, or less than it could. Per step, of all engines that answered:

| metric | is |
|---|---|
| `bubble/trainer_wait_seconds` | seconds in which the trainer waited for scored responses: time/rollout + time/score, |
| | less those in which it trained on what had ended |
| `bubble/early_update_seconds` | those, with `algorithm.overlap_gradients` |
| `bubble/early_update_fraction` | share of the trained tokens whose gradient had begun before the last response came |
| `bubble/engine_idle_fraction` | share of the engines' time in which they had no sample to work on |
| `bubble/engine_underfilled_fraction` | share in which they worked with fewer than half of their slots filled |
| `bubble/engine_paused_fraction` | share in which they had samples and stood still, for new weights |
| `bubble/sync_tokens_lost` | tokens not generated meanwhile: paused seconds x tokens per busy second of each engine |
| `bubble/tokens_discarded` | tokens that new weights have thrown away (`rollout.on_update` restart), if any |
| `bubble/engines_unheard` | engines in none of these: lost, new, gone, or too late with their answer |

An engine's time is idle, busy (underfilled or not) or paused: the rest to 1 is busy with at least half of the slots.
With `max_staleness` 0, or where engines and trainer share GPUs, the two sides take turns: engines are idle while the
trainer trains, and nothing runs while weights are sent, by design.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from actors.rollout.types import EngineStats
from algorithms.loop import Metrics
from algorithms.rollouts.engines import Engines

_WITHIN_S = 1.0
"""Longest wait for what engines say of themselves, which takes them milliseconds."""
_IDLE, _BUSY, _UNDERFILLED, _PAUSED, _TOKENS, _DISCARDED = range(6)


class Bubbles:
    """Reads what engines count, once a step, and tells what has come to it since the last time."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._known: dict[int, NDArray[np.float64]] = {}
        """Engine -> what it had counted when it answered last, [6]."""
        self._answers: Callable[[], Sequence[EngineStats | None]] | None = None

    def begin(self) -> None:
        """Note what engines have counted before the first step."""
        self.ask()
        self._grown()

    def ask(self) -> None:
        """Ask the engines, without waiting: the step that is measured ends here."""
        self._answers = self._engines.stats(_WITHIN_S)

    def metrics(self, seconds: Metrics) -> Metrics:
        """The step's account, by what the engines say to `ask`; `seconds` are the step's `time/*`.

        Without `bubble/engine_*_fraction` where no engine has answered.
        """
        grown, unheard = self._grown()
        waited = sum(seconds.get(name, 0.0) for name in ("time/rollout", "time/score"))
        # The last of it may end after the last response.
        waited = max(0.0, waited - seconds.get("bubble/early_update_seconds", 0.0))
        found = {"bubble/trainer_wait_seconds": waited, "bubble/engines_unheard": float(unheard)}
        idle, _, underfilled, paused, _, discarded = (float(each) for each in grown.sum(axis=0))
        if counted := float(grown[:, [_IDLE, _BUSY, _PAUSED]].sum()):
            found["bubble/engine_idle_fraction"] = idle / counted
            found["bubble/engine_underfilled_fraction"] = underfilled / counted
            found["bubble/engine_paused_fraction"] = paused / counted
            found["bubble/sync_tokens_lost"] = tokens_lost(grown)
        if discarded:
            found["bubble/tokens_discarded"] = discarded
        return found

    def _grown(self) -> tuple[NDArray[np.float64], int]:
        """What engines have counted since they answered last, [engines, 6], and how many engines that leaves out."""
        assert self._answers is not None, "asked before"
        answers, self._answers = self._answers(), None
        heard = {engine: _counted(stats) for engine, stats in enumerate(answers) if stats is not None}
        # Of one that is heard of first, or whose process is another one now, nothing is known of this step.
        grown = [
            counted - before
            for engine, counted in heard.items()
            if (before := self._known.get(engine)) is not None and (counted >= before).all()
        ]
        self._known |= heard
        return np.array(grown, dtype=np.float64).reshape(-1, 6), len(answers) - len(grown)


def tokens_lost(grown: NDArray[np.float64]) -> float:
    """Tokens that engines did not generate as they stood still; [engines, 6]: seconds idle, busy, underfilled, paused,
    tokens, and discarded ones.

    Of each its own, at the speed that it had while it worked. One that has not worked says nothing of its speed: 0.
    """
    busy, paused, tokens = grown[:, _BUSY], grown[:, _PAUSED], grown[:, _TOKENS]
    speeds = np.divide(tokens, busy, out=np.zeros_like(tokens), where=busy > 0)
    return float((paused * speeds).sum())


def _counted(stats: EngineStats) -> NDArray[np.float64]:
    numbers = stats.idle_s, stats.busy_s, stats.underfilled_s, stats.paused_s, stats.sampled_tokens
    return np.array([*numbers, stats.discarded_tokens], dtype=np.float64)

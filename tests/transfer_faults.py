"""A fault of weight transfers in the engines of a real run: `tests.preloaded.FAULT` names it and a file.

The file gets what is the fault's witness: how many samples the engine had.
"""

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

_STEP_S = 0.05
"""That a step of the engine takes at least."""
_SPARED = 2
"""Transfers before the first step, and after it."""


def fails(witness: Path) -> None:
    """The engine cannot take what has come."""

    def fail() -> None:
        raise RuntimeError("lost while receiving")

    _strike(witness, fail)


def _strike(witness: Path, fault: Callable[[], object]) -> None:
    """The fault comes in a transfer that has stopped the engine while it had samples, when its weights are there. So
    that it has some, however slow the trainer is, it is slow, too."""
    from actors.rollout.engine import EngineThread
    from actors.weights import vllm_receiver

    pause, receive, transfers = EngineThread.pause, vllm_receiver.receive_bucket, count(1)
    step = EngineThread._step
    running = [0]

    def pause_and_count(self: EngineThread) -> None:
        pause(self)
        running[0] = self.stats().running + self.stats().waiting

    def receive_or_not(*arguments: Any) -> Any:
        received = receive(*arguments)
        if next(transfers) > _SPARED and running[0]:
            witness.write_text(str(running[0]))
            fault()
        return received

    def step_slowly(self: EngineThread) -> None:
        step(self)
        time.sleep(_STEP_S)

    EngineThread._step = step_slowly  # type: ignore[method-assign]
    EngineThread.pause = pause_and_count  # type: ignore[method-assign]
    vllm_receiver.receive_bucket = receive_or_not

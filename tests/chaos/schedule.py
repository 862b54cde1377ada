"""What is done to a run, and when: drawn from a seed, so that a run that has failed can be had again."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = {
    "engine": 9,
    "policy": 4,
    "critic": 3,
    "reference": 2,
    "reward_model": 2,
    "reward": 3,
    "raylet": 2,
    "driver": 2,
}
"""Kind of process, named as in events.jsonl but for engines -> how often it is hit, beside the others."""
PHASES = ("rollout", "score", "reference", "update", "sync", "evaluate", "checkpoint")
KILL, STOP = "kill", "stop"


@dataclass(frozen=True, slots=True)
class Hit:
    """One fault, as it is meant.

    Example: Hit("engine", "sync", STOP, 0.3): in a transfer, when three tenths of it are over, an engine is stopped.
    """

    kind: str
    phase: str
    how: str
    share: float
    """Of the time that the phase took before; the delay is that long."""

    @property
    def text(self) -> str:
        """Example: stop engine in sync"""
        return f"{self.how} {self.kind} in {self.phase}"


PAIRED = "engine", "policy", "critic", "reference", "reward_model", "reward"
"""Kinds that are hit at one time with an engine, too. With Ray or the driver all others die, and nobody tells of it."""
_PAIRS = 8
"""Faults from one pair to the next."""


def schedule(
    seed: int, hits: int, kinds: Sequence[str] = tuple(KINDS), phases: Sequence[str] = PHASES, *, pairs: bool = False
) -> list[list[Hit]]:
    """So many faults, which have every kind and every phase at least once if they are enough; half are stops.

    With `pairs`, an engine is hit at one time with some of them.
    """
    draw = random.Random(seed)
    weights = [KINDS.get(kind, 1) for kind in kinds]
    of = [*kinds, *draw.choices(kinds, weights, k=max(0, hits - len(kinds)))][:hits]
    at = [phases[number % len(phases)] for number in range(hits)]
    how = [(KILL, STOP)[number % 2] for number in range(hits)]
    for column in (of, at, how):
        draw.shuffle(column)
    found = [[Hit(*each, draw.random())] for each in zip(of, at, how, strict=True)]
    paired = [each for each in found if each[0].kind in PAIRED][: hits // _PAIRS if pairs else 0]
    for each in paired:
        each.append(Hit("engine", each[0].phase, draw.choice((KILL, STOP)), (each[0].share + 0.5) % 1))
    return found

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


ALONE = "raylet", "driver"
"""Kinds that are hit alone: with them all others die, and nobody tells of it."""
_AT_ONCE = {"engine": 2}
"""How many of a kind are hit at one time, where it is not one."""


def schedule(
    seed: int, hits: int, kinds: Sequence[str] = tuple(KINDS), phases: Sequence[str] = PHASES, *, together: int = 1
) -> list[list[Hit]]:
    """So many faults, which have every kind and every phase at least once if they are enough; half are stops.

    Up to `together` of them, of other kinds or other engines, come at one time.
    """
    draw = random.Random(seed)
    weights = [KINDS.get(kind, 1) for kind in kinds]
    of = [*kinds, *draw.choices(kinds, weights, k=max(0, hits - len(kinds)))][:hits]
    how = [(KILL, STOP)[number % 2] for number in range(hits)]
    for column in (of, how):
        draw.shuffle(column)
    batches = _batches(of, together)
    at = [phases[number % len(phases)] for number in range(len(batches))]
    draw.shuffle(at)
    signals = iter(how)
    return [
        [Hit(kind, phase, next(signals), draw.random()) for kind in batch]
        for batch, phase in zip(batches, at, strict=True)
    ]


def _batches(kinds: Sequence[str], together: int) -> list[list[str]]:
    """Kinds that are hit at one time, in the order in which the first of them come."""
    batches = list[list[str]]()
    for kind in kinds:
        most = _AT_ONCE.get(kind, 1)
        room = (
            each
            for each in batches
            if len(each) < together and each.count(kind) < most and not {kind, each[0]} & set(ALONE)
        )
        if (batch := next(room, None)) is None:
            batches.append([kind])
        else:
            batch.append(kind)
    return batches

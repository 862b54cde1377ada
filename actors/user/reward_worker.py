"""A process that holds reward functions, called in algorithms/rewards/calls.py: one that hangs ends nothing else."""

import os
import sys
import time
from collections.abc import Callable, Collection

from actors.episodes import Episode, Prompt
from actors.pulse import ProcessId, own_process
from actors.user.confined import confine

Scorer = Callable[[Prompt, list[Episode], float], list[object]]
"""Scores of a prompt's rollouts, in their order, by a time on time.monotonic() if it can."""
_OWN_SHARE = 0.9
"""Share of a call's deadline after which the scorer should not wait for others: at its end the process is killed."""
_LATE_SHARE = 0.2
"""Share of it after which no further prompt is begun, so that one that is slow leaves the next its time."""


class RewardWorker:
    """Runs one scorer; spawned as a Ray actor by the pool that sets the deadlines.

    Example: RewardWorker(functools.partial(load_scorer, config.reward), os.getcwd())
    """

    def __init__(
        self,
        load: Callable[[], Scorer],
        directory: str,
        kept: Collection[str] = (),
        memory_mib: int | None = None,
    ) -> None:
        """`load` makes the scorer, inside this process; `directory` is the driver's working directory.

        Variables that hold secrets are gone before, without those `kept`; the functions may allocate `memory_mib`.
        """
        self._load = load
        self._kept = kept
        self._memory_mib = memory_mib
        self._directory = directory
        self._scorer: Scorer | None = None

    def ping(self) -> ProcessId:
        """Load the scorer, once, and say which process this is; raises what loading raises."""
        if self._scorer is None:
            # Another node of a cluster may lack the driver's directory; Ray then put the code in this process's own.
            if os.path.isdir(self._directory):
                os.chdir(self._directory)
            if os.getcwd() not in sys.path:
                # At the end: a user's file shall not take the place of a library's module.
                sys.path.append(os.getcwd())
            confine(self._kept, self._memory_mib)
            self._scorer = self._load()
        return own_process()

    def score(
        self, prompts: list[Prompt], samples: list[int], only: int | None, deadline_s: float, *groups: list[Episode]
    ) -> list[list[object]]:
        """Score all rollouts of each prompt, or only the one at index `only`, within `deadline_s` seconds.

        The answer may hold fewer prompts than were given, the first at least, when these have taken much of the time.
        Raises ValueError when a prompt has not as many rollouts as `samples` says, RuntimeError before the first
        `ping`.
        """
        if self._scorer is None:
            raise RuntimeError("ping the reward worker before the first score: it loads the functions")
        begun = time.monotonic()
        scores = []
        for prompt, count, rollouts in zip(prompts, samples, groups, strict=True):
            if len(rollouts) != count:
                raise ValueError(f"expected {count} rollouts of prompt {prompt.index}, got {len(rollouts)}")
            # At least one prompt is scored by each call.
            if scores and time.monotonic() - begun > _LATE_SHARE * deadline_s:
                break
            chosen = rollouts if only is None else [rollouts[only]]
            scores.append(self._scorer(prompt, chosen, begun + _OWN_SHARE * deadline_s))
        return scores

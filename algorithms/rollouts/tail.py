"""Tail batching: on-policy, a step does not wait for the few prompts whose responses are the longest.

    a usual step   starts some prompts more than it needs, takes those that end first, and postpones the others
    a long step    takes postponed prompts alone, and waits for all of them

As RollPacker does it (arXiv 2509.21009). A postponed prompt is sampled anew, all its responses under one version of the
weights; none is dropped, and none begins a further pass over the data before all of this one are trained on.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence

from actors.episodes import Prompt
from actors.rollout.types import RolloutInfo

Place = tuple[str, int]
"""Of a prompt: name of its set, row."""


class Tail:
    """Which prompts a step starts, and in which order."""

    def __init__(self, share: float, left: Callable[[], int | None], rows: int | None) -> None:
        """`share`: prompts that a usual step starts beyond those that it needs, as a share of these.

        `left`: prompts of this pass over the data that were not drawn yet, 0 at its end; `rows`: those of a whole pass.
        Both None where the data has no passes.
        """
        self.share = share
        self.postponed: deque[Prompt] = deque()
        self._left = left
        self._rows = rows
        self.lengths: dict[Place, float] = {}
        """Mean sampled tokens of a prompt's responses when it was sampled last."""

    def begin(self, groups: int, left_in_run: int | None) -> tuple[list[Prompt], int]:
        """The postponed prompts that a step of so many groups starts with, and how many it starts beyond `groups`.

        `left_in_run`: groups that the run will still take, the postponed ones not counted; None: no end is known.
        """
        fresh = self._fresh(left_in_run)
        if len(self.postponed) >= groups or (fresh is not None and fresh < groups):
            # The last ones of a pass, too: it ends before the next one begins.
            return [self.postponed.popleft() for _ in range(min(groups, len(self.postponed)))], 0
        extra = math.ceil(self.share * groups)
        return [], extra if fresh is None else min(extra, fresh - groups)

    def before_next_pass(self, count: int) -> list[Prompt]:
        """The postponed prompts that start in place of so many fresh ones, as far as this pass has none left for them:
        of groups that fail or teach nothing, a step replaces more than it could know of."""
        left = self._left()
        lacking = 0 if left is None else max(0, count - left)
        return [self.postponed.popleft() for _ in range(min(lacking, len(self.postponed)))]

    def note(self, prompt: Prompt, infos: Sequence[RolloutInfo]) -> None:
        """Remember how long a prompt's responses are: of one that was ended, how long they were by then."""
        if infos:
            self.lengths[prompt.of_set, prompt.index] = sum(info.sampled_tokens for info in infos) / len(infos)

    def longest_first(self, prompts: Sequence[Prompt]) -> list[int]:
        """Places of these prompts, in the order in which they should start: where slots are few, what starts last
        should be short. Those of which nothing is known count as usual ones, in their order."""
        known = [self.lengths.get((each.of_set, each.index)) for each in prompts]
        told = [length for length in known if length is not None]
        usual = sum(told) / len(told) if told else 0.0
        expected = [usual if length is None else length for length in known]
        return sorted(range(len(prompts)), key=lambda place: -expected[place])

    def _fresh(self, left_in_run: int | None) -> int | None:
        """How many prompts may be drawn now that will all be trained on in this pass, and in this run."""
        left = self._left()
        if left == 0 and not self.postponed:  # the next pass may begin
            left = self._rows
        bounds = [bound for bound in (left, left_in_run) if bound is not None]
        return max(0, min(bounds)) if bounds else None

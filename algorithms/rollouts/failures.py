"""Samples of a step that have no reward: how many failed where and why, and when that is too many."""

from collections.abc import Sequence

from actors.group import GroupError
from algorithms.rewards.pool import RewardFailure
from algorithms.rewards.scores import Score

CAUSES_SHOWN = 3


class Failures:
    """Failed samples of a step: those that an engine did not finish, and those that could not be scored.

    Together they may be `max_failed` x the samples that the step asks for.
    """

    def __init__(self, max_failed: float) -> None:
        self.max_failed = max_failed
        self.begin()

    def begin(self) -> None:
        """A new step: nothing has failed yet."""
        self.unfinished = 0
        self.unscored = 0
        self._causes: dict[str, str] = {}

    @property
    def samples(self) -> int:
        """All of them."""
        return self.unfinished + self.unscored

    @property
    def errors(self) -> list[str]:
        """The first few distinct causes of samples that were not scored, a line each, with the first that it befell."""
        return list(self._causes.values())[:CAUSES_SHOWN]

    def not_finished(self, failed: int, asked: int) -> None:
        """An engine did not finish so many samples of a group. Raises GroupError when the step of `asked` samples has
        too many failures."""
        self.unfinished += failed
        if not self._too_many(asked):
            return
        raise GroupError(
            f"{self.unfinished} of {asked} rollouts of a step failed in the engines"
            + (f", and {self.unscored} more could not be scored" if self.unscored else "")
            + f" (reward.max_failed_fraction {self.max_failed:g} allows {int(self.max_failed * asked)})"
        )

    def not_scored(self, scores: Sequence[Score], asked: int) -> None:
        """Some of a group's samples have no reward. Raises RewardFailure, with causes, when the step of `asked` samples
        has too many failures."""
        self.unscored += sum(score.status == "failed" for score in scores)
        for score in scores:
            if score.error and score.cause:
                # By cause, not by sample: a broken function fails thousands of times in one way.
                self._causes.setdefault(score.cause, score.error)
        if not self._too_many(asked):
            return
        shown = self.errors
        more = len(self._causes) - len(shown)
        raise RewardFailure(
            f"{self.unscored} samples could not be scored in a step of {asked} "
            f"(reward.max_failed_fraction {self.max_failed:g} allows {int(self.max_failed * asked)}"
            + (f"; {self.unfinished} more failed in the engines" if self.unfinished else "")
            + "): "
            + " | ".join(shown)
            + (f" | and {more} more causes" if more else "")
        )

    def _too_many(self, asked: int) -> bool:
        return self.samples > self.max_failed * asked

"""When the loss of engines ends a run: a prompt that is lost with one after the other, or no engine for too long."""

from collections.abc import Callable, Sequence

from actors.group import GroupError
from actors.rollout.types import Finished, RolloutInfo
from algorithms.rollouts.engines import Lost
from algorithms.rollouts.lane import Running
from algorithms.rollouts.limits import Limits


class Losses:
    """Of the engines of a run."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._alone_since: float | None = None
        """When the last engine that served was lost."""
        self._last: GroupError | None = None
        self.had: dict[int, list[str]] = {}
        """Engine -> names of the prompts that it had when it was lost last."""

    def take_in(self, event: Lost, groups: Sequence[Running], left: int) -> None:
        """An engine is lost with these groups, and so many are left. Raises GroupError where that ends the run."""
        self._last = event.error
        self.had[event.engine] = [f"data row {group.prompt.name}" for group in groups]
        if not left and not self._limits.restart_s:
            raise event.error
        worn = next((group for group in groups if group.engines >= self._limits.attempts), None)
        if worn is not None and worn.engines == 1:
            raise event.error
        if worn is not None:  # whoever has it dies: so would the next one
            raise GroupError(
                f"rollout: {worn.engines} engines in a row were lost with data row {worn.prompt.name}; "
                f"the last one: {event.error}"
            ) from event.error

    def check(self, left: int) -> None:
        """Raise GroupError where no engine has been left for too long."""
        if left or self._last is None:
            self._alone_since = None
            return
        now, limit = self._clock(), self._limits.restart_s
        if self._alone_since is None:
            self._alone_since = now
        if now > self._alone_since + limit:
            raise GroupError(
                f"rollout: no engine was back within {limit:g} s (rollout.restart_timeout_s), after {self._last}"
            ) from self._last


def infos_of(finished: Finished, group: Running) -> list[RolloutInfo]:
    """What is said of a group's responses. Raises GroupError: its engine does not take the prompt."""
    if finished.error:
        raise GroupError(f"rollout[{group.engine}].submit: data row {group.prompt.index} was refused: {finished.error}")
    return finished.infos

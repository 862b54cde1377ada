"""Who sends weights and who receives them: the policy's ranks and the engines, or what keeps weights for these.

Met once, and again when a process was replaced.
"""

from collections.abc import Mapping
from typing import Any

from actors.group import ActorGroup
from launch.config import RunConfig
from launch.run.roster import Members
from launch.settings.rules_rl import transfer_backend


class Connection:
    """Between the policy and whom it sends to: all engines, or the holder.

    As ranks keep handles of these, it lasts until a process is replaced.
    """

    def __init__(self, config: RunConfig, roster: Mapping[str, ActorGroup[Any]]) -> None:
        self._config = config
        self._ends = Members(roster, ("policy", "rollout", "holder"))
        self._met: int | None = None

    def ensure(self) -> None:
        """Let them meet, unless those that have met are those that there are now; raises GroupError."""
        version = self._ends.version
        if self._met != version:
            self._meet()
            # Only once they have met: after a failure the next attempt is another meeting.
            self._met = version

    def _meet(self) -> None:
        from actors.train.policy import PolicyWorker  # torch takes seconds, in which engines are already starting

        policy, rollout, transfer = self._ends["policy"], self._config.rollout, self._config.rollout.transfer
        if holder := self._ends.get("holder"):
            policy.call(PolicyWorker.connect_holder, holder.handles[0], transfer)
        else:
            backend, engines = transfer_backend(self._config), self._ends["rollout"].handles
            policy.call(PolicyWorker.connect, engines, rollout.tensor_parallel, backend, transfer)

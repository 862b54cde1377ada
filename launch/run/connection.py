"""Who sends weights and who receives them: the policy's ranks and the rollout engines, met for transfer."""

from collections.abc import Mapping
from typing import Any

from actors.group import ActorGroup
from launch.config import RunConfig
from launch.run.roster import Members


class Connection:
    """Between the policy and the engines; as ranks keep handles of engines, it lasts until a process is replaced."""

    def __init__(self, config: RunConfig, roster: Mapping[str, ActorGroup[Any]], backend: str) -> None:
        self._settings = config.rollout.tensor_parallel, backend, config.rollout.transfer
        self._ends = Members(roster, ("policy", "rollout"))
        self._met: int | None = None

    def ensure(self) -> None:
        """Let them meet, unless those that have met are those that there are now; raises GroupError."""
        from actors.train.policy import PolicyWorker  # torch takes seconds, in which engines are already starting

        version = self._ends.version
        if self._met != version:
            self._ends["policy"].call(PolicyWorker.connect, self._ends["rollout"].handles, *self._settings)
            self._met = version

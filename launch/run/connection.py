"""Who sends weights and who receives them: the policy's ranks and the engines, or what keeps weights for these.

Met once, and again when a process was replaced, or other engines take part.
"""

from collections.abc import Mapping, Sequence
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
        self._met: object = None

    def ensure(self, engines: Sequence[int] | None = None) -> None:
        """Let the policy meet these engines (None: all), unless it has met them as they are now; raises GroupError.

        A holder serves any engine, whoever the policy has met.
        """
        rollout = self._ends["rollout"]
        wanted = list(range(len(rollout)) if engines is None else engines)
        others = [(name, group.version) for name, group in self._ends.items() if name != "rollout"]
        key = others if "holder" in self._ends else (others, [(each, rollout.generations[each]) for each in wanted])
        if self._met != key:
            self._met = None
            self._meet(wanted)
            # Only once they have met: after a failure the next attempt is another meeting.
            self._met = key

    def part(self) -> None:
        """They meet anew before the next transfer: after one that has failed, nobody knows where the others are."""
        self._met = None

    def _meet(self, wanted: list[int]) -> None:
        from actors.train.policy import PolicyWorker  # torch takes seconds, in which engines are already starting

        policy, rollout, transfer = self._ends["policy"], self._config.rollout, self._config.rollout.transfer
        if holder := self._ends.get("holder"):
            policy.call(PolicyWorker.connect_holder, holder.handles[0], transfer)
        else:
            backend, handles = transfer_backend(self._config), self._ends["rollout"].handles
            engines = [handles[engine] for engine in wanted]
            policy.call(PolicyWorker.connect, engines, rollout.tensor_parallel, backend, transfer, wanted)

"""What every job does with its actor groups: start, meet, let one follow another, and end them whatever happened."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from actors.group import ActorGroup
from algorithms.rewards.pool import RewardPool
from algorithms.rollouts.rollouts import Rollouts
from launch.config import RunConfig
from launch.run.reserve import Placement
from launch.screen.reporter import RunReporter


@dataclass
class Groups:
    """Everything a run has started; ended in `shutdown`, whatever happened."""

    logs: str
    """Directory of the processes' output."""
    groups: list[ActorGroup[Any]] = field(default_factory=list)
    pool: RewardPool | None = None
    rollouts: Rollouts | None = None

    def add(
        self,
        name: str,
        worker: type,
        timeout_s: float,
        placement: Placement,
        concurrency: dict[str, int] | None = None,
    ) -> ActorGroup[Any]:
        """A group in its place, remembered for shutdown; `spawn` starts its processes."""
        slots = placement.slots[name]
        group: ActorGroup[Any] = ActorGroup(
            name, worker, slots, timeout_s=timeout_s, log_directory=self.logs, concurrency=concurrency
        )
        self.groups.append(group)
        return group

    def shutdown(self) -> None:
        """End all processes that the run has started."""
        if self.rollouts:
            self.rollouts.close()
        if self.pool:
            self.pool.close()
        for group in self.groups:
            group.shutdown()


def start_building(group: ActorGroup[Any], total_updates: int) -> list[Any]:
    """Let the ranks of a group that learns meet and build their engines; returns references to wait for."""
    from actors.train.trainer import TrainedWorker

    address, port = group.gather([group.submit(0, TrainedWorker.address)], "address")[0]
    return [group.submit(rank, TrainedWorker.build, address, port, total_updates) for rank in range(len(group))]


def built(group: ActorGroup[Any], building: list[Any], reporter: RunReporter) -> None:
    """Wait until all ranks of a group have their model, and say how many have."""
    group.gather(building, "build", told=lambda done, ranks: reporter.progress(done, ranks, f"{group.name} ranks"))


def start_loading(group: ActorGroup[Any], build: Callable[..., Any]) -> list[Any]:
    """Let the ranks of a frozen group meet and load their model; returns references to wait for."""
    from actors.train.worker import Worker

    address, port = group.gather([group.submit(0, Worker.address)], "address")[0]
    return [group.submit(rank, build, address, port) for rank in range(len(group))]


def reference_sync(config: RunConfig, policy: ActorGroup[Any], reference: ActorGroup[Any]) -> Callable[[int], None]:
    """What a loop calls after each step: when it is time, the reference follows the policy, over a file that all ranks
    see."""
    from actors.train.policy import PolicyWorker
    from actors.train.reference import ReferenceWorker

    every, mix = config.reference.sync_every, config.reference.sync_mix
    file = config.directory.absolute() / "reference-sync.safetensors"

    def sync(step: int) -> None:
        if every and step % every == 0:
            policy.call(PolicyWorker.write_weights, file)
            reference.call(ReferenceWorker.follow, file, mix)
            file.unlink(missing_ok=True)

    return sync

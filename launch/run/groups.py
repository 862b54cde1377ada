"""What every job does with its actor groups: start, meet, checkpoint, resume, and end them whatever happened."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.config import UserError
from actors.group import ActorGroup
from algorithms.rewards.pool import RewardPool
from algorithms.rollouts.rollouts import Rollouts
from launch.checks.output import require_there
from launch.config import RunConfig
from launch.run.checkpoint import Checkpoints, Files
from launch.run.ending import Ending, reason_to_end
from launch.run.manifest import damage_of, read_manifest
from launch.run.reserve import Placement
from launch.run.signals import finish_steps
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


class RunCheckpointer:
    """Implements `algorithms.loop.Checkpointer`: saves the groups that learn, by name, and the loop's state.

    Also after the step in which the run was told to stop, or a node that it lives on began to leave; `nodes`: ids of
    these.
    """

    def __init__(self, config: RunConfig, trained: dict[str, ActorGroup[Any]], nodes: set[str]) -> None:
        self._checkpoints = Checkpoints(config)
        self._trained = trained
        self._nodes = nodes
        self._ending: Ending | None = None
        self._written: tuple[int, bool] | None = None
        self._directory = config.directory

    def save(self, step: int, state: dict[str, Any], last: bool, best: bool = False) -> None:
        """Write a checkpoint, when it is time; raises UserError when storage is not shared or full, the directory gone,
        or the run another's."""
        require_there(self._directory)
        self._checkpoints.require_ours()
        self._ending = None if last else reason_to_end(self._nodes)
        if self._ending or best or self._checkpoints.due(step, last):
            self._checkpoints.write(step, state, self._write)
            self._written = step, best

    def keep(self) -> None:
        """Make what `save` has written, if anything, the latest checkpoint."""
        if self._written:
            step, best = self._written
            self._written = None
            self._checkpoints.keep(step, best=best)

    def end_if_asked(self) -> None:
        """Raise Ending when the run should make no further step."""
        if self._ending:
            raise self._ending
        finish_steps()

    def _write(self, directory: Path) -> list[Files]:
        from actors.train.trainer import TrainedWorker

        return [
            [(f"{name}/{file}", size, sha256) for file, size, sha256 in rank]
            for name, group in self._trained.items()
            for rank in group.call(TrainedWorker.save, directory / name)
        ]


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


def resume(config: RunConfig, trained: dict[str, ActorGroup[Any]], loop: Any, reporter: RunReporter) -> None:
    """Continue from the run's latest checkpoint, if there is one.

    Raises:
        UserError: the groups that learn do not see the run's directory, where they would write checkpoints.
    """
    from actors.train.trainer import TrainedWorker

    checkpoints = Checkpoints(config)
    for group in trained.values():
        checkpoints.require_shared(lambda path, group=group: group.call(TrainedWorker.text_of, path))
    found = checkpoints.latest()
    if found is None:
        return
    reporter.phase("verifying the checkpoint")
    if not require_as_saved(found.directory, trained, checkpoints.refused):
        reporter.note(f"{found.directory.name} has no hashes: only the sizes of its files were compared")
    reporter.note(f"resuming from step {found.state['step']}")
    reporter.phase("loading the checkpoint")
    try:
        loop.restore(found.state)
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # of an edited manifest, or of an older version
        why = f"{type(error).__name__}: {error}"
        raise checkpoints.refused(f"{found.directory} has a state that this loop cannot take ({why})") from None
    for name, group in trained.items():
        group.call(TrainedWorker.load, found.directory.absolute() / name)


def require_as_saved(
    directory: Path, groups: Mapping[str, ActorGroup[Any]], refused: Callable[[str], UserError]
) -> bool:
    """Let the ranks look at the files of a checkpoint before any of it is loaded, each at a part of them.

    Returns:
        Whether it has hashes to compare with; those of older versions have none.

    Raises:
        UserError: `refused` of what is wrong: a file that is not what was saved, not the user's own, or that holds
            more than data.
    """
    from actors.train.worker import Worker

    _, sizes, hashes = read_manifest(directory)
    if damage := damage_of(directory, sizes):
        raise refused(f"{directory} is damaged, {damage}")
    looking = {}
    for name, group in groups.items():
        own = [file for file in sorted(sizes, key=lambda file: -sizes[file]) if file.startswith(f"{name}/")]
        shares = [{file: hashes[file] for file in own[rank :: len(group)]} for rank in range(len(group))]
        looking[name] = [
            group.submit(rank, Worker.faults, directory.absolute(), shares[rank]) for rank in range(len(group))
        ]
    found = [line for name, refs in looking.items() for lines in groups[name].gather(refs, "faults") for line in lines]
    if found:
        raise refused(found[0] + (f" (and {len(found) - 1} more)" if len(found) > 1 else ""))
    return None not in hashes.values()


def load_best(config: RunConfig, trained: dict[str, ActorGroup[Any]]) -> int | None:
    """Let the groups go back to the best checkpoint, when there is one; returns its step."""
    from actors.train.trainer import TrainedWorker

    directory = Checkpoints(config).best()
    if directory is None:
        return None
    otherwise = "to export the latest one: the same command with algorithm.best_by=null"
    require_as_saved(directory, trained, lambda problem: UserError(f"algorithm.best_by: {problem}; {otherwise}"))
    for name, group in trained.items():
        group.call(TrainedWorker.load, directory.absolute() / name)
    return int(directory.name.removeprefix("step-"))

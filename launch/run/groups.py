"""What every job does with its actor groups: let them meet and build, and one follow another."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ray import ObjectRef

from actors.group import ActorGroup
from algorithms.loop import Reporter
from launch.config import RunConfig

if TYPE_CHECKING:
    from actors.train.trainer import TrainedWorker
    from actors.train.worker import Worker

W = TypeVar("W")
L = TypeVar("L", bound="TrainedWorker")
F = TypeVar("F", bound="Worker")
Start = Callable[[ActorGroup[Any]], list["ObjectRef[None]"]]
"""Lets new ranks of a group meet and build; returns what to wait for."""


def start_building(group: ActorGroup[L], total_updates: int) -> list["ObjectRef[None]"]:
    """Let the ranks of a group that learns meet and build their engines; returns references to wait for."""
    from actors.train.trainer import TrainedWorker

    address, port = group.gather([group.submit(0, TrainedWorker.address)], "address")[0]
    return [group.submit(rank, TrainedWorker.build, address, port, total_updates) for rank in range(len(group))]


def built(group: ActorGroup[W], building: list["ObjectRef[None]"], reporter: Reporter) -> None:
    """Wait until all ranks of a group have their model, and say how many have."""
    group.gather(building, "build", told=lambda done, ranks: reporter.progress(done, ranks, f"{group.name} ranks"))


def start_loading(group: ActorGroup[F], build: Callable[[F, str, int], None]) -> list["ObjectRef[None]"]:
    """Let the ranks of a frozen group meet and load their model; returns references to wait for."""
    from actors.train.worker import Worker

    address, port = group.gather([group.submit(0, Worker.address)], "address")[0]
    return [group.submit(rank, build, address, port) for rank in range(len(group))]


def rebuild(*groups: tuple[ActorGroup[Any], Start]) -> None:
    """Let all ranks of groups meet and build anew after some were lost; a state is then to be loaded.

    Ranks that have met the lost one are replaced, too: one may stand still for ever in a collective with it, and what
    NCCL and DeepSpeed keep of a process group cannot be trusted to go with it. All start at the same time.

    Args:
        groups: each with its `start_building` or `start_loading`, with their arguments.

    Raises:
        GroupError: a rank cannot be built, or is lost again.

    Example:
        rebuild((policy, partial(start_building, total_updates=100)),
                (reference, partial(start_loading, build=ReferenceWorker.build)))
    """
    for group, _ in groups:
        for rank in range(len(group)):
            if not group.is_fresh(rank):  # one that was only started has met nobody
                group.replace(rank)
    building = [start(group) for group, start in groups]
    for (group, _), refs in zip(groups, building, strict=True):
        group.gather(refs, "build")


def reference_sync(config: RunConfig, roster: Mapping[str, ActorGroup[Any]]) -> Callable[[int], None]:
    """What a loop calls after each step: when it is time, the reference follows the policy, over a file that all ranks
    see."""
    from actors.train.frozen import ReferenceWorker
    from actors.train.policy import PolicyWorker

    every, mix = config.reference.sync_every, config.reference.sync_mix
    # Absolute: workers may have another working directory.
    file = config.directory.absolute() / "reference-sync.safetensors"

    def sync(step: int) -> None:
        if every and step % every == 0:
            roster["policy"].call(PolicyWorker.write_weights, file)
            roster["reference"].call(ReferenceWorker.follow, file, mix)
            file.unlink(missing_ok=True)  # as large as the model, and read for good

    return sync

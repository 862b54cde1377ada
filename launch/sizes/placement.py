"""What each group asks of the cluster, and which of it is reserved together.

Shared by `check`, by the rendering for Kubernetes and by the run itself. Imports no Ray.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from actors.config import GroupConfig, PlacedConfig
from actors.config_rollout import RolloutConfig
from launch.config import RunConfig, threads_each
from launch.kinds.rl import reward_model_groups
from launch.kinds.table import job_kind
from launch.settings.cores import engine_threads, niceness_of

REWARD_WORKER_CPUS = 0.1
"""Ray CPUs of one reward process: a counter for admission, not a limit."""
HOLDER_CPUS = 0.1
"""Ray CPUs of the process that holds published weights, as little: it copies bytes, and only during a transfer."""


@dataclass(frozen=True, slots=True)
class Demand:
    """`count` processes of one group, and what each of them reserves."""

    group: str
    count: int
    cpus: float
    gpus: float
    threads: int
    per_node: int | None = None
    """So many of them on each node; None: packed on as few nodes as have room."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the nodes they may live on."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Custom Ray resources of each process."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of each process."""
    niceness: int = 0
    """By which each process lets others go first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Bundles that are reserved together."""

    name: str
    bundles: list[dict[str, float]]
    """Ray resources of each."""
    ranks: dict[str, list[int]]
    """Group -> bundle of each of its processes."""
    apart: bool = False
    """Every bundle on a node of its own; else packed on as few nodes as have room."""
    each: bool = False
    """Every bundle can be given back, or reserved elsewhere, without the others."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the nodes they may be on."""

    @property
    def nodes(self) -> int:
        """Fewest nodes that it takes."""
        return len(self.bundles) if self.apart else 1


def demands(config: RunConfig) -> list[Demand]:
    """Groups in the order they are placed: policy, rollout with as many engines as there may be, holder, critic,
    reference, reward models, reward processes."""
    wanted: list[Demand] = []
    for name, section in job_kind(config).groups().items():
        if not isinstance(section, RolloutConfig):
            wanted.append(_group(name, section, niceness_of(config, name)))
            continue
        # An engine counts as one process, however many GPUs it has.
        wanted.append(_engines(section, engine_threads(config)))
        if section.transfer.store == "holder":
            wanted.append(Demand("holder", 1, HOLDER_CPUS, 0, 1))
    if config.reward.functions or config.reward.endpoints:
        wanted.append(Demand("reward", config.reward.workers, REWARD_WORKER_CPUS, 0, 1))
    return wanted


def reservations(config: RunConfig, *, fewest: bool = False) -> list[Reservation]:
    """What is reserved, with as many engines as there may be, or the `fewest`, in this order: those with the largest
    bundles first, as they find room in fewer places; with placement separate the engines before them, as all others
    avoid their nodes.

    Reward processes come after them: see `reward_processes`.
    """
    wanted = [demand for demand in demands(config) if demand.group != "reward"]
    if fewest:
        wanted = [replace(each, count=config.rollout.fewest) if each.group == "rollout" else each for each in wanted]
    if config.cluster.placement == "shared":
        return [_shared(wanted)]
    found = sorted(map(_own, wanted), key=_size, reverse=True)
    if config.cluster.placement == "separate":
        found.sort(key=lambda item: item.name != "rollout")  # stable: the others stay in order
    return found


def policy_alone(config: RunConfig) -> Reservation:
    """That of the policy, where no other group is started."""
    return _own(_group("policy", config.policy))


def reservation_of(config: RunConfig, group: str, count: int) -> Reservation:
    """That of so many processes of a group, beside what others have reserved; raises ValueError where it has no bundles
    of its own."""
    if config.cluster.placement == "shared":
        raise ValueError(f"{group} shares its bundles with other groups (cluster.placement shared)")
    return _own(replace(next(demand for demand in demands(config) if demand.group == group), count=count))


def reward_processes(config: RunConfig) -> Reservation | None:
    """Those of the reward processes, which take what the groups leave; None when there are none."""
    wanted = [demand for demand in demands(config) if demand.group == "reward"]
    return _own(wanted[0]) if wanted else None


def section_of(config: RunConfig, group: str) -> str:
    """The section of the configuration that describes a group."""
    models = {name: f"reward.models.{index}.group" for index, name in reward_model_groups(config)}
    return (models | {"holder": "rollout.transfer"}).get(group, group)


def _group(name: str, group: GroupConfig, niceness: int = 0) -> Demand:
    threads = threads_each(group.threads_per_rank, group.ranks, group.ranks_per_node)
    numbers = (group.ranks, group.cpus_per_rank, group.gpus_per_rank, threads, group.ranks_per_node)
    return Demand(name, *numbers, *_where(group), niceness)


def _engines(rollout: RolloutConfig, threads: int) -> Demand:
    numbers = (rollout.most, rollout.cpus_per_engine, rollout.gpus_per_engine, threads, rollout.engines_per_node)
    return Demand("rollout", *numbers, *_where(rollout))


def _where(placed: PlacedConfig) -> tuple[Mapping[str, str], Mapping[str, float], Mapping[str, str]]:
    return placed.node_labels, placed.resources, placed.env


def _own(demand: Demand) -> Reservation:
    """Bundles of one group: one per process, or one per node with all its processes there."""
    together = demand.per_node or 1
    bundle = _bundle(demand, together)
    return Reservation(
        name=demand.group,
        bundles=[dict(bundle) for _ in range(demand.count // together)],
        ranks={demand.group: [rank // together for rank in range(demand.count)]},
        apart=demand.per_node is not None,
        each=demand.group == "rollout",  # an engine is replaced by itself; ranks have met, and begin anew together
        labels=demand.labels,
    )


def _shared(wanted: list[Demand]) -> Reservation:
    """Rank i of all groups in bundle i."""
    bundles: list[dict[str, float]] = [{} for _ in range(max(demand.count for demand in wanted))]
    for demand in wanted:
        for bundle in bundles[: demand.count]:
            for name, amount in _bundle(demand, 1).items():
                # Groups take turns on one GPU: the bundle holds the largest demand, not their sum.
                held = bundle.get(name, 0.0)
                bundle[name] = max(held, amount) if name == "GPU" else held + amount
    # Groups whose labels differ were refused (launch/settings/rules.py).
    labels = {name: value for demand in wanted for name, value in demand.labels.items()}
    ranks = {demand.group: list(range(demand.count)) for demand in wanted}
    return Reservation(name="all groups", bundles=bundles, ranks=ranks, labels=labels)


def _size(item: Reservation) -> tuple[float, float]:
    """GPUs, then CPUs, of a bundle."""
    bundle = item.bundles[0]
    return bundle.get("GPU", 0.0), bundle.get("CPU", 0.0)


def _bundle(demand: Demand, processes: int) -> dict[str, float]:
    each = {"CPU": demand.cpus, "GPU": demand.gpus, **demand.resources}
    return {name: amount * processes for name, amount in each.items() if amount}

"""From a RunConfig to running groups: the engines first, as they take longest to start, then the rest beside them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from actors.group import ActorGroup
from actors.rollout import CONCURRENCY, RolloutWorker
from actors.rollout_types import Sampling
from actors.skeleton import write_skeleton
from actors.tokenizer import load_tokenizer
from algorithms.config import GRPOConfig, SFTConfig
from algorithms.data import Batches, prompts, read_rows, sequences
from algorithms.reward_pool import RewardPool
from launch.checkpoint import Checkpoints
from launch.cluster import Placement
from launch.config import RunConfig
from launch.placement import REWARD_WORKER_CPUS
from launch.reporter import RunReporter

_CANARY_TOKENS = 24
_ENGINE: Any = RolloutWorker
"""Its methods as plain functions: ray.method hides from type checkers that they are."""


@dataclass
class Groups:
    """Everything a run has started; ended in `shutdown`, whatever happened."""

    groups: list[ActorGroup[Any]] = field(default_factory=list)
    pool: RewardPool | None = None

    def add(self, group: ActorGroup[Any]) -> ActorGroup[Any]:
        """Remember a group for shutdown."""
        self.groups.append(group)
        return group

    def shutdown(self) -> None:
        """End all processes that the run has started."""
        if self.pool:
            self.pool.close()
        for group in self.groups:
            group.shutdown()


def transfer_backend(config: RunConfig) -> str:
    """`rollout.transfer.backend`, with auto decided by where policy and engines live."""
    chosen = config.rollout.transfer.backend
    if chosen != "auto":
        return chosen
    on_gpu = config.policy.gpus_per_rank and config.rollout.gpus_per_engine
    return ("ipc" if config.cluster.placement == "shared" else "nccl") if on_gpu else "gloo"


def build_grpo(config: RunConfig, placement: Placement, reporter: RunReporter, groups: Groups) -> Any:
    """Start all groups of a GRPO run and return its loop."""
    algorithm = config.algorithm
    assert isinstance(algorithm, GRPOConfig)
    logs, backend = str((config.directory / "logs").absolute()), transfer_backend(config)
    directory = write_skeleton(config.model, config.directory / "model")
    reporter.phase("starting engines")
    rollout = groups.add(_group("rollout", RolloutWorker, config.rollout.timeout_s, placement, logs, CONCURRENCY))
    rollout.spawn(directory, config.rollout, config.model.dtype, backend, config.run.seed)

    # Imported only now: torch and DeepSpeed take seconds, in which the engines are already starting.
    from actors.policy import PolicyWorker
    from actors.reference import ReferenceWorker
    from algorithms.grpo import GRPO

    policy = groups.add(_group("policy", PolicyWorker, config.policy.timeout_s, placement, logs))
    policy.spawn(config.model, directory, config.policy, config.run.seed)
    reference = None
    if config.reference_enabled:
        reference = groups.add(_group("reference", ReferenceWorker, config.reference.timeout_s, placement, logs))
        reference.spawn(config.model, directory, config.reference, config.run.seed)
    groups.pool = RewardPool(config.reward, cpus_per_worker=REWARD_WORKER_CPUS)
    building = start_policy(policy, algorithm.steps * algorithm.updates_per_step)
    loop = GRPO(
        config=algorithm,
        policy=policy,
        reference=reference,
        sampler=_sampler(config, rollout, groups.pool),
        publish=_publisher(config, policy, directory),
        checkpoint=_checkpointer(config, policy),
        reporter=reporter,
        sampling=Sampling(
            samples=algorithm.samples_per_prompt,
            temperature=config.rollout.temperature,
            max_tokens=config.rollout.max_response_tokens,
        ),
        micro_batch_tokens=(config.policy.micro_batch_tokens, config.reference.micro_batch_tokens),
        seed=config.run.seed,
        samples_per_step=config.tracking.samples_per_step,
        **_rl_data(config, directory),
    )
    if reference is not None:
        _meet(reference, ReferenceWorker.build)
    policy.gather(building, "build")
    policy.call(PolicyWorker.prepare_to_connect)
    reporter.phase("waiting for engines")
    starting = [rollout.submit(rank, _ENGINE.ready) for rank in range(len(rollout))]
    rollout.gather(starting, "ready", timeout_s=config.rollout.start_timeout_s)
    policy.call(PolicyWorker.connect, rollout.handles, config.rollout.tensor_parallel, backend, config.rollout.transfer)
    _resume(config, policy, loop, reporter)
    return loop


def build_sft(config: RunConfig, placement: Placement, reporter: RunReporter, groups: Groups) -> Any:
    """Start the policy group of an SFT run and return its loop."""
    from actors.policy import PolicyWorker
    from algorithms.sft import SFT

    algorithm = config.algorithm
    assert isinstance(algorithm, SFTConfig)
    logs = str((config.directory / "logs").absolute())
    directory = write_skeleton(config.model, config.directory / "model")
    policy = groups.add(_group("policy", PolicyWorker, config.policy.timeout_s, placement, logs))
    policy.spawn(config.model, directory, config.policy, config.run.seed)
    tokenizer = load_tokenizer(directory)
    train_on = algorithm.train_on
    train = sequences(_rows(config, "train"), config.data, tokenizer, train_on=train_on)
    held_out = (
        sequences(_rows(config, "eval"), config.data, tokenizer, train_on=train_on, field="data.eval")
        if config.data.eval
        else []
    )
    updates = algorithm.updates(len(train))
    policy.gather(start_policy(policy, updates), "build")
    loop = SFT(
        config=algorithm,
        policy=policy,
        sequences=train,
        batches=Batches(len(train), seed=config.run.seed, shuffle=config.data.shuffle),
        evaluation=held_out,
        checkpoint=_checkpointer(config, policy),
        reporter=reporter,
        micro_batch_tokens=config.policy.micro_batch_tokens,
        total_updates=updates,
    )
    _resume(config, policy, loop, reporter)
    return loop


def _group(
    name: str,
    worker: type,
    timeout_s: float,
    placement: Placement,
    logs: str,
    concurrency: dict[str, int] | None = None,
) -> ActorGroup[Any]:
    slots = placement.slots[name]
    return ActorGroup(name, worker, slots, timeout_s=timeout_s, log_directory=logs, concurrency=concurrency)


def _sampler(config: RunConfig, rollout: ActorGroup[Any], pool: RewardPool) -> Any:
    from algorithms.sampler import Sampler

    assert isinstance(config.algorithm, GRPOConfig)
    return Sampler(
        rollout,
        _ENGINE.start,
        _ENGINE.generated,
        pool,
        max_failed=config.reward.max_failed_fraction,
        max_staleness=config.algorithm.max_staleness,
    )


def start_policy(policy: ActorGroup[Any], total_updates: int) -> list[Any]:
    """Let the policy ranks meet and build their engines; returns references to wait for."""
    from actors.policy import PolicyWorker

    address, port = policy.gather([policy.submit(0, PolicyWorker.address)], "address")[0]
    return [policy.submit(rank, PolicyWorker.build, address, port, total_updates) for rank in range(len(policy))]


def _meet(group: ActorGroup[Any], build: Callable[..., Any]) -> None:
    from actors.reference import ReferenceWorker

    address, port = group.gather([group.submit(0, ReferenceWorker.address)], "address")[0]
    group.call(build, address, port)


def _rows(config: RunConfig, which: str) -> list[dict[str, Any]]:
    data = config.data
    train = which == "train"
    source = data.train if train else data.eval
    assert source is not None
    return read_rows(
        source,
        split=data.split if train else data.eval_split,
        arguments=data.arguments,
        limit=data.limit if train else data.eval_limit,
        field=f"data.{which}",
    )


def _rl_data(config: RunConfig, directory: str) -> dict[str, Any]:
    tokenizer = load_tokenizer(directory)
    limit = config.rollout.max_prompt_tokens
    train = prompts(_rows(config, "train"), config.data, tokenizer, max_prompt_tokens=limit)
    evaluation = []
    if config.data.eval:
        rows = _rows(config, "eval")
        evaluation = prompts(rows, config.data, tokenizer, max_prompt_tokens=limit, field="data.eval")
    batches = Batches(len(train), seed=config.run.seed, shuffle=config.data.shuffle)
    return {"prompts": train, "evaluation": evaluation, "batches": batches}


def _publisher(config: RunConfig, policy: ActorGroup[Any], directory: str) -> Callable[[int], dict[str, float]]:
    from actors.policy import PolicyWorker

    vocabulary = len(load_tokenizer(directory))
    length = min(_CANARY_TOKENS, config.rollout.max_model_len - 1)
    # Tokens from all over the vocabulary, the same ones all run long.
    canary = [(7 + 31 * position) % vocabulary for position in range(length)]
    every = config.rollout.transfer.verify_every

    def publish(version: int) -> dict[str, float]:
        return policy.call(PolicyWorker.publish, version, canary, version % every == 0)[0]

    return publish


def _checkpointer(config: RunConfig, policy: ActorGroup[Any]) -> Callable[[int, dict[str, Any], bool], None]:
    from actors.policy import PolicyWorker

    checkpoints = Checkpoints(config)

    def checkpoint(step: int, state: dict[str, Any], last: bool) -> None:
        if checkpoints.due(step, last):
            checkpoints.save(step, state, lambda directory: policy.call(PolicyWorker.save, directory))

    return checkpoint


def _resume(config: RunConfig, policy: ActorGroup[Any], loop: Any, reporter: RunReporter) -> None:
    from actors.policy import PolicyWorker

    found = Checkpoints(config).latest()
    if found is None:
        return
    reporter.note(f"resuming from step {found.state['step']}")
    loop.restore(found.state)
    policy.call(PolicyWorker.load, found.directory.absolute())

"""From a RunConfig to running groups and the loop of a reinforcement job, PPO or GRPO.

The engines come first, as they take longest to start, then the rest beside them.
"""

from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from ray import ObjectRef

from actors.config import UserError
from actors.group import ActorGroup
from actors.models.skeleton import write_skeleton
from actors.rollout.types import Sampling
from actors.rollout.worker import CONCURRENCY, RolloutWorker
from algorithms.config_rl import GRPOConfig, RLConfig
from algorithms.loop import Reporter
from algorithms.rewards.pool import RewardPool
from launch.config import RunConfig
from launch.kinds.kind import Loop
from launch.kinds.rl import RLKind, reward_model_groups
from launch.run.chat_settings import answer_ends
from launch.run.checkpointer import RunCheckpointer
from launch.run.connection import Connection
from launch.run.copies import Copies
from launch.run.elastic import supervise
from launch.run.elsewhere import Elsewhere
from launch.run.groups import reference_sync, start_building
from launch.run.keepers import Keepers
from launch.run.learners import Learners, starts_of
from launch.run.reserved import Placement
from launch.run.rl_models import load_models, spawn_models
from launch.run.roster import Roster
from launch.run.saves import Saves, resume
from launch.run.weights import Weights
from launch.screen.reporter import RunReporter
from launch.settings.cores import early_threads
from launch.settings.memory_copies import copied_every
from launch.settings.overlap import overlapped_reads
from launch.settings.rules_rl import transfer_backend
from launch.sizes.placement import REWARD_WORKER_CPUS

if TYPE_CHECKING:
    from algorithms.division.deals import Split
    from algorithms.rl.overlapped_reads import OverlappedReads
    from algorithms.rl.reward_models import BesideRollouts
    from algorithms.rl.shaper import RewardShaper
    from algorithms.rollouts.engines import Engines
    from algorithms.rollouts.ready_reads import ReadyReads
    from algorithms.rollouts.rollouts import Rollouts
    from launch.run.loop_arguments import LoopArguments, ReadArguments, SettingsArguments
    from launch.run.rl_data import RLData

_ENGINE: Any = RolloutWorker
"""Its methods as plain functions: ray.method hides from type checkers that they are."""


_OF_STORE = 4
"""Share of the object store, as its divisor, that responses may take which steps have learned from."""
_NOTE_S = 2.0
_MOST_ENGINES = 5
"""Engines in a row that may be lost with one prompt: it may be why they are."""


def on_one_gpu(config: RunConfig) -> bool:
    """Whether engines and other groups are on the same GPUs."""
    return bool(config.cluster.placement == "shared" and config.rollout.gpus_per_engine)


@dataclass(frozen=True, slots=True)
class _Engines:
    """Rollout engines that are being started."""

    group: ActorGroup[RolloutWorker]
    starting: list["ObjectRef[None]"]
    deadline_s: float

    def wait(self, reporter: Reporter) -> None:
        """Until all of them can generate; raises GroupError."""
        reporter.phase("starting engines")
        waits = partial(reporter.progress, what="ready")
        self.group.gather(self.starting, "ready", timeout_s=self.deadline_s, told=waits)

    def notice(self) -> None:
        """Raise GroupError where one has failed already."""
        self.group.notice(self.starting, "ready")


def build_rl(kind: RLKind, placement: Placement, reporter: RunReporter, roster: Roster) -> Loop:
    """Start all groups of a PPO or GRPO run and return its loop."""
    config = kind.config
    directory = write_skeleton(config.model, config.directory / "model")
    reporter.phase("starting engines")
    engines = _start_engines(config, directory, placement, roster)

    # Imported only now: torch and DeepSpeed take seconds, in which the engines are already starting.
    from actors.train.policy import PolicyWorker
    from algorithms.division.deals import split_by
    from algorithms.rl.overlapped_gradients import OverlappedGradients
    from algorithms.rl.recovery import LearnedSteps
    from algorithms.rollouts.membership import Membership
    from algorithms.rollouts.ray_engines import RayEngines
    from launch.run.rl_data import rl_data

    reporter.phase("loading models")
    models = spawn_models(config, directory, placement, roster)
    roster.pool = _reward_pool(config, placement)
    reporter.phase("reading data")
    data = rl_data(config, directory, reporter)
    steps, settings = _total_steps(kind, data.drawn), _from_settings(kind)
    membership = Membership(len(engines.group))
    rollout_engines = RayEngines(engines.group, membership, _note_every_s(config))
    split = split_by(engines.group, _ENGINE.split, membership, config.rollout.restart_timeout_s)
    reading = _reading(config, roster)
    models_beside, reads = _models_beside(kind.algorithm, reading, roster, split), _reads_beside(kind, roster, split)
    gradients = OverlappedGradients(early_threads(config)) if kind.algorithm.overlaps_gradients else None
    beside = models_beside, gradients or reads
    roster.rollouts = _rollouts(kind, rollout_engines, roster.pool, data, steps, settings["shaper"], *beside)
    if on_one_gpu(config):
        # vLLM takes its share by what is free while it starts: what comes and goes meanwhile ends it, or is counted.
        engines.wait(reporter)
    building = start_building(models.policy, _policy_updates(kind.algorithm, steps))
    # One that has failed already ends the start here, not after the models are loaded.
    engines.notice()
    # A reference that stays as it is, is read from its directory again: only one that follows has weights to save.
    members = roster.members("policy", "critic", *(["reference"] if config.reference.sync_every else []))
    saves = Saves(members, data.contents)
    checkpointer = RunCheckpointer(config, saves, placement.nodes, reporter)
    weights = Weights(config, roster, Connection(config, roster), directory, membership)
    roster.rollouts.welcome = weights.welcome
    if config.run.max_restarts and roster.now:
        starts = starts_of(config, _policy_updates(kind.algorithm, steps), steps * kind.algorithm.updates_per_step)
        copies = Copies(copied_every(config), saves.groups, Keepers(placement), reporter.note)
        go_on = copies, reporter.note, Elsewhere(config, placement, reporter.note)
        roster.learners = Learners(config, roster, roster.now, saves, checkpointer, starts, *go_on)
    arguments: LoopArguments = {
        "roster": roster,
        "rollouts": roster.rollouts,
        "split": split,
        "reads": reads,
        "gradients": gradients,
        "publish": weights.publish,
        "checkpoint": checkpointer,
        "mender": roster.learners,
        "learned": LearnedSteps(config.cluster.object_store_mib * 2**20 // _OF_STORE),
        "reporter": reporter,
        "total_steps": steps,
        "evaluation": data.evaluation,
        "sample_report": data.report,
        "batches": roster.rollouts.order_part,
        **reading,
        **settings,
    }
    loop = kind.loop(arguments)
    load_models(models, building, steps * kind.algorithm.updates_per_step, reporter)
    reporter.phase("preparing to send weights")
    # While engines still start: what is imported for it takes seconds.
    models.policy.call(PolicyWorker.prepare_to_connect)
    roster.once_more.append(lambda: models.policy.call(PolicyWorker.prepare_to_connect))
    engines.wait(reporter)
    reporter.phase("connecting engines")
    weights.connect()
    if config.run.max_restarts and roster.now:
        # Only now: an engine that cannot even start at first is no fault that passes.
        supervise(config, roster, placement, membership, reporter.warning)
    # Last: the ranks have to hold models before they can load shards into them.
    found = resume(config, saves, loop, reporter)
    if roster.learners:
        roster.learners.begin(found, loop.parts["kl"])
    return loop


def _start_engines(config: RunConfig, directory: str, placement: Placement, roster: Roster) -> _Engines:
    group = roster.add("rollout", RolloutWorker, config.rollout.timeout_s, placement, CONCURRENCY)
    share = config.rollout.gpu_share(shared=config.cluster.placement == "shared")
    settings = config.rollout.model_copy(update={"gpu_memory_utilization": share})
    backend, keep = transfer_backend(config), config.reward.keep_special_tokens
    ends = answer_ends(config)
    group.spawn(directory, settings, config.model, backend, config.run.seed, keep, ends)
    starting = [group.submit(rank, _ENGINE.ready) for rank in range(len(group))]
    return _Engines(group, starting, config.rollout.start_timeout_s)


def _total_steps(kind: RLKind, prompts: int) -> int:
    """Steps of the run over this many prompts; raises UserError where the job cannot make so few, or many."""
    if problem := kind.steps_problem(prompts):
        raise UserError(problem)
    total = kind.algorithm.total_steps(prompts)
    assert total is not None, "only unknown prompts leave it open"
    return total


def _policy_updates(algorithm: RLConfig, steps: int) -> int:
    # In the critic's warm-up the policy makes no updates, so its schedule has as many fewer.
    waits = min(steps, getattr(algorithm, "critic_warmup_steps", 0))
    return (steps - waits) * algorithm.updates_per_step


def _reward_pool(config: RunConfig, placement: Placement) -> RewardPool | None:
    if not config.reward.functions and not config.reward.endpoints:
        return None
    # The pool starts its own processes: of a slot it needs only where.
    places = [slot.strategy for slot in placement.slots["reward"]]
    return RewardPool(config.reward, cpus_per_worker=REWARD_WORKER_CPUS, places=places)


def _sampling(config: RunConfig, algorithm: RLConfig) -> Sampling:
    return Sampling(
        samples=algorithm.samples_per_prompt,
        temperature=config.rollout.temperature,
        max_tokens=config.rollout.max_response_tokens,
        max_step_tokens=config.rollout.max_step_tokens,
    )


def _reading(config: RunConfig, roster: Roster) -> "ReadArguments":
    """Who gives reference logprobs, and the reward models."""
    from actors.train.frozen import ReferenceWorker
    from actors.train.policy import PolicyWorker
    from algorithms.rewards.scores import sources_labels
    from algorithms.rl.reward_models import RewardModelGroup

    reference, method = None, None
    if config.reference_needed:
        own = config.reference_group
        reference = "reference" if own else "policy"
        method = ReferenceWorker.logprobs if own else PolicyWorker.reference_logprobs
    labels = sources_labels(config.reward)[1]
    models = [
        RewardModelGroup(
            label=labels[index],
            weight=config.reward.models[index].weight,
            group=name,
            micro_batch_tokens=config.reward.models[index].group.micro_batch_tokens,
        )
        for index, name in reward_model_groups(config)
    ]
    found: ReadArguments = {"reference": reference, "read_reference": method, "models": models}
    if config.reference.sync_every:
        found["sync_reference"] = reference_sync(config, roster)
    return found


def _budgets(config: RunConfig) -> dict[str, int]:
    """Token budget of a micro-batch of each group."""
    # Without a group of its own, the reference is the policy's ranks, with adapters switched off.
    reference = config.reference if config.reference_group else config.policy
    budgets = {"policy": config.policy.micro_batch_tokens, "reference": reference.micro_batch_tokens}
    return budgets | ({"critic": config.critic.micro_batch_tokens} if config.critic else {})


def _from_settings(kind: RLKind) -> "SettingsArguments":
    """The arguments of a loop that need nothing of what was started."""
    config = kind.config
    return {
        "shaper": _shaper(config, kind.algorithm),
        "sampling": _sampling(config, kind.algorithm),
        "micro_batch_tokens": _budgets(config),
        "keeps_cache": config.rollout.on_update == "keep_cache",
        "seed": config.run.seed,
        "eval_samples": config.tracking.eval_samples,
    }


def _shaper(config: RunConfig, algorithm: RLConfig) -> "RewardShaper":
    from algorithms.rl.shaper import RewardShaper

    return RewardShaper(
        normalize=config.reward.normalize,
        clip=config.reward.clip,
        overlong=algorithm.overlong,
        missing_eos_penalty=algorithm.missing_eos_penalty,
        max_response_tokens=config.rollout.max_response_tokens,
    )


def _note_every_s(config: RunConfig) -> float | None:
    """Seconds between two notes of what samples have, from which they go on when their engine is lost; None where they
    may not: the penalty would not count what was sampled before, and responses shall be of one version."""
    if not config.run.max_restarts or config.rollout.presence_penalty or config.rollout.on_update == "restart":
        return None
    return _NOTE_S


def _models_beside(
    algorithm: RLConfig, reading: "ReadArguments", roster: Roster, split: "Split"
) -> "BesideRollouts | None":
    """The reward models, where they score groups while others are generated; the loop then asks none."""
    from algorithms.rl.reward_models import BesideRollouts, Scorers

    # On-policy they score a step at a time: which batches they get depends on nothing that ends sooner or later.
    beside = algorithm.max_staleness or _samples_dynamically(algorithm) or algorithm.overlaps_gradients
    if not reading["models"] or not beside:
        return None
    models, reading["models"] = reading["models"], []
    return BesideRollouts(Scorers(models=models, roster=roster, split=split))


def _reads_beside(kind: RLKind, roster: Roster, split: "Split") -> "OverlappedReads":
    """Who reads episodes, those of some fields while others are generated."""
    from algorithms.rl.overlapped_reads import OverlappedReads

    fields = overlapped_reads(kind.config, kind.algorithm)
    return OverlappedReads(roster, split, fields, beside_updates=kind.algorithm.max_staleness > 0)


def _samples_dynamically(algorithm: RLConfig) -> bool:
    return isinstance(algorithm, GRPOConfig) and algorithm.dynamic_sampling


def _rollouts(
    kind: RLKind,
    engines: "Engines",
    pool: RewardPool | None,
    data: "RLData",
    steps: int,
    shaper: "RewardShaper",
    models: "BesideRollouts | None",
    reads: "ReadyReads",
) -> "Rollouts":
    """Where scored groups come from."""
    from algorithms.rl.judging import Teaching
    from algorithms.rollouts.flow import ENOUGH
    from algorithms.rollouts.groups import prompt_finder
    from algorithms.rollouts.limits import Limits
    from algorithms.rollouts.rollouts import Rollouts
    from algorithms.rollouts.tail import Tail

    config, algorithm = kind.config, kind.algorithm
    judge, most_drawn = None, None
    if isinstance(algorithm, GRPOConfig) and algorithm.dynamic_sampling:
        judge = Teaching(shaper=shaper, mask_truncated=algorithm.mask_truncated)
        most_drawn = algorithm.dynamic_sampling_rounds
    tail = None
    if config.rollout.tail == "postpone":
        tail = Tail(config.rollout.tail_share, lambda: data.batches.left, data.batches.rows)
    limits = Limits(
        silence_s=config.rollout.timeout_s,
        prompt_s=config.rollout.prompt_timeout_s,
        max_failed=config.reward.max_failed_fraction,
        starts=config.rollout.max_attempts,
        attempts=_MOST_ENGINES if config.run.max_restarts else 1,
        restart_s=config.rollout.restart_timeout_s if config.run.max_restarts else 0.0,
    )
    return Rollouts(
        engines,
        pool,
        # Drawn no earlier than a prompt may start: checkpoints keep how far `batches` has come.
        (data.prompts[data.batches.next(1)[0]] for _ in count()),
        _sampling(config, algorithm),
        limits,
        groups_per_step=algorithm.prompts_per_step,
        max_staleness=algorithm.max_staleness,
        groups_in_run=steps * algorithm.prompts_per_step,
        # What is made ahead may wait for room; on-policy all of a step is there at once.
        most_each=ENOUGH * config.rollout.max_concurrent if algorithm.max_staleness else None,
        judge=judge,
        most_drawn=most_drawn,
        tail=tail,
        waits=config.rollout.late == "wait",
        models=models,
        reads=reads,
        order=data.batches,
        prompt_of=prompt_finder(data.prompts),
        # The penalty would not count what was sampled before.
        go_on=not config.rollout.presence_penalty,
    )

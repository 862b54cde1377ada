"""From a RunConfig to running groups and the loop of a reinforcement job, PPO or GRPO.

The engines come first, as they take longest to start, then the rest beside them.
"""

from functools import partial
from itertools import count
from typing import Any

from actors.batch import Prompt
from actors.config import ModelConfig, UserError
from actors.group import ActorGroup
from actors.models.hub_cache import located
from actors.models.skeleton import write_skeleton
from actors.models.tokenizer import load_tokenizer
from actors.rollout.types import Sampling
from actors.rollout.worker import CONCURRENCY, RolloutWorker
from algorithms.batches import Batches, row_order
from algorithms.config_rl import RLConfig
from algorithms.data.reading import run_data
from algorithms.rewards.pool import RewardPool
from launch.config import RunConfig
from launch.kinds.rl import reward_model_groups
from launch.kinds.table import job_kind
from launch.models.files import require_same_tokens
from launch.run.connection import Connection
from launch.run.groups import built, reference_sync, start_building, start_loading
from launch.run.placement import REWARD_WORKER_CPUS
from launch.run.reserve import Placement
from launch.run.roster import Roster
from launch.run.saves import RunCheckpointer, Saves, resume
from launch.run.weights import publisher, spawn_holder
from launch.screen.reporter import RunReporter
from launch.settings.rules_rl import transfer_backend

_ENGINE: Any = RolloutWorker
"""Its methods as plain functions: ray.method hides from type checkers that they are."""


def on_one_gpu(config: RunConfig) -> bool:
    """Whether engines and other groups are on the same GPUs."""
    return bool(config.cluster.placement == "shared" and config.rollout.gpus_per_engine)


def build_rl(config: RunConfig, placement: Placement, reporter: RunReporter, roster: Roster) -> Any:
    """Start all groups of a PPO or GRPO run and return its loop."""
    algorithm = config.algorithm
    assert isinstance(algorithm, RLConfig)
    backend = transfer_backend(config)
    directory = write_skeleton(config.model, config.directory / "model")
    reporter.phase("starting engines")
    rollout = roster.add("rollout", RolloutWorker, config.rollout.timeout_s, placement, CONCURRENCY)
    share = config.rollout.gpu_share(shared=config.cluster.placement == "shared")
    engines = config.rollout.model_copy(update={"gpu_memory_utilization": share})
    rollout.spawn(directory, engines, config.model, backend, config.run.seed)
    starting = [rollout.submit(rank, _ENGINE.ready) for rank in range(len(rollout))]

    # Imported only now: torch and DeepSpeed take seconds, in which the engines are already starting.
    from actors.train.policy import PolicyWorker
    from algorithms.rl.deals import split_by
    from algorithms.rl.grpo import GRPO
    from algorithms.rl.ppo import PPO

    reporter.phase("loading models")
    policy = roster.add("policy", PolicyWorker, config.policy.timeout_s, placement)
    policy.spawn(config.model, directory, config.policy, config.run.seed)
    spawn_holder(config, placement, roster)
    frozen = _spawn_frozen(config, directory, placement, roster)
    critic = _spawn_critic(config, directory, placement, roster)
    roster.pool = _reward_pool(config, placement)
    reporter.phase("reading data")
    drawn, prompts, data = _rl_data(config, directory, reporter)
    roster.rollouts = _rollouts(config, rollout, roster.pool, prompts, data["batches"])
    if problem := job_kind(config).steps_problem(drawn):
        raise UserError(problem)
    steps = _total_steps(algorithm, drawn)
    waits = partial(reporter.progress, what="ready")
    engines_ready = partial(rollout.gather, starting, "ready", timeout_s=config.rollout.start_timeout_s, told=waits)
    if on_one_gpu(config):
        # vLLM takes its share by what is free while it starts: what comes and goes meanwhile ends it, or is counted.
        reporter.phase("starting engines")
        engines_ready()
    building = start_building(policy, _policy_updates(algorithm, steps))
    rollout.notice(starting, "ready")
    trained = roster.members("policy", "critic", *(["reference"] if config.reference.sync_every else []))
    saves = Saves(trained)
    connection = Connection(config, roster)
    arguments: dict[str, Any] = {
        "config": algorithm,
        "roster": roster,
        "rollouts": roster.rollouts,
        "split": split_by(rollout, _ENGINE.split),
        "publish": publisher(config, roster, connection, directory),
        "checkpoint": RunCheckpointer(config, saves, placement.nodes),
        "reporter": reporter,
        "sampling": _sampling(config, algorithm),
        "micro_batch_tokens": _budgets(config),
        "seed": config.run.seed,
        "total_steps": steps,
        "samples_per_step": config.tracking.samples_per_step,
        "eval_samples": config.tracking.eval_samples,
        "shaper": _shaper(config),
        **_reference(config, roster),
        **data,
    }
    loop = PPO(**arguments) if critic else GRPO(**arguments)
    reporter.phase("loading models")
    loading = [(critic, start_building(critic, steps * algorithm.updates_per_step))] if critic else []
    loading += [(group, start_loading(group, worker.build)) for worker, group in frozen.values()]
    for group, models in [*loading, (policy, building)]:
        built(group, models, reporter)
    reporter.phase("preparing to send weights")
    policy.call(PolicyWorker.prepare_to_connect)
    reporter.phase("starting engines")
    engines_ready()
    reporter.phase("connecting engines")
    connection.ensure()
    resume(config, saves, loop, reporter)
    return loop


def _total_steps(algorithm: RLConfig, prompts: int) -> int:
    """Steps of the run over this many prompts."""
    total = algorithm.total_steps(prompts)
    assert total is not None, "only unknown prompts leave it open"
    return total


def _policy_updates(algorithm: RLConfig, steps: int) -> int:
    # In the critic's warm-up the policy makes no updates, so its schedule has as many fewer.
    waits = min(steps, getattr(algorithm, "critic_warmup_steps", 0))
    return (steps - waits) * algorithm.updates_per_step


def _reward_pool(config: RunConfig, placement: Placement) -> RewardPool | None:
    if not config.reward.functions and not config.reward.endpoints:
        return None
    places = [slot.strategy for slot in placement.slots["reward"]]
    return RewardPool(config.reward, cpus_per_worker=REWARD_WORKER_CPUS, places=places)


def _sampling(config: RunConfig, algorithm: RLConfig) -> Sampling:
    return Sampling(
        samples=algorithm.samples_per_prompt,
        temperature=config.rollout.temperature,
        max_tokens=config.rollout.max_response_tokens,
    )


def _spawn_frozen(
    config: RunConfig, directory: str, placement: Placement, roster: Roster
) -> dict[str, tuple[type[Any], ActorGroup[Any]]]:
    """Name -> worker class and group, of the reference and the reward models."""
    from actors.train.reference import ReferenceWorker, ScoringWorker

    found: dict[str, tuple[type[Any], ActorGroup[Any]]] = {}
    if config.reference_group:
        group = roster.add("reference", ReferenceWorker, config.reference.timeout_s, placement)
        plain = config.model.model_copy(update={"lora": None, "freeze": []})
        group.spawn(plain, directory, config.reference, config.run.seed)
        found["reference"] = (ReferenceWorker, group)
    for index, name in reward_model_groups(config):
        source = config.reward.models[index]
        path = located(source.path, field=f"reward.models.{index}.path")
        require_same_tokens(directory, path, f"reward.models.{index}.path")
        group = roster.add(name, ScoringWorker, source.group.timeout_s, placement)
        group.spawn(_other_model(config, source.path), path, source.group, config.run.seed)
        found[name] = (ScoringWorker, group)
    return found


def _spawn_critic(config: RunConfig, directory: str, placement: Placement, roster: Roster) -> ActorGroup[Any] | None:
    """The critic, from its own path, the only reward model, or the policy's body with a new head."""
    from actors.train.critic import CriticWorker

    if config.critic is None:
        return None
    path = critic_path(config)
    if path:
        path = located(path, field="critic.path")
        require_same_tokens(directory, path, "critic.path")
    model = _other_model(config, path) if path else config.model
    model = model.model_copy(update={"lora": config.critic.lora, "quantize": None, "freeze": []})
    group = roster.add("critic", CriticWorker, config.critic.timeout_s, placement)
    group.spawn(model, path or directory, config.critic, config.run.seed)
    return group


def critic_path(config: RunConfig) -> str | None:
    """Directory that the critic starts from; None for the policy's."""
    if config.critic and config.critic.path:
        return config.critic.path
    models = config.reward.models
    return models[0].path if len(models) == 1 else None


def _other_model(config: RunConfig, path: str) -> ModelConfig:
    """The settings of a model beside the policy."""
    own = {"path": path, "revision": None, "init": None, "lora": None, "quantize": None, "freeze": []}
    return config.model.model_copy(update=own)


def _reference(config: RunConfig, roster: Roster) -> dict[str, Any]:
    """Who gives reference logprobs, and the reward models."""
    from actors.train.policy import PolicyWorker
    from actors.train.reference import ReferenceWorker
    from algorithms.rewards.models import RewardModelGroup
    from algorithms.rewards.scores import sources_labels

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
    found = {"reference": reference, "read_reference": method, "models": models}
    if config.reference.sync_every:
        found["sync_reference"] = reference_sync(config, roster)
    return found


def _budgets(config: RunConfig) -> dict[str, int]:
    """Token budget of a micro-batch of each group."""
    reference = config.reference if config.reference_group else config.policy
    budgets = {"policy": config.policy.micro_batch_tokens, "reference": reference.micro_batch_tokens}
    return budgets | ({"critic": config.critic.micro_batch_tokens} if config.critic else {})


def _shaper(config: RunConfig) -> Any:
    from algorithms.rl.shaper import RewardShaper

    algorithm = config.algorithm
    assert isinstance(algorithm, RLConfig)
    return RewardShaper(
        normalize=config.reward.normalize,
        clip=config.reward.clip,
        overlong=algorithm.overlong,
        missing_eos_penalty=algorithm.missing_eos_penalty,
        max_response_tokens=config.rollout.max_response_tokens,
    )


def _rollouts(
    config: RunConfig, engines: ActorGroup[Any], pool: RewardPool | None, prompts: list[Prompt], batches: Batches
) -> Any:
    """Where scored groups come from; `batches` says which of the prompts come next."""
    from algorithms.rollouts.engines import RayEngines
    from algorithms.rollouts.rollouts import Limits, Rollouts

    algorithm = config.algorithm
    assert isinstance(algorithm, RLConfig)
    limits = Limits(
        silence_s=config.rollout.timeout_s,
        prompt_s=config.rollout.prompt_timeout_s,
        max_failed=config.reward.max_failed_fraction,
    )
    return Rollouts(
        RayEngines(engines),
        pool,
        (prompts[batches.next(1)[0]] for _ in count()),
        _sampling(config, algorithm),
        limits,
        groups_per_step=algorithm.prompts_per_step,
        max_staleness=algorithm.max_staleness,
    )


def _rl_data(config: RunConfig, directory: str, reporter: RunReporter) -> tuple[int, list[Prompt], dict[str, Any]]:
    """How many prompts one pass has, the prompts, and the loop's arguments about data."""
    data, limit = config.data, config.rollout.max_prompt_tokens
    found = run_data(config.algorithm, data, load_tokenizer(directory), max_prompt_tokens=limit)
    for note in found.notes:
        reporter.note(note)
    batches = row_order(found.sizes, data.weights, seed=config.run.seed, shuffle=data.shuffle)
    return found.drawn(data.weights), found.train, {"evaluation": found.held_out, "batches": batches}

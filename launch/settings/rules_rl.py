"""Rules of the jobs that sample responses: rewards, sampling, lengths, and how weights reach the engines.

Every failure is a ValueError whose text begins with the field.
"""

from actors.config import refuse_unused
from actors.config_rollout import RESHAPING
from algorithms.config_rl import RLConfig
from algorithms.rewards.built_in import BUILT_IN
from launch.config import RunConfig
from launch.settings.rules_overlap import check_overlap


def check_prompt_lengths(config: RunConfig) -> None:
    """Raise ValueError for lengths of sequences, which are not read, and for prompts that would lose their ends."""
    name, data = config.algorithm.name, config.data
    why = f"for {name}, which reads rollout.max_prompt_tokens and rollout.max_response_tokens"
    refuse_unused(data, "max_length", why=why, section="data.")
    if data.overlong == "truncate" and data.truncation_side == "right":
        raise ValueError(
            f"data.truncation_side must be left for {name}: cut at the right, a prompt would lose what is to be "
            f"answered, got right"
        )


def check_sampling(config: RunConfig, algorithm: RLConfig) -> None:
    """Raise ValueError for the first rule about sampled responses and their rewards that the configuration breaks."""
    _rewards_are_given(config)
    _whole_distribution_is_sampled(config, algorithm)
    _responses_can_differ(config, algorithm)
    _a_response_can_be_solved(config, algorithm)
    _overlong_fits(config, algorithm)
    _transfer_fits_devices(config)
    _engines_can_come_and_go(config)
    _ages_fit(config, algorithm)
    _something_runs_during_updates(config, algorithm)
    check_overlap(config, algorithm)
    _held_responses_can_end(config, algorithm)


def check_evaluation_is_asked(config: RunConfig, algorithm: RLConfig, rows: str) -> None:
    """Raise ValueError when evaluations are to take place and there are no rows, or the other way round."""
    if algorithm.eval_every and not config.data.evaluates:
        raise ValueError(f"algorithm.eval_every needs {rows}, got eval_every {algorithm.eval_every}")
    if config.data.eval_fraction is not None and not algorithm.eval_every:
        raise ValueError(f"data.eval_fraction needs algorithm.eval_every, got {config.data.eval_fraction:g} without")


def check_evaluation_comes(algorithm: RLConfig) -> None:
    """Raise ValueError when evaluation decides something, and no step has one."""
    if algorithm.stop_when and not algorithm.eval_every:
        raise ValueError("algorithm.stop_when needs algorithm.eval_every, got none")
    if algorithm.best_by and not algorithm.eval_every:
        raise ValueError(f"algorithm.best_by needs algorithm.eval_every, got {algorithm.best_by} without")


def _rewards_are_given(config: RunConfig) -> None:
    reward, name = config.reward, config.algorithm.name
    sources = [*reward.functions, *reward.models, *reward.endpoints]
    if not sources:
        raise ValueError(
            f"reward.functions must name at least one reward for {name}, or reward.models or reward.endpoints, got []"
        )
    if not any(source.weight for source in sources):
        raise ValueError("reward must have a source with a weight other than 0, got weight 0 for all of them")
    # Only functions and endpoints have processes of their own.
    if not reward.functions and not reward.endpoints:
        why = "with reward.models alone, which are groups of their own"
        refuse_unused(reward, "workers", "deadline_s", "memory_mib", "pass_env", why=why, section="reward.")


def _whole_distribution_is_sampled(config: RunConfig, algorithm: RLConfig) -> None:
    rollout = config.rollout
    for name, value in rollout.reshaped_by.items():
        if algorithm.correction:
            # With rollouts of older weights, what is left out is auto.
            rule = "null" if algorithm.max_staleness else "left out"
            brought = f" of max_staleness {algorithm.max_staleness}" * (algorithm.importance_correction == "auto")
            raise ValueError(
                f"algorithm.importance_correction must be {rule} with rollout.{name} {value:g}: the weights{brought} "
                f"would compare the policy with {RESHAPING[name]}"
            )
        if algorithm.kl_coef and algorithm.kl_in == "reward":
            raise ValueError(
                f"algorithm.kl_in must be loss, or kl_coef 0, with rollout.{name} {value:g}: the reward's KL would be "
                f"not the policy's but that of {RESHAPING[name]}, a hidden penalty for length"
            )


def _responses_can_differ(config: RunConfig, algorithm: RLConfig) -> None:
    rollout = config.rollout
    for name in ("samples_per_prompt", "eval_samples_per_prompt"):
        for greedy in ("top_k", "min_p"):  # either keeps one token: the first, or those as likely as the likeliest
            if getattr(algorithm, name) > 1 and getattr(rollout, greedy) == 1:
                raise ValueError(
                    f"rollout.{greedy} must not be 1 with algorithm.{name} {getattr(algorithm, name)}: only the "
                    f"likeliest token is left, so all responses to a prompt would be the same, got 1"
                )


def _a_response_can_be_solved(config: RunConfig, algorithm: RLConfig) -> None:
    reward = config.reward
    if not algorithm.eval_every or algorithm.eval_samples_per_prompt < 2:
        return
    if reward.models or reward.endpoints or any(each.name not in BUILT_IN for each in reward.functions):
        return
    most = sum(max(0.0, each.weight) for each in reward.functions)  # each of them gives from 0 to 1
    if most < algorithm.eval_pass_reward - 1e-9:  # a sum of floats
        raise ValueError(
            f"algorithm.eval_pass_reward must be at most {most:g}, the most that reward.functions with their weights "
            f"give, or no response is ever solved, got {algorithm.eval_pass_reward:g}"
        )


def _overlong_fits(config: RunConfig, algorithm: RLConfig) -> None:
    longest = config.rollout.max_response_tokens
    if algorithm.overlong and algorithm.overlong.buffer > longest:
        raise ValueError(
            f"algorithm.overlong.buffer must not exceed rollout.max_response_tokens ({longest}), "
            f"got {algorithm.overlong.buffer}"
        )


def _ages_fit(config: RunConfig, algorithm: RLConfig) -> None:
    rollout = config.rollout
    if not algorithm.max_staleness:
        why = "with algorithm.max_staleness 0, where no response becomes too old"
        refuse_unused(rollout, "late", "max_attempts", why=why, section="rollout.")
    elif rollout.late == "wait":
        refuse_unused(
            rollout, "max_attempts", why="with rollout.late wait, where none starts again", section="rollout."
        )
    if algorithm.max_staleness and rollout.tail != "none":
        raise ValueError(
            f"rollout.tail must be none with algorithm.max_staleness {algorithm.max_staleness}, where no step waits "
            f"for its longest responses, got {rollout.tail}"
        )
    if rollout.tail == "none":
        refuse_unused(rollout, "tail_share", why="with rollout.tail none", section="rollout.")
    if algorithm.max_staleness and config.cluster.placement == "shared" and rollout.gpus_per_engine:
        raise ValueError(
            f"algorithm.max_staleness must be 0 with cluster.placement shared, where engines and policy take turns on "
            f"the same GPUs, got {algorithm.max_staleness}"
        )


def _transfer_fits_devices(config: RunConfig) -> None:
    backend = config.rollout.transfer.backend
    if backend in ("nccl", "ipc") and not (config.rollout.gpus_per_engine and config.policy.gpus_per_rank):
        raise ValueError(
            f"rollout.transfer.backend {backend} needs GPUs on both sides, got policy.gpus_per_rank "
            f"{config.policy.gpus_per_rank:g} and rollout.gpus_per_engine {config.rollout.gpus_per_engine:g}"
        )
    if backend == "nccl" and config.cluster.placement == "shared":
        raise ValueError(
            "rollout.transfer.backend must be ipc with cluster.placement shared, as NCCL refuses two processes on one "
            "GPU, got nccl"
        )
    on_gpu = config.rollout.gpus_per_engine and config.policy.gpus_per_rank
    if on_gpu and config.cluster.placement == "shared" and config.rollout.most > config.policy.ranks:
        raise ValueError(
            f"rollout.engines must be at most policy.ranks ({config.policy.ranks}) with cluster.placement shared, as "
            f"an engine takes its weights from the policy's rank on its GPU, got {config.rollout.most}"
        )
    if backend == "ipc" and config.cluster.placement != "shared":
        raise ValueError(f"rollout.transfer.backend ipc needs cluster.placement shared, got {config.cluster.placement}")
    if config.rollout.transfer.store == "holder" and (chosen := transfer_backend(config)) != "gloo":
        raise ValueError(
            f"rollout.transfer.backend must be gloo with rollout.transfer.store holder, which keeps weights in host "
            f"memory, got {backend}" + f", which is {chosen} here" * (backend == "auto")
        )


def _engines_can_come_and_go(config: RunConfig) -> None:
    engines = config.rollout.engines
    if isinstance(engines, int):
        return
    got = f"got {{min: {engines.min}, max: {engines.max}}}"
    if config.cluster.placement == "shared":
        raise ValueError(
            f"rollout.engines must be a number with cluster.placement shared, where each has a bundle of the other "
            f"groups, {got}"
        )
    if not config.run.max_restarts:
        raise ValueError(f"rollout.engines must be a number with run.max_restarts 0, where none comes back, {got}")


def _something_runs_during_updates(config: RunConfig, algorithm: RLConfig) -> None:
    if not algorithm.max_staleness:
        why = "with algorithm.max_staleness 0, where no response is running when new weights come"
        refuse_unused(config.rollout, "on_update", "update_order", why=why, section="rollout.")


def _held_responses_can_end(config: RunConfig, algorithm: RLConfig) -> None:
    rollout, most = config.rollout, config.rollout.max_step_tokens
    if most is None:
        return
    if not algorithm.max_staleness:
        why = "with algorithm.max_staleness 0, where all tokens of a response are of one version"
        refuse_unused(rollout, "max_step_tokens", why=why, section="rollout.")
    longest, versions = rollout.max_response_tokens, algorithm.max_staleness + 1
    if most * versions < longest:
        raise ValueError(
            f"rollout.max_step_tokens must be at least {-(-longest // versions)}, as a response of "
            f"rollout.max_response_tokens ({longest}) has {versions} versions to end in (algorithm.max_staleness "
            f"{algorithm.max_staleness} and 1), got {most}"
        )
    if most >= longest:
        raise ValueError(
            f"rollout.max_step_tokens must be below rollout.max_response_tokens ({longest}), or no response is ever "
            f"held, got {most}"
        )
    if rollout.on_update == "restart":
        raise ValueError(
            f"rollout.on_update must be recompute or keep_cache with rollout.max_step_tokens {most}: responses that "
            f"begin anew at every version would never have more tokens, got restart"
        )
    if rollout.presence_penalty:
        raise ValueError(
            f"rollout.presence_penalty must be 0 with rollout.max_step_tokens {most}: vLLM would not penalize tokens "
            f"that a response had before it went on, got {rollout.presence_penalty:g}"
        )


def transfer_backend(config: RunConfig) -> str:
    """`rollout.transfer.backend`, with auto decided by where policy and engines live."""
    chosen = config.rollout.transfer.backend
    if chosen != "auto":
        return chosen
    on_gpu = config.policy.gpus_per_rank and config.rollout.gpus_per_engine
    return ("ipc" if config.cluster.placement == "shared" else "nccl") if on_gpu else "gloo"

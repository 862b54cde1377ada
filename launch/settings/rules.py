"""Rules across the sections of a RunConfig: what each of them allows the others.

Every failure is a ValueError whose text begins with the field.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from actors.config import FrozenGroupConfig, PlacedConfig, ReferenceConfig, changed, refuse_unused
from actors.config_rollout import RESHAPING
from algorithms.config_encoder import EmbeddingConfig, EncoderConfig
from algorithms.config_offline import DPOConfig
from algorithms.config_rl import PPOConfig, RLConfig
from algorithms.loop import less_is_better
from algorithms.rewards.functions import BUILT_IN
from launch.kube.config import check_kubernetes
from launch.settings.metric_names import UNORDERED, require_metric
from launch.settings.rules_adapters import check_adapters

if TYPE_CHECKING:
    from launch.config import RunConfig


def check_rules(config: "RunConfig") -> None:
    """Raise ValueError for the first rule that the configuration breaks."""
    _lengths_fit(config)
    if isinstance(config.algorithm, RLConfig):
        _rewards_are_given(config)
        _whole_distribution_is_sampled(config)
        _responses_can_differ(config)
        _a_response_can_be_solved(config)
        _overlong_fits(config)
        _transfer_fits_devices(config)
    else:
        _nothing_is_sampled(config)
    _encoders_fit(config)
    _evaluation_is_possible(config)
    _critic_fits(config)
    _reference_fits(config)
    check_adapters(config)
    _precision_is_kept(config)
    _groups_can_share(config)
    check_kubernetes(config)
    if config.model.attention == "flash_attention_2" and not config.policy.gpus_per_rank:
        raise ValueError("model.attention flash_attention_2 needs policy.gpus_per_rank > 0, got 0")


def _encoders_fit(config: "RunConfig") -> None:
    data, model, algorithm = config.data, config.model, config.algorithm
    name = algorithm.name
    if not isinstance(algorithm, EncoderConfig):
        refuse_unused(data, "corpus", why=f"for {name}, which searches nothing", section="data.")
        if isinstance(data.eval, dict):
            raise ValueError(f"data.eval must be one source for {name}, got {', '.join(data.eval) or 'none'}")
        if isinstance(data.train, dict):
            _sets_are_named(data.train)
        if model.init and model.init.family == "bert":
            raise ValueError(f"model.init.family must be qwen2 or llama for {name}, which reads forward only, got bert")
        return
    refuse_unused(data, "max_length", why=f"for {name}, which reads algorithm.max_tokens", section="data.")
    refuse_unused(data, "system_prompt", why=f"for {name}, which has prompts of its own", section="data.")
    why = f"for {name}, which cuts texts at algorithm.max_tokens"
    refuse_unused(data, "overlong", "truncation_side", why=why, section="data.")
    why = f"for {name}, whose evaluation sets have columns of their own (data.eval)"
    refuse_unused(data, "eval_fraction", why=why, section="data.")
    refuse_unused(data, "weights", why=f"for {name}, whose tasks have a share (algorithm.tasks)", section="data.")
    refuse_unused(config.policy, "logprob_chunk_tokens", why=f"for {name}, which has no logits", section="policy.")
    if isinstance(data.train, dict) and not (isinstance(algorithm, EmbeddingConfig) and algorithm.tasks):
        where = "without algorithm.tasks" if isinstance(algorithm, EmbeddingConfig) else f"for {name}"
        raise ValueError(f"data.train must be one source {where}, got {', '.join(data.train) or 'none'}")
    if isinstance(data.eval, dict):
        _sets_are_named(data.eval, "data.eval")
    if data.corpus is not None and data.eval is None:
        raise ValueError(f"data.corpus needs data.eval, which searches it or names its ids, got {data.corpus} without")
    if model.quantize:
        raise ValueError(f"model.quantize must be left out for {name}, got {model.quantize}")
    if model.attention == "packed_sdpa":
        raise ValueError(f"model.attention must be auto or flash_attention_2 for {name}, got packed_sdpa")
    if isinstance(algorithm, EmbeddingConfig) and model.init and algorithm.pooling is None:
        raise ValueError("algorithm.pooling must be cls, mean, last or max with model.init, got nothing")
    positions = model.init.max_positions if model.init else None
    if positions and algorithm.max_tokens and algorithm.max_tokens > positions:
        raise ValueError(
            f"algorithm.max_tokens must not exceed model.init.max_positions ({positions}), got {algorithm.max_tokens}"
        )


def _sets_are_named(sets: Iterable[str], field: str = "data.train") -> None:
    if not sets:
        raise ValueError(f"{field} must name at least one set, got {{}}")
    for name in sets:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(
                f"{field} must have names of letters, digits, _, . and - (they are parts of metrics' names), "
                f"got {name!r}"
            )


def _lengths_fit(config: "RunConfig") -> None:
    if isinstance(config.algorithm, EncoderConfig):
        return
    positions = config.model.init.max_positions if config.model.init else None
    rl = isinstance(config.algorithm, RLConfig)
    if rl:
        why = f"for {config.algorithm.name}, which reads rollout.max_prompt_tokens and rollout.max_response_tokens"
        refuse_unused(config.data, "max_length", why=why, section="data.")
        if config.data.overlong == "truncate" and config.data.truncation_side == "right":
            raise ValueError(
                f"data.truncation_side must be left for {config.algorithm.name}: cut at the right, a prompt would lose "
                f"what is to be answered, got right"
            )
    if positions is None:
        return
    name = "rollout.max_prompt_tokens + rollout.max_response_tokens" if rl else "data.max_length"
    longest = config.rollout.max_model_len if rl else config.data.max_length
    if longest > positions:
        raise ValueError(f"{name} must not exceed model.init.max_positions ({positions}), got {longest}")


def _rewards_are_given(config: "RunConfig") -> None:
    reward, name = config.reward, config.algorithm.name
    sources = [*reward.functions, *reward.models, *reward.endpoints]
    if not sources:
        raise ValueError(
            f"reward.functions must name at least one reward for {name}, or reward.models or reward.endpoints, got []"
        )
    if not any(source.weight for source in sources):
        raise ValueError("reward must have a source with a weight other than 0, got weight 0 for all of them")
    if not reward.functions and not reward.endpoints:
        why = "with reward.models alone, which are groups of their own"
        refuse_unused(reward, "workers", "deadline_s", "memory_mib", "pass_env", why=why, section="reward.")


def _nothing_is_sampled(config: "RunConfig") -> None:
    for name, section in {"reward": config.reward, "rollout": config.rollout}.items():
        if given := changed(section):
            raise ValueError(
                f"{name} must be left out for {config.algorithm.name}, which samples no responses, "
                f"got {', '.join(given)}"
            )


def _whole_distribution_is_sampled(config: "RunConfig") -> None:
    algorithm, rollout = config.algorithm, config.rollout
    assert isinstance(algorithm, RLConfig)
    for name, value in rollout.reshaped_by.items():
        if algorithm.importance_correction:
            raise ValueError(
                f"algorithm.importance_correction must be left out with rollout.{name} {value:g}: the weights would "
                f"compare the policy with {RESHAPING[name]}"
            )
        if algorithm.kl_coef and algorithm.kl_in == "reward":
            raise ValueError(
                f"algorithm.kl_in must be loss, or kl_coef 0, with rollout.{name} {value:g}: the reward's KL would be "
                f"not the policy's but that of {RESHAPING[name]}, a hidden penalty for length"
            )


def _a_response_can_be_solved(config: "RunConfig") -> None:
    algorithm, reward = config.algorithm, config.reward
    assert isinstance(algorithm, RLConfig)
    if not algorithm.eval_every or algorithm.eval_samples_per_prompt < 2:
        return
    if reward.models or reward.endpoints or any(each.name not in BUILT_IN for each in reward.functions):
        return
    most = sum(max(0.0, each.weight) for each in reward.functions)  # each of them gives from 0 to 1
    if most < algorithm.eval_pass_reward - 1e-9:
        raise ValueError(
            f"algorithm.eval_pass_reward must be at most {most:g}, the most that reward.functions with their weights "
            f"give, or no response is ever solved, got {algorithm.eval_pass_reward:g}"
        )


def _responses_can_differ(config: "RunConfig") -> None:
    algorithm, rollout = config.algorithm, config.rollout
    assert isinstance(algorithm, RLConfig)
    for name in ("samples_per_prompt", "eval_samples_per_prompt"):
        for greedy in ("top_k", "min_p"):
            if getattr(algorithm, name) > 1 and getattr(rollout, greedy) == 1:
                raise ValueError(
                    f"rollout.{greedy} must not be 1 with algorithm.{name} {getattr(algorithm, name)}: only the "
                    f"likeliest token is left, so all responses to a prompt would be the same, got 1"
                )


def _overlong_fits(config: "RunConfig") -> None:
    algorithm, longest = config.algorithm, config.rollout.max_response_tokens
    if isinstance(algorithm, RLConfig) and algorithm.overlong and algorithm.overlong.buffer > longest:
        raise ValueError(
            f"algorithm.overlong.buffer must not exceed rollout.max_response_tokens ({longest}), "
            f"got {algorithm.overlong.buffer}"
        )


def _evaluation_is_possible(config: "RunConfig") -> None:
    algorithm = config.algorithm
    rl = isinstance(algorithm, RLConfig)
    evaluates = config.data.evaluates
    rows = "data.eval" if isinstance(algorithm, EncoderConfig) else "data.eval or data.eval_fraction"
    if rl and algorithm.eval_every and not evaluates:
        raise ValueError(f"algorithm.eval_every needs {rows}, got eval_every {algorithm.eval_every}")
    if rl and config.data.eval_fraction is not None and not algorithm.eval_every:
        raise ValueError(f"data.eval_fraction needs algorithm.eval_every, got {config.data.eval_fraction:g} without")
    if algorithm.stop_when and not evaluates:
        raise ValueError(f"algorithm.stop_when needs {rows}, got none")
    if algorithm.best_by and not evaluates:
        raise ValueError(f"algorithm.best_by needs {rows}, got {algorithm.best_by} without")
    if algorithm.stop_when and rl and not algorithm.eval_every:
        raise ValueError("algorithm.stop_when needs algorithm.eval_every, got none")
    if algorithm.best_by and rl and not algorithm.eval_every:
        raise ValueError(f"algorithm.best_by needs algorithm.eval_every, got {algorithm.best_by} without")
    if algorithm.stop_when:
        require_metric(config, "algorithm.stop_when.metric", algorithm.stop_when.metric)
        if algorithm.stop_when.at_least is not None and less_is_better(algorithm.stop_when.metric):
            raise ValueError(
                f"algorithm.stop_when.at_least must be at_most for {algorithm.stop_when.metric}, of which less is "
                f"better (best_by takes the lowest), got {algorithm.stop_when.at_least:g}"
            )
    if algorithm.best_by:
        require_metric(config, "algorithm.best_by", algorithm.best_by, UNORDERED)


def _critic_fits(config: "RunConfig") -> None:
    ppo = isinstance(config.algorithm, PPOConfig)
    if ppo and config.critic is None:
        raise ValueError("critic: required for ppo (critic={} takes the defaults), got nothing")
    if config.critic is not None and not ppo:
        raise ValueError(f"critic must be left out for {config.algorithm.name}, which learns no values, got one")
    if config.critic is not None:
        refuse_unused(config.critic, "ema_decay", why="as a critic is not exported", section="critic.")


def _reference_fits(config: "RunConfig") -> None:
    reference, algorithm = config.reference, config.algorithm
    if isinstance(algorithm, DPOConfig) and not algorithm.needs_reference and reference != ReferenceConfig():
        raise ValueError(
            f"reference must be left out for loss {', '.join(algorithm.losses)}, which compares with none, got settings"
        )
    if reference.from_policy and config.model.lora is None:
        raise ValueError(
            "reference.from_policy needs model.lora, without which there are no adapters to disable, got true"
        )
    if not config.reference_needed:
        refuse_unused(reference, why="where the algorithm compares with no reference", section="reference.")
    if reference.from_policy:
        why = "with from_policy, which starts no group"
        refuse_unused(reference, *FrozenGroupConfig.model_fields, why=why, section="reference.")
    if reference.sync_every and isinstance(algorithm, DPOConfig) and algorithm.reference == "precomputed":
        raise ValueError(
            f"reference.sync_every must be left out with algorithm.reference precomputed, whose logprobs are those of "
            f"the initial policy, got {reference.sync_every}"
        )
    if reference.sync_every and reference.sync_mix < 1 and config.model.dtype == "bf16":
        raise ValueError(
            f"reference.sync_mix must be 1 with model.dtype bf16, in which small changes of the reference would be "
            f"rounded away, got {reference.sync_mix:g}"
        )
    if reference.sync_every and config.model.quantize:
        raise ValueError(
            f"reference.sync_every must be left out with model.quantize, whose weights cannot be replaced, "
            f"got {reference.sync_every}"
        )


def _precision_is_kept(config: "RunConfig") -> None:
    groups = {"policy": config.policy} | ({"critic": config.critic} if config.critic else {})
    for name, group in groups.items():
        if config.model.dtype == "bf16" and group.zero_stage == 0:
            raise ValueError(
                f"{name}.zero_stage must be 1, 2 or 3 with model.dtype bf16, "
                "as DeepSpeed accumulates the gradients of stage 0 in bf16, got 0"
            )


def _groups_can_share(config: "RunConfig") -> None:
    if config.cluster.placement == "separate" and not isinstance(config.algorithm, RLConfig):
        raise ValueError(
            f"cluster.placement must be split for {config.algorithm.name}, which has no rollout engines, got separate"
        )
    if config.cluster.placement == "separate":
        for name, group in _placed(config).items():
            if chosen := group.node_labels.get("ray.io/node-id"):
                raise ValueError(
                    f"{name}.node_labels.ray.io/node-id must be left out with cluster.placement separate, got {chosen}"
                )
    if config.cluster.placement != "shared":
        return
    _shared_bundles_are_one_place(config)
    asked = {"policy.gpus_per_rank": config.policy.gpus_per_rank}
    if isinstance(config.algorithm, RLConfig):
        asked["rollout.gpus_per_engine"] = config.rollout.gpus_per_engine
        for index, model in enumerate(config.reward.models):
            asked[f"reward.models.{index}.group.gpus_per_rank"] = model.group.gpus_per_rank
    if config.critic is not None:
        asked["critic.gpus_per_rank"] = config.critic.gpus_per_rank
    if config.reference_group:
        asked["reference.gpus_per_rank"] = config.reference.gpus_per_rank
    used = {name: gpus for name, gpus in asked.items() if gpus}
    if len(set(used.values())) > 1 or max(used.values(), default=0) > 1:
        got = ", ".join(f"{name} {gpus:g}" for name, gpus in used.items())
        raise ValueError(f"cluster.placement shared needs groups that ask for the same, at most 1, GPU, got {got}")


def _shared_bundles_are_one_place(config: "RunConfig") -> None:
    """Rank i of all groups is where bundle i is: no group has a say of its own."""
    labels: dict[str, str] = {}
    for name, group in _placed(config).items():
        knob = "engines_per_node" if name == "rollout" else "ranks_per_node"
        if per_node := getattr(group, knob):
            raise ValueError(f"{name}.{knob} must be left out with cluster.placement shared, got {per_node}")
        for label, value in group.node_labels.items():
            if labels.setdefault(label, value) != value:
                raise ValueError(
                    f"{name}.node_labels.{label} must be that of the other groups with cluster.placement shared "
                    f"({labels[label]}), got {value}"
                )


def _placed(config: "RunConfig") -> dict[str, PlacedConfig]:
    """Section -> what is placed by it."""
    groups: dict[str, PlacedConfig] = {"policy": config.policy, "reference": config.reference}
    groups |= {"rollout": config.rollout} | ({"critic": config.critic} if config.critic else {})
    return groups | {f"reward.models.{index}.group": model.group for index, model in enumerate(config.reward.models)}


def _transfer_fits_devices(config: "RunConfig") -> None:
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
    if on_gpu and config.cluster.placement == "shared" and config.rollout.engines > config.policy.ranks:
        raise ValueError(
            f"rollout.engines must be at most policy.ranks ({config.policy.ranks}) with cluster.placement shared, as "
            f"an engine takes its weights from the policy's rank on its GPU, got {config.rollout.engines}"
        )
    if backend == "ipc" and config.cluster.placement != "shared":
        raise ValueError(f"rollout.transfer.backend ipc needs cluster.placement shared, got {config.cluster.placement}")
    if config.rollout.transfer.store == "holder" and (chosen := transfer_backend(config)) != "gloo":
        raise ValueError(
            f"rollout.transfer.backend must be gloo with rollout.transfer.store holder, which keeps weights in host "
            f"memory, got {backend}" + f", which is {chosen} here" * (backend == "auto")
        )


def transfer_backend(config: "RunConfig") -> str:
    """`rollout.transfer.backend`, with auto decided by where policy and engines live."""
    chosen = config.rollout.transfer.backend
    if chosen != "auto":
        return chosen
    on_gpu = config.policy.gpus_per_rank and config.rollout.gpus_per_engine
    return ("ipc" if config.cluster.placement == "shared" else "nccl") if on_gpu else "gloo"

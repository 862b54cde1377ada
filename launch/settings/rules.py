"""Rules across the sections of a RunConfig: what each of them allows the others, whatever the job.

Those of one kind of job are called by it (`launch/kinds/`). Every failure is a ValueError whose text begins with the
field.
"""

from actors.config import PlacedConfig
from launch.config import RunConfig
from launch.kinds.kind import JobKind
from launch.kinds.table import job_kind
from launch.settings.memory_copies import check_copies
from launch.settings.rules_adapters import check_adapters
from launch.settings.rules_alerts import check_alerts
from launch.settings.rules_kubernetes import check_kubernetes


def check_rules(config: RunConfig) -> None:
    """Raise ValueError for the first rule that the configuration breaks: first those of its kind of job."""
    kind = job_kind(config)
    kind.check_sections()
    kind.check_evaluation()
    kind.check_critic()
    kind.check_reference()
    kind.check_dropout()
    check_adapters(config, sent=kind.samples_responses)
    check_copies(config)
    check_alerts(config, kind.step_metrics(), kind.metric_names())
    _precision_is_kept(config)
    _groups_can_share(config, kind)
    check_kubernetes(config)
    if config.model.attention == "flash_attention_2" and not config.policy.gpus_per_rank:
        raise ValueError("model.attention flash_attention_2 needs policy.gpus_per_rank > 0, got 0")


def _precision_is_kept(config: RunConfig) -> None:
    # A reference has no gradients to accumulate.
    groups = {"policy": config.policy} | ({"critic": config.critic} if config.critic else {})
    for name, group in groups.items():
        if config.model.dtype == "bf16" and group.zero_stage == 0:
            raise ValueError(
                f"{name}.zero_stage must be 1, 2 or 3 with model.dtype bf16, "
                "as DeepSpeed accumulates the gradients of stage 0 in bf16, got 0"
            )


def _groups_can_share(config: RunConfig, kind: JobKind) -> None:
    if config.cluster.placement == "separate" and not kind.samples_responses:
        raise ValueError(
            f"cluster.placement must be split for {config.algorithm.name}, which has no rollout engines, got separate"
        )
    if config.cluster.placement == "separate":
        for name, group in _placed(config).items():
            # `separate` keeps groups apart by this very label (launch/run/reserve.py).
            if chosen := group.node_labels.get("ray.io/node-id"):
                raise ValueError(
                    f"{name}.node_labels.ray.io/node-id must be left out with cluster.placement separate, got {chosen}"
                )
    if config.cluster.placement != "shared":
        return
    _shared_bundles_are_one_place(config)
    asked = {"policy.gpus_per_rank": config.policy.gpus_per_rank}
    asked["rollout.gpus_per_engine"] = config.rollout.gpus_per_engine
    for index, model in enumerate(config.reward.models):
        asked[f"reward.models.{index}.group.gpus_per_rank"] = model.group.gpus_per_rank
    if config.critic is not None:
        asked["critic.gpus_per_rank"] = config.critic.gpus_per_rank
    if config.reference_group:
        asked["reference.gpus_per_rank"] = config.reference.gpus_per_rank
    used = {name: gpus for name, gpus in asked.items() if gpus}  # groups on CPUs share no GPU
    # Ray gives several GPUs only whole, and a bundle's GPU is divided by the number of its groups.
    if len(set(used.values())) > 1 or max(used.values(), default=0) > 1:
        got = ", ".join(f"{name} {gpus:g}" for name, gpus in used.items())
        raise ValueError(f"cluster.placement shared needs groups that ask for the same, at most 1, GPU, got {got}")


def _shared_bundles_are_one_place(config: RunConfig) -> None:
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


def _placed(config: RunConfig) -> dict[str, PlacedConfig]:
    """Section -> what is placed by it."""
    groups: dict[str, PlacedConfig] = {"policy": config.policy, "reference": config.reference}
    groups |= {"rollout": config.rollout} | ({"critic": config.critic} if config.critic else {})
    return groups | {f"reward.models.{index}.group": model.group for index, model in enumerate(config.reward.models)}

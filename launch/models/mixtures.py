"""What a configuration asks of a mixture of experts, checked by the fields of its config.json. No torch."""

from collections.abc import Mapping

from actors.config import LoraConfig, UserError
from actors.models.mixture_limits import refuse_divided, refuse_mixed_tokens
from launch.config import RunConfig
from launch.models.transformers_source import balances_experts, fuses_experts
from launch.models.values import architecture_of
from launch.sizes.layers import expert_count


def check_mixture(config: RunConfig, values: Mapping[str, object], *, sampled: bool) -> None:
    """Check what is asked of a model with these fields, whether or not it is a mixture of experts.

    Args:
        config: with model and rollout.
        values: the fields of config.json.
        sampled: whether the job has engines that sample responses.

    Raises:
        UserError: a load-balancing loss that the model does not have; adapters of experts for engines; see
            `refuse_mixed_tokens` and `refuse_divided`.
    """
    kind, name = str(values["model_type"]), architecture_of(values) or str(values["model_type"])
    _check_balance(config.model.router_aux_loss, kind, name, several=expert_count(values) > 1)
    refuse_mixed_tokens(values)
    for group in ("policy", "reference"):
        if getattr(config, group).zero_stage == 3:
            refuse_divided(values, f"{group}.zero_stage")
    sends = sampled and config.model.lora and config.rollout.transfer.lora == "adapter"
    if sends and expert_count(values) > 1 and fuses_experts(kind) and _reaches_experts(config.model.lora):
        raise UserError(
            "rollout.transfer.lora: must be merged where adapters reach experts (model.lora.targets=[q_proj, v_proj] "
            f"names other layers; in bf16 merged needs max_merge_error) in {name}, got adapter"
        )


def _check_balance(coefficient: float | None, kind: str, name: str, *, several: bool) -> None:
    balances = balances_experts(kind)
    if coefficient and balances is not None and not (balances and several):
        where = "without experts" if balances else "in transformers"
        raise UserError(
            f"model.router_aux_loss: must be left out for {name}, which has no load-balancing loss ({where}), got "
            f"{coefficient:g}"
        )


def _reaches_experts(lora: LoraConfig | None) -> bool:
    """Whether targets name tensors of experts, under the names that transformers gives them when they are one."""
    if lora is None or isinstance(lora.targets, str):
        return lora is not None
    return any(target.rpartition(".")[2] in ("gate_up_proj", "up_proj", "down_proj") for target in lora.targets)

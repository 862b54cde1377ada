"""What a configuration asks of a mixture of experts, checked by the fields of its config.json. No torch."""

from collections.abc import Mapping

from actors.config import LoraConfig, UserError
from launch.config import RunConfig
from launch.models.transformers_source import balances_experts, fuses_experts
from launch.models.values import architecture_of

_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def check_mixture(config: RunConfig, values: Mapping[str, object], *, sampled: bool) -> None:
    """Check what is asked of a model with these fields, whether or not it is a mixture of experts.

    Args:
        config: with model and rollout.
        values: the fields of config.json.
        sampled: whether the job has engines that sample responses.

    Raises:
        UserError: a load-balancing loss that the model does not have; adapters of experts for engines; a family whose
            tokens are not computed apart.
    """
    kind, name = str(values["model_type"]), architecture_of(values) or str(values["model_type"])
    _check_balance(config.model.router_aux_loss, kind, name, several=_experts(values) > 1)
    if kind == "doge" and values.get("is_moe"):
        # transformers 5.19 reads the logits of [tokens, 2 keys] as [2, tokens, keys].
        raise UserError(
            f"model.path: {name} cannot be trained with is_moe, as transformers chooses the experts of a token by the "
            f"tokens that stand beside it in a batch, got is_moe=true"
        )
    sends = sampled and config.model.lora and config.rollout.transfer.lora == "adapter"
    if sends and _experts(values) > 1 and fuses_experts(kind) and _reaches_experts(config.model.lora):
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


def _experts(values: Mapping[str, object]) -> int:
    """Experts of a layer, 0 for other models."""
    parts = [values, values.get("ffn_config")]
    found = [part.get(name) for part in parts if isinstance(part, Mapping) for name in _COUNTS]
    return max((count for count in found if isinstance(count, int)), default=0)


def _reaches_experts(lora: LoraConfig | None) -> bool:
    """Whether targets name tensors of experts, under the names that transformers gives them when they are one."""
    if lora is None or isinstance(lora.targets, str):
        return lora is not None
    return any(target.rpartition(".")[2] in ("gate_up_proj", "up_proj", "down_proj") for target in lora.targets)

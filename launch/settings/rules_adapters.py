"""Rules about LoRA adapters and quantised weights across the sections of a RunConfig.

Every failure is a ValueError whose text begins with the field.
"""

from actors.config import LoraConfig, refuse_unused
from launch.config import RunConfig


def check_no_dropout(config: RunConfig, why: str) -> None:
    """Raise ValueError for dropout in the policy's adapters, where the job compares with what drops nothing."""
    if config.model.lora and config.model.lora.dropout:
        raise ValueError(f"model.lora.dropout must be 0 for {why}, got {config.model.lora.dropout:g}")


def check_adapters(config: RunConfig, *, sent: bool) -> None:
    """Raise ValueError for the first rule about adapters and quantised weights that the configuration breaks; `sent`:
    the weights go to engines."""
    lora = config.model.lora
    if config.critic and config.critic.lora and config.critic.lora.dropout:
        raise ValueError(
            f"critic.lora.dropout must be 0, as the values that an update starts from are read without dropout, "
            f"got {config.critic.lora.dropout:g}"
        )
    if lora and config.reference.sync_every and config.model.dtype == "bf16":
        raise ValueError(
            f"reference.sync_every must be left out with model.lora in model.dtype bf16, as rounding would take from "
            f"the reference most of what the adapters change, got {config.reference.sync_every}"
        )
    if lora is None:
        # `lora` is read nowhere then, and was merged by default in configurations that runs have kept.
        refuse_unused(config.rollout.transfer, "max_merge_error", why="without model.lora", section="rollout.transfer.")
    elif sent:
        _transfer_fits(config, lora)
    _quantized_weights_fit(config)


def _transfer_fits(config: RunConfig, lora: LoraConfig) -> None:
    transfer = config.rollout.transfer
    if transfer.lora == "adapter":
        refuse_unused(transfer, "max_merge_error", why="where adapters are not merged", section="rollout.transfer.")
        if lora.dora:
            raise ValueError(
                "rollout.transfer.lora must be merged with model.lora.dora, which vLLM does not serve, got adapter"
            )
        if lora.rank > 512:  # the largest that vLLM 0.32 has (MaxLoRARanks)
            raise ValueError(
                f"model.lora.rank must be at most 512 with rollout.transfer.lora adapter (merged has no limit), "
                f"got {lora.rank}"
            )
    elif config.model.dtype == "bf16" and transfer.max_merge_error is None:
        raise ValueError(
            "rollout.transfer.max_merge_error must be given with rollout.transfer.lora merged in model.dtype bf16, "
            "where rounding takes most of small changes: the share that may be lost (adapter and fp32 lose none), got "
            "none"
        )


def _quantized_weights_fit(config: RunConfig) -> None:
    if config.model.quantize and config.model.init:
        raise ValueError(f"model.quantize needs model.path, whose weights it quantises, got {config.model.quantize}")
    if config.model.quantize and config.policy.zero_stage == 3:
        raise ValueError(
            "policy.zero_stage must be 0, 1 or 2 with model.quantize, whose weights it cannot shard, got 3"
        )
    if config.model.quantize and not config.policy.gpus_per_rank:
        raise ValueError(
            f"model.quantize {config.model.quantize} needs a GPU (policy.gpus_per_rank above 0), "
            f"got {config.policy.gpus_per_rank:g}"
        )
    if config.model.quantize and config.reference_group and config.reference.zero_stage == 3:
        raise ValueError("reference.zero_stage must be 0 with model.quantize, whose weights it cannot shard, got 3")
    if config.model.quantize and config.reference_group and not config.reference.gpus_per_rank:
        raise ValueError(
            f"model.quantize {config.model.quantize} needs a GPU (reference.gpus_per_rank above 0), "
            f"got {config.reference.gpus_per_rank:g}"
        )

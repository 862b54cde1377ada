"""Rules about the frozen reference that a policy is compared with.

In two parts, as preference losses have a rule of their own between them. Every failure is a ValueError whose text
begins with the field.
"""

from actors.config import FrozenGroupConfig, refuse_unused
from launch.config import RunConfig


def check_reference_is_read(config: RunConfig) -> None:
    """Raise ValueError for settings of a reference that there is not, or that is no group."""
    reference = config.reference
    if reference.from_policy and config.model.lora is None:
        raise ValueError(
            "reference.from_policy needs model.lora, without which there are no adapters to disable, got true"
        )
    if not config.reference_needed:
        refuse_unused(reference, why="where the algorithm compares with no reference", section="reference.")
    if reference.from_policy:
        why = "with from_policy, which starts no group"
        refuse_unused(reference, *FrozenGroupConfig.model_fields, why=why, section="reference.")


def check_reference_can_follow(config: RunConfig) -> None:
    """Raise ValueError when the reference is to follow the policy and its weights cannot be replaced as asked."""
    reference = config.reference
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

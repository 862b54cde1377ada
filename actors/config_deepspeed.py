"""Which of DeepSpeed's own settings may be passed through, and why the others may not.

A table, as importing DeepSpeed takes seconds; a test compares it with the installed one.
"""

import difflib
import math
from collections.abc import Mapping
from typing import Any

Kind = type | tuple[str, ...]
"""Of a field: the type of its values, or all of these."""
Spec = Mapping[str, "Kind | Spec"]
"""Field -> its kind, or the fields below it."""

_SWITCH = {"enabled": bool}
_STAGE_3: Spec = {
    "stage3_prefetch_bucket_size": int,
    "stage3_param_persistence_threshold": int,
    "stage3_model_persistence_threshold": int,
    "stage3_max_live_parameters": int,
    "stage3_max_reuse_distance": int,
    "stage3_module_granularity_threshold": int,
    "stage3_use_all_reduce_for_fetch_params": bool,
    "stage3_allgather_sequential": bool,
    "sub_group_size": int,
    "memory_efficient_linear": bool,
    "zero_hpz_partition_size": int,
    "zero_quantized_weights": bool,
    "zero_quantized_nontrainable_weights": bool,
    "zero_quantized_gradients": bool,
    "log_trace_cache_warnings": bool,
    "enable_sanity_checks": bool,
    "leaf_module": {"classes": list, "names": list, "name_suffixes": list},
}
"""Fields of zero_optimization that stage 3 alone reads."""
_STAGES_1_2: Spec = {
    "use_multi_rank_bucket_allreduce": bool,
    "allgather_partitions": bool,
    "allgather_bucket_size": int,
    "ignore_unused_parameters": bool,
}
"""Fields of zero_optimization that stages 1 and 2 alone read."""
_ON_GPU = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")
"""Fields of zero_optimization whose kernels are for GPUs."""
FIELDS: Spec = {
    "zero_optimization": {
        "contiguous_gradients": bool,
        "reduce_scatter": bool,
        "reduce_bucket_size": int,
        "overlap_comm": bool,
        **_STAGES_1_2,
        **_STAGE_3,
    },
    "communication_data_type": ("fp32", "bf16", "fp16"),
    "prescale_gradients": bool,
    "gradient_predivide_factor": float,
    "comms_logger": _SWITCH | {"prof_all": bool, "prof_ops": list, "verbose": bool, "debug": bool},
    "flops_profiler": _SWITCH
    | {
        "recompute_fwd_factor": float,
        "profile_step": int,
        "module_depth": int,
        "top_modules": int,
        "detailed": bool,
        "output_file": str,
    },
    "timers": {"throughput": _SWITCH | {"synchronized": bool}},
    "steps_per_print": int,
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "dump_state": bool,
    "disable_python_gc": bool,
    "log_level": ("debug", "info", "warning", "error", "critical"),
}
"""What may be passed through."""

_BATCHES = "the algorithm's batch sizes and micro_batch_tokens decide it"
_OFFLOAD = "offload_optimizer decides it"
_PARAMETERS = "offload_parameters decides it"
_OPTIMIZER = "optimizer decides it"
_PRECISION = "model.dtype decides it"
_TRACKING = "tracking decides it"
_UNUSED = "nothing here reads it"
_NEEDED = "Tandem needs it as it is"
OURS: dict[str, str] = {
    "train_batch_size": _BATCHES,
    "train_micro_batch_size_per_gpu": _BATCHES,
    "gradient_accumulation_steps": _BATCHES,
    "managed_gradient_accumulation": _BATCHES,
    "gradient_allreduce_op": _BATCHES,
    "optimizer": _OPTIMIZER,
    "scheduler": "optimizer.schedule decides it",
    "gradient_clipping": "optimizer.max_grad_norm decides it",
    "fp16": _PRECISION,
    "bf16": _PRECISION,
    "amp": _PRECISION,
    "torch_autocast": _PRECISION,
    "data_types": _PRECISION,
    "seed": "run.seed decides it",
    "activation_checkpointing": "model.gradient_checkpointing decides it",
    "checkpoint": "checkpoint decides it",
    "tensorboard": _TRACKING,
    "wandb": _TRACKING,
    "csv_monitor": _TRACKING,
    "comet": _TRACKING,
    "zero_allow_untested_optimizer": _NEEDED,
    "zero_force_ds_cpu_optimizer": _NEEDED,
    "zero_optimization.stage": "zero_stage decides it",
    "zero_optimization.offload_optimizer": _OFFLOAD,
    "zero_optimization.cpu_offload": _OFFLOAD,
    "zero_optimization.cpu_offload_use_pin_memory": _OFFLOAD,
    "zero_optimization.zenflow": _OFFLOAD,
    "zero_optimization.pipeline_loading_checkpoint": _UNUSED,
    "zero_optimization.offload_param": _PARAMETERS,
    "zero_optimization.cpu_offload_param": _PARAMETERS,
    "zero_optimization.compute_grad_norm": _NEEDED,
    "zero_optimization.load_from_fp32_weights": _NEEDED,
    "zero_optimization.elastic_checkpoint": _NEEDED,
    "zero_optimization.round_robin_gradients": _NEEDED,
    "zero_optimization.parameter_alignment": _NEEDED,
    "zero_optimization.override_module_apply": _NEEDED,
    "zero_optimization.legacy_stage1": _UNUSED,
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": _UNUSED,
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": _UNUSED,
    "zero_optimization.save_muon_momentum_buffer_in_memory": _UNUSED,
    **dict.fromkeys(
        (
            "seq_parallel_communication_data_type",
            "disable_allgather",
            "dataloader_drop_last",
            "autotuning",
            "use_data_before_expert_parallelism",
            "expert_parallel",
            "hybrid_engine",
            "pipeline",
            "data_efficiency",
            "aio",
            "datastates_ckpt",
            "weight_quantization",
            "compression_training",
            "compile",
            "tensor_parallel",
            "sequence_parallel_size",
            "vocabulary_size",
        ),
        _UNUSED,
    ),
}
"""Dotted field of DeepSpeed -> why it may not be passed through."""


def check_deepspeed(options: Mapping[str, Any], zero_stage: int, *, gpu: bool) -> None:
    """Raise ValueError for the first of DeepSpeed's settings that is unknown, another's to decide, of no use, or not
    allowed by DeepSpeed itself with this stage or without a GPU."""
    _check(options, FIELDS, "")
    _check_zero(options, zero_stage)
    # Behind _check, so that what is there is a section of known fields.
    zero = options.get("zero_optimization", {})
    for name in _ON_GPU:
        if zero.get(name) and not gpu:
            raise ValueError(f"deepspeed.zero_optimization.{name} needs a GPU (gpus_per_rank above 0), got none")
    scales = {
        "prescale_gradients": options.get("prescale_gradients", False),
        "gradient_predivide_factor": options.get("gradient_predivide_factor", 1) != 1,
    }
    for name, does in scales.items():
        if does and zero_stage and zero.get("reduce_scatter", True):
            raise ValueError(
                f"deepspeed.{name} needs zero_stage 0, or zero_optimization.reduce_scatter false, got "
                f"zero_stage {zero_stage}"
            )
    if zero.get("reduce_bucket_size") == 0 or zero.get("allgather_bucket_size", 0) % 2:
        raise ValueError(
            f"deepspeed.zero_optimization must have a reduce_bucket_size above 0 and an even allgather_bucket_size, "
            f"got {_shown(zero)}"
        )


def _check_zero(options: Mapping[str, Any], zero_stage: int) -> None:
    """Whether the stage reads what zero_optimization says."""
    zero = options.get("zero_optimization", {})
    if zero and not zero_stage:
        raise ValueError(f"deepspeed.zero_optimization needs zero_stage 1, 2 or 3, got {', '.join(zero)} with stage 0")
    for name in zero:
        if (zero_stage == 3 and name in _STAGES_1_2) or (zero_stage < 3 and name in _STAGE_3):
            stages = "3" if name in _STAGE_3 else "1 or 2"
            raise ValueError(
                f"deepspeed.zero_optimization.{name} needs zero_stage {stages}, which alone reads it, got {zero_stage}"
            )


def _check(options: Mapping[str, object], known: Spec, section: str) -> None:
    for name, value in options.items():
        field = f"{section}{name}"
        if field in OURS:
            raise ValueError(f"deepspeed.{field} must be left out ({OURS[field]}), got {_shown(value)}")
        # Also among what is not to be passed through: whoever misspells that is told why it may not.
        if name not in known:
            near = difflib.get_close_matches(str(name), [*known, *_below(section)], 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"deepspeed.{field} must be a setting of DeepSpeed ({hint}), got {_shown(value)}")
        kind = known[name]
        if isinstance(kind, Mapping):
            if not isinstance(value, Mapping):
                raise ValueError(f"deepspeed.{field} must be a section ({', '.join(kind)}), got {_shown(value)}")
            _check(value, kind, f"{field}.")
        else:
            _check_value(field, value, kind)


def _below(section: str) -> list[str]:
    """Last parts of the fields of a section that are not to be passed through."""
    return [field.removeprefix(section) for field in OURS if field.rpartition(".")[0] == section.rstrip(".")]


def _check_value(field: str, value: object, kind: Kind) -> None:
    if isinstance(kind, tuple):
        fits, rule = value in kind, f"one of {', '.join(kind)}"
    elif kind is bool:
        fits, rule = isinstance(value, bool), "true or false"
    elif kind is list:
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
        rule = "a list of names"
    elif kind is str:
        fits, rule = isinstance(value, str), "text"
    else:
        # true and false are numbers, too, for Python.
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        fits = math.isfinite(number) and number >= 0 and (kind is float or number == int(number))
        rule = "a whole number, at least 0" if kind is int else "a number, at least 0"
    if not fits:
        raise ValueError(f"deepspeed.{field} must be {rule}, got {_shown(value)}")


def _shown(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."

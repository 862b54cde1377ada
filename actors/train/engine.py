"""DeepSpeed: initialise, accumulate, step, gather, save and load a trained model; no other file imports it.

DeepSpeed takes seconds to import, and the driver imports this module for what workers do: so only functions do, and
`load_library` for those who will need it.
"""

import importlib
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from actors.config import Dtype, GroupConfig, TrainerConfig
from actors.files import stored
from actors.models.precision import TORCH_DTYPES
from actors.train.checkpoint_files import CapturedFiles, CheckpointFiles, checkpoint_files, is_or_within
from actors.train.masters import masters, set_masters
from actors.train.optimizer import new_optimizer, trained_groups, whole_shape
from actors.train.schedule import rate_schedule, set_rate
from actors.train.shards import Shards
from actors.train.sums import gradients_divided
from actors.train.universal import load_universal

_TAG = "state"
"""Directory of DeepSpeed's files."""


def load_library() -> ModuleType:
    """DeepSpeed, imported."""
    if not torch.cuda.is_available():
        # Otherwise DeepSpeed guesses, and says so on the screen.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return importlib.import_module("deepspeed")


def checkpoint_types() -> tuple[type, ...]:
    """All that DeepSpeed's checkpoints hold beside plain data, at any ZeRO stage; none does anything when made."""
    load_library()
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return ZeroStageEnum, LossScaler, fragment_address


def join_process_group(store: Store, rank: int, world_size: int, timeout_s: float) -> None:
    """Join torch.distributed, through a store that all ranks share."""
    # DeepSpeed reads places from the environment.
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(world_size))
    dist.init_process_group(
        _backend(), store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s)
    )


def _backend() -> str:
    return "nccl" if torch.cuda.is_available() else "gloo"


def joined_library(timeout_s: float) -> ModuleType:
    """DeepSpeed, with the process group that this process has joined as its own."""
    deepspeed = load_library()
    if not torch.cuda.is_available():
        # The shared-memory all-reduce is compiled at first use with a C++ compiler; gloo needs neither.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    timeout = timedelta(seconds=timeout_s)
    deepspeed.init_distributed(_backend(), timeout=timeout, auto_mpi_discovery=False, verbose=False)
    return deepspeed


class _Stage3(Protocol):
    """DeepSpeed's optimizer of ZeRO-3, as far as it is looked into."""

    fp16_partitioned_groups_flat: list[torch.Tensor]
    fp32_partitioned_groups_flat: list[torch.Tensor]


def _checkpoint_files(frozen: set[str]) -> CheckpointFiles:
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    return checkpoint_files(TorchCheckpointEngine, frozen, checkpoint_types())


class TrainingEngine:
    """A model under DeepSpeed: ZeRO 0 to 3, fp32 or bf16, micro-batches accumulated until `step`."""

    def __init__(self, module: torch.nn.Module, group: TrainerConfig, dtype: Dtype, total_updates: int) -> None:
        trained = trained_groups(module)
        self.groups = [{name: whole_shape(each) for name, each in group.items()} for group in trained]
        """Shape of each trained parameter by name, for each group of the optimizer."""
        optimizer = new_optimizer(trained, group.optimizer)
        schedule = rate_schedule(optimizer, group.optimizer, total_updates)
        self.max_grad_norm = group.optimizer.max_grad_norm
        self.plain = group.zero_stage == 0 and dtype == "fp32"
        self.dtype = dtype
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.shards = Shards(self.world_size, group.zero_stage)
        # Left out, DeepSpeed's default would clip plain gradients to 1 behind our own clipping; 0 is never.
        config = deepspeed_config(group, dtype) | {"gradient_clipping": 0.0 if self.plain else self.max_grad_norm}
        self.module = module
        _cast_whole(module, dtype)
        self.engine, *_ = joined_library(group.timeout_s).initialize(
            model=module, optimizer=optimizer, lr_scheduler=schedule, config=config, dist_init_required=False
        )
        if group.zero_stage == 3 and not (group.offload_optimizer or group.offload_parameters):
            _without_copies(self.engine.optimizer)
        # Tied parameters by all of their names, as a state dict has them.
        named = module.named_parameters(remove_duplicate=False)
        self.frozen = {name for name, parameter in named if not parameter.requires_grad}
        self.files = self.engine.checkpoint_engine = _checkpoint_files(self.frozen)
        # What rank 0 writes past it.
        self.engine._copy_recovery_script = self.files.put_off(self.engine._copy_recovery_script)
        self.decay = group.ema_decay
        self.averages = [weights.detach().clone() for weights in masters(self.engine.optimizer)] if self.decay else []

    def forward(self, *inputs: object) -> Any:
        """What the module answers, with gradients: of a packed batch, logprobs and entropies [T]."""
        return self.engine(*inputs)

    def evaluate(self, *inputs: object) -> Any:
        """What the module answers, without gradients and dropout."""
        self.engine.eval()
        with torch.no_grad():
            outputs = self.engine(*inputs)
        self.engine.train()
        return outputs

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Accumulate gradients; `loss` is this rank's share of the sum over ranks and micro-batches.

        DeepSpeed averages over ranks, so the share is scaled by their number: the result is the sum.
        """
        self.engine.set_gradient_accumulation_boundary(last)
        # A single rank has nothing to reduce; DeepSpeed would still copy all gradients to a buffer and back.
        alone = self.plain and self.world_size == 1
        with self.engine.no_sync() if alone else nullcontext():
            self.engine.backward(loss * self.world_size)

    def step(self, divisor: float = 1.0) -> float:
        """Divide the gradients by `divisor`, clip, update and advance the schedule; returns the gradient norm before
        clipping."""
        norm = None
        with gradients_divided(self.engine.optimizer, self.module, divisor):
            if self.plain:
                parameters = self.module.parameters()
                # Clipped here, as a norm that is not finite is then found before any weight has changed.
                norm = _finite(torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))
            self.engine.step()
        # DeepSpeed computes it as a part of its step, not before.
        norm = _finite(self.engine.get_global_grad_norm()) if norm is None else norm
        if self.decay:
            for average, weights in zip(self.averages, masters(self.engine.optimizer), strict=True):
                # Of the float32 weights: in bf16, steps as small as 1 - decay would be rounded away.
                average.lerp_(weights.detach(), 1 - self.decay)
        return norm

    def skip(self) -> float:
        """Advance the schedule as `step` does, and leave weights and moments as they are; returns 0, the norm."""
        assert self.engine.lr_scheduler is not None
        self.engine.lr_scheduler.step()
        return 0.0

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it, the model has the average of its trained weights, where one is kept; collective."""
        if not self.decay:
            yield
            return
        own = [weights.detach().clone() for weights in masters(self.engine.optimizer)]
        set_masters(self.engine.optimizer, self.averages)
        try:
            yield
        finally:
            set_masters(self.engine.optimizer, own)

    @property
    def updates(self) -> int:
        """Updates made, and skipped."""
        assert self.engine.lr_scheduler is not None
        return self.engine.lr_scheduler.last_epoch

    @property
    def learning_rate(self) -> float:
        """Rate of the next update."""
        return float(self.engine.get_lr()[0])

    def parameters(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Full parameters, one at a time; collective under ZeRO-3: every rank iterates in the same order."""
        for name, parameter in getattr(self.module, prefix).named_parameters():
            with gathered([parameter]):
                yield name, parameter.detach()

    def save(self, directory: Path, further: Mapping[str, object] | None = None) -> dict[str, str]:
        """Write what is trained, optimizer and schedule: every rank its share; collective.

        Args:
            directory: of the checkpoint.
            further: name -> what this rank keeps beside them, in files of its own.

        Returns this rank's files' SHA-256.

        Raises:
            OSError: this rank could not write; no rank writes any more then, nor waits for another one.
        """
        files = self.files
        files.hashes.clear()
        files.failed = None
        self._save(directory, further)
        if files.failed is not None:
            raise files.failed
        if self.rank == 0:  # else DeepSpeed would write it while the others wait
            _write_tag(directory)
        return {str(path.relative_to(directory)): sha256 for path, sha256 in files.hashes.items()}

    def capture(self, directory: Path, further: Mapping[str, object] | None = None) -> CapturedFiles:
        """What `save` would write, in memory, to be written later: nothing that is trained meanwhile changes it;
        collective. The files are, byte by byte, those of `save`."""
        captured = self.files.captured = CapturedFiles()
        try:
            self._save(directory, further)
        finally:
            self.files.captured = None
        if self.rank == 0:
            captured.add(partial(_write_tag, directory))
        return captured

    def _save(self, directory: Path, further: Mapping[str, object] | None) -> None:
        files, mine = self.files, dict(further or {})
        if self.decay and (self.rank == 0 or not self.plain):
            mine[f"average-{self.rank}.pt"] = self.averages
        files.makedirs(str(directory), exist_ok=True)
        # Before DeepSpeed's own, behind which all ranks wait for each other.
        for name, value in mine.items():
            files.save(value, str(directory / name))
        self.engine.save_checkpoint(str(directory), tag=_TAG, save_latest=False, exclude_frozen_parameters=True)

    def load(self, directory: Path, saved: Shards | None = None) -> tuple[float, float]:
        """Restore what `save` wrote; raises ValueError when it is not there, or of another model, UserError when it is
        more than data, or cannot be divided as this engine's state is.

        Args:
            directory: of the checkpoint.
            saved: what its state is divided by (default: by what this engine's is).

        Returns the rate of the next update by the schedule of then, and by this one, which holds: of a run of another
        number of updates it is another one.
        """
        if saved is None or saved.same_files(self.shards):
            then = self._load_own(directory)
        else:
            read = partial(stored.read, types=checkpoint_types(), mapped=True)
            then = load_universal(self, directory, saved, read)
        set_rate(self.engine.lr_scheduler)
        return then, self.learning_rate

    def _load_own(self, directory: Path) -> float:
        """Restore what as many ranks have saved with this ZeRO stage, by DeepSpeed's own means: bit for bit."""
        path, _ = self.engine.load_checkpoint(str(directory), tag=_TAG, custom_load_fn=self._load_trained)
        if path is None:
            raise ValueError(f"{directory}: holds no checkpoint of this group")
        if self.decay:
            # Plain ranks have the same weights, however many there are.
            file = directory / f"average-{0 if self.plain else self.rank}.pt"
            found = stored.read(file)  # on CPU: it may have been written on a GPU that is not here
            for average, saved in zip(self.averages, found, strict=True):
                average.copy_(saved)
        return self.learning_rate

    def _load_trained(self, src: dict[str, torch.Tensor], dst: torch.nn.Module) -> None:
        """Load the model's part of a checkpoint, `src`: all that is trained; older ones have what is frozen, too."""
        result = dst.load_state_dict(src, strict=False)
        missing = [name for name in result.missing_keys if not is_or_within(name, self.frozen)]
        if missing or result.unexpected_keys:
            lacks = f"lacks {', '.join(missing[:3])}" if missing else f"has {', '.join(result.unexpected_keys[:3])}"
            raise ValueError(f"the checkpoint is of another model: it {lacks}")


def _write_tag(directory: Path) -> None:
    (directory / "latest").write_text(_TAG, encoding="utf-8")


def _without_copies(optimizer: _Stage3) -> None:
    """Leave ZeRO-3 in float32 one copy of a rank's weights, which is what is trained, too.

    DeepSpeed 0.19.8 means to, but takes the parameters for being elsewhere: it compares a device with the name of one.
    """
    for share, master in zip(
        optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True
    ):
        if (share.dtype, share.device) == (master.dtype, master.device):
            master.data = share.data


def is_sharded(parameter: torch.Tensor) -> bool:
    """Whether a rank holds only its share of a parameter; never of a buffer."""
    return hasattr(parameter, "ds_id")


def _cast_whole(module: torch.nn.Module, dtype: Dtype) -> None:
    """Where parameters are sharded already, DeepSpeed takes the others, such as adapters, for cast already, too."""
    if any(is_sharded(parameter) for parameter in module.parameters()):
        _cast(module, dtype)


def _cast(module: torch.nn.Module, dtype: Dtype) -> None:
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(TORCH_DTYPES[dtype])


def inference_module(module: torch.nn.Module, group: GroupConfig, dtype: Dtype) -> torch.nn.Module:
    """A frozen model for logprobs: plain, or sharded over the ranks by ZeRO-3."""
    module.requires_grad_(False)
    module.eval()
    # transformers keeps some parameters of some families in float32, DeepSpeed none of a policy: a reference that is
    # the policy's very model shall read what it does.
    _cast(module, dtype)
    if group.zero_stage < 3:
        return module
    library = joined_library(group.timeout_s)
    engine, *_ = library.initialize(model=module, config=deepspeed_config(group, dtype), dist_init_required=False)
    engine.eval()
    return engine


def gathered(parameters: Sequence[torch.Tensor], *, changed: bool = False) -> AbstractContextManager[object]:
    """A context in which the parameters are whole also under ZeRO-3, where every rank must enter it.

    `changed`: all ranks then get what rank 0 has made of them.
    """
    sharded = [parameter for parameter in parameters if is_sharded(parameter)]
    if not sharded:
        return nullcontext()
    return load_library().zero.GatheredParameters(sharded, 0 if changed else None)


@contextmanager
def to_the_end(tensors: Iterator[object]) -> Iterator[None]:
    """Afterwards, what is `gathered` one by one is so to the end, also on ranks that use none of it, and where one
    fails to write it: the other ranks would wait for that one."""
    try:
        yield
    finally:
        deque(tensors, maxlen=0)


def _finite(norm: float | torch.Tensor) -> float:
    """The norm, or FloatingPointError; DeepSpeed 0.19.8 says inf also where it is NaN."""
    if not math.isfinite(norm):
        raise FloatingPointError(f"the gradient norm of an update is {float(norm)}: the model is lost, see the log")
    return float(norm)


def deepspeed_config(group: GroupConfig, dtype: Dtype) -> dict[str, object]:
    """DeepSpeed's configuration for a group."""
    zero: dict[str, object] = {"stage": group.zero_stage, "contiguous_gradients": True}
    if group.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if group.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    if group.zero_stage == 3:
        # At 0 even the smallest parameter is sharded, which DeepSpeed would else keep whole on every rank.
        zero |= {"stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True}
    config: dict[str, object] = {
        # Sizes are ours to count: micro-batches are packed by tokens and the boundary is set by hand.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == "bf16"},
        # Left to itself, DeepSpeed sums micro-batches, and stage 1 also ranks, in bf16.
        **({"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"} if dtype == "bf16" else {}),
        # Never: what a run prints is ours.
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    # The settings that are passed through are checked not to be ours; see `actors.config_deepspeed`.
    return config | group.deepspeed | {"zero_optimization": zero | group.deepspeed.get("zero_optimization", {})}

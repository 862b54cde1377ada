"""Frozen groups: the reference gives logprobs of rollouts, a reward model gives scores.

The driver imports this module for its method names; models are imported only where a worker needs them.
"""

from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from actors.config import GroupConfig, ModelConfig
from actors.episodes import Place, Sequence, experience
from actors.files.full_disk import told_when_full
from actors.files.own_files import StoredFile, sha256_of
from actors.files.pieces import Contents
from actors.models.packed import PackedBatch
from actors.pulse import beside
from actors.train.engine import gathered, inference_module, is_sharded, load_library, to_the_end
from actors.train.kept import KeptWorker
from actors.train.sharding import Sharding, sharding
from actors.train.shards import Shards
from actors.train.worker import Handed, Held, Input, Plan, Shares, Worker, pack_sequences, read_inputs

if TYPE_CHECKING:
    from actors.models.tensor_files import Meta

_WEIGHTS = "weights.safetensors"


class FrozenWorker(Worker):
    """One data-parallel rank of a group that only reads."""

    shares_prompts: bool
    engine_length: int | None = None
    """See TrainedWorker."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        model: ModelConfig,
        directory: str,
        group: GroupConfig,
        seed: int,
        *,
        engine_length: int | None = None,
    ) -> None:
        super().__init__(rank, world_size, seed)
        if group.zero_stage == 3:
            load_library()  # seconds in which the driver has other things to do
        self.model_config = model
        self.directory = directory
        self.group = group
        self.engine_length = engine_length

    def meet(self, address: str, port: int) -> Sharding | None:
        """Meet the other ranks; returns what divides the model over them, None where each is to hold the whole."""
        self.join(address, port, self.group.timeout_s)
        return sharding(self.group, self.model_config.dtype)

    def hold(self, module: torch.nn.Module) -> None:
        """Hold the module, frozen."""
        self.module = inference_module(module.to(self.device), self.group, self.model_config.dtype)

    def read(self, batch: PackedBatch, temperature: float = 1.0) -> torch.Tensor:
        """What the model reads out of a batch, [T]."""
        with torch.no_grad():
            return self.module(batch, temperature, self.group.logprob_chunk_tokens)[0]


class ReferenceWorker(KeptWorker, FrozenWorker):
    """One data-parallel rank of the reference."""

    _captured: "tuple[list[Meta], list[tuple[str, torch.Tensor]]] | None" = None
    """What is still to be written of a checkpoint."""

    def build(self, address: str, port: int) -> None:
        """Meet the other ranks and load the frozen model."""
        from actors.models.load import TokenLogprobs, load_model

        divider = self.meet(address, port)
        self.hf_model = load_model(self.model_config, self.directory, divider, engine_length=self.engine_length)
        module = TokenLogprobs(self.hf_model)
        self.shares_prompts = module.shares_prompts
        self.hold(module)

    def logprobs(self, shares: Shares, plan: Plan, held: Held, temperature: float, *inputs: Input) -> Handed:
        """`reference_logprobs` of rollouts.

        Args:
            shares: what each rank that goes on with them needs of them.
            plan: what is read, micro-batch by micro-batch.
            held: what is in the lists of episodes that `inputs` are.
            temperature: at which they were sampled.

        Returns:
            see `Worker.read_episodes`.
        """
        return self.read_episodes(
            lambda batch: self.read(batch, temperature),
            "reference_logprobs",
            shares,
            plan,
            held,
            inputs,
            share_prompts=self.shares_prompts,
        )

    def outputs(self, plan: list[list[Sequence]], share_prompts: bool = False) -> list[list[float]]:
        """Sum of logprobs over the action tokens of every sequence of the plan."""
        return self.read_sequences(self.read, plan, share_prompts=share_prompts and self.shares_prompts)

    @torch.no_grad()
    def follow(self, file: Path, mix: float) -> None:
        """Become mix x the weights in a file of `PolicyWorker.write_weights` + (1 - mix) x its own; collective."""
        from actors.models.state import state_tensors
        from actors.models.tensor_files import read_tensor

        for name, tensor in state_tensors(self.hf_model):
            with gathered([tensor], changed=True):
                # Of what is sharded, the other ranks get what rank 0 writes.
                if self.rank == 0 or not is_sharded(tensor):
                    other = read_tensor(file, name).to(tensor.device)
                    # In float32 and rounded once: in bf16 a small mix would change nothing. There is nothing between
                    # two integers.
                    mixed = torch.lerp(tensor.float(), other.float(), mix) if other.is_floating_point() else other
                    tensor.copy_(mixed)

    def save(self, directory: Path) -> list[StoredFile]:
        """Write the weights of a reference that follows the policy; returns the file."""
        from actors.models.lora import parameter_metas, plain_parameters

        tensors = plain_parameters(self.hf_model, gathered, merged=False)
        with to_the_end(tensors):
            return [] if self.rank else _write_weights(directory, parameter_metas(self.hf_model), tensors)

    def capture(self, directory: Path) -> None:
        """Keep in memory what `save` would write, for `write_captured`; what was kept before is forgotten."""
        from actors.models.lora import parameter_metas, plain_parameters

        self._captured = None  # first: there is room for one
        tensors = plain_parameters(self.hf_model, gathered, merged=False)
        with to_the_end(tensors):
            if self.rank == 0:
                copies = [(name, tensor.detach().to("cpu", copy=True)) for name, tensor in tensors]
                self._captured = parameter_metas(self.hf_model), copies

    @beside
    def write_captured(self, directory: Path) -> list[StoredFile]:
        """Write what `capture` has kept, and forget it; returns the file. Raises LookupError where nothing was kept."""
        if self.rank:
            return []
        captured, self._captured = self._captured, None
        if captured is None:
            raise LookupError(f"nothing was captured for {directory}")
        return _write_weights(directory, *captured)

    def captured_files(self) -> Contents:
        """As of `KeptWorker`: rank 0 has all of it."""
        from safetensors.torch import save

        from actors.models.lora import plain_parameters

        tensors = plain_parameters(self.hf_model, gathered, merged=False)
        with to_the_end(tensors):
            if self.rank:
                return deque()
            content = save({name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors})
        return deque([(_WEIGHTS, deque([content]))])

    def load(self, directory: Path, saved: Shards | None = None) -> None:
        """Restore what `save` wrote, which is whole, by however many ranks it is `saved`."""
        self.follow(directory / _WEIGHTS, 1.0)  # a mix of 1 is the file itself


def _write_weights(
    directory: Path, metas: "list[Meta]", tensors: Iterable[tuple[str, torch.Tensor]]
) -> list[StoredFile]:
    from actors.models.tensor_files import write_tensors

    file = directory / _WEIGHTS
    with told_when_full(file):
        directory.mkdir(parents=True, exist_ok=True)
        write_tensors({file: metas}, tensors, None)
    return [(_WEIGHTS, file.stat().st_size, sha256_of(file))]


class ScoringWorker(FrozenWorker):
    """One data-parallel rank of a frozen reward model."""

    def build(self, address: str, port: int) -> None:
        """Meet the other ranks and load the frozen model."""
        from actors.models.load import TokenValues, load_value_model

        divider = self.meet(address, port)
        module = TokenValues(load_value_model(self.model_config, self.directory, divider, needs_head=True))
        self.shares_prompts = module.shares_prompts
        self.hold(module)

    def scores(self, plan: Plan, held: Held, *inputs: Input) -> dict[Place, float]:
        """Score of each episode, read at its last sampled token; `held` says what is in the lists that `inputs` are."""
        episodes, _ = read_inputs(held, inputs)
        found: dict[Place, float] = {}
        for places in plan:
            sequences = [experience(episodes[place]) for place in places]
            # Where training has read it: at the last sampled token, whatever was sampled before.
            batch = pack_sequences(sequences, self.device, share_prompts=self.shares_prompts, read="end")
            found.update(zip(places, batch.sequence_sums(self.read(batch)).tolist(), strict=False))
            self.work.progressed()
        return found

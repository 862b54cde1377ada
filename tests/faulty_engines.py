"""A rollout engine into which a test can put faults, at the places in its own process where they would arise, and some
of these."""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.config_rollout import OnUpdate, RolloutConfig, TransferConfig
from actors.rollout.worker import Adapter, RolloutWorker

CANARY = [(7 + 31 * position) % 90 for position in range(24)]
ROLLOUT = RolloutConfig(
    max_prompt_tokens=64,
    max_response_tokens=448,
    temperature=0.8,
    timeout_s=120,
    transfer=TransferConfig(bucket_mib=1, timeout_s=60),
    vllm={"max_num_batched_tokens": 777},
)


class Engine(RolloutWorker):
    """A rollout engine into which a test can put faults."""

    @ray.method(concurrency_group="control")
    async def break_with(self, fault: Callable[..., Callable[[], None]], *arguments: Any) -> None:
        """Put a fault into this process; `fault` gets the vLLM model and returns what takes it away again."""
        call = partial(_with_model, fault, arguments)
        [self.undo] = await self._between_steps(lambda: self.engine.llm.collective_rpc(call))

    @ray.method(concurrency_group="control")
    async def repair(self) -> None:
        """Take the fault away."""
        await self._between_steps(self.undo)

    @ray.method(concurrency_group="control")
    async def canary(self) -> np.ndarray:
        """Logprobs of the canary prompt, [L-1]."""
        return await self._between_steps(lambda: self.engine.logprobs(CANARY))

    @ray.method(concurrency_group="control")
    async def sample_with(self, settings: dict[str, Any]) -> tuple[int, int]:
        """Sample with other settings of `rollout` from now on; (most tokens of a pass, end-of-sequence token)."""
        from actors.rollout.vllm_options import sampling_params

        self.config = ROLLOUT.model_copy(update=settings)
        self.engine._params = lambda sampling: sampling_params(self.config, sampling)
        scheduler = self.engine.llm.llm_engine.vllm_config.scheduler_config
        return scheduler.max_num_batched_tokens, self.tokenizer.eos_token_id

    @ray.method(concurrency_group="control")
    async def hang(self, seconds: float) -> None:
        """The engine's thread does nothing for so long."""
        await self._between_steps(lambda: time.sleep(seconds))

    @ray.method(concurrency_group="control")
    async def update_as(self, on_update: OnUpdate) -> None:
        """With another `rollout.on_update` from now on."""
        await self._between_steps(lambda: setattr(self.engine, "_on_update", on_update))

    @ray.method(concurrency_group="control")
    async def tokens_so_far(self) -> int:
        """Sampled tokens of all that runs."""

        def tokens() -> int:
            samples = self.engine._running.values()
            return sum(self.engine._state(each).detokenizer.num_output_tokens() for each in samples)

        return await self._between_steps(tokens)

    @ray.method(concurrency_group="control")
    async def left(self) -> list[int]:
        """How many requests are open, aborted, and ended but not collected."""
        return [len(each) for each in (self._open, self._aborted, self._ended)]

    @ray.method(concurrency_group="control")
    async def running(self) -> int:
        """Requests that are running."""
        return await self._between_steps(lambda: self.engine.llm.llm_engine.get_num_unfinished_requests())


def _with_model(function: Callable[..., Any], arguments: tuple[Any, ...], worker: Any) -> Any:
    return function(worker.model_runner.get_model(), *arguments)


def stale_layer(model: Any, name: str) -> Callable[[], None]:
    """After the next transfer, one linear layer computes with its old packed weights, whatever arrived."""
    from actors.weights import vllm_receiver

    layer = model.get_submodule(name)
    stale, finish = layer.cpu_linear, vllm_receiver.ChecksumMixin.finish_weight_update

    def finish_with_one_stale(self: Any) -> None:
        finish(self)
        layer.cpu_linear = stale

    return _replace(vllm_receiver.ChecksumMixin, "finish_weight_update", finish_with_one_stale)


def stale_head(model: Any) -> Callable[[], None]:
    """The packed copy of a tied output embedding is not renewed: what vLLM does on CPU when left alone."""
    from actors.weights import vllm_receiver

    return _replace(vllm_receiver, "_repack_output_embeddings", lambda model: None)


def changed_in_transit(model: Any, name: str) -> Callable[[], None]:
    """One value of one tensor arrives a little different."""
    from actors.weights import vllm_receiver

    views = vllm_receiver.views

    def with_change(buffer: Any, metas: Any) -> Iterator[tuple[str, Any]]:
        for found, tensor in views(buffer, metas):
            if found == name:
                tensor.view(-1)[-1] += 1e-6
            yield found, tensor

    return _replace(vllm_receiver, "views", with_change)


def lost_in_transit(model: Any, name: str) -> Callable[[], None]:
    """The transfer fails in its middle."""
    from actors.weights import vllm_receiver

    views = vllm_receiver.views

    def until(buffer: Any, metas: Any) -> Iterator[tuple[str, Any]]:
        for found, tensor in views(buffer, metas):
            if found == name:
                raise RuntimeError(f"lost while receiving {name}")
            yield found, tensor

    return _replace(vllm_receiver, "views", until)


def dies_while_receiving(model: Any) -> Callable[[], None]:
    """The engine's process ends when the second bucket of a transfer comes."""
    from actors.weights import vllm_receiver

    receive, buckets = vllm_receiver.receive_bucket, count(1)

    def until_the_second(*arguments: Any) -> Any:
        return receive(*arguments) if next(buckets) < 2 else os._exit(1)

    return _replace(vllm_receiver, "receive_bucket", until_the_second)


def waits_while_receiving(model: Any, file: Path) -> Callable[[], None]:
    """When the second bucket of a transfer comes, the engine says so in a file, and waits until this is gone."""
    from actors.weights import vllm_receiver

    receive, buckets = vllm_receiver.receive_bucket, count(1)

    def wait_at_the_second(*arguments: Any) -> Any:
        if next(buckets) == 2:
            file.touch()
            while file.exists():
                time.sleep(0.05)
        return receive(*arguments)

    return _replace(vllm_receiver, "receive_bucket", wait_at_the_second)


def zeroed_layer(model: Any, name: str) -> Callable[[], None]:
    """After the next transfer, one linear layer gives zeros, whatever arrived."""
    layer = model.get_submodule(name)
    layer.cpu_linear = lambda x, *_: x.new_zeros(*x.shape[:-1], layer.output_size)
    return stale_layer(model, name)


def misnamed_adapter(model: Any, *layers: str) -> Callable[[], None]:
    """Layers of an adapter arrive under names for which the engine has none, about which vLLM says nothing."""
    from safetensors.torch import load, save

    from actors.rollout import engine as rollout_engine

    healthy = rollout_engine.EngineThread.load_adapter

    def with_other_names(self: Any, adapter: Adapter) -> Any:
        tensors = load(adapter.weights)
        for name in [name for name in tensors if any(layer in name for layer in layers)]:
            tensors[name.replace("model.layers", "model.lost_layers")] = tensors.pop(name)
        return healthy(self, Adapter(adapter.config, save(tensors)))

    return _replace(rollout_engine.EngineThread, "load_adapter", with_other_names)


def stale_adapter(model: Any, layer: str) -> Callable[[], None]:
    """A layer keeps the adapter that it had."""
    module = model.get_submodule(layer)
    healthy = module.set_lora
    module.set_lora = lambda *arguments: None

    def repair() -> None:
        module.set_lora = healthy

    return repair


def _replace(owner: Any, name: str, value: Any) -> Callable[[], None]:
    healthy = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, healthy)


def fails_half_way(model: Any) -> Callable[[], None]:
    """The model takes new weights, and then does not."""
    original = model.load_weights

    def load(weights: Any) -> Any:
        original(weights)
        raise RuntimeError("half of it is new")

    model.load_weights = load
    return lambda: setattr(model, "load_weights", original)

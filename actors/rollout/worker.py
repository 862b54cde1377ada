"""One rollout engine as a Ray actor: generation and control calls, each in its own concurrency group.

    start() --prompts--> [engine thread: add requests, step, collect] --generated()--> Rollouts
    pause / weights / canary --call--^    (never queued behind generation)

The driver imports this module for its method names, so vLLM is imported only where an engine is built.
"""

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import ray
import torch

from actors.batch import Rollout, RolloutStatus, VersionSpan
from actors.config import ModelConfig
from actors.config_rollout import RolloutConfig
from actors.failure import told_beside
from actors.files.own_files import load_data_only
from actors.group import write_output_to_log
from actors.models.hub_cache import configured_directory
from actors.models.tokenizer import load_tokenizer
from actors.quick_import import quick_vllm, without_science
from actors.rendezvous import meet_on_node_address
from actors.rollout.types import RolloutInfo, Sampling
from actors.weights.offer import Offer
from actors.weights.ticket import Got

T = TypeVar("T")

CONCURRENCY = {"generate": 4096, "control": 16}
"""Calls that run at one time in each concurrency group of a RolloutWorker."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter on its way to the engines: the two files of a PEFT directory."""

    config: str
    """adapter_config.json"""
    weights: bytes
    """adapter_model.safetensors"""


class RolloutWorker:
    """One engine of the rollout group."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        directory: str,
        config: RolloutConfig,
        model: ModelConfig,
        backend: str,
        seed: int,
    ) -> None:
        write_output_to_log()
        load_data_only()
        meet_on_node_address()
        without_science()
        with quick_vllm(compiled=config.compile or torch.cuda.is_available()):
            from actors.rollout.engine import EngineThread, build_llm

        self.config = config
        self.tokenizer = load_tokenizer(directory)
        directory = configured_directory(directory)
        self.engine = EngineThread(lambda: build_llm(directory, config, model, backend, seed + rank))

    @ray.method(concurrency_group="control")
    async def ready(self) -> None:
        """Returns once the engine can generate."""
        await asyncio.wrap_future(self.engine.ready)

    @ray.method(concurrency_group="control")
    async def start(self, prompts: list[tuple[int, list[int]]], sampling: Sampling, seed: int | None) -> None:
        """Start sampling responses to prompts, given as (number, token ids), together and in this order.

        With a `seed`, what is sampled depends on it, the prompts and their order alone. See `generated`.
        """
        from actors.rollout.engine import sampling_params

        params = sampling_params(self.config, sampling)
        await self._between_steps(lambda: self.engine.start(prompts, params, seed))

    @ray.method(concurrency_group="generate")
    async def generated(self, number: int) -> tuple[list[RolloutInfo], list[Rollout]]:
        """Responses to the prompt of this number, once all are finished: what the driver sees, and the rollouts.

        May be asked for, once, before or after the prompt is started.
        """
        if self.engine.version < 0:
            raise RuntimeError("asked to generate before the first weights arrived")
        try:
            output = await asyncio.wrap_future(self.engine.output(number))
        finally:
            self.engine.forget(number)
        prompt = list(output.prompt_token_ids or [])
        rollouts = [self._rollout(prompt, completion) for completion in output.outputs]
        return [_info(rollout) for rollout in rollouts], rollouts

    def _rollout(self, prompt: list[int], completion: Any) -> Rollout:
        tokens, ended_by = list(completion.token_ids), completion.stop_reason
        assert completion.logprobs.token_ids == tokens, "one logprob per sampled token"
        # Named here is one of rollout.stop_token_ids, which may be an ordinary token, unlike the end-of-sequence token.
        spoken = tokens[:-1] if isinstance(ended_by, int) else tokens
        text: str = self.tokenizer.decode(spoken, skip_special_tokens=True)  # type: ignore[assignment]
        if isinstance(ended_by, str):
            text = up_to_stop(text, ended_by, completion.text, keep=self.config.keep_stop_string)
        status: RolloutStatus = {"stop": "ok", "length": "truncated"}.get(completion.finish_reason, "failed")  # type: ignore[assignment]
        return Rollout(
            prompt_token_ids=prompt,
            response_token_ids=tokens,
            rollout_logprobs=np.array(completion.logprobs.logprobs, dtype=np.float32),
            versions=_spans(completion, len(tokens)),
            finish_reason=completion.finish_reason or "none",
            status=status,
            text=text,
        )

    @ray.method(concurrency_group="control")
    async def pause(self) -> None:
        """Stop stepping, keeping all running requests."""
        await self._between_steps(self.engine.pause)

    @ray.method(concurrency_group="control")
    async def resume(self) -> None:
        """Go on with the weights there are."""
        await self._between_steps(self.engine.resume)

    @ray.method(concurrency_group="control")
    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Join the transfer group."""
        await self._between_steps(lambda: self.engine.llm.init_weight_transfer_engine({"init_info": init_info}))

    @ray.method(concurrency_group="control")
    async def update_weights(self, update_info: Any, first: bool, remember_checksums: bool) -> None:
        """Receive weights that the trainer sends.

        At the first ones of a transfer, stop stepping, keeping all running requests, and prepare the model.
        """

        def receive() -> None:
            if first:
                self.engine.pause()
                self.engine.llm.collective_rpc("remember_checksums", args=(remember_checksums,))
                self.engine.llm.start_weight_update()
            self.engine.llm.update_weights({"update_info": update_info})

        await self._between_steps(receive)

    @ray.method(concurrency_group="control")
    async def finish_weight_update(self, version: int, canary: list[int] | None) -> Got | None:
        """Put the received weights into service as `version`, and go on; with a canary prompt, give account of them."""
        return await self._between_steps(lambda: self._finish(version, canary))

    def _finish(self, version: int, canary: list[int] | None) -> Got | None:
        self.engine.llm.finish_weight_update(str(version))
        self.engine.version = version
        self.engine.resume()
        if canary is None:
            return None
        return Got(self.engine.llm.collective_rpc("received_digest"), self.engine.logprobs(canary))

    held = -1
    """Version of the whole weights that `fetch` got last; -1 before the first, and while others take their place."""

    @ray.method(concurrency_group="control")
    async def weights_held(self) -> int:
        """`held`, once the engine is there."""
        await asyncio.wrap_future(self.engine.ready)
        return self.held

    @ray.method(concurrency_group="control")
    async def fetch(self, offer: Offer, version: int, canary: list[int] | None) -> Got | None:
        """Get whole weights from a holder and put them into service as `version`, or with -1 not yet.

        With a canary prompt, give account of them. Until all has come the engine goes on with what it has, and so it
        does when that fails; when the model does not take what has come, it does not generate before it has others.
        """

        def load() -> Got | None:
            self.engine.llm.collective_rpc("stage", args=(asdict(offer),))
            self.held = -1
            self.engine.pause()
            try:
                self.engine.forget_adapter()
                self.engine.llm.collective_rpc("remember_checksums", args=(canary is not None,))
                self.engine.llm.start_weight_update()
                self.engine.llm.update_weights({"update_info": offer.tensors})
                found = self._finish(version, canary)
            except BaseException as error:
                self.engine.version = -1
                with told_beside(error, "going on"):
                    self.engine.resume()
                raise
            self.held = offer.version
            return found

        return await self._between_steps(load)

    @ray.method(concurrency_group="control")
    async def load_adapter(self, adapter: Adapter, version: int, canary: list[int] | None) -> Got:
        """Put an adapter into service as `version`, in place of the one before, and go on.

        Gives account: per worker process, the digest of the tensors that its layers compute with, and the logprobs of
        the canary prompt, if there is one.
        """

        def load() -> Got:
            self.engine.pause()
            try:
                bound = self.engine.load_adapter(adapter)
                self.engine.llm.update_weight_version(str(version))
            except BaseException as error:
                with told_beside(error, "going on"):
                    self.engine.resume()
                raise
            self.engine.version = version
            self.engine.resume()
            logprobs = np.empty(0, dtype=np.float32) if canary is None else self.engine.logprobs(canary)
            return Got(bound, logprobs)

        return await self._between_steps(load)

    @ray.method(concurrency_group="control")
    async def worker_call(self, method: str, *args: Any) -> list[Any]:
        """Call a method of `actors.weights.transfer.WorkerExtension` on every worker process of this engine."""
        return await self._between_steps(lambda: self.engine.llm.collective_rpc(method, args=args))

    async def _between_steps(self, function: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self.engine.call(function))


def up_to_stop(text: str, stop: str, engine_text: str, *, keep: bool) -> str:
    """The text of a response that the string `stop` has ended, without it, or with `keep` up to its end.

    `text` is that of all tokens; the last one may go on behind `stop`. `engine_text` is the engine's own, which lacks
    `stop`: it counts where the tokens, decoded together, give other characters than one after the other.
    """
    # The first one is the one that ended it: an earlier one would have done so earlier.
    before, found, _ = text.partition(stop)
    return (before if found else engine_text) + (stop if keep else "")


def _spans(completion: Any, length: int) -> list[VersionSpan]:
    """Which weights sampled which tokens of a response. Raises RuntimeError when the engine does not say it of each."""
    spans = [span for span in completion.weight_versions or [] if span.end > span.start]
    if [*(span.start for span in spans), length] != [0, *(span.end for span in spans)]:
        raise RuntimeError(
            f"the engine must say of each of the {length} tokens of a response which weights have sampled it, and says "
            f"it of {[(span.start, span.end) for span in spans]}"
        )
    return [VersionSpan(version=int(span.version), start=span.start, end=span.end) for span in spans]


def _info(rollout: Rollout) -> RolloutInfo:
    return RolloutInfo(
        prompt_tokens=len(rollout.prompt_token_ids),
        response_tokens=len(rollout.response_token_ids),
        status=rollout.status,
        oldest_version=min((span.version for span in rollout.versions), default=-1),
    )

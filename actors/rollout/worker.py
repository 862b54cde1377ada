"""One rollout engine as a Ray actor: requests, weights and control calls, never queued behind generation.

    submit(requests) --> [engine] --poll()--> which requests have ended, collect(ids) --> their Episodes
    pause / weights / canary --call--^        abort(ids), progress(ids), stats(): beside generation

The driver imports this module for its method names, so vLLM is imported only where an engine is built.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import ray
import torch

from actors.config import ModelConfig
from actors.config_rollout import RolloutConfig
from actors.failure import told_beside
from actors.files.own_files import load_data_only
from actors.models.hub_cache import configured_directory
from actors.models.tokenizer import load_tokenizer
from actors.output_log import write_output_to_log
from actors.pulse import Pulse
from actors.quick_import import quick_vllm, without_science
from actors.rendezvous import meet_on_node_address
from actors.rollout.host import EngineHost
from actors.rollout.stop_strings import up_to_stop
from actors.rollout.types import Segment
from actors.weights.offer import Offer
from actors.weights.ticket import Got

T = TypeVar("T")

CONCURRENCY = {"requests": 64, "control": 16}
"""Calls that run at one time in each concurrency group of an engine's actor."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter on its way to the engines: the two files of a PEFT directory."""

    config: str
    """adapter_config.json"""
    weights: bytes
    """adapter_model.safetensors"""


class RolloutWorker(EngineHost):
    """One vLLM engine of the rollout group."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        directory: str,
        config: RolloutConfig,
        model: ModelConfig,
        backend: str,
        seed: int,
        keep_special_tokens: bool = False,
        ends: Sequence[int] = (),
    ) -> None:
        super().__init__(self._text, self._marked_text if keep_special_tokens else None)
        write_output_to_log()
        load_data_only()
        meet_on_node_address()
        without_science()  # before anything imports transformers
        with quick_vllm(compiled=config.compile or torch.cuda.is_available()):
            from actors.rollout.engine import EngineThread
            from actors.rollout.vllm_options import build_llm, sampling_params

        self.config = config
        self.tokenizer = load_tokenizer(directory)
        directory = configured_directory(directory)
        self.engine: EngineThread = EngineThread(
            # Engines that drew alike would answer a prompt that comes twice with the same.
            lambda: build_llm(directory, config, model, backend, seed + rank),
            lambda sampling: sampling_params(config, sampling, ends),
            config.max_concurrent,
            config.on_update,
        )

    @ray.method(concurrency_group="control")
    async def ready(self) -> None:
        """Returns once the engine can generate."""
        await asyncio.wrap_future(self.engine.ready)

    @ray.method(concurrency_group="control")
    async def pulse(self) -> Pulse:
        """What the engine does now: step, call (a control call), start, or nothing; raises what has ended it."""
        return self.engine.pulse()

    def _text(self, segment: Segment) -> str:
        # Named here is one of rollout.stop_token_ids, which may be an ordinary token, or of the tokens that end turns;
        # the end-of-sequence token is not.
        return self._spoken(segment, ended=isinstance(segment.ended_by, int), special=False)

    def _marked_text(self, segment: Segment) -> str:
        # Here the end-of-sequence token would be part of the text, too.
        by_token = segment.finish == "stop" and not isinstance(segment.ended_by, str)
        return self._spoken(segment, ended=by_token, special=True)

    def _spoken(self, segment: Segment, *, ended: bool, special: bool) -> str:
        """What was sampled as text, with special tokens or without; `ended`: without the last token."""
        tokens = segment.token_ids[:-1] if ended else segment.token_ids
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=not special)  # type: ignore[assignment]
        if isinstance(segment.ended_by, str):
            text = up_to_stop(text, segment.ended_by, segment.text, keep=self.config.keep_stop_string)
        return text

    @ray.method(concurrency_group="control")
    async def pause(self) -> None:
        """Stop stepping, keeping all running requests."""
        await self._between_steps(self.engine.pause)

    @ray.method(concurrency_group="control")
    async def resume(self) -> None:
        """Go on with the weights there are; after a transfer that has failed half way, see `fetch`."""
        await self._between_steps(self._go_on)

    _half_new = False
    """Whether new weights have begun to take the place of the old ones, and not all are there."""

    _lacks_adapter = False
    """Whether the weights alone are there, of an engine that had an adapter on them."""

    def _go_on(self) -> None:
        if self._half_new:
            # What runs ends with the tokens that it has, and no request is taken before whole weights have come.
            self.engine.version = -1
            self._end(list(self._open), keep=True)
        self.engine.resume()

    @ray.method(concurrency_group="control")
    async def init_weight_transfer_engine(self, init_info: dict[str, object]) -> None:
        """Join the transfer group."""
        await self._between_steps(lambda: self.engine.llm.init_weight_transfer_engine({"init_info": init_info}))

    @ray.method(concurrency_group="control")
    async def update_weights(
        self,
        update_info: dict[str, object],
        first: bool,
        remember_checksums: bool,
        finish: tuple[int, list[int] | None] | None = None,
    ) -> Got | None:
        """Receive weights that the trainer sends.

        At the first ones of a transfer, stop stepping, keeping all running requests, and prepare the model. With
        `finish`, do then what `finish_weight_update` does with these arguments.
        """

        def receive() -> Got | None:
            if first:
                self.engine.pause()
                if self.engine.has_adapter:
                    self._part_from_adapter()
                self.engine.llm.collective_rpc("remember_checksums", args=(remember_checksums,))
                self._half_new = True  # what has begun may have changed something, whatever fails
                self.engine.llm.start_weight_update()
            self.engine.llm.update_weights({"update_info": update_info})
            return None if finish is None else self._put_into_service(*finish)

        return await self._between_steps(receive)

    @ray.method(concurrency_group="control")
    async def finish_weight_update(self, version: int, canary: list[int] | None) -> Got | None:
        """Put the received weights into service as `version`, and go on; with a canary prompt, give account of them."""
        return await self._between_steps(lambda: self._put_into_service(version, canary))

    def _part_from_adapter(self) -> None:
        """The weights below it come again, as others lack them, and vLLM drops it then: what runs ends with the tokens
        that it has, and no request is taken before there is an adapter again."""
        self._end(list(self._open), keep=True)
        self.engine.forget_adapter()
        self._lacks_adapter = True

    def _put_into_service(self, version: int, canary: list[int] | None) -> Got | None:
        # vLLM notes the version itself with each token that it samples from now on: text, there.
        self.engine.llm.finish_weight_update(str(version))
        self.engine.version, self._half_new = -1 if self._lacks_adapter else version, False
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
        does when that fails; when the model does not take what has come, its requests end as they are, and it takes no
        others before it has whole weights.
        """

        def load() -> Got | None:
            self.engine.llm.collective_rpc("stage", args=(asdict(offer),))
            self.held = -1
            self.engine.pause()
            try:
                self.engine.forget_adapter()
                self.engine.llm.collective_rpc("remember_checksums", args=(canary is not None,))
                self._half_new = True  # what has begun may have changed something, whatever fails
                self.engine.llm.start_weight_update()
                self.engine.llm.update_weights({"update_info": offer.tensors})
                found = self._put_into_service(version, canary)
            except BaseException as error:
                with told_beside(error, "going on"):
                    self._go_on()
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
            self.engine.version, self._lacks_adapter = version, False
            self.engine.resume()
            logprobs = np.empty(0, dtype=np.float32) if canary is None else self.engine.logprobs(canary)
            return Got(bound, logprobs)

        return await self._between_steps(load)

    @ray.method(concurrency_group="control")
    async def worker_call(self, method: str, *args: object) -> list[Any]:
        """Call a method of `actors.weights.vllm_receiver.WorkerExtension` on every worker process of this engine."""
        return await self._between_steps(lambda: self.engine.llm.collective_rpc(method, args=args))

    async def _between_steps(self, function: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self.engine.call(function))

"""The vLLM engine of one rollout worker, on a thread of its own: requests and control calls go in between its steps.

The engine runs in this very process on CPU (it starts and generates fastest so) and in vLLM's own processes on GPU;
both are driven by the same thread through vLLM's public `LLM` and `LLMEngine`.
"""

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from typing import Any, TypeVar

import torch
from vllm import LLM, RequestOutput, SamplingParams
from vllm.config import WeightTransferConfig
from vllm.sampling_params import RequestOutputKind

from actors.config import Dtype, RolloutConfig
from actors.rollout_types import Sampling
from actors.transfer import WORKER_BACKENDS

T = TypeVar("T")

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class EngineThread:
    """Owns the vLLM engine: everything that touches it runs on this thread, between steps."""

    def __init__(self, build: Callable[[], LLM]) -> None:
        self._build = build
        self._calls: queue.Queue[tuple[Callable[[], Any], Future[Any]] | None] = queue.Queue()
        self._requests: dict[str, Future[RequestOutput]] = {}
        self._held: dict[int, Callable[[], Any]] = {}
        self._expected = 0
        self._ids = count()
        self._paused = False
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)
        self.ready: Future[None] = Future()
        self._thread.start()

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Run a function on the engine thread, between two steps."""
        future: Future[T] = Future()
        self._calls.put((function, future))
        return future

    def expect(self, requests: int, seed: int) -> None:
        """Hold back the next so many numbered requests, then start them in order, with the sampler seeded anew.

        What is sampled then depends on the seed and the requests alone, not on the moment at which each arrived.
        """
        self._expected = requests
        self._seed = seed

    def add(
        self, token_ids: list[int], params: SamplingParams, salt: str, number: int | None = None
    ) -> "Future[RequestOutput]":
        """Queue one request; the future yields its finished output."""
        finished: Future[RequestOutput] = Future()

        def submit() -> None:
            request_id = str(next(self._ids))
            # The salt separates prefix caches by weight version: a cached prefix never outlives its weights.
            prompt: Any = {"prompt_token_ids": token_ids, "cache_salt": salt}
            try:
                self.llm.llm_engine.add_request(request_id, prompt, params)
            except ValueError as error:
                finished.set_exception(error)
                return
            self._requests[request_id] = finished

        def arrive() -> None:
            if number is None or not self._expected:
                submit()
                return
            self._held[number] = submit
            if len(self._held) >= self._expected:
                self._release()

        self._calls.put((arrive, Future()))
        return finished

    def _release(self) -> None:
        self.llm.collective_rpc("reseed", args=(self._seed,))
        for number in sorted(self._held):
            self._held[number]()
        self._held.clear()
        self._expected = 0

    def pause(self) -> None:
        """Stop stepping, keeping all running requests."""
        self.llm.sleep(level=0, mode="keep")
        self._paused = True

    def resume(self) -> None:
        """Forget keys and values of the old weights and go on; running requests are prefilled again."""
        self.llm.llm_engine.reset_prefix_cache(reset_running_requests=True)
        self.llm.wake_up(tags=["scheduling"])
        self._paused = False

    def _run(self) -> None:
        try:
            self.llm = self._build()
        except Exception as error:  # Reported to whoever waits for the engine, in its own process.
            self.ready.set_exception(error)
            return
        self.ready.set_result(None)
        while True:
            busy = not self._paused and self.llm.llm_engine.has_unfinished_requests()
            if not self._drain(block=not busy):
                return
            if not self._paused and self.llm.llm_engine.has_unfinished_requests():
                self._step()

    def _drain(self, block: bool) -> bool:
        """Run queued calls; wait for one when there is nothing to step. False ends the thread."""
        while True:
            try:
                item = self._calls.get(block=block)
            except queue.Empty:
                return True
            if item is None:
                return False
            function, future = item
            try:
                future.set_result(function())
            except Exception as error:  # Belongs to the caller, who holds the future.
                future.set_exception(error)
            block = False

    def _step(self) -> None:
        try:
            outputs = self.llm.llm_engine.step()
        except Exception as error:  # The engine is lost: tell everybody who waits for it.
            for waiting in self._requests.values():
                waiting.set_exception(error)
            self._requests.clear()
            raise
        for output in outputs:
            if output.finished:
                self._requests.pop(output.request_id).set_result(output)  # type: ignore[arg-type]


def build_llm(directory: str, config: RolloutConfig, dtype: Dtype, backend: str, seed: int) -> LLM:
    on_gpu = torch.cuda.is_available()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if on_gpu else "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.memory_gib)
    # Threads are counted by OMP_NUM_THREADS; binding them to cores would fight with the trainer's.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    compiled = on_gpu if config.compile is None else config.compile
    executor = None if on_gpu or config.tensor_parallel > 1 else "uni"
    return LLM(
        model=directory,
        # The policy sends version 0 before anything is generated.
        load_format="dummy",
        dtype=_DTYPES[dtype],
        seed=seed,
        tensor_parallel_size=config.tensor_parallel,
        distributed_executor_backend=executor,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_concurrent,
        gpu_memory_utilization=config.gpu_memory_utilization,
        enforce_eager=not compiled,
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        weight_transfer_config=WeightTransferConfig(backend=WORKER_BACKENDS[backend]),
        worker_extension_cls="actors.transfer.WorkerExtension",
        disable_log_stats=True,
    )


def sampling_params(config: RolloutConfig, sampling: Sampling) -> SamplingParams:
    """vLLM's parameters for the responses to one prompt: one logprob per sampled token, text only where stops need it."""
    return SamplingParams(
        n=sampling.samples,
        temperature=sampling.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        max_tokens=sampling.max_tokens,
        logprobs=0,
        output_kind=RequestOutputKind.FINAL_ONLY,
        stop=config.stop or None,
        detokenize=bool(config.stop),
        skip_special_tokens=True,
    )


def prompt_logprob_params() -> SamplingParams:
    """Parameters of a request that only asks for the logprobs of its prompt, at temperature 1."""
    return SamplingParams(
        temperature=1.0,
        max_tokens=1,
        prompt_logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )

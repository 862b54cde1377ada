"""Serves exports by vLLM as whoever uses them does: `python -m tests.served DIRECTORY NAME...`.

Each of `DIRECTORY/NAME` gets `served.json` beside the model: the tokens that its engine reads, answers, and says to end
with. All in one process: of its CPU time an engine then costs two seconds.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCHDYNAMO_DISABLE": "1",
}

from vllm import LLM, ModelRegistry, SamplingParams
from vllm.model_executor.models.gpt2 import GPT2LMHeadModel
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM

# By their classes: of names, vLLM would import each in a process of its own.
for architecture in (GPT2LMHeadModel, LlamaForCausalLM, Qwen2ForCausalLM):
    ModelRegistry.register_model(architecture.__name__, architecture)


def main(directory: Path, names: list[str]) -> None:
    """Serve each of them, one after the other."""
    for name in names:
        expected = json.loads((directory / name / "expected.json").read_text())
        served = serve(directory / name, expected)
        (directory / name / "served.json").write_text(json.dumps(served))


def serve(export: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """What the engine of an export does with the texts and messages that are expected of it."""
    llm = LLM(model=str(export), enforce_eager=True, dtype="float32", max_model_len=64, max_num_seqs=8)
    tokenizer: Any = llm.get_tokenizer()
    greedy = SamplingParams(temperature=0, max_tokens=4, logprobs=0, ignore_eos=True)
    if expected["rendered"]:
        [answer] = llm.chat(expected["messages"], greedy, use_tqdm=False)
    else:
        [answer] = llm.generate(next(iter(expected["ids"])), greedy, use_tqdm=False)
    output = answer.outputs[0]
    ends = [
        SamplingParams(temperature=0, max_tokens=3, allowed_token_ids=[end], detokenize=False)
        for end in expected["ends"]
    ]
    said = llm.generate([{"prompt_token_ids": answer.prompt_token_ids}] * len(ends), ends, use_tqdm=False)
    return {
        "ids": {text: tokenizer(text).input_ids for text in expected["ids"]},
        "prompt": answer.prompt_token_ids,
        "answer": list(output.token_ids),
        "logprobs": [at[token].logprob for at, token in zip(output.logprobs, output.token_ids, strict=True)],
        "ends": [[list(each.outputs[0].token_ids), each.outputs[0].finish_reason] for each in said],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

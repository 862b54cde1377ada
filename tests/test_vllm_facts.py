"""What Tandem takes for granted of the installed vLLM (0.32), asked of vLLM itself, once, in a process of its own."""

import json
import subprocess
import sys
from typing import Any

import pytest

from launch.models.vllm_source import serves_adapters

SERVED = {
    "Qwen2ForCausalLM": True,
    "MistralForCausalLM": True,  # from Llama's class, of another module
    "Gemma2ForCausalLM": True,
    "GPT2LMHeadModel": False,
    "StableLmForCausalLM": False,
}
PROGRAM = """
import json, os, sys
from types import SimpleNamespace
import numpy as np, torch
from actors.rollout import vllm_options
from actors.config import LoraConfig, ModelConfig, ModelInit
from actors.config_rollout import RolloutConfig
from actors.rollout.types import Sampling
from actors.weights.vllm_receiver import WorkerExtension
from vllm import SamplingParams
from vllm.model_executor.models import ModelRegistry, supports_lora
from vllm.v1.engine import UtilityOutput
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder, UtilityResult

def through_a_process(answer):
    encoded = MsgpackEncoder().encode(UtilityOutput(1, result=UtilityResult([answer])))
    return MsgpackDecoder(UtilityOutput).decode(encoded).result.result[0]

model = torch.nn.Module()
model.norm = torch.nn.LayerNorm(3)
model.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj"]}
with torch.no_grad():
    model.norm.weight.copy_(torch.tensor([0.5, -1.25, 3.0]))

def changed(params):
    plain = SamplingParams()
    fields = {name: (getattr(params, name), getattr(plain, name)) for name in SamplingParams.__struct_fields__}
    return {name: value for name, (value, default) in fields.items() if value != default}

def arguments(**settings):
    given = {}
    vllm_options.LLM = lambda **options: given.update(options)
    model = ModelConfig(init=ModelInit(), dtype="bf16")
    vllm_options.build_llm("model", RolloutConfig(**settings), model, "gloo", 5)
    given["weight_transfer_config"] = given["weight_transfer_config"].backend
    return given

settings = dict(
    temperature=0.7, top_p=0.9, top_k=11, min_p=0.05, repetition_penalty=1.1, presence_penalty=0.3, stop=["END"],
    stop_token_ids=[3, 5],
)
engine = dict(
    tensor_parallel=2, max_prompt_tokens=30, max_response_tokens=50, max_concurrent=17, memory_gib=3,
    gpu_memory_utilization=0.35, compile=True, vllm={"enable_prefix_caching": False},
)
worker = WorkerExtension()
worker.model_runner = SimpleNamespace(get_model=lambda: model)
answers, packed = through_a_process(worker.probe(7))
told = {
    "served": {name: supports_lora(ModelRegistry._try_load_model_cls(name)) for name in sys.argv[1:]},
    "norm": np.frombuffer(answers["norm"], np.float32).tolist(),
    "packed": packed,
    "params": changed(vllm_options.sampling_params(
        RolloutConfig(**settings), Sampling(samples=4, temperature=0.7, max_tokens=40)
    )),
    "plain params": changed(vllm_options.sampling_params(
        RolloutConfig(), Sampling(samples=1, temperature=1.0, max_tokens=40)
    )),
    "arguments": arguments(**engine),
    "cache": os.environ["VLLM_CPU_KVCACHE_SPACE"],
    "plain arguments": arguments(),
    "array": type(through_a_process({"norm": np.zeros(3, np.float32)})["norm"]).__name__,
}
print("told", json.dumps(told, default=repr))
"""


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What a process that has imported vLLM says."""
    command = [sys.executable, "-c", PROGRAM, *SERVED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("told ")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[-1].removeprefix("told "))


def test_which_classes_serve_adapters(told: dict[str, Any]) -> None:
    """A base class tells, which is read from the source: vLLM imports for seconds what it is asked about."""
    assert {name: serves_adapters(name) for name in SERVED} == SERVED == told["served"]
    assert serves_adapters("NoSuchForCausalLM") is None


def test_a_probe_comes_back_from_a_process_of_vllms_as_it_was(told: dict[str, Any]) -> None:
    """An array in such an answer would be a list of its type, shape and memory, which no one can subtract from."""
    assert told["norm"] == [0.5, -1.25, 3.0]
    assert told["packed"] == {"qkv_proj": ["q_proj", "k_proj"]}
    assert told["array"] == "list"


def test_settings_become_these_sampling_parameters(told: dict[str, Any]) -> None:
    """Away from their defaults, and nothing else differs from vLLM's; at our defaults nothing reshapes what is
    sampled."""
    always = {
        "max_tokens": 40,
        "logprobs": 0,
        "flat_logprobs": True,
        "output_kind": "<RequestOutputKind.FINAL_ONLY: 2>",
        "skip_clone": True,
    }
    assert told["params"] == always | {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 11,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.3,
        "stop": ["END"],
        "stop_token_ids": [3, 5],
        "output_text_buffer_length": 2,
        "_all_stop_token_ids": "{3, 5}",
    }
    assert told["plain params"] == always | {"detokenize": False}


def test_settings_become_these_arguments_of_the_engine(told: dict[str, Any]) -> None:
    """Those with which vLLM would decide otherwise are named even at our defaults: sampling defaults of the model's
    generation_config.json, logprobs before temperature and penalties, Ray's executor within a placement group."""
    always = {
        "model": "model",
        "load_format": "dummy",
        "dtype": "bfloat16",
        "seed": 5,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "weight_transfer_config": "tandem_gloo",
        "worker_extension_cls": "actors.weights.vllm_receiver.WorkerExtension",
        "disable_log_stats": True,
    }
    assert told["arguments"] == always | {
        "tensor_parallel_size": 2,
        "distributed_executor_backend": "mp",
        "max_model_len": 80,
        "max_num_seqs": 17,
        "gpu_memory_utilization": 0.35,
        "enforce_eager": False,
        "enable_prefix_caching": False,
    }
    assert told["cache"] == "3"
    assert told["plain arguments"] == always | {
        "tensor_parallel_size": 1,
        "distributed_executor_backend": "uni",
        "max_model_len": 1024,
        "max_num_seqs": 256,
        "gpu_memory_utilization": 0.85,
        "enforce_eager": True,
    }

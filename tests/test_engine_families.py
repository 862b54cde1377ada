"""Families through a real engine: two versions of the weights, updated in place, and back; the others: `make families`.

What each stands for broke once: weights of experts that are packed on CPU, names of files that are not those of the
model, a bias of the output layer, buffers of a router, the code of transformers for latent attention, rotary positions
of heads that come one by one.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.engine_page import written

FAMILIES = {
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt_neox": "TransformersForCausalLM",
    "deepseek_v3": "TransformersMoEForCausalLM",
}
"""Family -> what vLLM makes of it."""
PROBED = {"qwen3_moe": 16, "gpt_neox": 10, "deepseek_v3": 10}
"""Family -> tensors of which a layer's answer must tell whether the engine has them."""
ALLOWED = 1e-4


@pytest.fixture(scope="module")
def found(environment: dict[str, str]) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-m", "tests.engine_families", *FAMILIES, "hrm_text"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(FAMILIES) + 1, done.stderr[-3000:]
    return {line["name"]: line for line in lines}


@pytest.mark.parametrize("name", FAMILIES)
def test_an_engine_computes_with_each_version_of_the_weights(name: str, found: dict[str, dict[str, Any]]) -> None:
    told = found[name]
    assert "failed" not in told, told
    assert told["engine"] == FAMILIES[name]
    assert len(told["differences"]) == 3 and all(each <= ALLOWED for each in told["differences"]), told


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_probed_under_the_names_that_were_sent(name: str, found: dict[str, dict[str, Any]]) -> None:
    """Whatever their names in the engine; experts are not asked, nor what is computed from several tensors."""
    assert found[name]["wrong"] == [] and found[name]["probed"] >= PROBED[name], found[name]


def test_a_page_tells_of_all(found: dict[str, dict[str, Any]]) -> None:
    rows = [line.split(" | ") for line in written(found.values()).splitlines() if line.startswith("| ")][1:]
    rollouts = {row[0].removeprefix("| "): row[2] for row in rows}
    refused = "refused: gives other logprobs in vLLM than in transformers"
    assert rollouts == {
        "qwen3_moe": "vLLM",
        "gpt_neox": "transformers",
        "deepseek_v3": "transformers",
        "hrm_text": refused,
    }

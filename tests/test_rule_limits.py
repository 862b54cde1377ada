"""The numbers in rules across sections: the limit itself is allowed, what is beyond it is one line."""

from copy import deepcopy
from typing import Any

import pytest

from actors.config import UserError
from launch.config import RunConfig, validate
from launch.settings.file import apply_overrides

ROWS: dict[str, Any] = {"model": {"init": {"max_positions": 64}}, "data": {"train": "rows.jsonl", "eval": "held.jsonl"}}
SAMPLED = ROWS | {
    "reward": {"functions": ["exact_match"]},
    "rollout": {"max_prompt_tokens": 32, "max_response_tokens": 16},
}
JOBS: dict[str, dict[str, Any]] = {
    "sft": ROWS | {"algorithm": {"name": "sft", "steps": 5}, "data": ROWS["data"] | {"max_length": 32}},
    "dpo": ROWS | {"algorithm": {"name": "dpo", "steps": 5}, "data": ROWS["data"] | {"max_length": 32}},
    "ppo": SAMPLED | {"algorithm": {"name": "ppo"}, "critic": {}},
    "grpo": SAMPLED | {"algorithm": {"name": "grpo", "eval_every": 5}},
    "embedding": ROWS | {"algorithm": {"name": "embedding", "steps": 5, "pooling": "mean"}},
}
SHARED = "cluster.placement=shared; policy.gpus_per_rank=1; rollout.gpus_per_engine=1"

# name: (job, overrides at the limit, overrides beyond it, part of the line)
LIMITS: dict[str, tuple[str, str, str, str]] = {
    "what an encoder reads": (
        "embedding", "algorithm.max_tokens=64", "algorithm.max_tokens=65",
        "algorithm.max_tokens must not exceed model.init.max_positions (64), got 65"),
    "what a job on rows reads": (
        "sft", "data.max_length=64", "data.max_length=65",
        "data.max_length must not exceed model.init.max_positions (64), got 65"),
    "prompt and response": (
        "grpo", "rollout.max_prompt_tokens=48", "rollout.max_prompt_tokens=49",
        "rollout.max_response_tokens must not exceed model.init.max_positions (64), got 65"),
    "the overlong buffer": (
        "grpo", "algorithm.overlong={buffer: 16}", "algorithm.overlong={buffer: 17}",
        "algorithm.overlong.buffer must not exceed rollout.max_response_tokens (16), got 17"),
    "a weight that is not 0": (
        "grpo", "reward.functions=[{name: math, weight: -1}]", "reward.functions=[{name: math, weight: 0}]",
        "reward must have a source with a weight other than 0, got weight 0 for all of them"),
    "one of two weights": (
        "grpo", "reward.functions=[exact_match, {name: math, weight: 0}]",
        "reward.functions=[{name: exact_match, weight: 0}, {name: math, weight: 0}]", "reward must have a source"),
    "the highest reward": (
        "grpo",
        "algorithm.eval_samples_per_prompt=2; reward.functions=[{name: exact_match, weight: 0.5}]; "
        "algorithm.eval_pass_reward=0.5",
        "algorithm.eval_samples_per_prompt=2; reward.functions=[{name: exact_match, weight: 0.5}]; "
        "algorithm.eval_pass_reward=0.501",
        "algorithm.eval_pass_reward must be at most 0.5, the most that"),
    "the highest reward, which rounding makes less": (
        "grpo",
        "algorithm.eval_samples_per_prompt=2; algorithm.eval_pass_reward=0.8; "
        "reward.functions=[{name: exact_match, weight: 0.7}, {name: math, weight: 0.1}]",
        "algorithm.eval_samples_per_prompt=2; algorithm.eval_pass_reward=0.8; "
        "reward.functions=[{name: exact_match, weight: 0.7}, {name: math, weight: 0.09}]",
        "algorithm.eval_pass_reward must be at most 0.79, "),
    "the highest reward beside a penalty": (
        "grpo",
        "algorithm.eval_samples_per_prompt=2; reward.functions=[exact_match, {name: math, weight: -1}]",
        "algorithm.eval_samples_per_prompt=2; reward.functions=[{name: exact_match, weight: 0.9}, "
        "{name: math, weight: -1}]",
        "algorithm.eval_pass_reward must be at most 0.9, "),
    "one response that is judged": (
        "grpo", "algorithm.eval_pass_reward=3", "algorithm.eval_pass_reward=3; algorithm.eval_samples_per_prompt=2",
        "algorithm.eval_pass_reward must be at most 1, "),
    "one response, however it is drawn": (
        "ppo", "algorithm={name: ppo, kl_coef: 0, samples_per_prompt: 1}; rollout.top_k=1",
        "algorithm={name: ppo, kl_coef: 0, samples_per_prompt: 2}; rollout.top_k=1",
        "rollout.top_k must not be 1 with algorithm.samples_per_prompt 2"),
    "tokens to draw from": (
        "grpo", "rollout.top_k=2", "rollout.top_k=1",
        "rollout.top_k must not be 1 with algorithm.samples_per_prompt 8"),
    "the least likely token": (
        "grpo", "rollout.min_p=0.99", "rollout.min_p=1",
        "rollout.min_p must not be 1 with algorithm.samples_per_prompt 8"),
    "responses of an evaluation": (
        "ppo",
        "algorithm={name: ppo, kl_coef: 0, eval_every: 5, samples_per_prompt: 1}; rollout.top_k=1",
        "algorithm={name: ppo, kl_coef: 0, eval_every: 5, samples_per_prompt: 1, eval_samples_per_prompt: 2}; "
        "rollout.top_k=1",
        "rollout.top_k must not be 1 with algorithm.eval_samples_per_prompt 2"),
    "a reference that is replaced": (
        "dpo",
        "reference.sync_every=5; model.dtype=bf16; policy.zero_stage=1",
        "reference={sync_every: 5, sync_mix: 0.99}; model.dtype=bf16; policy.zero_stage=1",
        "reference.sync_mix must be 1 with model.dtype bf16"),
    "the rank of adapters": (
        "grpo", "rollout.transfer.lora=adapter; model.lora={rank: 512}",
        "rollout.transfer.lora=adapter; model.lora={rank: 513}", "model.lora.rank must be at most 512"),
    "dropout of adapters": (
        "grpo", "model.lora={dropout: 0}", "model.lora={dropout: 0.01}", "model.lora.dropout must be 0 for grpo"),
    "a GPU for all groups": (
        "grpo", SHARED, "cluster.placement=shared; rollout.tensor_parallel=2; rollout.gpus_per_engine=2",
        "cluster.placement shared needs groups that ask for the same, at most 1, GPU, got rollout.gpus_per_engine 2"),
    "as much of a GPU": (
        "grpo", f"{SHARED}; algorithm.kl_coef=0.1; reference.gpus_per_rank=1",
        f"{SHARED}; algorithm.kl_coef=0.1; reference.gpus_per_rank=0.5",
        "cluster.placement shared needs groups that ask for the same, at most 1, GPU, got policy.gpus_per_rank 1, "),
    "as much of a GPU as reward models": (
        "grpo", f"{SHARED}; reward.models=[{{path: rm, group: {{gpus_per_rank: 1}}}}]",
        f"{SHARED}; reward.models=[{{path: rm, group: {{gpus_per_rank: 0.5}}}}]",
        "reward.models.0.group.gpus_per_rank 0.5"),
    "groups without a GPU beside those that share one": (
        "grpo", f"{SHARED}; algorithm.kl_coef=0.1", f"{SHARED}; policy.ranks=2; policy.ranks_per_node=2",
        "policy.ranks_per_node must be left out with cluster.placement shared, got 2"),
    "any GPU": (
        "sft", "model.dtype=bf16; model.attention=flash_attention_2; policy={zero_stage: 1, gpus_per_rank: 0.1}",
        "model.dtype=bf16; model.attention=flash_attention_2; policy.zero_stage=1",
        "model.attention flash_attention_2 needs policy.gpus_per_rank > 0, got 0"),
}  # fmt: skip


def configured(job: str, overrides: str) -> RunConfig:
    return validate(apply_overrides(deepcopy(JOBS[job]), overrides.split("; ")))


@pytest.mark.parametrize("name", LIMITS)
def test_the_limit_itself_is_allowed(name: str) -> None:
    job, at, _, _ = LIMITS[name]
    assert isinstance(configured(job, at), RunConfig)


@pytest.mark.parametrize("name", LIMITS)
def test_what_is_beyond_is_one_line(name: str) -> None:
    job, _, beyond, line = LIMITS[name]
    with pytest.raises(UserError) as caught:
        configured(job, beyond)
    assert len(caught.value.problems) == 1 and line in str(caught.value)

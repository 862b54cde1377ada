"""Shared prompts: a micro-batch that holds each prompt once gives what every sample gives alone."""

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from actors.episodes import Experience, experience
from actors.models.attention import PACKED_ATTENTION, packed_attention, register_packed_attention
from actors.models.layout import PackedLayout
from actors.models.load import TokenLogprobs
from actors.models.packed import PackedBatch
from actors.train.worker import Totals, pack_experiences, pack_sequences
from algorithms.config_rl import GRPOConfig
from algorithms.rl.policy_loss import policy_loss
from tests.episodes import episode

FAMILIES = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
VOCABULARY = 40
CPU = torch.device("cpu")
GROUPS: dict[str, list[tuple[int, list[int]]]] = {
    "equal": [(6, [4] * 5), (6, [4] * 5)],
    "mixed": [(3, [5, 1, 9]), (20, [60, 2, 60, 31]), (1, [4, 4]), (50, [7, 3])],
    "some alone": [(5, [7]), (4, [3, 12, 3]), (5, [2])],
    "all alone": [(5, [7]), (4, [3])],
}
"""(prompt tokens, response tokens of its samples) of each group."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _module(family: str, *, checkpointing: bool = False) -> TokenLogprobs:
    register_packed_attention()
    config, model = FAMILIES[family]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    torch.manual_seed(0)
    built = model._from_config(
        config(vocab_size=VOCABULARY, initializer_range=0.3, **sizes, **heads), attn_implementation=PACKED_ATTENTION
    ).train()
    if checkpointing:
        built.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return TokenLogprobs(built)


@dataclass(frozen=True)
class Samples:
    """Scored rollouts with their reference logprobs, and what their losses are divided by."""

    experiences: list[Experience]
    totals: Totals


def _samples(groups: list[tuple[int, list[int]]]) -> Samples:
    """Samples of all groups, mixed up."""
    rng = np.random.default_rng(1)
    experiences = []
    for prompt_tokens, responses in groups:
        prompt = rng.integers(VOCABULARY, size=prompt_tokens).tolist()
        for count in responses:
            tokens = rng.integers(VOCABULARY, size=count).tolist()
            rollout = episode(prompt, tokens, rng.normal(-3.7, 0.5, size=count))
            fields = {
                "advantages": rng.normal(size=rollout.tokens).astype(np.float32),
                "reference_logprobs": rng.normal(-3.7, 0.5, size=rollout.tokens).astype(np.float32),
            }
            experiences.append(experience(rollout, fields))
    experiences = [experiences[i] for i in rng.permutation(len(experiences))]
    actions = sum(int(e.action_mask.sum()) for e in experiences)
    return Samples(experiences, Totals(tokens=actions, sequences=len(experiences), trained_tokens=actions))


@dataclass(frozen=True)
class Outcome:
    """Logprobs per sample; loss and metrics; gradients."""

    logprobs: list[Tensor]
    values: dict[str, Tensor]
    gradients: dict[str, Tensor]


def _outcome(module: TokenLogprobs, samples: Samples, batches: list[PackedBatch], aggregation: Any) -> Outcome:
    config = GRPOConfig(name="grpo", clip_high=0.3, aggregation=aggregation, kl_coef=0.1)
    loss = partial(policy_loss, config=config, kl_coef=0.1, constant=9, version=0)
    module.zero_grad()
    logprobs: list[Tensor] = []
    values: dict[str, Tensor] = {}
    for batch in batches:
        policy_logprobs, entropies = module(batch, 0.7, 5)
        share, metrics = loss(batch, policy_logprobs, entropies, samples.totals)
        share.backward()
        logprobs += [torch.from_numpy(array) for array in batch.split(policy_logprobs)]
        for name, value in ({"loss": share.detach()} | metrics).items():
            values[name] = values.get(name, torch.zeros(())) + value.detach().float()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return Outcome(logprobs, values, gradients)


def _packed(samples: Samples, *, shared: bool) -> PackedBatch:
    return pack_experiences(samples.experiences, CPU, share_prompts=shared)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_shared_equals_unshared_and_alone(family: str, groups: str, checkpointing: bool, aggregation: str) -> None:
    samples, module = _samples(GROUPS[groups]), _module(family, checkpointing=checkpointing)
    shared = _outcome(module, samples, [_packed(samples, shared=True)], aggregation)
    unshared = _outcome(module, samples, [_packed(samples, shared=False)], aggregation)
    single = [pack_experiences([item], CPU, share_prompts=False) for item in samples.experiences]
    alone = _outcome(module, samples, single, aggregation)
    assert shared.gradients.keys() == dict(module.named_parameters()).keys()
    for other in (unshared, alone):
        torch.testing.assert_close(shared.logprobs, other.logprobs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(shared.values, other.values, rtol=1e-5, atol=1e-5)
        for name, gradient in shared.gradients.items():
            assert (gradient - other.gradients[name]).norm() < 1e-5 * other.gradients[name].norm(), name


@pytest.mark.parametrize("groups", GROUPS)
def test_each_prompt_is_in_the_row_once(groups: str) -> None:
    samples = _samples(GROUPS[groups])
    batch = _packed(samples, shared=True)
    assert len(batch.token_ids) == sum(prompt + sum(responses) for prompt, responses in GROUPS[groups])
    assert len(batch.action_indices) == samples.totals.tokens
    for name, values in (("token_ids", batch.token_ids), ("action_mask", batch.action_mask)):
        expected = [getattr(item, name) for item in samples.experiences]
        assert all(np.array_equal(a, b) for a, b in zip(batch.split(values), expected, strict=True)), name
    for positions, item in zip(batch.split(batch.position_ids), samples.experiences, strict=True):
        assert np.array_equal(positions, np.arange(len(item)))


def test_prompts_that_only_begin_alike_are_not_shared() -> None:
    short, long = _samples([(4, [3])]).experiences[0], _samples([(4, [5])]).experiences[0]
    assert np.array_equal(short.token_ids[:4], long.token_ids[:4])
    other = replace(long, action_mask=np.arange(len(long)) >= 5)
    assert len(pack_experiences([short, long], CPU, share_prompts=True).token_ids) == 4 + 3 + 5
    batch = pack_experiences([short, other], CPU, share_prompts=True)
    assert batch.sources is None and len(batch.token_ids) == 7 + 9


@pytest.mark.parametrize("family", FAMILIES)
def test_responses_do_not_see_each_other(family: str) -> None:
    samples, module = _samples(GROUPS["mixed"]), _module(family)

    def logprobs(experiences: list[Experience]) -> list[np.ndarray]:
        batch = pack_experiences(experiences, CPU, share_prompts=True)
        with torch.no_grad():
            return batch.split(module(batch, 1.0, 1024)[0])

    before = logprobs(samples.experiences)
    for changed, item in enumerate(samples.experiences):
        tokens = np.where(item.action_mask, (item.token_ids + 1) % VOCABULARY, item.token_ids)
        perturbed = replace(item, token_ids=tokens)
        experiences = [perturbed if i == changed else other for i, other in enumerate(samples.experiences)]
        differ = [not np.array_equal(a, b) for a, b in zip(before, logprobs(experiences), strict=True)]
        assert differ == [i == changed for i in range(len(before))]


def test_reference_logprobs_are_zero_at_prompts() -> None:
    samples, module = _samples(GROUPS["mixed"]), _module("qwen2")
    batch = pack_sequences(samples.experiences, CPU, share_prompts=True)
    with torch.no_grad():
        found = batch.split(module(batch, 1.0, 1024)[0])
    for logprobs, item in zip(found, samples.experiences, strict=True):
        assert len(logprobs) == len(item) and not logprobs[~item.action_mask].any()
        assert (logprobs[item.action_mask] < 0).all()


def test_empty_micro_batch_has_zero_gradients() -> None:
    module = _module("qwen2")
    samples = Samples([], Totals(tokens=5, sequences=2, trained_tokens=5))
    outcome = _outcome(module, samples, [_packed(samples, shared=True)], "token")
    assert outcome.values["loss"] == 0
    assert outcome.gradients.keys() == dict(module.named_parameters()).keys()
    assert not any(gradient.any() for gradient in outcome.gradients.values())


def test_flash_attention_is_refused() -> None:
    batch = _packed(_samples(GROUPS["equal"]), shared=True)
    with pytest.raises(ValueError, match="flash_attention_2 cannot read sequences that share prompts"):
        batch.inputs.attention_arguments("flash_attention_2")


_groups = st.lists(st.tuples(st.integers(1, 30), st.lists(st.integers(1, 40), min_size=1, max_size=4)), min_size=1)


@settings(max_examples=40, deadline=None)
@given(_groups.filter(lambda groups: len(groups) < 5), st.sampled_from([1, 2, 4]))
def test_attention_adds_the_gradients_of_all_copies(groups: list[tuple[int, list[int]]], kv_heads: int) -> None:
    """Values and gradients of q, k, v in float64, against softmax attention over each sample's gathered tokens."""
    batch = _packed(_samples(groups), shared=True)
    sources = np.arange(len(batch.token_ids)) if batch.sources is None else batch.sources
    torch.manual_seed(0)
    inputs = [
        torch.randn(1, len(batch.token_ids), heads, 8, dtype=torch.float64).transpose(1, 2).requires_grad_()
        for heads in (4, kv_heads, kv_heads)
    ]
    layout = PackedLayout.of(batch.lengths, sources=batch.sources)
    ours, _ = packed_attention(torch.nn.Module(), *inputs, None, scaling=0.2, packed_layout=layout)
    expected = torch.zeros_like(ours)
    query, key, value = (tensor[0].repeat_interleave(4 // tensor.shape[1], dim=0) for tensor in inputs)
    for start, end in pairwise(np.cumsum([0, *batch.lengths])):
        own = torch.from_numpy(sources[start:end])
        scores = 0.2 * query[:, own] @ key[:, own].transpose(1, 2)
        scores = scores.masked_fill(~torch.ones(len(own), len(own), dtype=torch.bool).tril(), -torch.inf)
        expected = expected.index_copy(1, own, (scores.softmax(-1) @ value[:, own]).transpose(0, 1)[None])
    torch.testing.assert_close(ours, expected)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(expected, inputs, grad))


@pytest.mark.parametrize(
    ("sources", "message"), [([0, 1, 2], "5 positions, got sources of 3"), ([0, 1, 3, 0, 1], "token 2 of 4 is in no")]
)
def test_layout_refuses_sources_that_do_not_fit(sources: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackedLayout.of([3, 2], sources=np.array(sources))

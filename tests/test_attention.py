"""Packed SDPA: a packed row gives what its sequences give alone."""

from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from actors.models.attention import (
    PACKED_ATTENTION,
    Scores,
    _attend,
    packed_attention,
    register_packed_attention,
)
from actors.models.layout import EqualLengths, PackedLayout

FAMILIES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}
MIXED = [3, 1, 9, 14, 14, 70, 5, 50, 50, 2]
"""Equal neighbours, padded neighbours, and sequences long enough to go alone, unsorted."""
VOCABULARY = 40


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _model(family: str, attention: str, **changes: Any) -> PreTrainedModel:
    register_packed_attention()
    config, model = FAMILIES[family]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    torch.manual_seed(0)
    built = model._from_config(
        config(vocab_size=VOCABULARY, initializer_range=0.3, **sizes, **heads, **changes), attn_implementation=attention
    )
    return built.double().train()


def _arguments(lengths: list[int]) -> dict[str, Any]:
    positions = torch.cat([torch.arange(length) for length in lengths])
    return {"position_ids": positions[None], "packed_layout": PackedLayout.of(lengths), "use_cache": False}


def _borders(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def _tokens(lengths: list[int]) -> Tensor:
    return torch.randint(VOCABULARY, (1, sum(lengths)), generator=torch.Generator().manual_seed(1))


def _logits_and_gradients(model: PreTrainedModel, rows: list[tuple[Tensor, dict]]) -> tuple[Tensor, dict[str, Tensor]]:
    logits = torch.cat([model(input_ids=tokens, **arguments).logits[0] for tokens, arguments in rows])
    generator = torch.Generator().manual_seed(2)
    (logits * torch.randn(logits.shape, generator=generator)).sum().backward()
    return logits.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lengths", [[37], [14, 14, 14], sorted(MIXED), MIXED], ids=["one", "equal", "sorted", "mixed"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_equals_each_sequence_alone(family: str, lengths: list[int], checkpointing: bool) -> None:
    tokens = _tokens(lengths)
    packed = _model(family, PACKED_ATTENTION)
    if checkpointing:
        packed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    alone = [(row, {}) for row in tokens.split(lengths, dim=1)]
    ours = _logits_and_gradients(packed, [(tokens, _arguments(lengths))])
    expected = _logits_and_gradients(_model(family, "sdpa"), alone)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_do_not_see_each_other(family: str) -> None:
    model, tokens, arguments = _model(family, PACKED_ATTENTION), _tokens(MIXED), _arguments(MIXED)
    borders = _borders(MIXED).tolist()
    with torch.no_grad():
        before = model(input_ids=tokens, **arguments).logits[0]
        for start, end in pairwise(borders):
            perturbed = tokens.clone()
            perturbed[0, start:end] = (perturbed[0, start:end] + 1) % VOCABULARY
            changed = (model(input_ids=perturbed, **arguments).logits[0] != before).any(-1)
            assert changed[start:end].all() and not changed[:start].any() and not changed[end:].any()


def test_layout_from_cumulative_lengths() -> None:
    model, tokens, arguments = _model("qwen2", PACKED_ATTENTION), _tokens(MIXED), _arguments(MIXED)
    expected = model(input_ids=tokens, **arguments).logits
    del arguments["packed_layout"]
    assert torch.equal(model(input_ids=tokens, cu_seq_lens_q=_borders(MIXED), **arguments).logits, expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.sampled_from([1, 2, 4]), st.booleans())
def test_agrees_with_softmax_attention(lengths: list[int], kv_heads: int, is_sorted: bool) -> None:
    lengths = sorted(lengths) if is_sorted else lengths
    torch.manual_seed(0)
    inputs = [
        torch.randn(1, sum(lengths), heads, 8, dtype=torch.float64).transpose(1, 2).requires_grad_()
        for heads in (4, kv_heads, kv_heads)
    ]
    layout = PackedLayout.of(lengths)
    ours, _ = packed_attention(torch.nn.Module(), *inputs, None, scaling=0.2, packed_layout=layout)
    query, key, value = (tensor[0].repeat_interleave(4 // tensor.shape[1], dim=0) for tensor in inputs)
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    visible = (owner[:, None] == owner).tril()
    scores = (0.2 * query @ key.transpose(1, 2)).masked_fill(~visible, -torch.inf)
    expected = (scores.softmax(-1) @ value).transpose(0, 1)[None]
    torch.testing.assert_close(ours, expected)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(expected, inputs, grad))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 250), min_size=1, max_size=64))
def test_padding_is_bounded(lengths: list[int]) -> None:
    layout = PackedLayout.of(lengths)
    segments, ordered = layout.segments, iter(lengths if layout.slot_map is None else sorted(lengths))
    assert layout.tokens == sum(lengths)
    for segment in segments:
        members = [next(ordered) for _ in range(segment.sequences)]
        assert segment.length == max(members)
        assert min(members) >= (segment.length - 8) / 1.25
    assert next(ordered, None) is None
    if layout.slot_map is not None:
        assert sum(segment.length < 48 for segment in segments) <= 5, "short sequences share calls"


def test_bf16_computes_attention_in_float32_on_cpu() -> None:
    inputs = [torch.randn(1, 2, 20, 8, dtype=torch.bfloat16) for _ in range(3)]
    layout = PackedLayout.of([12, 8])
    ours, _ = packed_attention(torch.nn.Module(), *inputs, None, packed_layout=layout)
    exact, _ = packed_attention(torch.nn.Module(), *(tensor.float() for tensor in inputs), None, packed_layout=layout)
    assert torch.equal(ours, exact.bfloat16())


class _LargestTensor(TorchDispatchMode):
    """Most elements of any tensor an operator returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(item, Tensor):
                self.elements = max(self.elements, item.numel())
        return result


def test_never_a_mask_over_the_row() -> None:
    lengths = [30, 30, 35, 35, 60] * 10
    model, tokens = _model("qwen2", PACKED_ATTENTION), _tokens(lengths)
    with _LargestTensor() as largest:
        model(input_ids=tokens, **_arguments(lengths)).logits.sum().backward()
    assert largest.elements < sum(lengths) ** 2 / 10


@pytest.mark.parametrize(
    "scores",
    [
        Scores(None, window=4),
        Scores(0.3, window=40),
        Scores(None, chunk=16),
        Scores(None, cap=2.0),
        Scores(0.3, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
        Scores(None, window=5, cap=0.5, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
    ],
    ids=["window", "wide window", "chunk", "cap", "sinks", "all"],
)
@pytest.mark.parametrize("value_size", [8, 5])
@pytest.mark.parametrize("length", [9, 70, 300])
@pytest.mark.parametrize("long", [100, 1024])
def test_scores_are_those_of_the_definition(
    scores: Scores, value_size: int, length: int, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short and long sequences, whole and block by block, against one query after the other."""
    monkeypatch.setattr("actors.models.attention._LONG", long)
    numbers = torch.Generator().manual_seed(0)
    query = torch.randn(length, 4, 8, generator=numbers, dtype=torch.double)
    key = torch.randn(length, 2, 8, generator=numbers, dtype=torch.double)
    value = torch.randn(length, 2, value_size, generator=numbers, dtype=torch.double)
    found, expected = [], []
    for attend, into in ((_attended, found), (_by_definition, expected)):
        inputs = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
        sinks = None if scores.sinks is None else scores.sinks.double().requires_grad_()
        output = attend(*inputs, replace(scores, sinks=sinks))
        output.square().sum().backward()
        into += [output, *(tensor.grad for tensor in inputs), *([] if sinks is None else [sinks.grad])]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def _attended(query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
    return _attend([EqualLengths(1, len(query))], query, key, value, scores=scores)


def _by_definition(query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
    scale = query.shape[-1] ** -0.5 if scores.scaling is None else scores.scaling
    outputs = []
    for place in range(len(query)):
        seen = [other for other in range(place + 1) if scores.window is None or other > place - scores.window]
        seen = [other for other in seen if scores.chunk is None or other // scores.chunk == place // scores.chunk]
        for head in range(query.shape[1]):
            products = scale * (key[seen, head // 2] @ query[place, head])
            products = products if scores.cap is None else scores.cap * torch.tanh(products / scores.cap)
            beside = [] if scores.sinks is None else [scores.sinks[head : head + 1]]
            weights = torch.cat([products, *beside]).softmax(0)[: len(seen)]
            outputs.append(weights @ value[seen, head // 2])
    return torch.stack(outputs).view(len(query), query.shape[1], -1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packed_layout": None}, "needs packed_layout or cu_seq_lens_q"),
        ({"packed_layout": PackedLayout.of([4, 4])}, "describes 8 tokens, the model got 9"),
        ({"attention_mask": torch.ones(1, 1, 9, 9)}, "takes no attention_mask"),
        ({"is_causal": False}, "causal only"),
        ({"indices": torch.zeros(1)}, "attends with indices"),
        ({"query": torch.zeros(2, 2, 9, 8)}, "one row of whole sequences"),
        ({"query": torch.zeros(1, 2, 1, 8)}, "without a key-value cache"),
    ],
)
def test_refuses_other_kinds_of_attention(changes: dict[str, Any], message: str) -> None:
    tensor = torch.zeros(1, 2, 9, 8)
    arguments = {
        "query": tensor,
        "key": tensor,
        "value": tensor,
        "attention_mask": None,
        "packed_layout": PackedLayout.of([4, 5]),
    }
    with pytest.raises(ValueError, match=message):
        packed_attention(torch.nn.Module(), **(arguments | changes))


@pytest.mark.parametrize("lengths", [[], [3, 0]])
def test_layout_refuses_empty_sequences(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="at least 1 token"):
        PackedLayout.of(lengths)

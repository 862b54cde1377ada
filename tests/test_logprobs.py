"""LogprobHead against log_softmax of all logits at once: values, gradients, and how many logits exist."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from actors.models.body import body_of
from actors.models.load import TokenLogprobs
from actors.models.logprobs import LogprobHead
from tests.families.table import build

TOKENS, SIZE, VOCABULARY = 13, 8, 31


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _inputs(dtype: torch.dtype, with_bias: bool) -> tuple[Tensor, LogprobHead, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, SIZE, dtype=dtype, requires_grad=True)
    bias = Parameter(torch.randn(VOCABULARY, dtype=dtype)) if with_bias else None
    head = LogprobHead(Parameter(torch.randn(VOCABULARY, SIZE, dtype=dtype)), bias)
    return hidden, head, torch.randint(VOCABULARY, (TOKENS,))


def _naive(hidden: Tensor, head: LogprobHead, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias)
    logps = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, dim=-1)
    return logps.gather(-1, targets[:, None])[:, 0], -(logps.exp() * logps).sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("chunk", [1, 5, 13, 100])
@pytest.mark.parametrize("use", ["logprobs", "entropies", "both"])
def test_agrees_with_log_softmax(dtype: torch.dtype, with_bias: bool, chunk: int, use: str) -> None:
    hidden, head, targets = _inputs(dtype, with_bias)
    weights = torch.randn(2, TOKENS, dtype=torch.float64) * torch.tensor(
        {"logprobs": [[1.0], [0.0]], "entropies": [[0.0], [1.0]], "both": [[1.0], [1.0]]}[use]
    )
    inputs = [hidden, *head.parameters()]
    results = []
    for outputs in (head(hidden, targets, 0.7, chunk), _naive(hidden, head, targets, 0.7)):
        assert outputs[0].dtype == outputs[1].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        loss = sum((weight * output).sum() for weight, output in zip(weights, outputs, strict=True) if weight.any())
        results.append((outputs, torch.autograd.grad(loss, inputs)))
    (ours, our_gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(ours, expected)
    tolerance = {"rtol": 2e-2, "atol": 5e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(our_gradients, expected_gradients, **tolerance)


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"factor": 0.3},
    "capped": {"cap": 1.5},
    "scaled and capped": {"factor": -2.0, "cap": 0.7},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_gradcheck(shape: str) -> None:
    torch.manual_seed(0)
    head = LogprobHead(Parameter(torch.empty(7, 3)), Parameter(torch.empty(7)), **SHAPES[shape])
    targets = torch.tensor([0, 6, 3, 3, 2])

    def run(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(head, {"weight": weight, "bias": bias}, (hidden, targets, 1.3, 2))

    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 3), (7, 3), (7,))]
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_agrees_with_log_softmax_of_logits_that_are_scaled_and_capped(
    dtype: torch.dtype, shape: str, chunk: int
) -> None:
    """Each step in the product's precision, as the families' own code takes them."""
    hidden, plain, targets = _inputs(dtype, with_bias=True)
    head = LogprobHead(plain.weight, plain.bias, **SHAPES[shape])
    factor, cap = SHAPES[shape].get("factor"), SHAPES[shape].get("cap")
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias)
    logits = logits if factor is None else logits * factor
    logits = logits if cap is None else torch.tanh(logits / cap) * cap
    logps = torch.log_softmax(logits.to(torch.promote_types(dtype, torch.float32)) / 0.7, dim=-1)
    expected = logps.gather(-1, targets[:, None])[:, 0], -(logps.exp() * logps).sum(-1)
    found = head(hidden, targets, 0.7, chunk)
    torch.testing.assert_close(found, expected)
    inputs, weights = [hidden, *head.parameters()], torch.randn(2, TOKENS)
    gradients = [
        torch.autograd.grad(list(outputs), inputs, list(weights.to(outputs[0].dtype))) for outputs in (found, expected)
    ]
    tolerance = {"rtol": 2e-2, "atol": 5e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(*gradients, **tolerance)


@pytest.mark.parametrize(
    "name", ["granite scaled", "gemma2 sharp caps", "cohere", "nanochat", "falcon_h1 multipliers", "qwen2"]
)
def test_in_bf16_it_rounds_as_a_familys_own_code(name: str) -> None:
    """Of the hidden states that its own body gives."""
    model = build(name).bfloat16()
    tokens = torch.from_numpy(np.random.default_rng(0).integers(3, 100, (1, 40)))
    module, seen = TokenLogprobs(model), []
    body_of(model).register_forward_hook(lambda _, given, outputs: seen.append(outputs[0]))
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
        expected = logits.float().log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
        found, _ = module.head(seen[0][0, :-1], tokens[0, 1:], 1.0, 7)
    assert float((found - expected).abs().max()) <= 1e-5
    assert logits.dtype == torch.bfloat16 and expected.std() > 0.1


def test_large_common_offset_of_the_logits_changes_nothing() -> None:
    hidden, head, targets = _inputs(torch.float32, with_bias=True)
    logprobs, entropies = head(hidden, targets, 1.0, 4)
    with torch.no_grad():
        head.bias += 4096.0
    shifted_logprobs, shifted_entropies = head(hidden, targets, 1.0, 4)
    torch.testing.assert_close(shifted_logprobs, logprobs, atol=5e-3, rtol=1e-3)
    torch.testing.assert_close(shifted_entropies, entropies, atol=5e-3, rtol=1e-3)


def test_bf16_weight_gradient_does_not_lose_bits_over_chunks() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2048, SIZE, dtype=torch.bfloat16)
    targets = torch.randint(VOCABULARY, (2048,))
    weight = torch.randn(VOCABULARY, SIZE, dtype=torch.bfloat16)

    def error(chunk: int) -> float:
        gradients = []
        for dtype in (torch.bfloat16, torch.float64):
            head = LogprobHead(Parameter(weight.to(dtype)))
            head(hidden.to(dtype), targets, 1.0, chunk)[0].sum().backward()
            gradients.append(head.weight.grad.double())
        return ((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item()

    assert error(chunk=8) < 1.5 * error(chunk=2048)


class _LargestTensor(TorchDispatchMode):
    """Most elements of any float32 (or wider) tensor an operator returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(item, Tensor) and item.is_floating_point() and item.element_size() >= 4:
                self.elements = max(self.elements, item.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_logits_exist_for_one_chunk_only(dtype: torch.dtype) -> None:
    tokens, size, vocabulary, chunk = 64, 4, 512, 16
    hidden = torch.randn(tokens, size, dtype=dtype, requires_grad=True)
    head = LogprobHead(Parameter(torch.randn(vocabulary, size, dtype=dtype)))
    with _LargestTensor() as largest:
        logprobs, entropies = head(hidden, torch.randint(vocabulary, (tokens,)), 1.0, chunk)
        (logprobs + entropies).sum().backward()
    assert largest.elements == chunk * vocabulary


def test_parameters_are_the_models_own() -> None:
    model = torch.nn.Linear(SIZE, VOCABULARY)
    head = LogprobHead(model.weight, model.bias)
    hidden, _, targets = _inputs(torch.float32, with_bias=False)
    head(hidden, targets, 1.0, 4)[0].sum().backward()
    assert head.weight is model.weight and model.weight.grad is not None and model.bias.grad is not None


def test_no_tokens_still_give_gradients() -> None:
    hidden, head, _ = _inputs(torch.float32, with_bias=True)
    logprobs, _ = head(hidden[:0], torch.empty(0, dtype=torch.int64), 1.0, 4)
    gradients = torch.autograd.grad(logprobs.sum(), [hidden, *head.parameters()])
    assert [tuple(gradient.shape) for gradient in gradients] == [(TOKENS, SIZE), (VOCABULARY, SIZE), (VOCABULARY,)]
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize(("temperature", "chunk"), [(0.0, 4), (-1.0, 4), (1.0, 0)])
def test_refuses_temperature_and_chunk_out_of_range(temperature: float, chunk: int) -> None:
    hidden, head, targets = _inputs(torch.float32, with_bias=False)
    with pytest.raises(ValueError, match="must be"):
        head(hidden, targets, temperature, chunk)

"""Finds the tensor behind a failed canary: what do single layers answer to a fixed input, on both sides?

Checksums of what was sent can all agree while a layer computes with a stale private copy; only its output tells.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch

# Share of a layer's largest answer: what rounding may be, and a stale layer exceeds by far.
_TOLERANCE = 1e-2


def probe_input(width: int, seed: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The same input [1, width] wherever it is made."""
    # On CPU: with the same seed, generators of GPUs draw other numbers.
    generator = torch.Generator().manual_seed(seed * 100_003 + width)
    return torch.randn(1, width, generator=generator).to(dtype=dtype, device=device)


def trainer_answers(parameters: Iterable[tuple[str, torch.Tensor]], seed: int) -> dict[str, np.ndarray]:
    """Per parameter of the trainer: W x for matrices, the values themselves for vectors."""
    answers = {}
    for name, tensor in parameters:
        if tensor.ndim == 2:
            x = probe_input(tensor.shape[1], seed, tensor.dtype, tensor.device)
            # As float32: numpy has no bfloat16.
            answers[name] = (x @ tensor.T)[0].float().cpu().numpy()
        elif tensor.ndim == 1:
            answers[name] = tensor.float().cpu().numpy()
    return answers


def engine_answers(model: torch.nn.Module, seed: int) -> dict[str, np.ndarray]:
    """Per module of a vLLM model (one worker, not sharded): its linear answer without bias, or its vector."""
    answers = {}
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        width = getattr(module, "input_size", None) or getattr(module, "embedding_dim", None)
        # Three axes: a convolution's weights, kept in a linear layer that computes nothing.
        convolves = getattr(getattr(module, "weight", None), "ndim", 0) == 3
        if method is not None and width and hasattr(method, "apply") and not convolves:
            dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
            x = probe_input(width, seed, dtype, next(model.parameters()).device)
            answers[name] = method.apply(module, x, bias=None)[0].float().cpu().numpy()
        elif isinstance(getattr(module, "weight", None), torch.Tensor) and module.weight.ndim == 1:  # type: ignore[union-attr]
            answers[name] = module.weight.detach().float().cpu().numpy()  # type: ignore[union-attr, operator]
    return answers


def named_as_sent(
    answers: Mapping[str, np.ndarray], packed_modules: Mapping[str, list[str]], sent: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Answers of the engine's modules under the names that these would have with the tensors as they were sent.

    Args:
        sent: name of a tensor in the engine -> name that it was sent under.
    """
    renamed = {}
    for name, answer in answers.items():
        prefix, _, leaf = name.rpartition(".")
        first = sent.get(f"{prefix}.{packed_modules.get(leaf, [leaf])[0]}.weight".removeprefix("."))
        if first is not None:
            module = first.removesuffix(".weight")
            place = module.rpartition(".")[0]
            name = f"{place}.{leaf}".removeprefix(".") if leaf in packed_modules else module
        renamed[name] = answer
    return renamed


def differing_tensors(
    trainer: Mapping[str, np.ndarray], engine: Mapping[str, np.ndarray], packed_modules: Mapping[str, list[str]]
) -> list[str]:
    """Names of the trainer's tensors whose layer answers otherwise in the engine."""
    wrong = []
    for name, answer in engine.items():
        prefix, _, leaf = name.rpartition(".")
        parts = [f"{prefix}.{part}.weight" for part in packed_modules.get(leaf, [leaf])]
        parts = [part.removeprefix(".") for part in parts]
        if not all(part in trainer for part in parts):
            # A tied output embedding is the input embedding's tensor.
            if leaf == "lm_head" and "model.embed_tokens.weight" in trainer:
                parts = ["model.embed_tokens.weight"]
            else:
                continue
        start = 0
        for part in parts:
            expected = trainer[part]
            found = answer[start : start + len(expected)]
            start += len(expected)
            scale = float(np.abs(expected).max()) or 1.0
            # NaN is no agreement: it is neither above nor below a bound.
            if found.shape != expected.shape or not float(np.abs(found - expected).max()) <= _TOLERANCE * scale:
                wrong.append(part if part.startswith(name) else f"{part} (in the engine's {name})")
    return wrong

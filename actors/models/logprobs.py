"""Token logprobs and entropies from hidden states, with float32 logits of only a few tokens at a time.

Shapes: T tokens, D hidden size, V vocabulary, C tokens of a chunk.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter


class LogprobHead(torch.nn.Module):
    """The output embedding of a model, read out as logprobs and entropies.

    Holds the very Parameters of the model's lm_head (which tied models share with the input embedding) as its own
    direct parameters: ZeRO-3 gathers a module's parameters around its forward and backward, and finds them here.
    """

    def __init__(
        self, weight: Parameter, bias: Parameter | None = None, *, factor: float = 1.0, cap: float | None = None
    ) -> None:
        """
        Args:
            weight: [V, D]
            bias: [V]
            factor: what the product with the weight is multiplied by.
            cap: logits then become cap * tanh(logit / cap).
        """
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.shape = _Shape(factor, cap)

    def forward(self, hidden: Tensor, targets: Tensor, temperature: float, chunk: int) -> tuple[Tensor, Tensor]:
        """Log-softmax of the logits over the temperature, at the targets, and the entropy of that distribution in nats.

        The backward pass recomputes the logits instead of keeping them.

        Args:
            hidden: last hidden states, of the weight's dtype, [T, D].
            targets: token each hidden state predicts, int64 [T].
            temperature: what logits are divided by, as the sampler does; positive.
            chunk: tokens whose float32 logits exist at one time, at least 1.

        Returns:
            logprobs and entropies, float32 [T] each (float64 if hidden is).

        Raises:
            ValueError: temperature or chunk out of range.
        """
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1 token, got {chunk}")
        return _ChunkedLogprobs.apply(hidden, self.weight, self.bias, targets, self.shape, temperature, chunk)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a family makes of its output embedding's product z [C, V]: cap * tanh(factor * z / cap)."""

    factor: float
    cap: float | None

    def apply(self, product: Tensor) -> Tensor:
        """The logits, in the product's dtype, as the sampler and the family's own code compute them; in place."""
        if self.factor != 1.0:
            product.mul_(self.factor)
        if self.cap is not None:
            product.div_(self.cap).tanh_().mul_(self.cap)
        return product

    def slope(self, logits: Tensor) -> Tensor | float:
        """d logits / d z, given the logits."""
        return self.factor if self.cap is None else (1 - (logits / self.cap).square_()).mul_(self.factor)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, shape: _Shape) -> Tensor:
    """[C, D] -> [C, V]; the product in the weight's dtype, as the sampler's, what follows at least in float32."""
    logits = shape.apply(torch.nn.functional.linear(hidden, weight, bias))
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _Kept(Protocol):
    """What the backward pass has of the forward pass; the methods and the other attributes are PyTorch's."""

    shape: "_Shape"
    temperature: float
    chunk: int
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...
    def set_materialize_grads(self, value: bool) -> None: ...


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Kept,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        shape: _Shape,
        temperature: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logprobs, entropies, normalizers = (hidden.new_empty(len(hidden), dtype=dtype) for _ in range(3))
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            shifted = _logits(hidden[rows], weight, bias, shape).div_(temperature)
            top = shifted.amax(-1, keepdim=True)  # so that no exponential overflows
            shifted.sub_(top)  # before both sums below, which would cancel badly with a large common offset
            target_logits = shifted.gather(-1, targets[rows, None]).squeeze(-1)
            weights = shifted.exp()
            total = weights.sum(-1)
            log_total = total.log()
            logprobs[rows] = target_logits - log_total
            entropies[rows] = log_total - torch.linalg.vecdot(weights, shifted) / total
            normalizers[rows] = log_total + top.squeeze(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, normalizers, entropies)
        ctx.shape, ctx.temperature, ctx.chunk = shape, temperature, chunk
        # A loss without entropies shall not cost a pass over zeros in their place.
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: _Kept, grad_logprobs: Tensor | None, grad_entropies: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_logprobs is None and grad_entropies is None:
            return (None,) * 7
        hidden, weight, bias, targets, normalizers, entropies = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        # Sums over chunks stay in float32: in bf16 the later, equally large terms would lose their last bits.
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=normalizers.dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=normalizers.dtype) if needs_bias else None
        for start in range(0, len(hidden), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            logits = _logits(hidden[rows], weight, bias, ctx.shape)
            slope = ctx.shape.slope(logits)  # before they are overwritten
            logps = logits.div_(ctx.temperature).sub_(normalizers[rows, None])
            grad_logits = _grad_of_logits(
                logps,
                targets[rows],
                None if grad_logprobs is None else grad_logprobs[rows],
                None if grad_entropies is None else grad_entropies[rows],
                entropies[rows],
            ).div_(ctx.temperature)
            if not isinstance(slope, float) or slope != 1.0:
                grad_logits.mul_(slope)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            # The products in the dtype of the weight, as those of the forward pass.
            grad_logits = grad_logits.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad_logits @ weight
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden[rows]
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
        )


def _grad_of_logits(
    logps: Tensor, targets: Tensor, grad_logprobs: Tensor | None, grad_entropies: Tensor | None, entropies: Tensor
) -> Tensor:
    """Gradient [C, V] of the scaled logits, given their log-softmax `logps` [C, V], which is overwritten.

    d logprob / d logits = onehot(target) - p;  d entropy / d logits = -p (log p + entropy).
    """
    if grad_logprobs is None:
        grad_logprobs = torch.zeros_like(entropies)
    if grad_entropies is None:
        grad = logps.exp_().mul_(-grad_logprobs[:, None])
    else:
        probabilities = logps.exp()
        grad = logps.add_(entropies[:, None]).mul_(grad_entropies[:, None])
        grad.add_(grad_logprobs[:, None]).mul_(probabilities).neg_()
    return grad.scatter_add_(-1, targets[:, None], grad_logprobs[:, None])

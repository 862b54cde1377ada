"""KTO and the reward model's loss, against KTOTrainer and RewardTrainer on random logits and scores."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer

from algorithms.offline.preference_losses import bradley_terry_loss, centering_penalty, kto_loss
from tests.oracle.difference import assert_same
from tests.oracle.peer import model, trainer

ROWS, LENGTH, VOCABULARY = 6, 10, 13
precision = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
seeded = pytest.mark.parametrize("seed", range(3))


def _sums(logits: Tensor, ids: Tensor, completion: Tensor) -> Tensor:
    """Logprobs of each row's completion, summed, [S]."""
    logprobs = torch.log_softmax(logits[:, :-1], dim=-1).gather(2, ids[:, 1:, None])[..., 0]
    return torch.where(completion[:, 1:], logprobs, 0).sum(1)


@precision
@seeded
@pytest.mark.parametrize("labels", ["mixed", "desirable", "undesirable"])
@pytest.mark.parametrize("shift", [1.5, -1.5], ids=["positive KL", "KL cut at 0"])
def test_kto(shift: float, labels: str, seed: int, dtype: torch.dtype) -> None:
    """The reference point z comes from mismatched rows, which the model sees as a second batch."""
    torch.manual_seed(seed)
    logits, kl_logits = torch.randn(2, ROWS, LENGTH, VOCABULARY, dtype=dtype)
    logits = logits.requires_grad_()
    ids, kl_ids = torch.randint(VOCABULARY, (2, ROWS, LENGTH))
    ends, kl_ends = torch.randint(3, LENGTH + 1, (2, ROWS, 1))
    position = torch.arange(LENGTH)
    completion, kl_completion = ((position >= 2) & (position < each) for each in (ends, kl_ends))
    policy, kl_policy = _sums(logits, ids, completion), _sums(kl_logits, kl_ids, kl_completion)
    noise = torch.randn(2, ROWS).to(dtype)
    reference, kl_reference = policy.detach() + 3 * noise[0], kl_policy - shift + 0.3 * noise[1]
    desirable = torch.arange(ROWS) % 2 == 0 if labels == "mixed" else torch.full((ROWS,), labels == "desirable")
    kto = trainer(
        KTOTrainer,
        loss_type="kto",
        calculate_KL=True,
        use_liger_kernel=False,
        precompute_ref_logps=True,
        beta=0.2,
        desirable_weight=1.3,
        undesirable_weight=0.8,
    )
    inputs = {
        "input_ids": ids,
        "attention_mask": (position < ends).long(),
        "completion_mask": completion.long(),
        "KL_input_ids": kl_ids,
        "KL_attention_mask": (position < kl_ends).long(),
        "KL_completion_mask": kl_completion.long(),
        "label": desirable,
        "ref_logps": reference,
        "ref_KL_logps": kl_reference,
    }
    theirs = kto._compute_loss(
        lambda input_ids, **_: SimpleNamespace(logits=kl_logits if input_ids is kl_ids else logits), inputs, False
    )
    kl = max(0.0, (kl_policy - kl_reference).mean().item())
    assert (kl > 0) == (shift > 0)
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.8}
    losses = kto_loss(policy, reference, desirable, kl, beta=0.2, **weights)
    assert_same("kto", "TRL KTOTrainer._compute_loss", losses.sum() / ROWS, theirs, logits)


@precision
@seeded
@pytest.mark.parametrize("centering", [None, 0.01, 0.5])
@pytest.mark.parametrize("margins", [False, True])
def test_reward_model(margins: bool, centering: float | None, seed: int, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    scores = (2 * torch.randn(2 * ROWS, 1, dtype=dtype)).requires_grad_()
    margin = torch.rand(ROWS).to(dtype) if margins else torch.zeros(ROWS, dtype=dtype)
    inputs = {"attention_mask": torch.ones(2 * ROWS, 4)} | ({"margin": margin} if margins else {})
    reward = trainer(RewardTrainer, args=SimpleNamespace(center_rewards_coefficient=centering))
    theirs = reward.compute_loss(model(scores), inputs)
    chosen, rejected = scores[:ROWS, 0], scores[ROWS:, 0]
    ours = bradley_terry_loss(chosen, rejected, margin) + (centering or 0) * centering_penalty(chosen, rejected)
    assert_same("reward model, margin, centring", "TRL RewardTrainer.compute_loss", ours.sum() / ROWS, theirs, scores)

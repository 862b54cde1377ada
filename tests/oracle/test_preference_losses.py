"""Preference losses against TRL's DPO, CPO and ORPO trainers on random logits, and against formulas TRL lacks."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer

from algorithms.config_offline import DPOConfig
from algorithms.offline.preference_losses import PairLogprobs, matched_references, nll_weight, preference_loss
from tests.oracle.difference import assert_same
from tests.oracle.peer import model, trainer

DPO, CPO, ORPO = (
    "TRL DPOTrainer._compute_loss",
    "TRL CPOTrainer.get_batch_loss_metrics",
    "TRL ORPOTrainer.get_batch_loss_metrics",
)
PAIRS, LENGTH, VOCABULARY = 5, 12, 13
precision = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
seeded = pytest.mark.parametrize("seed", range(3))


@dataclass
class Batch:
    """Random pairs, chosen ones first; prompts of 1 to 4 tokens, completions of 1 to 8, padding."""

    logits: Tensor
    """The only leaf with gradient, [2 P, L, V]."""
    ids: Tensor
    """[2 P, L]"""
    mask: Tensor
    """Tokens of prompt and completion, bool [2 P, L]."""
    completion: Tensor
    """Tokens of the completion, bool [2 P, L]."""
    reference: Tensor
    """Sums of the reference's logprobs, [2 P]."""

    @property
    def policy_tokens(self) -> Tensor:
        """Logprobs of tokens 1 to L, 0 outside the completion, [2 P, L - 1]."""
        logprobs = torch.log_softmax(self.logits[:, :-1], dim=-1).gather(2, self.ids[:, 1:, None])[..., 0]
        return torch.where(self.completion[:, 1:], logprobs, 0)

    @property
    def pairs(self) -> PairLogprobs:
        """What our losses read."""
        policy, tokens = self.policy_tokens.sum(1), self.completion.sum(1)
        return PairLogprobs(
            policy_chosen=policy[:PAIRS],
            policy_rejected=policy[PAIRS:],
            reference_chosen=self.reference[:PAIRS],
            reference_rejected=self.reference[PAIRS:],
            chosen_tokens=tokens[:PAIRS],
            rejected_tokens=tokens[PAIRS:],
        )


def _batch(seed: int, dtype: torch.dtype) -> Batch:
    torch.manual_seed(seed)
    logits = torch.randn(2 * PAIRS, LENGTH, VOCABULARY, dtype=dtype).requires_grad_()
    ids = torch.randint(VOCABULARY, (2 * PAIRS, LENGTH))
    prompt = torch.randint(1, 5, (PAIRS, 1)).repeat(2, 1)
    end = prompt + torch.randint(1, LENGTH - 3, (2 * PAIRS, 1))
    position = torch.arange(LENGTH)
    batch = Batch(logits, ids, position < end, (position >= prompt) & (position < end), torch.zeros(2 * PAIRS))
    noise = torch.randn(2 * PAIRS).to(dtype)
    batch.reference = batch.policy_tokens.detach().sum(1) + 3 * noise
    return batch


def _ours(batch: Batch, config: DPOConfig) -> Tensor:
    """Weighted sum of losses of an update that is one micro-batch."""
    loss = torch.zeros(())
    for item in config.loss:
        if item.name != "sft":
            pairs = _matched(item.name, batch.pairs) if item.name in ("aot", "aot_unpaired") else batch.pairs
            loss = loss + item.weight * preference_loss(item.name, pairs, config).sum() / PAIRS
        if weight := item.weight * nll_weight(item.name, config):
            loss = loss - weight * batch.policy_tokens[:PAIRS].sum() / batch.completion[:PAIRS].sum()
    return loss


def _matched(name: Any, pairs: PairLogprobs) -> PairLogprobs:
    names = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    arrays = {name: getattr(pairs, name).detach().double().numpy() for name in names}
    chosen, rejected = (torch.from_numpy(array) for array in matched_references(name, **arrays))
    dtype = pairs.policy_chosen.dtype
    return replace(pairs, reference_chosen=chosen.to(dtype), reference_rejected=rejected.to(dtype))


def _dpo(batch: Batch, types: list[str], weights: list[float], beta: float, smoothing: float) -> Tensor:
    dpo = trainer(
        DPOTrainer,
        loss_types=types,
        loss_weights=weights,
        beta=beta,
        label_smoothing=smoothing,
        args=SimpleNamespace(discopop_tau=0.05),
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        use_weighting=False,
    )
    inputs = {
        "input_ids": batch.ids,
        "attention_mask": batch.mask.long(),
        "completion_mask": batch.completion.long(),
        "ref_chosen_logps": batch.reference[:PAIRS],
        "ref_rejected_logps": batch.reference[PAIRS:],
    }
    return dpo._compute_loss(model(batch.logits), inputs, return_outputs=False)


def _padded(batch: Batch) -> dict[str, Tensor]:
    """The batch as CPO's and ORPO's collator gives it."""
    labels = torch.where(batch.completion, batch.ids, -100)
    found = {}
    for name, rows in {"chosen": slice(PAIRS), "rejected": slice(PAIRS, None)}.items():
        found |= {f"{name}_input_ids": batch.ids[rows], f"{name}_labels": labels[rows]}
        found[f"{name}_attention_mask"] = batch.mask[rows].long()
    return found


def _cpo(batch: Batch, **settings: Any) -> Tensor:
    defaults = {"alpha": 0.0, "cpo_alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 0.0, "pad_token_id": 0}
    made = trainer(CPOTrainer, **(defaults | settings))
    return made.get_batch_loss_metrics(model(batch.logits), _padded(batch))[0]


@precision
@seeded
@pytest.mark.parametrize("beta", [0.1, 0.7, 3.0])
@pytest.mark.parametrize(
    ("name", "theirs", "smoothing"),
    [
        # TRL's sigmoid ignores label_smoothing: smoothed, it is compared below.
        ("sigmoid", "sigmoid", 0.0),
        ("ipo", "ipo", 0.0),
        ("hinge", "hinge", 0.0),
        ("robust", "robust", 0.1),
        ("exo", "exo_pair", 0.05),
        ("nca", "nca_pair", 0.0),
        ("bco", "bco_pair", 0.0),
        ("sppo", "sppo_hard", 0.0),
        ("aot", "aot", 0.0),
        ("aot", "aot", 0.1),
        ("aot_unpaired", "aot_unpaired", 0.0),
        ("aot_unpaired", "aot_unpaired", 0.1),
        ("apo_zero", "apo_zero", 0.0),
        ("apo_down", "apo_down", 0.0),
        ("discopop", "discopop", 0.0),
        ("sigmoid_norm", "sigmoid_norm", 0.0),
        ("sft", "sft", 0.0),
    ],
)
def test_dpo(name: str, theirs: str, smoothing: float, beta: float, seed: int, dtype: torch.dtype) -> None:
    batch = _batch(seed, dtype)
    scale = {} if name == "sft" else {"beta": beta}  # sft does not read it
    config = DPOConfig(name="dpo", epochs=1, loss=[{"name": name}], **scale, label_smoothing=smoothing)
    assert_same(name, DPO, _ours(batch, config), _dpo(batch, [theirs], [1.0], beta, smoothing), batch.logits)


@precision
@seeded
def test_weighted_list(seed: int, dtype: torch.dtype) -> None:
    batch = _batch(seed, dtype)
    weights = {"sigmoid": 0.8, "bco": 0.2, "sft": 1.5}
    loss = [{"name": name, "weight": weight} for name, weight in weights.items()]
    config = DPOConfig(name="dpo", epochs=1, loss=loss, beta=0.3)
    theirs = _dpo(batch, ["sigmoid", "bco_pair", "sft"], list(weights.values()), 0.3, 0.0)
    assert_same("list: sigmoid, bco, sft", DPO, _ours(batch, config), theirs, batch.logits)


@precision
@seeded
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.3])
def test_cpo(alpha: float, smoothing: float, seed: int, dtype: torch.dtype) -> None:
    """With its negative log-likelihood: in TRL the mean over the chosen completions' tokens of the micro-batch."""
    batch = _batch(seed, dtype)
    config = DPOConfig(name="dpo", epochs=1, loss="cpo", beta=0.2, label_smoothing=smoothing, cpo_alpha=alpha)
    theirs = _cpo(batch, loss_type="sigmoid", beta=0.2, label_smoothing=smoothing, cpo_alpha=alpha)
    assert_same("cpo, with likelihood", CPO, _ours(batch, config), theirs, batch.logits)


@precision
@seeded
@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 0.5), (2.5, 1.4)])
def test_simpo(beta: float, gamma: float, seed: int, dtype: torch.dtype) -> None:
    batch = _batch(seed, dtype)
    config = DPOConfig(name="dpo", epochs=1, loss="simpo", beta=beta, simpo_gamma=gamma)
    theirs = _cpo(batch, loss_type="simpo", beta=beta, simpo_gamma=gamma)
    assert_same("simpo", CPO, _ours(batch, config), theirs, batch.logits)


@precision
@seeded
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_orpo(beta: float, seed: int, dtype: torch.dtype) -> None:
    """TRL's likelihood counts the prompt's tokens too, the paper's and ours do not: only without prompts are they one.

    Masking the prompt out of the attention leaves it out of TRL's likelihood and changes nothing else here.
    """
    batch = _batch(seed, dtype)
    batch.mask = batch.completion
    orpo = trainer(ORPOTrainer, beta=beta, padding_value=0)
    theirs, _ = orpo.get_batch_loss_metrics(model(batch.logits), _padded(batch))
    config = DPOConfig(name="dpo", epochs=1, loss="orpo", beta=beta)
    assert_same("orpo, with likelihood", ORPO, _ours(batch, config), theirs, batch.logits)


@precision
@seeded
@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_conservative_dpo(smoothing: float, seed: int, dtype: torch.dtype) -> None:
    """TRL 1.12 smooths no sigmoid DPO. Its CPO does, and sees the same loss if it is given log-ratios as logprobs."""
    batch = _batch(seed, dtype)
    pairs = batch.pairs
    config = DPOConfig(name="dpo", epochs=1, loss="sigmoid", beta=0.3, label_smoothing=smoothing)
    ours = preference_loss("sigmoid", pairs, config)
    cpo = trainer(CPOTrainer, alpha=0.0, loss_type="sigmoid", beta=0.3, label_smoothing=smoothing)
    ratios = (
        pairs.policy_chosen - pairs.reference_chosen,
        pairs.policy_rejected - pairs.reference_rejected,
    )
    assert_same("sigmoid, smoothed (cDPO)", "TRL CPOTrainer.cpo_loss", ours, cpo.cpo_loss(*ratios)[0], batch.logits)
    p = 1 / (1 + torch.exp(-0.3 * (ratios[0] - ratios[1])))
    naive = -(1 - smoothing) * torch.log(p) - smoothing * torch.log(1 - p)
    assert_same("sigmoid, smoothed (cDPO), eq. 6", "formula of ericmitchell.ai/cdpo.pdf", ours, naive, batch.logits)

"""The load-balancing loss of mixtures of experts: that of transformers for a batch, however an update is divided."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.config import ModelConfig, OptimizerConfig, TrainerConfig, UserError
from actors.episodes import Sequence
from actors.models.balance import Balance, Routed, balance_of
from actors.train.policy import PolicyWorker
from actors.train.worker import Totals
from algorithms.offline.sft import sft_loss
from tests.mixtures import BALANCED, MIXTURES, config_of, saved_mixture
from tests.one_rank import alone  # noqa: F401

pytestmark = pytest.mark.usefixtures("alone")
GROUP = TrainerConfig(optimizer=OptimizerConfig(name="sgd", lr=0.5, max_grad_norm=1e6))
LENGTHS = (14, 9, 21, 5)


def sequences(shared: int = 0) -> list[Sequence]:
    """Prompts of three tokens, of which the first `shared` sequences have the same."""
    generator = np.random.default_rng(1)
    tokens = [generator.integers(3, 60, size=length) for length in LENGTHS]
    for each in tokens[:shared]:
        each[:3] = tokens[0][:3]
    return [Sequence(token_ids=each, action_mask=np.arange(len(each)) >= 3) for each in tokens]


def trainee(directory: Path, **settings: Any) -> Any:
    """A policy of one rank in this process."""
    worker: Any = object.__new__(PolicyWorker)
    worker.rank, worker.world_size, worker.device, worker.seed, worker.group = 0, 1, torch.device("cpu"), 0, GROUP
    worker.model_config, worker.directory = ModelConfig(path=str(directory), **settings), str(directory)
    worker.build("", 0, 4)
    return worker


def learned(worker: Any, *micro_batches: list[Sequence], share: bool = False) -> dict[str, float]:
    """Metrics of an update."""
    tokens = sum(int(each.action_mask.sum()) for batch in micro_batches for each in batch)
    totals = Totals(tokens=tokens, sequences=len(LENGTHS), trained_tokens=tokens)
    return worker.learn(list(micro_batches), totals, sft_loss, share)


def plain(directory: Path, batch: list[Sequence], coefficient: float | None) -> tuple[float, float, float, Any]:
    """Loss, its balancing part and gradient norm of plain transformers, of a row for each sequence; and the model, one
    step further."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").train()
    if coefficient is not None:
        for name in ("router_aux_loss_coef", "aux_loss_coef"):
            setattr(model, name, coefficient)
    rows = [torch.tensor(each.token_ids) for each in batch]
    masks = [torch.ones(len(row), dtype=torch.long) for row in rows]
    labels = [torch.where(torch.tensor(each.action_mask), row, -100) for row, each in zip(rows, batch, strict=True)]
    pad = torch.nn.utils.rnn.pad_sequence
    outputs = model(
        pad(rows, batch_first=True),
        attention_mask=pad(masks, batch_first=True),
        labels=pad(labels, batch_first=True, padding_value=-100),
        **({} if coefficient is None else {"output_router_logits": bool(coefficient)}),
    )
    outputs.loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e6)
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    balance = getattr(outputs, "aux_loss", None)
    return outputs.loss.item(), math.nan if balance is None else balance.item(), float(norm), model


@pytest.mark.parametrize("coefficient", [0.01, 1.0])
@pytest.mark.parametrize("model_type", BALANCED)
def test_an_update_is_that_of_transformers(model_type: str, coefficient: float, tmp_path: Path) -> None:
    """Loss, gradient norm and weights, with the balancing loss over every real token and no padding."""
    directory, batch = saved_mixture(tmp_path, model_type), sequences()
    loss, balance, norm, model = plain(directory, batch, coefficient)
    worker = trainee(directory, router_aux_loss=coefficient)
    found = learned(worker, batch)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["policy/router_aux_loss"] == pytest.approx(balance, rel=1e-5)
    assert found["grad_norm"] == pytest.approx(norm, rel=1e-5)
    moved = dict(worker.engine.parameters("model"))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(moved[name], parameter.detach(), rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("model_type", sorted(MIXTURES.keys() - set(BALANCED)))
def test_families_without_a_balancing_loss_have_none(model_type: str, tmp_path: Path) -> None:
    """Their update is that of transformers, which leaves their bias alone; a coefficient is refused, 0 is none."""
    directory, batch = saved_mixture(tmp_path, model_type), sequences()
    loss, _, norm, model = plain(directory, batch, None)
    worker = trainee(directory, router_aux_loss=0)
    found = learned(worker, batch)
    assert (found["loss"], found["grad_norm"]) == pytest.approx((loss, norm), rel=1e-5)
    assert "policy/router_aux_loss" not in found
    state = model.state_dict()
    assert worker.hf_model.state_dict().keys() == state.keys()
    for name, tensor in worker.hf_model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-4, atol=1e-6, msg=name)
    with pytest.raises(UserError) as caught:
        balance_of(model, 0.01)
    assert str(caught.value) == (
        f"model.router_aux_loss: must be left out for {type(model).__name__}, which has no load-balancing loss (in "
        f"transformers), got 0.01"
    )


@pytest.mark.parametrize("asked", [True, False])
def test_by_default_the_configuration_decides(asked: bool, tmp_path: Path) -> None:
    """As in transformers, which adds the loss with output_router_logits alone, by its own coefficient."""
    directory = saved_mixture(tmp_path, "qwen3_moe", output_router_logits=asked, router_aux_loss_coef=0.3)
    batch = sequences()
    loss, balance, norm, _ = plain(directory, batch, None)
    worker = trainee(directory)
    found = learned(worker, batch)
    assert (found["loss"], found["grad_norm"]) == pytest.approx((loss, norm), rel=1e-5)
    assert ("policy/router_aux_loss" in found) is asked
    if asked:
        assert found["policy/router_aux_loss"] == pytest.approx(balance, rel=1e-5)
        off = learned(trainee(directory, router_aux_loss=0), batch)
        assert off["loss"] == pytest.approx(loss - 0.3 * balance, rel=1e-5)
    # What is read and evaluated is the model's alone.
    assert worker.evaluate([batch], TOTALS, sft_loss).keys() == {"loss", "policy/entropy"}


TOTALS = Totals(tokens=37, sequences=4, trained_tokens=37)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "jetmoe"])
def test_the_loss_of_an_update_does_not_depend_on_its_micro_batches(model_type: str, tmp_path: Path) -> None:
    """Nor on prompts that are shared, nor on a rank that has nothing to do: it is that of the whole batch."""
    directory, batch = saved_mixture(tmp_path, model_type), sequences(shared=3)
    first, second, third, fourth = batch
    divisions = [
        ([batch], True),
        ([[third, first], [fourth], [second]], False),
        ([[first, second, third], [fourth], []], True),
    ]
    expected = trainee(directory, router_aux_loss=0.5)
    whole = learned(expected, batch)
    loss, balance, norm, _ = plain(directory, batch, 0.5)
    assert (whole["loss"], whole["policy/router_aux_loss"], whole["grad_norm"]) == pytest.approx(
        (loss, balance, norm), rel=1e-5
    )
    for micro_batches, share in divisions:
        worker = trainee(directory, router_aux_loss=0.5)
        found = learned(worker, *micro_batches, share=share)
        for name in ("loss", "policy/router_aux_loss", "grad_norm", "policy/entropy"):
            assert found[name] == pytest.approx(whole[name], rel=2e-5), (name, micro_batches)
        moved = dict(worker.engine.parameters("model"))
        for name, parameter in expected.engine.parameters("model"):
            torch.testing.assert_close(moved[name], parameter, rtol=1e-4, atol=1e-6, msg=name)


def test_the_balancing_loss_is_its_formula() -> None:
    """By hand, with weights of tokens; balanced experts give k, experts that always have the same tokens more."""
    generator = torch.Generator().manual_seed(0)
    logits, weights = torch.randn(2 * 5, 4, generator=generator), torch.tensor([1.0, 0.0, 2.0, 1.0, 3.0])
    read = Routed.of(logits, weights, 2)
    probabilities, frequencies = torch.zeros(4), torch.zeros(4)
    for layer in range(2):
        for token in range(5):
            own = logits[5 * layer + token].softmax(-1)
            probabilities += weights[token] * own / 14
            frequencies[own.topk(2).indices] += weights[token] / 14
    balance = Balance(config_of("mixtral"))
    balance._read = [read]
    assert balance.share().item() == pytest.approx(4 * float(frequencies @ probabilities), rel=1e-6)
    balance._read = [Routed.of(torch.eye(4).repeat(3, 1) * 1e-3, torch.ones(4), 1)]
    assert balance.share().item() == pytest.approx(1.0, rel=1e-6)
    balance._read = [Routed.of(torch.tensor([[50.0, 40.0, 0.0, 0.0]]), torch.ones(1), 2)]
    assert balance.share().item() == pytest.approx(4.0, rel=1e-3)

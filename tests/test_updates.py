"""Updates that must not happen as DeepSpeed would have them, on one rank: without a number, without anything to learn;
and a critic that is resumed."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from actors.config import LoraConfig, OptimizerConfig, TrainerConfig
from actors.models.load import ScoreHead
from actors.models.lora import add_adapters
from actors.train.engine import TrainingEngine
from actors.train.policy import PolicyWorker
from actors.train.worker import Totals, pack_sequences
from tests.one_rank import (
    SMALL,
    STAGES,
    STAGES_AND_DTYPES,
    UPDATES,
    alone,  # noqa: F401
    assert_equal,
    engine,
    train,
    weights,
)

pytestmark = pytest.mark.usefixtures("alone")
DECAYING = OptimizerConfig(lr=0.05, weight_decay=0.1, schedule="linear")


@pytest.mark.parametrize(("stage", "dtype"), STAGES_AND_DTYPES)
def test_what_deepspeed_decides_itself_changes_no_gradient(stage: int, dtype: str) -> None:
    """DeepSpeed 0.19.8: settings of its own that scale, clip, cast or drop gradients are off, or as ours say."""
    trained = engine(stage, dtype=dtype, optimizer=OptimizerConfig(lr=0.5, max_grad_norm=0.7))
    config = trained.engine._config
    plain = stage == 0 and dtype == "fp32"
    found = {
        "clipping": config.gradient_clipping,
        "accumulation": config.gradient_accumulation_steps,
        "micro batch": config.train_micro_batch_size_per_gpu,
        "prescaled": (config.prescale_gradients, config.gradient_predivide_factor),
        "half": (config.float16_config.enabled, config.bfloat16_config.enabled),
        "autocast": config.torch_autocast_enabled,
        "gradients kept in": config.grad_accum_dtype,
        "stage": config.zero_config.stage,
        "loss scale": getattr(trained.engine.optimizer, "cur_scale", 1.0),
        "compiled": trained.engine.is_compiled,
    }
    assert found == {
        "clipping": 0.0 if plain else 0.7,
        "accumulation": 1,
        "micro batch": 1,
        "prescaled": (False, 1.0),
        "half": (False, dtype == "bf16"),
        "autocast": False,
        "gradients kept in": "fp32" if dtype == "bf16" else None,
        "stage": stage,
        "loss scale": 1.0,
        "compiled": False,
    }


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("stage", "dtype"), STAGES_AND_DTYPES)
def test_a_gradient_that_is_no_number_ends_the_run_alike_at_every_stage(stage: int, dtype: str, value: float) -> None:
    """DeepSpeed 0.19.8 writes it into all weights, skips the update, or calls it inf; ours is one error, before the
    weights are lost where that can be known."""
    trained = engine(stage, dtype=dtype, optimizer=SMALL)
    before = weights(trained)
    batch = torch.full((7, 6), value, dtype=next(trained.module.parameters()).dtype)
    trained.backward((trained.forward(batch).float() ** 2).sum(), last=True)
    with pytest.raises(FloatingPointError, match=r"^the gradient norm of an update is (nan|inf): the model is lost"):
        trained.step()
    if stage == 0 and dtype == "fp32":
        assert_equal(weights(trained), before)


@pytest.mark.parametrize("limit", [1e-3, 1e3])
@pytest.mark.parametrize(("stage", "dtype"), STAGES_AND_DTYPES)
def test_gradients_may_be_divided_when_the_step_is_made(stage: int, dtype: str, limit: float) -> None:
    """Norm, clipping and weights are those of losses that were divided before, and a later step is not divided again.
    DeepSpeed 0.19.8: where gradients are out of reach, its loss scale divides them before they are clipped."""
    settings = OptimizerConfig(name="sgd", lr=0.5, max_grad_norm=limit)
    before, after = (engine(stage, dtype=dtype, optimizer=settings) for _ in range(2))
    first = weights(before)
    norms = []
    for number in range(3):
        # A power of two: bf16 rounds the gradients of both alike.
        for trained, divisor in ((before, 8.0), (after, 1.0)):
            for micro_batch in range(2):
                batch = torch.full((7, 6), 0.5 + number + micro_batch, dtype=next(trained.module.parameters()).dtype)
                loss = (trained.forward(batch).float() ** 2).sum() / divisor
                trained.backward(loss, last=micro_batch == 1)
        norms.append((before.step(), after.step(8.0)))
    assert [found for _, found in norms] == pytest.approx([expected for expected, _ in norms], rel=1e-6)
    assert all(found > 1e-3 for _, found in norms)
    assert_equal(weights(after), weights(before))
    assert any(not torch.equal(tensor, first[name]) for name, tensor in weights(after).items())


class Values(torch.nn.Module):
    """A critic with adapters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = LlamaConfig(vocab_size=20, num_labels=1, pad_token_id=0, **sizes)
        self.model: Any = LlamaForSequenceClassification(config)
        add_adapters(self.model, LoraConfig(rank=2), seed=0)
        self.head = ScoreHead(self.model.score)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.head(self.model.model(batch).last_hidden_state)


@pytest.mark.parametrize("stage", STAGES)
def test_a_critics_adapters_and_its_head_are_resumed(stage: int, tmp_path: Path) -> None:
    """The head has no adapter and is trained whole: after a resume it is what was saved, and goes on alike."""
    group = TrainerConfig.model_validate(
        {"zero_stage": stage, "optimizer": SMALL}
        | ({"deepspeed": {"zero_optimization": {"reduce_bucket_size": 1_000_000}}} if stage else {})
    )
    first, again = (TrainingEngine(Values(), group, "fp32", UPDATES) for _ in range(2))

    def update(trained: TrainingEngine, number: int) -> None:
        trained.backward((trained.forward(torch.arange(12).reshape(2, 6) + number) ** 2).sum(), last=True)
        trained.step()

    initial = weights(first)
    for number in range(2):
        update(first, number)
    first.save(tmp_path)
    saved = weights(first)
    assert not torch.equal(saved["score.weight"], initial["score.weight"])
    again.load(tmp_path)
    assert_equal(weights(again), saved)
    for trained in (first, again):
        update(trained, 2)
    assert_equal(weights(again), weights(first))
    assert not torch.equal(weights(again)["score.weight"], saved["score.weight"])


@pytest.mark.parametrize("stage", STAGES)
def test_an_update_with_nothing_to_learn_from_moves_nothing(stage: int) -> None:
    """Neither Adam's moments nor weight decay do; the schedule goes on, and so does what is learned afterwards."""
    skipping, plain = (engine(stage, optimizer=DECAYING, ema_decay=0.75) for _ in range(2))
    for trained in (skipping, plain):
        train(trained, 0)
    before, rate = weights(skipping), skipping.learning_rate
    worker = PolicyWorker.__new__(PolicyWorker)
    worker.engine, worker.group, worker.world_size = skipping, TrainerConfig(), 1
    skipping.evaluate = lambda *_: (torch.zeros(1), torch.zeros(1))  # type: ignore[method-assign]
    batch = pack_sequences([], torch.device("cpu"))
    nothing = Totals(tokens=5, sequences=1, trained_tokens=0)
    told = worker._update(1, iter([batch]), nothing, lambda *_: (torch.zeros(()), {}), 1.0)
    assert_equal(weights(skipping), before)
    assert (told["grad_norm"], told["learning_rate"]) == (0.0, rate)
    assert skipping.learning_rate < rate
    plain.engine.lr_scheduler.step()
    for trained in (skipping, plain):
        train(trained, 1)
    assert_equal(weights(skipping), weights(plain))
    with skipping.averaged(), plain.averaged():
        assert_equal(weights(skipping), weights(plain))

"""Two ranks that share an update of a hybrid, whose sequences are read in rows of their own: one makes several calls of
the model, the other fewer, or has nothing to do. The update is that of plain transformers, whatever is sharded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from transformers import PreTrainedModel

from actors.config import ModelConfig, TrainerConfig
from actors.episodes import Sequence
from actors.group import ActorGroup, GroupError, Slot
from actors.train.critic import RewardModelWorker
from actors.train.policy import PolicyWorker
from actors.train.trainer import TrainedWorker
from actors.train.worker import Totals
from algorithms.offline.sft import sft_loss
from tests.families.scores import build_scores, score_of
from tests.families.table import build
from tests.plain_updates import RATE, ROWS, SGD, bradley_terry, learning, nll, plain, updated
from tests.test_families import alone as logprobs_alone
from tests.trainees import Trainee

HYBRID = "qwen3_5 text"
DIVISIONS = {
    "one has nothing to do": [[[0, 1, 4, 5], [2, 3]], [[], []]],
    "one has more lengths": [[[0, 1, 4, 5]], [[2, 3]]],
}
"""Of each rank, the sequences in its micro-batches: of lengths 12 to 40, each but similar ones in a call of its own."""


class FamilyTrainee(Trainee):
    """A rank that starts anew from any directory."""

    def restart_from(
        self,
        directory: str,
        kind: type[TrainedWorker],
        address: str,
        port: int,
        model: ModelConfig,
        group: TrainerConfig,
    ) -> None:
        """Build the model and its engine again."""
        self.directory = directory
        self.restart(kind, address, port, model, group, share_prompts=True)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, str]:
    """Of the causal model, and (True) of the one with a score."""
    found = {}
    for scores, model in ((False, build(HYBRID)), (True, build_scores(HYBRID))):
        found[scores] = str(tmp_path_factory.mktemp("model"))
        model.save_pretrained(found[scores])
    return found


@pytest.fixture(scope="module")
def ranks(local_ray: None, directories: dict[bool, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    placement = placement_group([{"CPU": 1.0}])
    assert placement.wait(30)
    slot = Slot(placement=placement, bundle=0, cpus=0.1, gpus=0, threads=1)
    logs = str(tmp_path_factory.mktemp("logs"))
    group = ActorGroup("policy", FamilyTrainee, [slot] * 2, timeout_s=120, log_directory=logs)
    group.spawn(ModelConfig(path=directories[False]), directories[False], TrainerConfig(timeout_s=120), 0)
    yield group
    group.shutdown()
    remove_placement_group(placement)


def restarted(ranks: Any, directory: str, kind: type[TrainedWorker], zero_stage: Any, **model: Any) -> None:
    address, port = ranks.gather([ranks.submit(0, FamilyTrainee.address)], "address")[0]
    group = TrainerConfig(optimizer=SGD, zero_stage=zero_stage, timeout_s=120)
    settings = ModelConfig(path=directory, **model)
    ranks.call(FamilyTrainee.restart_from, directory, kind, address, port, settings, group)


def output(model: PreTrainedModel, kind: str, sequence: Sequence) -> float:
    """The sequence's logprob, or its score."""
    with torch.no_grad():
        if kind == "sft":
            return float(logprobs_alone(model, sequence).sum())
        return float(score_of(model, torch.from_numpy(sequence.token_ids)))


@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("sft", {"zero_stage": 3}),
        ("sft", {"zero_stage": 3, "gradient_checkpointing": True}),
        ("sft", {"zero_stage": 2}),
        ("sft", {"zero_stage": 0}),
        ("reward", {"zero_stage": 3}),
    ],
    ids=["ZeRO-3", "ZeRO-3, checkpointing", "ZeRO-2", "ZeRO-0", "reward model, ZeRO-3"],
)
def test_two_ranks_make_the_update_of_plain_transformers(
    kind: str, settings: dict[str, Any], division: str, ranks: Any, directories: dict[bool, str]
) -> None:
    directory, loss = directories[kind == "reward"], nll if kind == "sft" else bradley_terry
    restarted(ranks, directory, PolicyWorker if kind == "sft" else RewardModelWorker, **settings)
    plans = [(learning(kind, of_rank)[0],) for of_rank in DIVISIONS[division]]
    read = ranks.scatter(FamilyTrainee.outputs, plans)
    model = plain(directory, kind)
    for outputs, numbers in zip(read, DIVISIONS[division], strict=True):
        for batch, places in zip(outputs, numbers, strict=True):
            assert batch == pytest.approx([output(model, kind, ROWS[place]) for place in places], rel=1e-4)
    found = ranks.scatter(FamilyTrainee.learn, [learning(kind, of_rank) for of_rank in DIVISIONS[division]])
    wanted = updated(model, loss, ROWS, RATE)
    for metrics in found:
        assert metrics["loss"] == pytest.approx(wanted.loss, rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(wanted.norm, rel=1e-5)
    weights = ranks.call(FamilyTrainee.weights)[0]
    for name, weight in wanted.weights.items():
        np.testing.assert_allclose(weights[name], weight, rtol=0, atol=1e-6 + 1e-6 * RATE * wanted.norm, err_msg=name)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
@pytest.mark.parametrize("other", ["idle", "short"])
@pytest.mark.parametrize("name", ["rwkv", "deepseek_v4", "qwen4_exp text", "gemma3n text"])
def test_what_takes_no_part_in_short_sequences_does_on_all_ranks(
    name: str, other: str, zero_stage: int, ranks: Any, tmp_path: Path
) -> None:
    """Decay between tokens, and what joins several of them; the embedding of padding, which is 0, has no derivative."""
    build(name).save_pretrained(tmp_path)
    if name == "qwen4_exp text" and zero_stage == 3:
        with pytest.raises(
            GroupError, match="zero_stage: must be below 3 for qwen4_exp_text, of which each rank gathers"
        ):
            restarted(ranks, str(tmp_path), PolicyWorker, zero_stage)
        return
    restarted(ranks, str(tmp_path), PolicyWorker, zero_stage)
    short = [Sequence(token_ids=np.array([7, 8 + number]), action_mask=np.array([False, True])) for number in range(2)]
    rows = ROWS + (short if other == "short" else [])
    tokens = sum(int(row.action_mask.sum()) for row in rows)
    totals = Totals(tokens=tokens, sequences=len(rows), trained_tokens=tokens)
    calls = [([ROWS[:3], ROWS[3:]], totals, sft_loss), ([short if other == "short" else [], []], totals, sft_loss)]
    found = ranks.scatter(FamilyTrainee.learn, calls)
    wanted = updated(plain(str(tmp_path)), nll, rows, RATE)
    assert found[0]["loss"] == pytest.approx(wanted.loss, rel=1e-5)
    assert found[0]["grad_norm"] == pytest.approx(wanted.norm, rel=1e-5)
    for weights in ranks.call(FamilyTrainee.weights):
        for parameter, weight in wanted.weights.items():
            rounding = 1e-6 + 1e-6 * RATE * wanted.norm
            np.testing.assert_allclose(weights[parameter], weight, rtol=0, atol=rounding, err_msg=parameter)

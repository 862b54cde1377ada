"""A rank that learns, in this process: its randomness, what it reports of an update, and what it gives to the loss."""

import math
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors.config import LoraConfig, ModelConfig, ModelInit, OptimizerConfig, TrainerConfig
from actors.episodes import Episode, Sequence
from actors.files import stored
from actors.models.skeleton import write_skeleton
from actors.train.critic import RewardModelWorker
from actors.train.policy import PolicyWorker
from actors.train.trainer import TrainedWorker
from actors.train.worker import Totals
from algorithms.offline.sft import sft_loss
from tests.episodes import episode
from tests.one_rank import alone  # noqa: F401

pytestmark = pytest.mark.usefixtures("alone")
CPU = torch.device("cpu")
INIT = ModelInit(hidden_size=16, layers=1, heads=2, max_positions=32, alphabet="abc")
DROPPING = ModelConfig(init=INIT, lora=LoraConfig(rank=4, dropout=0.5))
GROUP = TrainerConfig(optimizer=OptimizerConfig(name="sgd", lr=5.0, max_grad_norm=1e6))


def sequence(*tokens: int, prompt: int = 1) -> Sequence:
    return Sequence(token_ids=np.array(tokens), action_mask=np.arange(len(tokens)) >= prompt)


SEQUENCES = [sequence(1, 2, 3, 4, 5, 6), sequence(4, 4, 2, prompt=2)]
PLAN = [[SEQUENCES[0]], [SEQUENCES[1]]]
TOTALS = Totals(tokens=6, sequences=2, trained_tokens=6)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the model's configuration and tokenizer."""
    return write_skeleton(DROPPING, tmp_path_factory.mktemp("model"))


def unborn(kind: type[TrainedWorker], rank: int = 0, seed: int = 0) -> Any:
    """A worker without a process, and so without a log, of its own."""
    worker: Any = object.__new__(kind)
    worker.rank, worker.world_size, worker.device, worker.seed, worker.group = rank, 1, CPU, seed, GROUP
    return worker


def trainee(directory: str, *, rank: int = 0, seed: int = 0) -> Any:
    """A policy with adapters and dropout that learns sequences, with its engine."""
    worker = unborn(PolicyWorker, rank, seed)
    worker.model_config, worker.directory = DROPPING, directory
    worker.build("", 0, 4)
    return worker


def learn(worker: Any) -> tuple[float, float]:
    """Loss and gradient norm of an update."""
    metrics = worker.learn(PLAN, TOTALS, sft_loss)
    return metrics["loss"], metrics["grad_norm"]


def test_what_is_random_differs_between_ranks_and_seeds(directory: str) -> None:
    """Equal dropout on all ranks would drop the same of every sample; the weights they start from are equal."""
    drawn, weights = {}, []
    for rank, seed in ((0, 5), (1, 5), (0, 7), (0, 5)):
        worker = trainee(directory, rank=rank, seed=seed)
        found = torch.rand(4).tolist()
        assert drawn.setdefault((rank, seed), found) == found
        if seed == 5:
            weights.append(torch.cat([tensor.flatten() for _, tensor in worker.engine.parameters("model")]))
    assert len({tuple(numbers) for numbers in drawn.values()}) == 3
    assert all(torch.equal(each, weights[0]) for each in weights)


def test_dropout_is_of_training_only(directory: str) -> None:
    """An evaluation and the logprobs that are read are those of the model as it is exported, again and again."""
    worker = trainee(directory)
    learn(worker)  # until then, adapters change nothing, whatever is dropped of them
    evaluated = [worker.evaluate(PLAN, TOTALS, sft_loss)["loss"] for _ in range(2)]
    read = [worker.outputs([SEQUENCES]) for _ in range(2)]
    assert evaluated[0] == evaluated[1] and read[0] == read[1]
    assert -sum(read[0][0]) / 6 == pytest.approx(evaluated[0], rel=1e-6)
    batch = worker._packed(SEQUENCES, False)
    dropped = [worker.engine.forward(batch, 1.0, 1024)[0] for _ in range(2)]
    assert not torch.equal(*dropped)
    assert learn(worker)[0] != pytest.approx(evaluated[0], rel=1e-6)


def test_a_resumed_rank_drops_what_it_would_have_dropped(directory: str, tmp_path: Path) -> None:
    """Its random state is saved with it: without it, the update after a resume is another one."""
    worker = trainee(directory)
    learn(worker)
    saved = worker.save(tmp_path)
    expected = [learn(worker) for _ in range(2)]
    worker.load(tmp_path)
    assert [learn(worker) for _ in range(2)] == expected
    worker.load_model(tmp_path)
    assert learn(worker) != expected[0]
    names = {name: (size, digest) for name, size, digest in saved}
    assert "random-0.pt" in names
    assert names.keys() == {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    for name, (size, digest) in names.items():
        assert size == (tmp_path / name).stat().st_size
        assert (digest is not None) == name.endswith(".pt"), name


def _written(directory: Path, others: dict[str, Any]) -> dict[str, str]:
    """As an engine does that has nothing of its own to save."""
    return {name: stored.write(value, directory / name) for name, value in others.items()}


def test_each_rank_has_a_random_state_of_its_own(tmp_path: Path) -> None:
    """A rank that the saved run did not have gets one of its own, whatever it was born with."""
    ranks = [unborn(PolicyWorker, rank) for rank in range(4)]
    drawn = []
    for worker in ranks:
        worker.engine = SimpleNamespace(save=_written, load=lambda path, saved=None: None, updates=7)
    for worker in ranks[:2]:
        torch.manual_seed(worker.rank)
        worker.save(tmp_path)
        drawn.append(torch.rand(3).tolist())
    for worker, expected in zip(ranks[:2], drawn, strict=True):
        worker.load(tmp_path)
        assert torch.rand(3).tolist() == expected
    found = set()
    for worker, seed in product(ranks[2:], (8, 9)):
        torch.manual_seed(seed)
        worker.load(tmp_path)
        found.add((worker.rank, *torch.rand(3).tolist()))
    assert len(found) == len({numbers[1:] for numbers in found}) == 2


class FakeEngine:
    """Stands for a model and its optimizer: every action token's logprob is `value`, its entropy the token's number."""

    def __init__(self, value: float = -0.5) -> None:
        self.value, self.learning_rate = value, 0.25
        self.seen: list[Any] = []
        self.batches: list[Any] = []

    def forward(self, batch: Any, temperature: float, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.batches.append(batch)
        self.seen.append(("forward", temperature, chunk))
        zeros = torch.zeros(len(batch.token_ids))
        return torch.where(batch.action_mask, self.value, zeros), torch.where(batch.action_mask, batch.token_ids, zeros)

    def evaluate(self, batch: Any, temperature: float, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.forward(batch, temperature, chunk)
        self.seen[-1] = ("evaluate", temperature, chunk)
        return found

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        self.seen.append(("backward", round(loss.item(), 6), last))

    def step(self, divisor: float = 1.0) -> float:
        self.seen.append("step")
        self.learning_rate = 0.125
        return 1.5


def faked(kind: type[TrainedWorker] = PolicyWorker, *, value: float = -0.5, shares: bool = False) -> Any:
    worker = unborn(kind)
    worker.engine, worker.shares_prompts = FakeEngine(value), shares
    worker.group = TrainerConfig(logprob_chunk_tokens=77)
    return worker


def share_of(batch: Any, read: torch.Tensor, other: torch.Tensor, totals: Totals) -> Any:
    """A loss that tells what it was given."""
    return -read.sum() / totals.tokens, {"entropy": other.sum() / totals.tokens}


def test_an_update_is_reported_as_it_was_made() -> None:
    """Loss and metrics are sums over micro-batches, the rate is the one it had, the gradient is due with the last."""
    worker = faked()
    metrics = worker.learn([[SEQUENCES[0]], [SEQUENCES[1]], []], TOTALS, share_of)
    assert metrics.pop("time/update_rank") >= 0
    assert metrics == pytest.approx(
        {
            "loss": 0.5,
            "entropy": (2 + 3 + 4 + 5 + 6 + 2) / 6,
            "tokens/trained": 5 + 2,  # not the last of each sequence, nor the token of an empty micro-batch
            "grad_norm": 1.5,
            "learning_rate": 0.25,
        }
    )
    pairs = [("backward", 0.416667, False), ("backward", 0.083333, False), ("backward", 0.0, True)]
    assert worker.engine.seen == [each for pair in pairs for each in (("forward", 1.0, 77), pair)] + ["step"]
    assert worker.learn([[SEQUENCES[1]]], TOTALS, share_of)["loss"] == pytest.approx(0.5 / 6), "sums start anew"


def test_a_metric_may_be_a_vector() -> None:
    """Added up over micro-batches element by element, and told so; other names stay in their order."""

    def counted(batch: Any, read: torch.Tensor, other: torch.Tensor, totals: Totals) -> Any:
        loss, metrics = share_of(batch, read, other, totals)
        tokens = batch.action_mask.sum()
        return loss, {"counts": torch.stack([tokens, 2 * tokens, tokens * 0]), **metrics}

    worker = faked()
    plain = worker.learn([[SEQUENCES[0]], [SEQUENCES[1]], []], TOTALS, share_of)
    metrics = worker.learn([[SEQUENCES[0]], [SEQUENCES[1]], []], TOTALS, counted)
    actions = float(sum(each.action_mask.sum() for each in SEQUENCES[:2]))
    assert actions > 0
    assert [metrics.pop(f"counts/{at}") for at in range(3)] == [actions, 2 * actions, 0.0]
    assert list(metrics) == list(plain) and metrics["loss"] == plain["loss"] and metrics["entropy"] == plain["entropy"]


def test_an_evaluation_tells_how_far_it_is() -> None:
    worker, seen = faked(), list[tuple[int, int, str]]()

    def looking(*arguments: Any) -> Any:
        pulse = worker.pulse()
        seen.append((pulse.done, pulse.of, pulse.what))
        return share_of(*arguments)

    worker.evaluate([[SEQUENCES[0]], [SEQUENCES[1]]], TOTALS, looking)
    assert seen == [(0, 2, "micro-batches"), (1, 2, "micro-batches")]


def test_an_evaluation_makes_no_update() -> None:
    worker = faked()
    metrics = worker.evaluate([[SEQUENCES[0]], [SEQUENCES[1]]], TOTALS, share_of)
    assert metrics == pytest.approx({"loss": 0.5, "entropy": 22 / 6})
    assert worker.engine.seen == [("evaluate", 1.0, 77)] * 2
    assert worker.evaluate([[SEQUENCES[1]]], TOTALS, share_of)["loss"] == pytest.approx(0.5 / 6)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_loss_that_is_no_number_ends_the_run(value: float) -> None:
    with pytest.raises(FloatingPointError, match=r"^the loss of an update is (nan|inf)$"):
        faked(value=value).learn(PLAN, TOTALS, share_of)


def test_outputs_are_one_number_for_each_sequence_and_none_for_a_rank_without_work() -> None:
    worker = faked()
    assert worker.outputs([SEQUENCES, [], [SEQUENCES[1]]]) == [[-2.5, -0.5], [], [-0.5]]
    assert worker.engine.seen == [("evaluate", 1.0, 77)] * 3
    assert worker.read(worker._packed(SEQUENCES, False), 0.7).sum().item() == -3
    assert worker.engine.seen[-1] == ("evaluate", 0.7, 77)


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("asked", [False, True])
def test_prompts_are_shared_where_asked_for_and_where_the_model_can(shares: bool, asked: bool) -> None:
    together = [sequence(1, 2, 3, 4, prompt=2), sequence(1, 2, 5, prompt=2)]
    worker = faked(shares=shares)
    worker.learn([together], TOTALS, share_of, asked)
    worker.evaluate([together], TOTALS, share_of, asked)
    worker.outputs([together], asked)
    assert [len(batch.token_ids) for batch in worker.engine.batches] == [5 if shares and asked else 7] * 3


def test_a_reward_model_is_read_at_the_end_and_a_policy_before_each_action() -> None:
    for kind, actions in ((PolicyWorker, [1, 2, 3, 4, 5, 8]), (RewardModelWorker, [5, 8])):
        assert faked(kind)._packed(SEQUENCES, False).action_indices.tolist() == actions


def rollout(prompt: list[int], response: list[int]) -> Episode:
    return episode(prompt, response, [-0.5 * token for token in response])


GROUPS = [[rollout([1, 2], [3, 4]), rollout([1, 2], [5])], [rollout([6], [7, 8])]]
"""Two prompts, known to the driver as 4 and 9."""
HELD = [(4, [0, 1]), (9, [0])]
SIZES = {(4, 0): 4, (4, 1): 3, (9, 0): 3}
"""Tokens of each response with its prompt."""


def rows(batch: Any, name: str) -> list[list[float]]:
    return [values.tolist() for values in batch.split(batch.fields[name])]


def test_rollouts_become_updates_as_planned() -> None:
    """Each sample with the advantage of its place in the plan, each update divided by its own counts."""
    worker = faked(shares=True)
    plans = [[[(4, 0, 0.5), (4, 1, -0.5)], [(9, 0, 2.0)]], [[(9, 0, -1.0)], []]]
    counts = [Totals(tokens=5, sequences=3, trained_tokens=5), Totals(tokens=2, sequences=1, trained_tokens=2)]
    reference = {place: {"reference_logprobs": np.full(size, -9.0, np.float32)} for place, size in SIZES.items()}
    first, second = worker.update(plans, HELD, counts, share_of, 0.7, *GROUPS, reference)
    assert (first["loss"], second["loss"]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert (first["entropy"], second["entropy"]) == (pytest.approx(27 / 5), pytest.approx(15 / 2))
    together, alone_, again, idle = worker.engine.batches
    assert together.token_ids.tolist() == [1, 2, 3, 4, 5], "the prompt is there once"
    assert rows(together, "advantages") == [[0.5] * 4, [0.5, 0.5, -0.5]]
    assert rows(together, "rollout_logprobs") == [[0, 0, -1.5, -2], [0, 0, -2.5]]
    assert rows(together, "reference_logprobs") == [[-9.0] * 4, [-9.0] * 3]
    assert (rows(alone_, "advantages"), rows(again, "advantages")) == ([[2.0] * 3], [[-1.0] * 3])
    assert idle.idle
    assert [each for each in worker.engine.seen if each[0] == "forward"] == [("forward", 0.7, 77)] * 4
    assert [each[2] for each in worker.engine.seen if each[0] == "backward"] == [False, True, False, True]
    assert worker.engine.seen.count("step") == 2


def test_advantages_token_by_token_take_the_place_of_the_plans() -> None:
    """They come in parts, one of each rank that found them, and beside other fields."""
    worker = faked()
    plans = [[[(4, 1, math.nan), (9, 0, math.nan)]]]
    parts = [
        {(4, 1): {"advantages": np.array([0, 0, 0.25], np.float32)}, (4, 0): {"advantages": np.ones(4, np.float32)}},
        {(9, 0): {"advantages": np.array([0, 1, 2], np.float32)}},
        {
            (9, 0): {"old_logprobs": np.full(3, -1.0, np.float32)},
            (4, 1): {"old_logprobs": np.full(3, -2.0, np.float32)},
        },
    ]
    totals = Totals(tokens=3, sequences=2, trained_tokens=3)
    worker.update(plans, HELD, [totals], share_of, 1.0, *GROUPS, *parts)
    (batch,) = worker.engine.batches
    assert rows(batch, "advantages") == [[0, 0, 0.25], [0, 1, 2]]
    assert rows(batch, "old_logprobs") == [[-2.0] * 3, [-1.0] * 3]

"""FakeRanks: a group whose ranks are objects of this process, each with a thread of its own; without Ray or a model.

They are real workers but for what their models read, which is a formula of token and position, and for the sums over
ranks. Arguments are pickled on their way, as between processes, and counted.
"""

import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from actors.config import TrainerConfig
from actors.episodes import Episode
from actors.models.packed import PackedBatch
from actors.train.critic import CriticWorker
from actors.train.frozen import ReferenceWorker, ScoringWorker
from actors.train.policy import PolicyWorker
from tests.episodes import split_here

DEADLINE_S = 60.0
Formula = Callable[[Any, Any], Any]
"""(tokens, their positions) -> what the model reads for each."""


def done(value: Any) -> "Future[Any]":
    """A reference to a value that is there."""
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def split_fake(asked: list[tuple["Future[list[Episode]]", list[list[int]]]]) -> list[list["Future[list[Episode]]"]]:
    """Splits groups as the engines do."""
    shares = split_here([(group.result(DEADLINE_S), shares) for group, shares in asked])
    return [[done(share) for share in of_group] for of_group in shares]


class FakeEngine:
    """Reads by a formula; entropies are half a token's number."""

    learning_rate = 0.25

    def __init__(self, formula: Formula) -> None:
        self.formula = formula

    def evaluate(self, batch: PackedBatch, temperature: float, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
        read = self.formula(batch.token_ids, batch.position_ids).float()
        return torch.where(batch.action_mask, read, 0), torch.where(batch.action_mask, batch.token_ids / 2, 0)

    forward = evaluate

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        pass

    def step(self, divisor: float = 1.0) -> float:
        return 1.5

    skip = step


class FakeRank(CriticWorker, PolicyWorker):
    """A rank of FakeRanks: trains and reads."""

    def __init__(self, rank: int, group: "FakeRanks", formula: Formula, *, share_prompts: bool) -> None:
        self.rank, self.ranks = rank, group
        self.world_size, self.device = len(group), torch.device("cpu")
        self.engine: Any = FakeEngine(formula)
        self.group, self.shares_prompts, self.kept = TrainerConfig(), share_prompts, {}

    def reference_logprobs(self, *arguments: Any) -> Any:
        """As a group of its own gives them."""
        return ReferenceWorker.logprobs(self, *arguments)  # type: ignore[arg-type]

    def scores(self, *arguments: Any) -> Any:
        """As a reward model gives them."""
        return ScoringWorker.scores(self, *arguments)  # type: ignore[arg-type]

    def sum_over_ranks(self, values: Any) -> Any:
        return self.ranks.add(self.rank, values)


class FakeRanks:
    """Answers as an ActorGroup; `calls` are (rank, method, arguments as the rank got them, their bytes)."""

    timeout_s = DEADLINE_S

    def __init__(self, ranks: int, formula: Formula, *, share_prompts: bool = True) -> None:
        self.given: dict[int, Any] = {}
        self.calls: list[tuple[int, str, tuple[Any, ...], int]] = []
        self._barrier = threading.Barrier(ranks, timeout=DEADLINE_S)
        self._threads = [ThreadPoolExecutor(1) for _ in range(ranks)]
        self._workers = [FakeRank(rank, self, formula, share_prompts=share_prompts) for rank in range(ranks)]

    def __len__(self) -> int:
        return len(self._threads)

    def add(self, rank: int, values: Any) -> Any:
        """The sum over ranks, in their order."""
        self.given[rank] = values
        self._barrier.wait()
        total = sum(self.given[each] for each in range(len(self)))
        self._barrier.wait()
        return total

    def submit(self, rank: int, method: Any, *arguments: Any, num_returns: int = 1) -> Any:
        answer = self._threads[rank].submit(self._call, rank, method.__name__, arguments)
        if num_returns == 1:
            return answer
        parts: list[Future[Any]] = [Future() for _ in range(num_returns)]
        answer.add_done_callback(lambda whole: _take_apart(whole, parts))
        return parts

    def _call(self, rank: int, method: str, arguments: tuple[Any, ...]) -> Any:
        known = tuple(each.result(DEADLINE_S) if isinstance(each, Future) else each for each in arguments)
        sent = pickle.dumps(known)
        got = pickle.loads(sent)
        self.calls.append((rank, method, got, len(sent)))
        return getattr(self._workers[rank], method)(*got)

    def gather(self, refs: Sequence[Any], what: str, **_: Any) -> list[Any]:
        return [ref.result(DEADLINE_S) for ref in refs]

    def ended(self, refs: Sequence[Any]) -> set[Any]:
        return {ref for ref in refs if ref.done()}

    def answer(self, rank: int, ref: Any, what: str) -> Any:
        return ref.result(0)

    def scatter(self, method: Any, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return self.gather([self.submit(rank, method, *each) for rank, each in enumerate(arguments)], method.__name__)


def _take_apart(whole: "Future[Any]", parts: list["Future[Any]"]) -> None:
    if error := whole.exception():
        for part in parts:
            part.set_exception(error)
        return
    answer = whole.result()
    assert len(answer) == len(parts), "Ray would not take it apart either"
    for part, value in zip(parts, answer, strict=True):
        part.set_result(value)

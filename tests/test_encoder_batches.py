"""What an update sees: passages drawn of rows, rows once an epoch, no text twice, and the same after resuming."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from actors.config import UserError
from actors.files.parts import Entry, read_arrays
from algorithms.encoder.batches import (
    Example,
    TaskBatches,
    TaskRows,
    draw_graded,
    draw_ranking,
    require_negatives,
)
from algorithms.encoder.rows import Graded, Ranking

RANKING = Ranking(
    query="首都",
    positives=("p0", "p1"),
    negatives=("n0", "n1", "n2", "n3", "n4"),
    positive_scores=(10.0, 11.0),
    negative_scores=(0.0, 1.0, 2.0, 3.0, 4.0),
    prompt="问",
)
GRADED = Graded(query="q", passages=("a", "b", "c", "d", "e"), labels=(0.0, 2.0, -1.0, 1.0, 0.0), prompt=None)
FEW_TEXTS = st.lists(st.sampled_from(["甲", "乙甲", "丙甲", "丁甲甲"]), min_size=4, max_size=8)
TEXTS = st.lists(st.lists(st.sampled_from("甲乙丙丁戊己abcdefgh"), min_size=1, max_size=3), min_size=1, max_size=12)


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(count)]


def draw(row: Sequence[str], generator: np.random.Generator) -> Example:
    """The row's texts, and a number that says of which visit they are."""
    return Example(texts=tuple(row), targets=(float(generator.random()),), prompt=None)


def draw_one(row: tuple[int, Sequence[str]], generator: np.random.Generator) -> Example:
    """One of the row's texts, its number, and a number that says of which visit they are."""
    number, texts = row
    text = texts[int(generator.integers(len(texts)))]
    return Example(texts=(text, f"{number}"), targets=(float(generator.random()),), prompt=None)


def task(
    rows: Sequence[Sequence[str]], name: str = "", *, distinct: bool = False, share: float | None = None
) -> TaskRows:
    field = f"data.train.{name}" if name else "data.train"
    return TaskRows(name=name, rows=rows, draw=draw, distinct=distinct, share=share, field=field)


def unlike(count: int, prefix: str = "") -> list[list[str]]:
    """Rows without a common text."""
    return [[f"{prefix}{index}", f"{prefix}正{index}"] for index in range(count)]


def some_batches(batches: TaskBatches, sizes: Sequence[int]) -> list[tuple[str, list[Example]]]:
    """What the updates see; the last item may be the error that ended them."""
    found: list[tuple[str, list[Example]]] = []
    for size in sizes:
        try:
            found.append(batches.next(size))
        except UserError as error:
            return [*found, (str(error), [])]
    return found


def saved(batches: TaskBatches) -> tuple[Entry, dict[str, NDArray[Any]]]:
    """What a checkpoint has of them: in the manifest, and in the file of the rows that wait."""
    with TemporaryDirectory() as directory:
        entry = batches.save(Path(directory))
        return entry, read_arrays(Path(directory) / "waiting.safetensors")


def test_draw_ranking_takes_distinct_negatives_in_order() -> None:
    """With the scores of what was taken; every text has its turn."""
    seen: Counter[str] = Counter()
    for generator in generators(400):
        example = draw_ranking(RANKING, 2, scored=True, generator=generator)
        query, positive, *negatives = example.texts
        assert (query, example.prompt) == ("首都", "问")
        assert negatives == sorted(set(negatives)) and len(negatives) == 2
        assert example.targets == (10.0 + int(positive[1]), *(float(text[1]) for text in negatives))
        seen.update(example.texts[1:])
    assert all(150 < seen[text] < 250 for text in RANKING.positives)  # 200 expected, deviation 10
    assert all(120 < seen[text] < 200 for text in RANKING.negatives)  # 160 expected, deviation 10


def test_draw_ranking_with_all_negatives_or_none() -> None:
    """In their order; without scores there are no targets."""
    for generator in generators(20):
        whole = draw_ranking(RANKING, 5, scored=False, generator=generator)
        assert whole.texts[2:] == RANKING.negatives and whole.targets == ()
    assert len(draw_ranking(RANKING, 0, scored=True, generator=generators(1)[0]).texts) == 2
    with pytest.raises(ValueError, match="must not exceed the 5 passages"):
        draw_ranking(RANKING, 6, scored=False, generator=generators(1)[0])


def test_draw_graded_puts_a_positive_first() -> None:
    """One positive at random and passages that are none, each with its label."""
    labels = dict(zip(GRADED.passages, GRADED.labels, strict=True))
    firsts, others = Counter(), Counter()
    for generator in generators(300):
        example = draw_graded(GRADED, 2, binary=True, generator=generator)
        query, first, *rest = example.texts
        assert query == "q" and len(rest) == 2 and rest == sorted(set(rest))
        assert example.targets == tuple(labels[text] for text in (first, *rest))
        firsts[first] += 1
        others.update(rest)
    assert firsts.keys() == {"b", "d"} and min(firsts.values()) > 100
    assert others.keys() == {"a", "c", "e"} and min(others.values()) > 150


def test_draw_graded_with_all_passages() -> None:
    """The others keep their order, further positives among them; of a teacher's scores the first stays first."""
    found = {draw_graded(GRADED, None, binary=True, generator=generator).texts[1:] for generator in generators(40)}
    assert found == {("b", "a", "c", "d", "e"), ("d", "a", "b", "c", "e")}
    plain = draw_graded(GRADED, None, binary=False, generator=generators(1)[0])
    assert (plain.texts[1:], plain.targets) == (GRADED.passages, GRADED.labels)


def test_draw_graded_of_a_teachers_scores() -> None:
    """The first passage, and others whatever their scores."""
    others: Counter[str] = Counter()
    for generator in generators(200):
        example = draw_graded(GRADED, 2, binary=False, generator=generator)
        assert example.texts[1] == "a" and example.targets[0] == 0.0
        others.update(example.texts[2:])
    assert others.keys() == {"b", "c", "d", "e"} and min(others.values()) > 60


def test_draw_graded_without_a_positive() -> None:
    """A labelled pair of an irrelevant passage is what pointwise losses learn from."""
    row = Graded(query="q", passages=("a",), labels=(0.0,), prompt=None)
    assert draw_graded(row, None, binary=True, generator=generators(1)[0]).targets == (0.0,)


def test_negatives_that_every_row_has() -> None:
    """The smallest number, and the first row with fewer than wanted."""
    few = Ranking(
        query="q", positives=("p",), negatives=("n",), positive_scores=None, negative_scores=None, prompt=None
    )
    require_negatives([RANKING, few], 1, "data.train", "algorithm.negatives")
    with pytest.raises(UserError) as error:
        require_negatives([RANKING, few, few], 5, "data.train", "algorithm.negatives")
    assert str(error.value) == (
        "algorithm.negatives: must not exceed the negatives of every row (data.train row 2 has 1), got 5"
    )


@settings(deadline=None)
@given(
    rows=st.integers(1, 20),
    sizes=st.lists(st.integers(1, 25), max_size=8),
    seed=st.integers(-5, 2**63),
    shuffle=st.booleans(),
)
def test_every_row_once_an_epoch(rows: int, sizes: list[int], seed: int, shuffle: bool) -> None:
    """Also across batches that end in the next epoch, or later."""
    made = some_batches(TaskBatches([task(unlike(rows))], seed=seed, shuffle=shuffle), sizes)
    assert [len(batch) for _, batch in made] == sizes
    stream = [int(example.texts[0]) for _, batch in made for example in batch]
    for start in range(0, len(stream), rows):
        epoch = stream[start : start + rows]
        assert len(set(epoch)) == len(epoch)
        assert shuffle or epoch == list(range(len(epoch)))


@settings(deadline=None)
@given(size=st.integers(1, 6), batches=st.integers(1, 5), shuffle=st.booleans())
def test_distinct_batches_of_unlike_rows_are_as_any(size: int, batches: int, shuffle: bool) -> None:
    """Where no text is shared and epochs end with a batch, nothing waits: every row once an epoch."""
    rows = unlike(size * batches)
    plain, distinct = (
        TaskBatches([task(rows, distinct=distinct)], seed=0, shuffle=shuffle) for distinct in (False, True)
    )
    sizes = [size] * batches * 3
    assert some_batches(plain, sizes) == some_batches(distinct, sizes)


def test_epochs_tasks_and_seeds_have_orders_of_their_own() -> None:
    """And a row's draws change with the epoch."""

    def epochs(seed: int, name: str = "") -> list[tuple[str, ...]]:
        batches = TaskBatches([task(unlike(30), name), task(unlike(1), "z", share=1e-9)], seed=seed, shuffle=True)
        return [tuple(example.texts[0] for example in batches.next(30)[1]) for _ in range(2)]

    assert len({*epochs(1), *epochs(2)}) == 4
    assert epochs(1) == epochs(1)
    batches = TaskBatches([task(unlike(1))], seed=0, shuffle=True)
    assert len({batches.next(1)[1][0].targets for _ in range(20)}) == 20


def reference(rows: list[list[str]], order: list[int], sizes: list[int]) -> list[list[int]]:
    """The rows of distinct batches, straight from the rule; `order`: rows in the order of visiting, many epochs."""
    line: list[int] = []
    position, found = 0, []
    for size in sizes:
        batch: list[int] = []
        last = position - position % len(rows) + 2 * len(rows)  # the end of the next epoch
        waiting, line = line, []
        while len(batch) < size:
            if waiting:
                row = waiting.pop(0)
            elif position == last:
                return found
            else:
                row = order[position]
                position += 1
                if row in line:
                    continue
            used = {text for other in batch for text in rows[other]}
            (line if used & set(rows[row]) else batch).append(row)
        line += waiting
        found.append(batch)
    return found


@settings(max_examples=200, deadline=None)
@given(rows=TEXTS, sizes=st.lists(st.integers(1, 5), max_size=12), seed=st.integers(0, 3), shuffle=st.booleans())
def test_distinct_batches_repeat_no_text(rows: list[list[str]], sizes: list[int], seed: int, shuffle: bool) -> None:
    """They are the reference's, row by row; rows that cannot be placed wait, first in line for the next batch."""
    rows = [[*row, f"{index}"] for index, row in enumerate(rows)]
    plain = TaskBatches([task(rows)], seed=seed, shuffle=shuffle)
    order = [int(example.texts[-1]) for _ in range(2 * len(sizes)) for example in plain.next(len(rows))[1]]
    made = some_batches(TaskBatches([task(rows, distinct=True)], seed=seed, shuffle=shuffle), sizes)
    for _, batch in made:
        texts = Counter(text for example in batch for text in set(example.texts))
        assert max(texts.values(), default=1) == 1
    assert [[int(example.texts[-1]) for example in batch] for _, batch in made if batch] == reference(
        rows, order, sizes
    )


@settings(max_examples=100, deadline=None)
@given(rows=FEW_TEXTS, size=st.integers(2, 3), seed=st.integers(0, 9))
def test_a_waiting_row_keeps_its_visit(rows: list[list[str]], size: int, seed: int) -> None:
    """Each visit is seen once, as it was drawn in its own epoch; those of the first epoch are seen or still wait."""
    ways: dict[bool, TaskBatches] = {}
    for distinct in (False, True):
        numbered = TaskRows(name="", rows=list(enumerate(rows)), draw=draw_one, distinct=distinct)
        ways[distinct] = TaskBatches([numbered], seed=seed, shuffle=True)
    visits = [(example.texts[-1], example.targets) for example in ways[False].next(len(rows) * 30)[1]]
    batches = ways[True]
    made = some_batches(batches, [size] * 12)
    seen = [(example.texts[-1], example.targets) for _, batch in made for example in batch]
    assert len(set(seen)) == len(seen) and set(seen) <= set(visits)
    if not made[-1][1]:
        return  # the rows could not fill a batch, and what it had begun with is gone
    state, waits = saved(batches)
    state = state["tasks"][""]
    waiting = {str(index) for epoch, index in waits["0"].tolist() if epoch == 0}
    reached = len(rows) if state["epoch"] else state["position"]
    for visit in visits[:reached]:
        assert (visit in seen) != (visit[0] in waiting)


@settings(max_examples=100, deadline=None)
@given(
    rows=TEXTS,
    others=st.integers(1, 9),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=10),
    seed=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_resuming_anywhere_sees_the_same(
    rows: list[list[str]], others: int, sizes: list[int], seed: int, shuffle: bool
) -> None:
    """From JSON and a file, after every update, also while rows wait."""

    def fresh() -> TaskBatches:
        tasks = [task(rows, "中文", distinct=True), task(unlike(others), "b")]
        return TaskBatches(tasks, seed=seed, shuffle=shuffle)

    whole = some_batches(fresh(), sizes)
    running = fresh()
    for cut in range(len(sizes)):
        resumed = fresh()
        resumed.next(1)  # what was visited before loading leaves no trace
        with TemporaryDirectory() as directory:
            entry = json.dumps(running.save(Path(directory)), sort_keys=True)
            resumed.load(Path(directory), json.loads(entry))
        assert some_batches(resumed, sizes[cut:]) == whole[cut:]
        if some_batches(running, sizes[cut : cut + 1])[0][1] == []:
            return


def test_rows_that_wait_are_in_a_file(tmp_path: Path) -> None:
    """As epoch and index; resuming takes them first. Older checkpoints have them in the manifest."""
    rows = [["q0", "same"], ["q1", "same"], ["q2", "same"], ["q3"], ["q4"]]
    batches = TaskBatches([task(rows, distinct=True)], seed=0, shuffle=False)
    assert [example.texts[0] for example in batches.next(2)[1]] == ["q0", "q3"]
    state = json.loads(json.dumps(batches.save(tmp_path / "batches")))
    visits = {"rows": 5, "epoch": 0, "position": 4}
    assert state == {"updates": 1, "tasks": {"": visits}}
    waits = read_arrays(tmp_path / "batches/waiting.safetensors")
    assert waits["0"].tolist() == [[0, 1], [0, 2]]
    for directory, entry in (
        (tmp_path / "batches", state),
        (tmp_path / "none", {"updates": 1, "tasks": {"": visits | {"waiting": [[0, 1], [0, 2]]}}}),
    ):
        resumed = TaskBatches([task(rows, distinct=True)], seed=0, shuffle=False)
        resumed.load(directory, entry)
        assert [[example.texts[0] for example in resumed.next(2)[1]] for _ in range(2)] == [["q1", "q4"], ["q2", "q3"]]


@pytest.mark.parametrize(("name", "field"), [("", "data.train"), ("faq", "data.train.faq")])
def test_too_few_rows_of_different_texts(name: str, field: str) -> None:
    """Says how many there are."""
    rows = [[f"q{index}", f"class {index % 7}"] for index in range(50)]
    batches = TaskBatches([task(rows, name, distinct=True)], seed=0, shuffle=True)
    assert all(len(batches.next(7)[1]) == 7 for _ in range(20))
    with pytest.raises(UserError) as error:
        batches.next(8)
    assert str(error.value) == (
        f"algorithm.samples_per_update: must not exceed the rows of {field} with different texts (7), got 8"
    )


def test_rows_that_always_wait_do_not_pile_up() -> None:
    """Where one text is in most rows, at most one visit of each waits."""
    rows = [[f"q{index}", "common" if index % 4 else f"own {index}"] for index in range(40)]
    batches = TaskBatches([task(rows, distinct=True)], seed=0, shuffle=True)
    seen = Counter(example.texts[0] for _, batch in some_batches(batches, [8] * 200) for example in batch)
    assert sum(seen.values()) == 1600
    assert len(saved(batches)[1]["0"]) <= 40
    common = [seen[row[0]] for row in rows if row[1] == "common"]
    assert max(common) - min(common) <= 1


def test_only_the_rows_of_the_batch_are_drawn() -> None:
    """A batch of a large data set costs no more than one of a small one."""
    drawn: list[int] = []

    def counting(row: Any, generator: np.random.Generator) -> Example:
        drawn.append(1)
        return draw(row, generator)

    rows = TaskRows(name="", rows=unlike(50_000), draw=counting, distinct=True)
    batches = TaskBatches([rows], seed=0, shuffle=True)
    for _ in range(10):
        batches.next(64)
    assert len(drawn) == 640
    state, waits = saved(batches)
    assert len(json.dumps(state)) < 120 and len(waits["0"]) == 0


def test_tasks_have_turns_by_their_shares() -> None:
    """Default: their numbers of rows; all of a batch is of one task."""

    def turns(*tasks: TaskRows) -> Counter[str]:
        batches = TaskBatches(tasks, seed=3, shuffle=True)
        found: Counter[str] = Counter()
        for _ in range(1000):
            name, batch = batches.next(2)
            assert all(example.texts[0].startswith(name) for example in batch)
            found[name] += 1
        return found

    assert 700 < turns(task(unlike(30, "a"), "a"), task(unlike(10, "b"), "b"))["a"] < 800
    assert 150 < turns(task(unlike(30, "a"), "a", share=1), task(unlike(10, "b"), "b", share=4))["a"] < 250


def test_the_order_of_tasks_says_nothing() -> None:
    """They are drawn by name, so that a file whose entries have changed places goes on as before."""
    tasks = [task(unlike(9, "a"), "a"), task(unlike(5, "b"), "b"), task(unlike(7, "c"), "c")]
    one, other = (TaskBatches(order, seed=1, shuffle=True) for order in (tasks, tasks[::-1]))
    assert some_batches(one, [3] * 30) == some_batches(other, [3] * 30)


def test_other_data_cannot_resume(tmp_path: Path) -> None:
    """Another number of rows or other names."""
    state = TaskBatches([task(unlike(100))], seed=0, shuffle=True).save(tmp_path)
    with pytest.raises(UserError) as error:
        TaskBatches([task(unlike(90))], seed=0, shuffle=True).load(tmp_path, state)
    assert str(error.value) == "data.train: must hold the checkpoint's 100 rows to resume, got 90"
    state = TaskBatches([task(unlike(3), "a"), task(unlike(3), "b")], seed=0, shuffle=True).save(tmp_path)
    with pytest.raises(UserError) as error:
        TaskBatches([task(unlike(3), "a"), task(unlike(3), "c")], seed=0, shuffle=True).load(tmp_path, state)
    assert str(error.value) == "data.train: must name the checkpoint's sources a, b to resume, got a, c"


def test_mistakes_of_the_caller() -> None:
    """No rows, no share, one name twice."""
    for wrong in ({"rows": []}, {"rows": unlike(1), "share": 0.0}):
        with pytest.raises(ValueError, match="must"):
            task(**wrong)
    for tasks in ([], [task(unlike(1)), task(unlike(2))]):
        with pytest.raises(ValueError, match="must have at least one item, each with its own name"):
            TaskBatches(tasks, seed=0, shuffle=True)

"""Sequences cut at the left and the right, with and without a BOS token, against lists cut by hand."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.config import UserError
from actors.episodes import Sequence
from algorithms.data.bad_rows import BadRows
from algorithms.data.held_out import divided, held_out_count
from algorithms.data.overlong import cut_responses, cut_sequence
from algorithms.data.reading import Reading, Tally

BOS = 9


def sequence(ids: list[int], trained: list[int]) -> Sequence:
    return Sequence(token_ids=np.array(ids), action_mask=np.array(trained, dtype=np.bool_))


@pytest.mark.parametrize(
    ("ids", "trained", "limit", "side", "bos", "expected"),
    [
        ([9, 1, 2, 3], [0, 0, 1, 1], 3, "left", BOS, ([9, 2, 3], [0, 1, 1])),
        ([9, 1, 2, 3], [0, 0, 1, 1], 3, "left", None, ([1, 2, 3], [0, 1, 1])),
        ([9, 1, 2, 3], [0, 0, 1, 1], 3, "left", 8, ([1, 2, 3], [0, 1, 1])),
        ([1, 9, 2, 3], [0, 0, 1, 1], 3, "left", BOS, ([9, 2, 3], [0, 1, 1])),
        ([9, 1, 2, 3, 4], [0, 0, 1, 1, 1], 2, "left", BOS, ([9, 4], [0, 1])),
        ([9, 1, 2, 3], [0, 1, 1, 1], 3, "left", None, ([1, 2, 3], [0, 1, 1])),
        ([9, 1, 2, 3], [0, 0, 1, 1], 1, "left", BOS, None),
        ([1, 2, 3], [0, 1, 1], 3, "left", BOS, ([1, 2, 3], [0, 1, 1])),
        ([9, 1, 2, 3], [0, 1, 1, 1], 2, "left", 8, ([2, 3], [0, 1])),
        ([9, 1, 2, 3], [0, 1, 1, 1], 2, "right", BOS, ([9, 1], [0, 1])),
        ([9, 1, 2, 3], [0, 0, 1, 1], 2, "right", BOS, None),
        ([9, 1, 2, 3], [0, 0, 1, 1], 3, "right", None, ([9, 1, 2], [0, 0, 1])),
    ],
)
def test_what_is_left_of_a_sequence(ids, trained, limit, side, bos, expected) -> None:
    """The BOS token stays where it is the first one and another has room; nothing predicts the first token."""
    whole = sequence(ids, trained)
    found = cut_sequence(whole, limit, side, bos)
    told = None if found is None else (found.token_ids.tolist(), found.action_mask.tolist())
    assert told == expected
    assert whole.action_mask.tolist() == trained, "the whole one is as it was"


def test_responses_are_cut_with_their_prompt_or_at_their_ends() -> None:
    pair = [sequence([9, 1, 2, 5, 6], [0, 0, 0, 1, 1]), sequence([9, 1, 2, 7], [0, 0, 0, 1])]

    def cut(limit: int, side: str, bos: int | None) -> list[list[int]] | None:
        found = cut_responses(pair, limit, side, bos)  # type: ignore[arg-type]
        return None if found is None else [each.token_ids.tolist() for each in found]

    assert cut(4, "left", BOS) == [[9, 2, 5, 6], [9, 2, 7]]
    assert cut(4, "left", None) == [[1, 2, 5, 6], [1, 2, 7]]
    assert cut(3, "left", BOS) == [[2, 5, 6], [2, 7]]
    assert cut(2, "left", BOS) is None
    assert cut(4, "right", BOS) == [[9, 1, 2, 5], [9, 1, 2, 7]]
    assert cut(3, "right", BOS) is None
    assert cut_responses(pair[:1], 3, "right", BOS) is None, "nothing is left of the only one"
    alike = [sequence([9, 1, 5, 6], [0, 0, 1, 1]), sequence([9, 1, 5, 7], [0, 0, 1, 1])]
    assert cut_responses(alike, 3, "right", BOS) is None
    assert cut_responses(alike, 4, "right", BOS) is not None


@pytest.mark.parametrize(
    ("items", "fraction", "count"), [(2, 0.01, 1), (10, 0.01, 1), (10, 0.14, 1), (10, 0.3, 3), (4, 0.99, 3)]
)
def test_at_least_one_is_held_out_and_one_is_left(items: int, fraction: float, count: int) -> None:
    assert held_out_count(items, fraction, "data.train") == count
    kept, held_out = divided(list(range(items)), fraction, "data.train")
    assert len(held_out) == count and sorted(kept + held_out) == list(range(items))
    assert kept == sorted(kept) and held_out == sorted(held_out)


def test_one_row_cannot_be_divided() -> None:
    with pytest.raises(UserError) as caught:
        held_out_count(1, 0.5, "data.train")
    assert str(caught.value) == "data.eval_fraction: needs at least two rows in data.train, got 1"


@pytest.mark.parametrize(
    ("overlong", "told"),
    [
        ("error", "an error, data.overlong=drop leaves them out"),
        ("drop", "left out (data.overlong drop)"),
        ("truncate", "3 of them cut at the left, 2 left out (data.overlong truncate)"),
    ],
)
def test_one_line_accounts_for_rows_that_are_too_long(overlong: str, told: str) -> None:
    unread: dict[str, Any] = dict.fromkeys(("convention", "rows", "examples", "bad", "encode", "length", "cut"))
    data: Any = SimpleNamespace(overlong=overlong, truncation_side="left")
    reading = Reading[Any](data=data, field="data.train", limit=12, rule="data.max_length", **unread)
    tally = Tally(total=2000, looked_at=1500, over=5, truncated=3)
    assert reading.account(tally) == f"data.train: 5 of the first 1,500 rows longer than data.max_length 12: {told}"
    assert reading.account(Tally(total=2000, looked_at=1500)) is None


@dataclass
class Exchange:
    prompt: Any
    answer: str


def huge_reading(examples: list[Any], overlong: str, limit: int, count: Any) -> Reading[int]:
    """Items are the numbers of rows, of a length of 1."""
    return Reading[int](
        data=SimpleNamespace(overlong=overlong, truncation_side="left"),  # type: ignore[arg-type]
        field="data.train", limit=limit, rule="data.max_length", convention="c", rows=[{}] * len(examples),
        examples=dict(enumerate(examples)), bad=BadRows(field="data.train", most=0, total=len(examples)),
        encode=lambda indices: {index: index for index in indices}, length=lambda _: 1, cut=lambda _: None, count=count,
    )  # fmt: skip


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("algorithms.data.reading._HUGE", 300)
    monkeypatch.setattr("algorithms.data.reading._PART", 200)


@pytest.mark.usefixtures("_small")
def test_of_a_huge_text_a_part_is_tokenised_and_tells_that_it_is_too_long() -> None:
    """The longest of a row's texts, wherever it is; what is not read by anybody is none of them."""
    long, short = "a" * 301, "b" * 300
    examples = [
        short, long, ["x", long], {"role": "user", "content": long}, {"role": "user", "content": "x", "image": long},
        Exchange([{"role": "user", "content": "x"}], long), Exchange([{"role": "user", "content": long}], "x"), 7,
    ]  # fmt: skip
    asked: list[str] = []

    def count(text: str) -> int:
        asked.append(text)
        return len(text)

    reading, tally = (
        huge_reading(examples, "drop", 100, count),
        Tally(total=8, looked_at=1, over=1, longest=50, first=9),
    )
    assert reading.without_huge(range(8), tally) == [0, 4, 7]
    assert asked == ["a" * 200] * 5
    assert tally == Tally(total=8, looked_at=6, over=6, longest=200, first=2, huge=True)
    assert reading.without_huge([6, 5], longest := Tally(total=8, longest=999, first=3)) == []
    assert (longest.longest, longest.first) == (999, 3)
    assert reading.items() == [0, 4, 7]
    told = (
        r"^data.train: 5 of 8 rows are longer than data.max_length 100 \(first row 2, the longest has over 200 tokens\)"
    )
    with pytest.raises(UserError, match=told):
        huge_reading(examples, "error", 100, count).items(Tally(total=8))


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    ("limit", "tokens", "huge"),
    [(100, 110, False), (100, 111, True), (10, 110, False), (10, 111, True), (1000, 1100, False), (1000, 1101, True)],
)
def test_a_part_that_is_hardly_longer_than_the_limit_does_not_decide(limit: int, tokens: int, huge: bool) -> None:
    """Its last tokens may be others in the whole text."""
    reading = huge_reading(["a" * 301], "drop", limit, lambda _: tokens)
    assert reading.without_huge([0], Tally(total=1)) == ([] if huge else [0])


def test_the_first_row_that_is_too_long_is_told_whichever_was_counted_first() -> None:
    reading = huge_reading(["a"] * 9, "drop", 0, len)
    for first, expected in ((0, 4), (5, 4), (6, 4), (3, 3)):
        tally = Tally(total=9, first=first)
        assert reading.limited({3: 3}, [3], tally) == []
        assert tally.first == expected


@pytest.mark.usefixtures("_small")
def test_rows_that_are_cut_or_cannot_be_counted_are_tokenised_whole() -> None:
    for overlong, count in (("truncate", len), ("drop", None), ("error", None)):
        tally = Tally(total=1)
        assert huge_reading(["a" * 301], overlong, 100, count).without_huge([0], tally) == [0]
        assert tally == Tally(total=1)

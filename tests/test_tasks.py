"""Tasks: right answers, disjoint splits, and an error when problems run out."""

from collections.abc import Callable

import pytest

from actors.config import UserError
from algorithms.tasks import add, reverse, sort_letters


def test_answers_are_right() -> None:
    for row in sort_letters("train", count=50):
        assert row["answer"] == "".join(sorted(row["prompt"])) and len(row["prompt"]) == 6
    for row in reverse("train", count=50, length=5):
        assert row["answer"] == "".join(reversed(row["prompt"])) and len(row["prompt"]) == 5
    for row in add("train", count=50, digits=3):
        left, right = row["prompt"][:-1].split("+")
        assert row["answer"] == str(int(left) + int(right))
        assert row["completion"] == row["answer"]


@pytest.mark.parametrize(
    ("task", "size", "space"),
    [
        (sort_letters, {"length": 2, "letters": "abcde"}, 25),
        (reverse, {"length": 3, "letters": "abcd"}, 64),
        (add, {"digits": 1}, 100),
    ],
)
def test_splits_of_a_small_space_are_disjoint_and_cover_it(
    task: Callable[..., list[dict[str, str]]], size: dict[str, object], space: int
) -> None:
    found: dict[str, set[str]] = {}
    for split in ("train", "test"):
        with pytest.raises(UserError, match="must not exceed the") as error:
            task(split, count=space, **size)
        most = int(str(error.value).partition("exceed the ")[2].split()[0])
        found[split] = {row["prompt"] for row in task(split, count=most, seed=3, **size)}
        assert len(found[split]) == most
    assert len(found["train"]) + len(found["test"]) == space
    assert not found["train"] & found["test"]
    assert found["test"]


def test_splits_of_a_large_space_are_disjoint_for_different_seeds() -> None:
    train = {row["prompt"] for row in reverse("train", count=3000, seed=0, length=12)}
    held_out = {row["prompt"] for row in reverse("eval", count=3000, eval_count=700, seed=1, length=12)}
    assert (len(train), len(held_out)) == (3000, 700)
    assert not train & held_out


def test_rows_depend_on_the_seed_only() -> None:
    assert add("train", count=20, seed=1) == add("train", count=20, seed=1)
    assert add("train", count=20, seed=1) != add("train", count=20, seed=2)
    # The same in every process: what one run trains on, no other run may hold out.
    assert [row["prompt"] for row in add("test", count=3)] == ["29+80=", "57+51=", "51+24="]


@pytest.mark.parametrize("wrong", [{"split": "trian"}, {"count": 0}, {"length": 0}, {"letters": "aa"}])
def test_wrong_arguments_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        sort_letters(**({"split": "train", "count": 4} | wrong))  # type: ignore[arg-type]

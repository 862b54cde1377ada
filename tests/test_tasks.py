"""Tasks: right answers, disjoint splits, and an error when problems run out."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.config import UserError
from algorithms.preference_tasks import edit_distance, reverse_judged, reverse_preferences
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


def naive_distance(text: str, other: str) -> int:
    if not text or not other:
        return len(text) + len(other)
    replaced = naive_distance(text[1:], other[1:]) + (text[0] != other[0])
    return min(replaced, naive_distance(text[1:], other) + 1, naive_distance(text, other[1:]) + 1)


@given(st.text("abc", max_size=4), st.text("abc", max_size=4))
def test_edit_distance_is_the_fewest_edits(text: str, other: str) -> None:
    assert edit_distance(text, other) == naive_distance(text, other)


@pytest.mark.parametrize("size", [{"length": 1, "letters": "ab"}, {"length": 2, "letters": "abc"}, {"length": 6}])
def test_chosen_is_always_nearer_to_the_answer_than_rejected(size: dict[str, object]) -> None:
    count = {1: 1, 2: 5, 6: 2000}[int(str(size["length"]))]
    for seed in range(1 if count > 9 else 60):
        for row in reverse_preferences("train", count=count, seed=seed, **size):  # type: ignore[arg-type]
            answer, most = row["prompt"][::-1], 2 * len(row["prompt"]) + 2
            assert edit_distance(row["chosen"], answer) < edit_distance(row["rejected"], answer)
            assert row.keys() == {"prompt", "chosen", "rejected"}
            assert 1 <= len(row["chosen"]) <= most and 1 <= len(row["rejected"]) <= most


def test_preferences_hold_the_mistakes_that_policies_make() -> None:
    found: Counter[str] = Counter()
    rows = reverse_preferences("train", count=4000, length=5)
    for row in rows:
        prompt, answer, chosen, wrong = row["prompt"], row["prompt"][::-1], row["chosen"], row["rejected"]
        if chosen != answer:
            found["chosen wrong"] += 1
            continue
        distance, longer = edit_distance(wrong, answer), len(wrong) - len(answer)
        found["copy"] += wrong == prompt
        found["single"] += len(wrong) == 1
        found["cut"] += len(wrong) > 1 and answer.startswith(wrong)
        found["continued"] += longer > 1 and wrong.startswith(answer)
        found["long repetition"] += longer > 1 and any(letter * 4 in wrong for letter in answer)
        found["unrelated"] += distance > 4 and wrong != prompt
        found["shuffled"] += sorted(wrong) == sorted(answer) and distance > 2 and wrong != prompt
        found["swap"] += sorted(wrong) == sorted(answer) and distance == 2
        found["replaced"] += distance == 1 and not longer
        found["left out"] += distance == 1 and longer == -1
        found["inserted or repeated"] += distance == 1 and longer == 1
    assert 0.3 < found.pop("chosen wrong") / len(rows) < 0.5
    assert len(found) == 11 and min(found.values()) >= 40, found


def test_preferences_and_judgements_share_prompts_and_splits_with_reverse() -> None:
    for split in ("train", "eval"):
        keys = {"count": 300, "eval_count": 40, "seed": 2, "length": 5}
        wanted = [row["prompt"] for row in reverse(split, **keys)]
        assert [row["prompt"] for row in reverse_preferences(split, **keys)] == wanted
        assert [row["prompt"] for row in reverse_judged(split, **keys)] == wanted
    assert reverse_judged("train", **keys) != reverse_judged("train", **keys | {"seed": 3})
    assert reverse_preferences("train", **keys) == reverse_preferences("train", **keys)


def test_judgements_are_right_and_balanced() -> None:
    rows = reverse_judged("train", count=1000)
    assert all(row["label"] is (row["completion"] == row["prompt"][::-1]) and row["completion"] for row in rows)
    assert 0.45 < sum(row["label"] for row in rows) / len(rows) < 0.55

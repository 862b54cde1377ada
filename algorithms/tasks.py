"""Small tasks with a checkable answer, as data sources: `data.train: algorithms.tasks:sort_letters`.

Every row has prompt, completion (the answer, for SFT) and answer (for reward functions). Whether a problem is for
training or held out depends on the problem alone, so that the splits never overlap, whatever count and seed. The held
out split has `eval_count` rows (default: `count`).

With `slips`, that share of the training completions has two neighbouring characters swapped: demonstrations of mixed
quality, as people write them. A model that imitates them errs as often; rewards can teach it not to. `answer` and the
held-out completions are always right.
"""

import hashlib
import random
import string
from collections.abc import Callable, Iterable, Iterator

from actors.config import UserError

_HELD_OUT_SPLITS = ("test", "eval")
_ENUMERATED = 4096
"""Spaces up to this size are enumerated, so that running out of problems is noticed."""


def sort_letters(
    split: str,
    *,
    count: int,
    eval_count: int | None = None,
    seed: int = 0,
    length: int = 6,
    letters: str = "abcdefgh",
    slips: float = 0.0,
) -> list[dict[str, str]]:
    """Sort the letters of a string: "dbacfe" -> "abcdef"; letters may repeat.

    Raises:
        UserError: unknown split, or fewer than `count` distinct problems of it.
    """
    _check_letters(length, letters)
    size = len(letters) ** length
    wanted = _wanted(split, count, eval_count)
    rows = _problems(
        split, wanted, seed, size, lambda index: _string(index, length, letters), lambda prompt: "".join(sorted(prompt))
    )
    return _with_slips(rows, split, slips, seed)


def reverse(
    split: str,
    *,
    count: int,
    eval_count: int | None = None,
    seed: int = 0,
    length: int = 6,
    letters: str = string.ascii_lowercase,
    slips: float = 0.0,
) -> list[dict[str, str]]:
    """Write a string backwards: "dbac" -> "cabd". Raises UserError as sort_letters does."""
    _check_letters(length, letters)
    size = len(letters) ** length
    wanted = _wanted(split, count, eval_count)
    rows = _problems(
        split, wanted, seed, size, lambda index: _string(index, length, letters), lambda prompt: prompt[::-1]
    )
    return _with_slips(rows, split, slips, seed)


def add(
    split: str, *, count: int, eval_count: int | None = None, seed: int = 0, digits: int = 2, slips: float = 0.0
) -> list[dict[str, str]]:
    """Add two numbers of up to `digits` digits: "12+34=" -> "46". Raises UserError as sort_letters does."""
    if digits < 1:
        raise UserError(f"digits must be at least 1, got {digits}")
    operands = 10**digits
    wanted = _wanted(split, count, eval_count)
    rows = _problems(split, wanted, seed, operands**2, lambda index: _sum(index, operands), _sum_answer)
    return _with_slips(rows, split, slips, seed)


def _with_slips(rows: list[dict[str, str]], split: str, slips: float, seed: int) -> list[dict[str, str]]:
    """Rows of which a share of `slips` completions has two different neighbouring characters swapped."""
    if not 0 <= slips <= 1:
        raise UserError(f"slips must be between 0 and 1, got {slips}")
    generator = random.Random(f"{seed} slips")  # its own stream: the problems stay the same
    if split in _HELD_OUT_SPLITS:
        return rows
    return [
        row | {"completion": swap_neighbours(row["answer"], generator)} if generator.random() < slips else row
        for row in rows
    ]


def swap_neighbours(answer: str, generator: random.Random) -> str:
    """The answer with two different neighbouring characters swapped, where it has such."""
    places = [place for place in range(len(answer) - 1) if answer[place] != answer[place + 1]]
    if not places:
        return answer
    place = generator.choice(places)
    return answer[:place] + answer[place + 1] + answer[place] + answer[place + 2 :]


def _wanted(split: str, count: int, eval_count: int | None) -> int:
    """Problems wanted of `split`."""
    if split != "train" and split not in _HELD_OUT_SPLITS:
        raise UserError(f"split must be train or one of {', '.join(_HELD_OUT_SPLITS)}, got {split!r}")
    wanted = count if split == "train" or eval_count is None else eval_count
    if wanted < 1:
        raise UserError(f"count and eval_count must be at least 1, got {wanted}")
    return wanted


def _check_letters(length: int, letters: str) -> None:
    if length < 1:
        raise UserError(f"length must be at least 1, got {length}")
    if len(set(letters)) != len(letters) or len(letters) < 2:
        raise UserError(f"letters must be two or more different ones, got {letters!r}")


def _string(index: int, length: int, letters: str) -> str:
    digits = []
    for _ in range(length):
        index, digit = divmod(index, len(letters))
        digits.append(letters[digit])
    return "".join(digits)


def _sum(index: int, operands: int) -> str:
    left, right = divmod(index, operands)
    return f"{left}+{right}="


def _sum_answer(prompt: str) -> str:
    left, right = prompt.removesuffix("=").split("+")
    return str(int(left) + int(right))


def _problems(
    split: str, count: int, seed: int, size: int, prompt_of: Callable[[int], str], answer_of: Callable[[str], str]
) -> list[dict[str, str]]:
    """`count` distinct problems of `split`, drawn from the `size` problems that prompt_of numbers."""
    prompts: dict[str, None] = {}  # a set that keeps its order
    for index in _order(size, count, random.Random(f"{seed} {split}")):
        prompt = prompt_of(index)
        if _held_out(prompt) == (split in _HELD_OUT_SPLITS):
            prompts[prompt] = None
        if len(prompts) == count:
            return [
                {"prompt": prompt, "completion": answer_of(prompt), "answer": answer_of(prompt)} for prompt in prompts
            ]
    raise UserError(
        f"count (or eval_count) must not exceed the {len(prompts)} distinct problems of split {split}, got {count}"
    )


def _order(size: int, count: int, generator: random.Random) -> Iterable[int]:
    """All indices in random order; of a space much larger than `count`, an endless random stream."""
    # So few of so many are wanted that random ones seldom repeat.
    if size > max(_ENUMERATED, 20 * count):
        return _stream(size, generator)
    return generator.sample(range(size), size)


def _stream(size: int, generator: random.Random) -> Iterator[int]:
    while True:
        yield generator.randrange(size)


def _held_out(prompt: str) -> bool:
    """One problem in five, chosen by its hash."""
    # Not Python's hash, which differs from process to process.
    return hashlib.sha256(prompt.encode()).digest()[0] % 5 == 0

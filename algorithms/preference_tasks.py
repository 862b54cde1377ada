"""Preferences with a known right answer, as data sources: `algorithms.preference_tasks:reverse_preferences`.

Prompts are those of algorithms.tasks:reverse, with the same ones held out, so that what a reward model or a preference
loss has learned can be compared with what is right.
"""

import random
import string
from collections.abc import Callable

from algorithms.tasks import reverse, sort_letters, swap_neighbours

Mistake = Callable[[str, str, str, random.Random], str]
"""Called with prompt, response, letters and generator; returns a response that is at least one character long."""


def reverse_preferences(
    split: str,
    *,
    count: int,
    eval_count: int | None = None,
    seed: int = 0,
    length: int = 6,
    letters: str = string.ascii_lowercase,
) -> list[dict[str, str]]:
    """Rows of prompt, chosen and rejected for the prompts that `reverse` gives: chosen is nearer to the right answer.

    Three in five chosen responses are right, the others have one or two small mistakes. Mistakes are those that a
    policy makes while it explores, so that a reward model has met them all; a response has at most 2 x length + 2
    letters. Raises UserError as sort_letters does.
    """
    rows = reverse(split, count=count, eval_count=eval_count, seed=seed, length=length, letters=letters)
    # A stream of its own, so that the prompts are those of `reverse` with the same seed.
    generator = random.Random(f"{seed} {split} preferences")
    return [_preference(row["prompt"], row["answer"], letters, generator) for row in rows]


def sort_preferences(
    split: str,
    *,
    count: int,
    eval_count: int | None = None,
    seed: int = 0,
    length: int = 6,
    letters: str = "abcdefgh",
) -> list[dict[str, str]]:
    """The same for the prompts that `sort_letters` gives."""
    rows = sort_letters(split, count=count, eval_count=eval_count, seed=seed, length=length, letters=letters)
    generator = random.Random(f"{seed} {split} preferences")
    return [_preference(row["prompt"], row["answer"], letters, generator) for row in rows]


def reverse_judged(
    split: str,
    *,
    count: int,
    eval_count: int | None = None,
    seed: int = 0,
    length: int = 6,
    letters: str = string.ascii_lowercase,
) -> list[dict[str, str | bool]]:
    """Rows of prompt, completion and label for the prompts that `reverse` gives; half of the completions are right.

    Raises UserError as sort_letters does.
    """
    rows = reverse(split, count=count, eval_count=eval_count, seed=seed, length=length, letters=letters)
    generator = random.Random(f"{seed} {split} judged")
    found = []
    for row in rows:
        right = generator.random() < 0.5
        completion = row["answer"] if right else _mistaken(row["prompt"], row["answer"], _MISTAKES, letters, generator)
        found.append({"prompt": row["prompt"], "completion": completion, "label": right})
    return found


def edit_distance(text: str, other: str) -> int:
    """Fewest insertions, deletions and replacements of a character that make one text the other."""
    row = list(range(len(other) + 1))
    for number, character in enumerate(text, start=1):
        # One row of the table is enough: above and left are in it, the diagonal is remembered.
        diagonal, row[0] = row[0], number
        for place, wanted in enumerate(other, start=1):
            replaced = diagonal + (character != wanted)
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, replaced)
    return row[-1]


def _preference(prompt: str, answer: str, letters: str, generator: random.Random) -> dict[str, str]:
    chosen = answer
    if generator.random() < 0.4:
        chosen = _mistaken(prompt, answer, _SMALL_MISTAKES, letters, generator, count=generator.choice((1, 1, 2)))
        chosen = chosen[: len(answer) + 2]  # leaves room for a worse one
    rejected, count = chosen, 1
    while edit_distance(rejected, answer) <= edit_distance(chosen, answer):
        rejected = _mistaken(prompt, answer, _MISTAKES, letters, generator, count=count)
        count += 1  # worse and worse, so that this ends
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _mistaken(
    prompt: str, answer: str, kinds: tuple[Mistake, ...], letters: str, generator: random.Random, count: int = 1
) -> str:
    """A response with `count` mistakes of random kinds, other than the answer and at most 2 x length + 2 long."""
    response = answer
    while response == answer:
        for kind in generator.choices(kinds, k=count):
            response = kind(prompt, response, letters, generator)[: 2 * len(answer) + 2]
    return response


def _swapped(prompt: str, response: str, letters: str, generator: random.Random) -> str:
    return swap_neighbours(response, generator)


def _replaced(prompt: str, response: str, letters: str, generator: random.Random) -> str:
    place = generator.randrange(len(response))
    return response[:place] + generator.choice(letters) + response[place + 1 :]


def _left_out(prompt: str, response: str, letters: str, generator: random.Random) -> str:
    place = generator.randrange(len(response))
    return response[:place] + response[place + 1 :] or response  # never empty


def _inserted(prompt: str, response: str, letters: str, generator: random.Random) -> str:
    place = generator.randint(0, len(response))
    return response[:place] + generator.choice(letters) + response[place:]


def _repeated(prompt: str, response: str, letters: str, generator: random.Random) -> str:
    place = generator.randrange(len(response))
    return response[:place] + response[place] * generator.choice((1, 1, len(response))) + response[place:]


def _copied(prompt: str, response: str, letters: str, generator: random.Random) -> str:
    return prompt


def _shuffled(prompt: str, response: str, letters: str, generator: random.Random) -> str:
    return "".join(generator.sample(response, len(response)))


def _cut(prompt: str, response: str, letters: str, generator: random.Random) -> str:
    return response[: generator.randrange(1, len(response) + 1)]


def _continued(prompt: str, response: str, letters: str, generator: random.Random) -> str:
    return response + "".join(generator.choices(response + letters, k=generator.randint(1, len(prompt))))


def _single(prompt: str, response: str, letters: str, generator: random.Random) -> str:
    return generator.choice(response + letters)


def _random(prompt: str, response: str, letters: str, generator: random.Random) -> str:
    return "".join(generator.choices(letters, k=generator.randint(1, 2 * len(prompt))))


_SMALL_MISTAKES: tuple[Mistake, ...] = (_swapped, _replaced, _left_out, _inserted, _repeated)
_MISTAKES: tuple[Mistake, ...] = (
    *_SMALL_MISTAKES * 2,  # the likeliest of a policy that is nearly right
    *(_copied, _shuffled, _cut, _continued, _single, _random),
)

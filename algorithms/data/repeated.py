"""Responses that repeat their prompt: conversations are recognised, texts refused."""

from algorithms.data.messages import REASONING, Message, RowError
from algorithms.words import kind_of

_WORDS = 3
"""Of a prompt which a text cannot begin with by chance."""


def continued_conversation(context: list[Message], response: list[Message], column: str) -> tuple[list[Message], int]:
    """The messages of prompt and response, and how many of them are given.

    A response may be its own turns alone, or repeat the prompt before them: all of it, or its last turns, with or
    without its system turn, and in other white space. Raises RowError for one that begins with other turns.
    """
    system, rest = _system_of(response)
    own_system, asked = _system_of(context)
    if system and own_system and not alike(system[0], own_system[0]):
        raise RowError(f"column {column} has a system turn of its own that is not the prompt's")
    shared = next((k for k in range(min(len(asked), len(rest)), 0, -1) if _all_alike(asked[-k:], rest[:k])), 0)
    if not shared and (system or (rest and rest[0]["role"] not in ("assistant", "tool"))):
        first = (system or rest)[0]
        raise RowError(
            f"column {column} must begin with the answer or repeat the prompt, got a {first['role']} turn that is not "
            f"the prompt's, {kind_of(first['content'])}"
        )
    before = [*(own_system or system), *asked]
    return [*before, *rest[shared:]], len(before)


def check_response_alone(prompt: str, response: str, column: str) -> None:
    """Raise RowError for a text that begins with the whole of its prompt, and would be learned with it twice."""
    asked = prompt.strip()
    if len(asked.split()) >= _WORDS and response.strip() != asked and response.lstrip().startswith(asked):
        raise RowError(
            f"column {column} must hold the response alone, got one that begins with the whole prompt (a "
            f"data.converter can cut it)"
        )


def _system_of(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    first = 1 if messages and messages[0]["role"] in ("system", "developer") else 0
    return messages[:first], messages[first:]


def _all_alike(left: list[Message], right: list[Message]) -> bool:
    return all(map(alike, left, right))


def alike(left: Message, right: Message) -> bool:
    """Whether two messages say the same, whatever white space and further keys they have."""
    if left["role"] != right["role"] or left["content"].split() != right["content"].split():
        return False
    calls = [[call["function"] for call in message.get("tool_calls", [])] for message in (left, right)]
    thoughts = [[str(message.get(name, "")).split() for name in REASONING] for message in (left, right)]
    return calls[0] == calls[1] and thoughts[0] == thoughts[1]

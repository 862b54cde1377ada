"""Conversations as text, with the places of what the assistant says in them: what is trained is what a row says.

A turn begins where the text of what precedes it ends, with the generation prompt: that is where a model samples from.
It ends with the first token at which sampling ends. Whatever else stands between the two than what the row says the
assistant said, and what the template writes around it, is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from algorithms.config import DataConfig
from algorithms.data.chat_format import ChatFormat, Habits, squeezed
from algorithms.data.left_out import check_nothing_is_left_out, goes_on, is_plain, turn_fault
from algorithms.data.messages import EmptyRow, Message, RowError, reasoning_of
from algorithms.data.readers import Dialogue
from algorithms.data.rendering import marked_parts

TrainOn = Literal["completions", "last", "all"]
_OF_ANY_TURN = ("role", "name", "tool_calls", "tool_call_id")
"""What of a message stays when its words are others: not its thoughts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """What the assistant says in one message, as the model has to say it.

    Example: of "<|user|>hi<|assistant|>yo<|end|>" it is Spoken(start=21, end=23, stop="<|end|>").
    """

    start: int
    """Its first character in the whole text."""
    end: int
    """Behind its last one, its end not included."""
    stop: str
    """The token that ends it, which stands at `end`, or is put there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A conversation as text."""

    text: str
    turns: list[Spoken]
    """Those that are trained, in order."""
    appended: bool = False
    """Whether the last turn's stop is not in the text, which ends where the turn does."""
    prompted: bool = False
    """Whether the last turn begins where the prompt of a rollout would end."""


def with_system_prompt(dialogue: Dialogue, data: DataConfig) -> Dialogue:
    """A conversation after data.system_prompt; raises RowError when it has a system message of its own."""
    if data.system_prompt is None:
        return dialogue
    if dialogue.messages[0]["role"] in ("system", "developer"):
        raise RowError("has a system message of its own, and data.system_prompt is set too")
    system: Message = {"role": "system", "content": data.system_prompt}
    return replace(dialogue, messages=[system, *dialogue.messages], given=dialogue.given + 1)


def written(chat: ChatFormat, dialogue: Dialogue, train_on: TrainOn) -> Script:
    """The text of a conversation, and the turns of it that are trained after its first `given` messages.

    Raises RowError for one that the template refuses, or of which it leaves out what must be there; and for turns whose
    place in the text is not certain, or behind which no token stands at which sampling ends.
    """
    messages = [_ended(chat, dialogue, message) for message in dialogue.messages]
    dialogue = replace(dialogue, messages=messages)
    text = _rendered(chat, dialogue, messages)
    chosen = _trained(messages, dialogue.given, train_on)
    check_nothing_is_left_out(chat, dialogue, text, chosen)
    if train_on == "all":
        return _to_its_end(chat, dialogue, text)
    marks = _marks(chat, dialogue, messages) if chat.marks(dialogue.tools) else {}
    turns, appended, prompted = [], False, False
    for index in chosen:
        start, prompted = (marks[index], False) if marks else _start(chat, dialogue, index, text)
        turn, appended = _turn(chat, dialogue, index, text, start)
        turns.append(turn)
    text = text[: turns[-1].end] if appended else text
    return Script(text=text, turns=turns, appended=appended, prompted=prompted)


def answered(chat: ChatFormat, dialogue: Dialogue) -> Script:
    """The text of a conversation and its last turn, which begins where a rollout of what precedes it would.

    Raises RowError as `written` does, and for a template that writes what precedes an answer otherwise than a prompt.
    """
    found = written(chat, dialogue, "last")
    if found.prompted:
        return found
    [turn] = found.turns
    prompt = asked(chat, dialogue, dialogue.messages[:-1])
    if found.text.startswith(prompt):
        turn = replace(turn, start=len(prompt))
    # A prompt may go on and open a thought, which this answer does not have; it does not end before it.
    elif not prompt.startswith(found.text[: turn.start]) or any(
        stop in prompt[turn.start :] for stop in chat.habits(dialogue.arguments, dialogue.tools).stops
    ):
        raise RowError(
            "the chat template renders the prompt of a whole conversation differently from one that is to be answered, "
            "so the response cannot be told from it; use another chat template (model.chat_template)"
        )
    return replace(found, turns=[turn])


def asked(chat: ChatFormat, dialogue: Dialogue, messages: Sequence[Message] | None = None) -> str:
    """The text of a conversation up to where the model answers; of a prompt, all it says must be in there.

    Raises RowError as `written` does.
    """
    text = chat.render(
        dialogue.messages if messages is None else messages,
        dialogue.tools,
        dialogue.arguments,
        add_generation_prompt=True,
    )
    if messages is None:
        check_nothing_is_left_out(chat, dialogue, text, [], ask=True)
    return text


def _ended(chat: ChatFormat, dialogue: Dialogue, message: Message) -> Message:
    """A message of the assistant without an end that is written out at its end; one within it is refused."""
    if message["role"] != "assistant":
        return message
    content = message["content"]
    stops = chat.habits(dialogue.arguments, dialogue.tools).stops
    for stop in stops:
        content = content.removesuffix(stop)
    for stop in stops:
        if stop in content or stop in reasoning_of(message):
            what = "the end-of-sequence token" if stop == chat.eos else "the end of a turn"
            named = stop if stop.isprintable() else repr(stop)  # it may be a line break
            raise RowError(f"a response must not go on after {what} {named}")
    return message if content == message["content"] else message | {"content": content}  # type: ignore[return-value]


def _rendered(chat: ChatFormat, dialogue: Dialogue, messages: Sequence[Message], *, ask: bool = False) -> str:
    return chat.render(messages, dialogue.tools, dialogue.arguments, add_generation_prompt=ask)


def _trained(messages: list[Message], given: int, train_on: TrainOn) -> list[int]:
    """Which messages are learned from."""
    spoken = [
        index
        for index, message in enumerate(messages)
        if index >= given and message["role"] == "assistant" and message.get("weight", 1)
    ]
    if not spoken and train_on != "all":
        raise EmptyRow("has no token to train on (no turn of the assistant that is learned from)")
    return spoken[-1:] if train_on == "last" else spoken


def _to_its_end(chat: ChatFormat, dialogue: Dialogue, text: str) -> Script:
    """All of a conversation, which ends as its last turn ends."""
    habits, last = chat.habits(dialogue.arguments, dialogue.tools), dialogue.messages[-1]
    if last["role"] != "assistant" or habits.last or not habits.stops:
        return Script(text=text, turns=[])
    text = text.removesuffix(habits.tail) if habits.tail else text
    stop = (habits.call if last.get("tool_calls") else "") or habits.stops[0]
    return Script(text=text, turns=[Spoken(start=len(text), end=len(text), stop=stop)], appended=True)


def _start(chat: ChatFormat, dialogue: Dialogue, index: int, text: str) -> tuple[int, bool]:
    """Where in the text a turn begins, and whether that is where its prompt ends."""
    before = dialogue.messages[:index]
    try:
        prompt = _rendered(chat, dialogue, before, ask=True)
        if text.startswith(prompt):
            return len(prompt), True
    except RowError:  # many a template refuses to be asked before anybody has spoken
        pass
    return _start_by_words(chat, dialogue, index, text), False


def _start_by_words(chat: ChatFormat, dialogue: Dialogue, index: int, text: str) -> int:
    """The same where the text of what precedes a turn is another one within the whole: where its own words begin."""
    place, other, words = _place_of_words(chat, dialogue, index, text)
    if place < 0 or text[:place] != other[:place] or other.count(words) > 1:
        raise RowError(
            f"message {index + 1} cannot be told from what precedes it, which the chat template renders differently "
            f"within the whole conversation; algorithm.train_on last or all, or another model.chat_template"
        )
    habits, message = chat.habits(dialogue.arguments, dialogue.tools), dialogue.messages[index]
    if message.get("tool_calls") and not message["content"].strip():
        if not habits.before_call or not text[:place].endswith(habits.before_call):
            raise RowError(f"message {index + 1} cannot be told from what precedes it: its calls are written otherwise")
        return place - len(habits.before_call)
    header = text.rfind(habits.header, 0, place) + len(habits.header)
    # As a prompt would end, where nothing of the row stands between that and the words.
    if habits.header and header >= len(habits.header) and squeezed(text[header:place]) in habits.openings:
        return header
    while text[place - 1 : place] == " ":  # most tokenizers have a word's space before it
        place -= 1
    return place


def _place_of_words(chat: ChatFormat, dialogue: Dialogue, index: int, text: str) -> tuple[int, str, str]:
    """Where a message's content would begin, -1 where it is not shown; the text with another one in it, and that."""
    words = "Vw1xaz"
    while words in text:
        words += "q"
    spoken = _with_words(dialogue.messages[index], words)
    other = _rendered(chat, dialogue, [*dialogue.messages[:index], spoken, *dialogue.messages[index + 1 :]])
    return other.find(words), other, words


def _with_words(given: Message, words: str) -> Message:
    """A message that says these words: in its content, or as the name of its first call where it only calls."""
    if given.get("tool_calls") and not given["content"].strip():
        first, *others = given.get("tool_calls", [])
        return given | {"tool_calls": [first | {"function": first["function"] | {"name": words}}, *others]}  # type: ignore[return-value]
    made = {name: value for name, value in given.items() if name in _OF_ANY_TURN}
    return made | {"content": words}  # type: ignore[return-value]


def _marks(chat: ChatFormat, dialogue: Dialogue, messages: list[Message]) -> dict[int, int]:
    """Where the turns of the assistant begin by the template's own marks, by message."""
    _, parts = marked_parts(
        chat.prepared(messages, dialogue.arguments, dialogue.tools),
        chat.tokenizer,
        tools=dialogue.tools,
        arguments=chat.read_of(chat.arguments | dialogue.arguments),
    )
    spoken = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if len(parts) != len(spoken):
        raise RowError(
            f"the chat template marks {len(parts)} parts with {{% generation %}} in a conversation of {len(spoken)} "
            f"turns of the assistant"
        )
    return {index: start for index, (start, _) in zip(spoken, parts, strict=True)}


def _turn(chat: ChatFormat, dialogue: Dialogue, index: int, text: str, start: int) -> tuple[Spoken, bool]:
    """A turn that begins at `start`, and whether its end has to be put behind the text.

    Raises RowError where it is not what the message says, or no token behind it could end it.
    """
    habits, message = chat.habits(dialogue.arguments, dialogue.tools), dialogue.messages[index]
    last = index == len(dialogue.messages) - 1
    places = [(text.index(stop, start), stop) for stop in _stops(habits, last) if stop in text[start:]]
    if places:
        end, stop = min(places)
        fault = turn_fault(habits, message, text, (start, end), index)
        if fault is None and (last or is_plain(message) or end <= _next_words(chat, dialogue, index, text)):
            return Spoken(start=start, end=end, stop=stop), False
        if fault is not None and (last or not goes_on(habits, message, text[start:end])):
            raise RowError(fault)
    if not last:
        raise RowError(
            f"the chat template writes no token behind message {index + 1} at which sampling could end, so a model "
            f"would learn to go on; algorithm.train_on last learns from the last answer alone"
        )
    stop = (habits.call if message.get("tool_calls") else "") or next(iter(habits.stops), "")
    if not stop:
        raise RowError("responses need a tokenizer with an end-of-sequence token, got one without")
    end = len(text) - len(habits.tail) if habits.tail and text.endswith(habits.tail) else len(text)
    if fault := turn_fault(habits, message, text, (start, end), index):
        raise RowError(fault)
    return Spoken(start=start, end=end, stop=stop), True


def _stops(habits: Habits, last: bool) -> tuple[str, ...]:
    # The token that opens the next turn ends no last one: there it can only be part of what the row says.
    return habits.stops if habits.last or not last else tuple(s for s in habits.stops if s != habits.between)


def _next_words(chat: ChatFormat, dialogue: Dialogue, index: int, text: str) -> int:
    """Where in the text the message after this one says something."""
    return _place_of_words(chat, dialogue, index + 1, text)[0]

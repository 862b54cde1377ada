"""From messages to text by the chat template, and from text to token ids: what all jobs share."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, TypedDict

from actors.failure import reason_of
from actors.user.confined import at_most
from algorithms.config import DataConfig
from algorithms.data.messages import EmptyRow, Message, RowError
from algorithms.user.deadline import TooLate, Watch

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

_TEMPLATE_S, _TEMPLATE_MIB = 1.0, 1024
"""What the chat template may take for one conversation: a usual one takes it a thousandth of that."""
_CHARACTERS_S, _CHARACTERS_MIB = 50_000, 1_000
"""For so many characters of it, a second and a MiB more: their tokens are made in the same call."""
_LONGER, _LONGEST_ASIDE = 16, 2**23
"""How many times as long as its conversation a text may be, and characters that it may have beside that."""
_ENDED_AFTER = 10
"""How many times as long it may take where nothing can interrupt it: then the process is ended. Other threads of the
process count, too."""


class Bounds(TypedDict, total=False):
    """Fields of a `Reading` that say how long a text may become; none without a tokenizer."""

    overhead: int
    growth: int
    unknown_id: int
    count: Callable[[str], int]


def render_messages(
    messages: Sequence[Mapping[str, object]],
    tokenizer: "PreTrainedTokenizerFast",
    *,
    tools: list[dict[str, object]] | None = None,
    arguments: Mapping[str, object] | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """apply_chat_template to text; raises RowError with the template's complaint.

    Args:
        messages: as the template wants them.
        tokenizer: whose chat template it is.
        tools: declarations of tools, which some templates show.
        arguments: further variables of the template, by name.
        add_generation_prompt: whether to go on to where the model answers.
    """
    if tokenizer.chat_template is None:
        raise RowError("messages need a tokenizer with a chat template, got one without")
    options = {"tokenize": False, "add_generation_prompt": add_generation_prompt, **(arguments or {})}
    if tools:  # a template may ask whether they are defined
        options["tools"] = tools
    try:
        text = str(run_template(tokenizer, messages, **options))
    except Exception as error:  # a template comes with the model, and its expressions raise anything
        raise RowError(f"the chat template refuses it ({reason_of(error)})") from error
    return of_letters(text)


def of_letters(text: str) -> str:
    """The same text; raises RowError where it has half a character, which JSON can write and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"has half a character at its letter {error.start + 1}, {text[error.start]!r}") from None
    return text


def marked_parts(
    messages: Sequence[Mapping[str, object]],
    tokenizer: "PreTrainedTokenizerFast",
    *,
    tools: list[dict[str, object]] | None,
    arguments: Mapping[str, object],
) -> tuple[str, list[tuple[int, int]]]:
    """The text that `render_messages` gives, and from where to where in it {% generation %} marks what the model says.

    Raises RowError as `render_messages` does.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    variables: dict[str, Any] = {**tokenizer.special_tokens_map, **arguments}
    if tools:
        variables["tools"] = tools
    # By characters: which tokens they are is found out as for all other templates.
    render = functools.partial(
        render_jinja_template,
        conversations=[messages],
        chat_template=tokenizer.get_chat_template(tools=tools),  # type: ignore[arg-type]  # declarations are dicts
        return_assistant_tokens_mask=True,
        **variables,
    )
    try:
        texts, parts = _confined(render, messages, tools)
    except Exception as error:  # as above
        raise RowError(f"the chat template refuses it ({reason_of(error)})") from error
    return texts[0], [(int(start), int(end)) for start, end in parts[0]]


def run_template(tokenizer: Any, messages: Sequence[Mapping[str, object]], **options: object) -> Any:
    """apply_chat_template with a deadline and a limit of memory: a template is a program of whoever made the model.

    Raises what it raises, also TimeoutError and MemoryError. One that is late within a single operation of Python's
    ends this process by SIGXCPU.
    """
    render = functools.partial(tokenizer.apply_chat_template, messages, **options)
    return _confined(render, messages, options.get("tools"))


def _confined(render: Callable[[], Any], messages: Sequence[Mapping[str, object]], tools: object) -> Any:
    # A message has more than its text: names, calls of tools, and keys that are null.
    size = sum(len(str(value)) for message in messages for value in message.values()) + len(str(tools or ""))
    limit_s, mib = _TEMPLATE_S + size // _CHARACTERS_S, _TEMPLATE_MIB + size // _CHARACTERS_MIB
    try:
        with (
            at_most(mib, _ENDED_AFTER * limit_s),
            Watch(limit_s, file="", clock=time.thread_time) as watch,
        ):
            made = watch(render)
    except TooLate as error:
        raise TimeoutError(str(error)) from None
    except MemoryError:
        raise MemoryError(f"it needs more than {mib} MiB of memory") from None
    # What was freed before may serve a text of any size, and to tokenise it takes forty times as much.
    if (characters := sum(map(len, _texts_in(made)))) > mib * 2**20:
        raise MemoryError(f"it needs more than {mib} MiB of memory")
    if characters > _LONGER * size + _LONGEST_ASIDE:
        raise ValueError(f"it writes {characters // 2**20} MiB for {size:,} characters")
    return made


def _texts_in(made: object) -> list[str]:
    """The text that was rendered, which comes alone, or in a list with the parts of it that are marked."""
    found = made[0] if isinstance(made, tuple) else [made]
    return [text for text in found if isinstance(text, str)]


def template_of(tokenizer: "PreTrainedTokenizerFast") -> str:
    """The chat template's text, empty without one; raises RowError where there are several and none is the default."""
    if tokenizer.chat_template is None:
        return ""
    try:
        return tokenizer.get_chat_template()
    except Exception as error:  # as for rendering
        raise RowError(f"the chat template cannot be used ({reason_of(error)})") from error


def encode_texts(texts: list[str], tokenizer: "PreTrainedTokenizerFast", *, plain: bool) -> list[list[int]]:
    """Token ids of each text; a plain text gets the BOS token that the tokenizer adds by itself, if it adds one.

    A template writes its own BOS, so that adding one there would double it (huggingface/trl issue 1073).
    """
    if not texts:  # which the tokenizer does not take
        return []
    if plain:  # others are checked where they are rendered
        texts = [*map(of_letters, texts)]
    # Called through Any: transformers types what a call gives for one text and for many alike.
    encoding: Any = tokenizer
    alone = {"return_attention_mask": False, "return_token_type_ids": False}
    encoded: list[list[int]] = encoding(texts, add_special_tokens=False, **alone)["input_ids"]
    # By encoding nothing: what its post-processor adds, no setting of a tokenizer says.
    bos, automatic = bos_of(tokenizer), encoding("")["input_ids"]
    if not plain or bos is None or automatic[:1] != [bos]:
        return encoded
    return [ids if ids[:1] == [bos] else [bos, *ids] for ids in encoded]  # a text may have it written out


def bos_of(tokenizer: "PreTrainedTokenizerFast") -> int | None:
    """The token that begins a sequence, where the tokenizer has one."""
    bos = tokenizer.bos_token_id
    return bos if isinstance(bos, int) else None


def check_some_tokens(found: Sized, what: str) -> None:
    """Raise EmptyRow when what became of a row has no tokens."""
    if not len(found):
        raise EmptyRow(f"{what} has no tokens")


def bounds(tokenizer: "PreTrainedTokenizerFast | None", data: DataConfig) -> Bounds:
    """How many more tokens than bytes of its row a text may have: `overhead` of a Reading, and its `growth`; and its
    `unknown_id` and `count`.

    An exchange as the template writes it, with special tokens as one byte each, twice as long for safety; a normalizer
    makes at most three bytes of one, a compatibility one (NFKC, NFKD) eighteen characters.
    """
    if tokenizer is None:
        return {}
    overhead = 2  # the tokens that begin and end a plain text
    if tokenizer.chat_template is not None:
        exchange: list[Message] = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
        try:
            written = render_messages(exchange, tokenizer)
            # Longest first, as one may be a part of another.
            for token in sorted(tokenizer.all_special_tokens, key=len, reverse=True):
                written = written.replace(token, "x") if token else written
            overhead = 2 * len(written.encode())
        except RowError:  # a template that refuses this exchange: then every row is looked at
            overhead = 2**31
    normalizer = repr(tokenizer.backend_tokenizer.normalizer or "")
    growth = 18 if "NFK" in normalizer else 3 if "(" in normalizer else 1
    system = len((data.system_prompt or "").encode(errors="replace"))
    return {
        "overhead": overhead + growth * system,
        "growth": growth,
        "unknown_id": _unknown_id(tokenizer),
        "count": functools.partial(_count, tokenizer),
    }


def _count(tokenizer: "PreTrainedTokenizerFast", text: str) -> int:
    return len(encode_texts([text], tokenizer, plain=False)[0])


def _unknown_id(tokenizer: "PreTrainedTokenizerFast") -> int:
    unknown = tokenizer.unk_token_id
    others = (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id)
    # Some tokenizers have one token for several of these: then it does not tell unknown text.
    return unknown if isinstance(unknown, int) and unknown not in others else -1

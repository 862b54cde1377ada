"""The styles of chat templates, shapes of rows and what is expected of both, held against transformers alone.

Nothing here is Tandem's: what a style says of its template must be what the template does.
"""

import json
from typing import Any

import pytest

from tests.chat.oracle import Refused, Said, Trained, expected, text_of_content
from tests.chat.plain import rendered
from tests.chat.shapes import JOBS, PLAIN, SHAPES, Job, Shape
from tests.chat.style import TEMPLATES, ChatStyle
from tests.chat.templates import STYLES
from tests.chat.tokenizers import KINDS, in_words_of, runs, text_of, tokenizer_of

of_style = pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
of_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
RESPONSES: list[tuple[Job, bool]] = [(job, False) for job in JOBS] + [("dpo", True), ("reward", True)]
"""Jobs, and which response of the row a sequence is made from."""


def test_there_is_much_of_everything() -> None:
    assert len(STYLES) >= 24 and len(SHAPES) >= 14
    assert {path.stem for path in TEMPLATES.iterdir()} == set(STYLES)
    assert {style.kind for style in STYLES.values()} | {"collapsing"} == set(KINDS)


@of_style
@pytest.mark.parametrize("shape", PLAIN)
@pytest.mark.parametrize(("job", "worse"), RESPONSES)
def test_every_style_can_say_plain_shapes(style: ChatStyle, shape: str, job: Job, worse: bool) -> None:
    found = expected(style, SHAPES[shape], job, worse=worse)
    assert isinstance(found, Trained)
    # What is tolerated comes from the style alone, never from these rows.
    assert set(found.or_refused) <= {"contents" if not style.strings else "end", "end" if style.unended else "contents"}
    assert len(found.turns) == {"grpo": 0, "sft": len(SHAPES[shape].messages) // 2}.get(job, 1)


@of_style
@of_shape
def test_what_is_expected_is_rendered(style: ChatStyle, shape: Shape) -> None:
    """Header, words and end of each turn stand next to each other, turn after turn, with all else that the row says;
    and of what is refused, the template refuses a part or leaves it away."""
    for job, worse in RESPONSES:
        found = expected(style, shape, job, worse=worse)
        try:
            text = rendered(style, shape, job, worse=worse)
        except Exception:  # what a template raises, which may be anything
            assert isinstance(found, Refused), (job, found)
            continue
        if isinstance(found, Refused):
            assert [part for part in parts_of(shape, job, worse) if part not in text], (job, found, text)
        else:
            holds(style, found, text)


def holds(style: ChatStyle, found: Trained, text: str) -> None:
    """Fail unless a text is what was expected."""
    place = 0
    for turn in found.turns:
        place = after(style, text, turn, place)
    assert [part for part in found.context if part not in text] == [], text
    assert [part for part in found.absent if part in text] == [], text
    if found.prompt_ends:
        assert text.endswith(found.prompt_ends), text
    elif not style.unended:
        assert text[place:].strip() in ("", style.eos), text


def after(style: ChatStyle, text: str, turn: Said, place: int) -> int:
    """Where the turn ends, which begins at this place or behind it."""
    # Nothing may follow the last turn of a style without ends.
    ends = (*turn.ends, "") if style.unended and text.endswith((turn.text, turn.text + "\n")) else turn.ends
    starts = [
        (start, len(header + turn.text + end))
        for header in style.headers
        for end in ends
        if (start := text.find(header + turn.text + end, place)) >= 0
    ]
    assert starts, f"{turn.text!r} does not follow a header in {text[place:]!r}"
    start, length = min(starts)
    # Where the next header ends a turn, it is looked for again.
    return start + (len(turn.text) if style.unended else length)


def parts_of(shape: Shape, job: Job, worse: bool) -> list[str]:
    """All that a row says, in pieces that every template which says it writes alike."""
    pieces = [tool["function"]["description"] for tool in shape.tools]
    for message in shape.conversation(job, worse=worse):
        content = text_of_content(message)
        pieces += [piece.strip() for piece in content.replace("</think>", "<think>").split("<think>")]
        pieces.append(message.get("reasoning_content") or "")
        for call in message.get("tool_calls") or ():
            given = call["function"]["arguments"]
            arguments = json.loads(given) if isinstance(given, str) else given
            pieces += [
                json.dumps(value, ensure_ascii=False)[1:-1] for value in arguments.values() if isinstance(value, str)
            ]
    return pieces


@of_style
@of_shape
def test_contents_that_are_null_are_like_empty_ones(style: ChatStyle, shape: Shape) -> None:
    """Where a style says calls at all, it does not matter in which way the row has no content beside them."""
    if any(message["content"] is None for message in shape.messages) and isinstance(expected(style, shape), Trained):
        assert rendered(style, shape, null=None) == rendered(style, shape, null="")


@of_style
@of_shape
def test_tokens_say_what_was_rendered(style: ChatStyle, shape: Shape) -> None:
    if isinstance(expected(style, shape), Refused):
        return
    text = rendered(style, shape)
    tokenizer = tokenizer_of(style)
    ids: Any = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == in_words_of(style.kind, text)
    ends = [style.eos, *([style.bos] if style.bos else []), *style.special]
    assert all(len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1 for token in ends)
    spaceless: Any = tokenizer_of(style, "collapsing")
    said = text_of(spaceless, spaceless(text, add_special_tokens=False)["input_ids"])
    composed = in_words_of("bytes", text)
    assert "".join(said.split()) == "".join(composed.split())
    assert "\n" not in said and len(said) <= len(composed)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"collapsing"}))
def test_tokenizers_merge_over_borders(kind: str) -> None:
    """Otherwise borders of turns would be found however they are looked for."""
    style = STYLES["chatml-base"]
    tokenizer = tokenizer_of(style, kind)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    assert count("x is") < count("x ") + count("is")
    if kind in ("bytes", "llama3"):
        assert count("a\n\nb") < count("a\n") + count("\nb")
    assert tokenizer_of(style, kind) is tokenizer


@pytest.mark.parametrize("name", [name for name, style in STYLES.items() if "endgeneration" in style.template])
@pytest.mark.parametrize("shape", ["one turn", "system, three exchanges", "consecutive"])
def test_markers_are_around_the_words(name: str, shape: str) -> None:
    """Around their end, too, but for the style that leaves it outside."""
    style, found = STYLES[name], expected(STYLES[name], SHAPES[shape])
    assert isinstance(found, Trained)
    tokenizer: Any = tokenizer_of(style)
    given = list(SHAPES[shape].messages)
    made = tokenizer.apply_chat_template(given, return_dict=True, return_assistant_tokens_mask=True)
    said = [text_of(tokenizer, run) for run in runs(made["input_ids"], list(map(bool, made["assistant_masks"])))]
    words = tuple(in_words_of(style.kind, turn.text) for turn in found.turns)
    ends = "" if name == "chatml-generation-words" else found.turns[0].ends[0]
    assert said == [text + ends for text in words]


def test_the_librarys_mask_cuts_a_last_character_of_several_tokens() -> None:
    """Where the markers leave the end outside: its mask goes to the first token of the last character. What is expected
    of such a row is all of it."""
    name, shape = "chatml-generation-words", SHAPES["unicode"]
    tokenizer: Any = tokenizer_of(STYLES[name])
    made = tokenizer.apply_chat_template(list(shape.messages), return_dict=True, return_assistant_tokens_mask=True)
    [run] = runs(made["input_ids"], list(map(bool, made["assistant_masks"])))
    words = in_words_of("bytes", shape.messages[-1]["content"])
    assert text_of(tokenizer, run) == words[:-1] + "\ufffd"
    found = expected(STYLES[name], shape)
    assert isinstance(found, Trained) and found.turns[0].text == shape.messages[-1]["content"]


def test_one_end_and_the_very_words_agree() -> None:
    """What is compared with the oracle is wrong as soon as a letter, an end or a space is."""
    found = expected(STYLES["chatml-base"], SHAPES["two exchanges"])
    assert isinstance(found, Trained)
    right = "A star.<|im_end|>The moon is a satellite.<|im_end|>"
    assert "".join(found.texts) == right and found.agrees(right)
    for wrong in (
        "",
        right + "\n",
        right + "<|im_end|>",
        right.replace("star.<|im_end|>", "star."),
        " " + right,
        right[1:],
    ):
        assert not found.agrees(wrong), wrong
    opened = expected(STYLES["deepseek-r1"], SHAPES["thought in content"])
    assert isinstance(opened, Trained)
    end = "The larger one.\n</think>\n\nThe sun." + STYLES["deepseek-r1"].eos
    assert opened.agrees("<think>\n" + end) and opened.agrees(end) and not opened.agrees("<think>" + end)


def test_templates_are_different() -> None:
    texts = [style.template for style in STYLES.values()]
    assert len(set(texts)) == len(texts)
    assert "answer" in STYLES["chatml-answer"].template and "assistant" in STYLES["chatml-answer"].template

"""The styles of chat templates, shapes of rows and what is expected of both, held against transformers alone.

Nothing here is Tandem's: what a style says of its template must be what the template does.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.chat.oracle import Refused, Said, Trained, expected, text_of_content
from tests.chat.plain import rendered
from tests.chat.shapes import END, JOBS, SHAPES, Job, Shape
from tests.chat.style import TEMPLATES, ChatStyle
from tests.chat.templates import STYLES
from tests.chat.tokenizers import KINDS, comparable, runs, text_of, tokenizer_of

of_style = pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)


def of_every_shape(check: Callable[[ChatStyle, Shape], None]) -> Callable[[ChatStyle], None]:
    """One test of a style, as three thousand tests would cost more than what they do."""

    @functools.wraps(check)
    def test(style: ChatStyle) -> None:
        for name, shape in SHAPES.items():
            try:
                check(style, shape)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error

    vars(test).pop("__wrapped__")  # pytest would ask for what that takes
    return of_style(test)


RESPONSES: list[tuple[Job, bool]] = [*((job, False) for job in JOBS), ("dpo", True), ("reward", True)]
"""Jobs, and whether a sequence is made from the worse response."""
PLAIN = ("one turn", "two exchanges")


def trained(style: ChatStyle, shape: Shape, job: Job = "sft") -> Trained:
    found = expected(style, shape, job)
    assert isinstance(found, Trained)
    return found


def test_there_is_much_of_everything() -> None:
    assert len(STYLES) >= 24 and len(SHAPES) >= 14
    assert {path.stem for path in TEMPLATES.iterdir()} == set(STYLES)
    assert {style.kind for style in STYLES.values()} | {"collapsing"} == set(KINDS)
    texts = {style.template.partition("-#}")[2] for style in STYLES.values()}
    assert len(texts) == len(STYLES)


@of_style
@pytest.mark.parametrize("shape", PLAIN)
def test_every_style_can_say_plain_shapes(style: ChatStyle, shape: str) -> None:
    """Of which none is refused but for what a style is in all rows."""
    always = {
        "contents": not style.strings,
        "end": style.unended or style.inner_ends,
        "markers": style.misled,
        "opens": bool(style.opens),
    }
    for job in JOBS:
        found = trained(style, SHAPES[shape], job)
        assert set(found.or_refused) <= {kind for kind, holds in always.items() if holds}
        assert len(found.turns) == {"grpo": 0, "sft": len(SHAPES[shape].messages) // 2}.get(job, 1)


@of_every_shape
def test_what_is_expected_is_rendered(style: ChatStyle, shape: Shape) -> None:
    """Header, words and end of each turn stand next to each other, turn after turn, with all else that the row says;
    and of what is refused, the template refuses a part or leaves it away."""
    shape = shape.ended_by(style.ends[0])
    for job, worse in RESPONSES:
        found = expected(style, shape, job, worse=worse)
        try:
            text = rendered(style, shape, job, worse=worse)
        except Exception:  # what a template raises, which may be anything
            assert isinstance(found, Refused), (job, found)
            continue
        if isinstance(found, Refused):
            parts = parts_of(shape, job, worse)
            # One may stand in another.
            often = {part: sum(each.count(part) for each in parts) for part in parts if part}
            assert [part for part, times in often.items() if text.count(part) < times], (job, found, text)
        else:
            check(style, found, text)


def check(style: ChatStyle, found: Trained, text: str) -> None:
    """Fail unless the text is what is expected."""
    place, said = 0, ""
    for turn in found.turns:
        start, end = placed(style, text, turn, place)
        said += text[start:end]
        # Where the next header ends a turn, it is looked for again.
        place = start + len(turn.text) if style.unended else end
    if style.unended and found.turns and not found.agrees(said):
        said += found.turns[-1].ends[0]
    assert found.fault(said, text) is None
    if found.turns and not style.unended:
        assert text[place:].strip() in ("", style.eos), text


def placed(style: ChatStyle, text: str, turn: Said, place: int) -> tuple[int, int]:
    """Where the first such turn begins, and where its end does end, at this place or behind it."""
    # Nothing may follow the last turn of a style without ends.
    ends = (*turn.ends, "") if style.unended and text.endswith((turn.text, turn.text + "\n")) else turn.ends
    places = [
        (start + len(header), start + len(header + turn.text + end))
        for header in style.headers
        for end in ends
        if (start := text.find(header + turn.text + end, place)) >= 0
    ]
    assert places, f"{turn.text!r} does not follow a header in {text[place:]!r}"
    return min(places, key=lambda found: (found[0], -found[1]))


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
            texts = (value for value in arguments.values() if isinstance(value, str))
            pieces += [json.dumps(text, ensure_ascii=False)[1:-1] for text in texts]
    return pieces


@of_every_shape
def test_contents_that_are_null_are_like_empty_ones(style: ChatStyle, shape: Shape) -> None:
    """Where a style says calls at all, it does not matter in which way the row has no content beside them."""
    if any(message["content"] is None for message in shape.messages) and isinstance(expected(style, shape), Trained):
        assert rendered(style, shape, null=None) == rendered(style, shape, null="")


@of_style
def test_forms_that_a_template_reads_as_they_are(style: ChatStyle) -> None:
    """A string, a list of parts, a message of the developer: those that a style does not name are lost or refused."""
    said = trained(style, SHAPES["parts"]).turns[0]
    ends = (*said.ends, *(("",) if style.unended else ()))
    question, answer = SHAPES["parts"].messages
    asked = question | {"content": text_of_content(question)} if style.strings else question
    for content, read in ((text_of_content(answer), style.strings), (answer["content"], style.parts)):
        text = unchanged(style, [asked, answer | {"content": content}])
        assert any(style.headers[0] + said.text + end in text for end in ends) == read, text
    brief: list[Any] = [{"role": "developer", "content": "Be brief."}, *SHAPES["one turn"].messages]
    if not style.strings:
        brief = [message | {"content": [{"type": "text", "text": message["content"]}]} for message in brief]
    assert ("Be brief." in unchanged(style, brief)) == style.developer


def unchanged(style: ChatStyle, messages: list[Any]) -> str:
    """What becomes of messages, or nothing where the template raises."""
    tokenizer: Any = tokenizer_of(style)
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # as above
        return ""


@of_every_shape
def test_tokens_say_what_was_rendered(style: ChatStyle, shape: Shape) -> None:
    if isinstance(expected(style, shape), Refused):
        return
    text = rendered(style, shape)
    for kind in KINDS:
        tokenizer: Any = tokenizer_of(style, kind)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert comparable(kind, tokenizer.decode(ids)) == comparable(kind, text)
        assert kind == "collapsing" or tokenizer.decode(ids) == comparable(kind, text)
        assert kind != "collapsing" or "\n" not in tokenizer.decode(ids)


@of_style
def test_special_tokens_are_one_token(style: ChatStyle) -> None:
    for kind in KINDS:
        tokenizer = tokenizer_of(style, kind)
        assert tokenizer is tokenizer_of(style, kind)
        tokens = [style.eos, *([style.bos] if style.bos else []), *style.special]
        assert [text for text in tokens if len(tokenizer(text, add_special_tokens=False)["input_ids"]) != 1] == []
        begins = [tokenizer.bos_token_id] if style.bos and kind not in ("bytes", "collapsing") else []
        assert tokenizer("")["input_ids"] == begins


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"collapsing"}))
def test_tokens_go_over_borders(kind: str) -> None:
    """Otherwise borders of turns would be found however they are looked for."""
    tokenizer = tokenizer_of(STYLES["chatml-base"], kind)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    assert count("x is") < count("x ") + count("is")
    if kind != "llama2":
        assert count("a\n\nb") < count("a\n") + count("\nb")


def test_a_text_of_tokens_keeps_its_first_space() -> None:
    tokenizer = tokenizer_of(STYLES["llama2"])
    ids: Any = tokenizer("<s>[INST] x [/INST] yes </s>", add_special_tokens=False)["input_ids"]
    behind = next(ids[place:] for place in range(len(ids)) if text_of(tokenizer, ids[place:]) == " yes </s>")
    assert tokenizer.decode(behind) == "yes </s>"


MARKED = [name for name, style in STYLES.items() if "endgeneration" in style.template]


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("shape", ["one turn", "system, three exchanges", "consecutive"])
def test_markers_are_around_the_words(name: str, shape: str) -> None:
    """Around their end, too, but for the style that leaves it outside; and of two styles around something else."""
    style, found = STYLES[name], trained(STYLES[name], SHAPES[shape])
    tokenizer: Any = tokenizer_of(style)
    given = list(SHAPES[shape].messages)
    made = tokenizer.apply_chat_template(given, return_dict=True, return_assistant_tokens_mask=True)
    said = [text_of(tokenizer, run) for run in runs(made["input_ids"], list(map(bool, made["assistant_masks"])))]
    if name == "chatml-generation-words":
        said = [text + found.turns[0].ends[0] for text in said]
    right = found.agrees("".join(said)) and len(said) == len(found.turns)
    assert right != (style.misled and not (name == "chatml-generation-last" and shape == "one turn"))


def test_the_librarys_mask_cuts_a_last_character_of_several_tokens() -> None:
    """Where the markers leave the end outside: its mask goes to the first token of the last character. What is expected
    of such a row is all of it."""
    name, shape = "chatml-generation-words", SHAPES["unicode"]
    tokenizer: Any = tokenizer_of(STYLES[name])
    made = tokenizer.apply_chat_template(list(shape.messages), return_dict=True, return_assistant_tokens_mask=True)
    [run] = runs(made["input_ids"], list(map(bool, made["assistant_masks"])))
    words = comparable("bytes", shape.messages[-1]["content"])
    assert text_of(tokenizer, run) == words[:-1] + "\ufffd"
    assert trained(STYLES[name], shape).turns[0].text == shape.messages[-1]["content"]


def test_one_end_and_the_very_words_agree() -> None:
    """What is compared with the oracle is wrong as soon as a letter, an end or a space is."""
    found = trained(STYLES["chatml-base"], SHAPES["two exchanges"])
    right = "A star.<|im_end|>The moon is a satellite.<|im_end|>"
    assert "".join(found.texts) == right and found.agrees(right)
    wrong = ["", right + "\n", right + "<|im_end|>", right.replace("star.<|im_end|>", "star."), " " + right, right[1:]]
    assert [text for text in wrong if found.agrees(text)] == []
    spaceless = right.replace("A star", " A   star")
    assert found.agrees(spaceless, "collapsing") and not found.agrees(spaceless)
    opened = trained(STYLES["deepseek-r1"], SHAPES["thought in content"])
    end = "The larger one.\n</think>\n\nThe sun." + STYLES["deepseek-r1"].eos
    assert opened.agrees("<think>\n" + end) and opened.agrees(end) and not opened.agrees("<think>" + end)
    composed = trained(STYLES["qwen2.5"], SHAPES["unicode"])
    said = comparable("bytes", composed.texts[0])
    assert composed.agrees(said, "bytes") and not composed.agrees(said, "llama3")


def test_the_whole_sequence_is_compared_too() -> None:
    style, shape = STYLES["qwen2.5"], SHAPES["tools with nulls"]
    found = trained(style, shape)
    said, whole = "".join(found.texts), rendered(style, shape)
    assert found.fault(said, whole) is None
    assert "expected" in str(found.fault(said + "x", whole))
    assert "Weather of a city" in str(found.fault(said, whole.replace("Weather of a city", "")))
    assert "has ['null']" in str(found.fault(said, whole.replace('{"city": "Oslo"}', '{"city": "Oslo", "zone": null}')))
    first = STYLES["llama3"]
    assert first.bos is not None
    doubled = first.bos + rendered(first, SHAPES["one turn"])
    assert "has ['<|begin" in str(trained(first, SHAPES["one turn"]).fault("A star.<|eot_id|>", doubled))
    prompt = trained(STYLES["qwq"], SHAPES["one turn"], "grpo")
    whole = rendered(STYLES["qwq"], SHAPES["one turn"], "grpo")
    assert prompt.fault("", whole) is None and "ends with" in str(prompt.fault("", whole.removesuffix("<think>\n")))


def test_rows_say_the_same_in_every_job() -> None:
    for shape in SHAPES.values():
        rows = {job: shape.row(job) for job in JOBS}
        assert all(("tools" in row) == bool(shape.tools) for row in rows.values())
        assert rows["dpo"]["prompt"] + rows["dpo"]["chosen"] == rows["sft"]["messages"]
        assert rows["kto"]["prompt"] + rows["kto"]["completion"] == rows["sft"]["messages"]
        assert rows["grpo"]["prompt"] == rows["dpo"]["prompt"] == rows["reward"]["prompt"]
        assert rows["dpo"]["chosen"] != rows["dpo"]["rejected"] and rows["kto"]["label"] is True
        assert shape.messages[-1]["role"] == shape.worse["role"] == "assistant"
        # A row may be changed by whoever reads it.
        rows["sft"]["messages"][0]["content"] = "changed"
        assert shape.row("sft")["messages"][0]["content"] != "changed"
    shape = SHAPES["text of an end"]
    assert END in str(shape.row("dpo")) and END not in str(shape.ended_by("</s>").row("dpo"))

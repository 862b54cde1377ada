"""Pairs and labelled responses, token by token: shared prompts, where responses end, and rows that are refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from actors.config import ModelInit, UserError
from actors.episodes import Sequence
from actors.models.tokenizer import build_char_tokenizer
from algorithms.config import DataConfig
from algorithms.data.pairs import Pair, judged, pairs, prompt_length
from algorithms.data.tokens import prompts, sequences

CHAR = build_char_tokenizer(ModelInit().alphabet)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def say(*contents: str, first: str = "user") -> list[dict[str, str]]:
    """Messages that take turns."""
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]


def byte_tokenizer(
    template: str | None = None, *, bos: bool = False, eos: str = "<|im_end|>"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE that merges across line ends and spaces, as pretrained ones do; `bos`: adds BOS by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=["<s>", "<|im_start|>", "<|im_end|>", "</s>"],
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["\n\n", " yes", "\n\n\n"] * 9, trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>" if bos else None, eos_token=eos, chat_template=template
    )


def data(**values: Any) -> DataConfig:
    return DataConfig(train="rows.jsonl", **values)


def pair(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast, **values: Any) -> Pair:
    [found] = pairs([row], data(**values), tokenizer)
    return found


def texts(sequence: Sequence, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """What is given, and what is learned from: the last tokens of the sequence, without a gap."""
    start = prompt_length(sequence)
    assert 0 < start < len(sequence)
    assert not sequence.action_mask[:start].any() and sequence.action_mask[start:].all()
    ids = sequence.token_ids.tolist()
    return str(tokenizer.decode(ids[:start])), str(tokenizer.decode(ids[start:]))


def both(found: Pair, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str, str]:
    """Prompt, chosen and rejected of a pair, whose prompts must be the same tokens."""
    start = prompt_length(found.chosen)
    assert start == prompt_length(found.rejected)
    assert np.array_equal(found.chosen.token_ids[:start], found.rejected.token_ids[:start])
    prompt, chosen = texts(found.chosen, tokenizer)
    return prompt, chosen, texts(found.rejected, tokenizer)[1]


def complaint(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerFast = CHAR, function: Any = pairs, **keys: Any
) -> str:
    with pytest.raises(UserError) as error:
        function([row], data(**keys), tokenizer)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix("data.train: row 1: ")


ONE_PAIR = [
    {"prompt": "hi", "chosen": "yes", "rejected": "no"},
    {"prompt": say("hi"), "chosen": "yes", "rejected": "no"},
    {"prompt": "hi", "chosen": say("yes", first="assistant"), "rejected": "no"},
    {"prompt": say("hi"), "chosen": say("yes", first="assistant"), "rejected": say("no", first="assistant")},
    {"prompt": "hi", "chosen": say("hi", "yes"), "rejected": say("hi", "no")},
    {"prompt": say("hi"), "chosen": say("hi", "yes"), "rejected": say("hi", "no")},
    {"chosen": say("hi", "yes"), "rejected": say("hi", "no")},
]


@pytest.mark.parametrize("row", ONE_PAIR)
def test_all_forms_of_a_pair_render_alike(row: dict[str, Any]) -> None:
    assert both(pair(row, CHAR), CHAR) == ("<|user|>hi<|end|><|assistant|>", "yes<|end|>", "no<|end|>")
    for template in (CHATML, MARKED):
        tokenizer = byte_tokenizer(template)
        prompt, *responses = both(pair(row, tokenizer), tokenizer)
        assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        assert responses == ["yes<|im_end|>", "no<|im_end|>"], "what the template writes after the end is cut"


@pytest.mark.parametrize("tokenizer", [CHAR, byte_tokenizer(CHATML), byte_tokenizer(MARKED), byte_tokenizer(bos=True)])
def test_pairs_begin_as_rollouts_do_and_hold_what_sft_learns(tokenizer: PreTrainedTokenizerFast) -> None:
    found = pair({"prompt": "hi", "chosen": "yes", "rejected": "no"}, tokenizer)
    [prompt] = prompts([{"prompt": "hi"}], data(), tokenizer, max_prompt_tokens=99)
    [learned] = sequences([{"prompt": "hi", "completion": "yes"}], data(), tokenizer, train_on="completions")
    assert found.chosen.token_ids[: prompt_length(found.chosen)].tolist() == prompt.token_ids
    assert found.chosen.token_ids.tolist() == learned.token_ids[: len(found.chosen)].tolist()
    assert np.array_equal(found.chosen.action_mask, learned.action_mask[: len(found.chosen)])
    assert not learned.action_mask[len(found.chosen) :].any()


def test_responses_that_would_merge_with_the_prompt_keep_its_tokens() -> None:
    tokenizer = byte_tokenizer(CHATML)
    found = pair({"prompt": "hi", "chosen": "\n\nyes", "rejected": "no"}, tokenizer)
    joint = tokenizer("assistant\n\n\nyes", add_special_tokens=False)["input_ids"]
    apart = tokenizer("assistant\n", add_special_tokens=False)["input_ids"]
    assert joint[: len(apart)] != apart  # type: ignore[index,arg-type]
    assert both(found, tokenizer)[1:] == ("\n\nyes<|im_end|>", "no<|im_end|>")


@given(st.text("ab\n y", min_size=1), st.text("ab\n y", min_size=1), st.text("ab\n y", min_size=1))
def test_any_two_responses_share_the_prompts_tokens(prompt: str, chosen: str, rejected: str) -> None:
    if chosen == rejected or not all(text.strip() for text in (prompt, chosen, rejected)):
        return
    for tokenizer in _TOKENIZERS:
        found = both(pair({"prompt": prompt, "chosen": chosen, "rejected": rejected}, tokenizer), tokenizer)
        end = tokenizer.eos_token
        assert prompt in found[0] and found[1:] == (f"{chosen}{end}", f"{rejected}{end}")


_TOKENIZERS = [CHAR, byte_tokenizer(CHATML), byte_tokenizer(MARKED), byte_tokenizer(), byte_tokenizer(bos=True)]


def test_only_the_last_turn_of_a_longer_talk_is_the_response() -> None:
    row = {"chosen": say("hi", "yo", "2+2", "4"), "rejected": say("hi", "yo", "2+2", "5")}
    prompt, chosen, rejected = both(pair(row, CHAR, system_prompt="S"), CHAR)
    assert prompt == "<|system|>S<|end|><|user|>hi<|end|><|assistant|>yo<|end|><|user|>2+2<|end|><|assistant|>"
    assert (chosen, rejected) == ("4<|end|>", "5<|end|>")
    thinking = CHATML.replace("+ m.content", "+ ('<t>' if loop.last and m.role == 'assistant' else '') + m.content")
    tokenizer = byte_tokenizer(thinking)
    assert both(pair(row, tokenizer), tokenizer)[1:] == ("<t>4<|im_end|>", "<t>5<|im_end|>")
    tools = [*say("hi"), {"role": "assistant", "content": "f()"}, {"role": "tool", "content": "7"}]
    found = pair({"prompt": tools, "chosen": "seven", "rejected": "eight"}, CHAR)
    assert both(found, CHAR)[0].endswith("f()<|end|><|tool|>7<|end|><|assistant|>")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "responses"),
    [
        ("Q: a? A: yes", "Q: a? A: no", "Q: a? A:", (" yes", " no")),
        ("Q A: nobody", "Q A: nothing", "Q A:", (" nobody", " nothing")),
        ("Q A: yes", "Q A: yes indeed", "Q A:", (" yes", " yes indeed")),
        ("Q\n\nyes", "Q\n\nno", "Q\n\n", ("yes", "no")),
    ],
)
def test_the_common_words_of_two_texts_are_the_prompt(
    chosen: str, rejected: str, prompt: str, responses: tuple[str, str]
) -> None:
    tokenizer = byte_tokenizer(bos=True, eos="</s>")
    found = both(pair({"chosen": chosen, "rejected": rejected}, tokenizer), tokenizer)
    assert found == (f"<s>{prompt}", f"{responses[0]}</s>", f"{responses[1]}</s>")


def test_plain_text_gets_one_end_token() -> None:
    tokenizer = byte_tokenizer(eos="</s>")
    found = pair({"prompt": "hi", "chosen": " yes</s>", "rejected": " no"}, tokenizer)
    assert both(found, tokenizer) == ("hi", " yes</s>", " no</s>")
    late = {"prompt": "hi", "chosen": " yes</s>!", "rejected": " no"}
    assert complaint(late, tokenizer) == "a response must not go on after the end-of-sequence token </s>"
    assert "data.system_prompt needs" in complaint(
        {"prompt": "a", "chosen": "b", "rejected": "c"}, tokenizer, system_prompt="S"
    )
    assert "chat template" in complaint(ONE_PAIR[-1], tokenizer)


def test_a_template_that_closes_turns_with_another_token_ends_the_response_there() -> None:
    tokenizer = byte_tokenizer(CHATML, eos="</s>")
    assert both(pair(ONE_PAIR[0], tokenizer), tokenizer)[1:] == ("yes<|im_end|>", "no<|im_end|>")


def test_a_template_that_rewrites_prompts_is_refused() -> None:
    counting = "{{ messages | length }}" + CHATML
    assert "renders the prompt of a whole conversation differently" in complaint(ONE_PAIR[0], byte_tokenizer(counting))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rejected": "yes"}, "chosen and rejected must differ, got the same twice"),
        ({"chosen": "é", "rejected": "è"}, "chosen and rejected must differ, both became the same tokens"),
        ({"rejected": " \n"}, "column rejected must not be empty, got blank text ' \\n'"),
        ({"chosen": ""}, "column chosen must not be empty"),
        ({"chosen": say("", first="assistant")}, "content of message 1 of column chosen must not be empty"),
        ({"chosen": 3}, "column chosen must be text or messages, got a number 3"),
        ({"prompt": None}, "column prompt must not be empty, got null"),
        ({"prompt": say("hi", "yo")}, "column prompt must end with a user turn"),
        ({"chosen": say("yes")}, "got a user turn that is not the prompt's, text 'yes'"),
        ({"chosen": say("a", "b", first="assistant") + say("c", first="assistant")}, "they part at message 2"),
        ({"chosen": "yes<|end|>no"}, "a response must not go on after the end-of-sequence token <|end|>"),
        ({"margin": float("nan")}, "column margin must be a finite number, got a number nan"),
        ({"margin": float("inf")}, "column margin must be a finite number, got a number inf"),
        ({"margin": None}, "column margin must be a finite number, got null"),
        ({"margin": True}, "column margin must be a finite number, got true"),
    ],
)
def test_wrong_pairs_are_named(values: dict[str, Any], message: str) -> None:
    assert message in complaint(ONE_PAIR[0] | values)


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        ("yes", "no", "chosen and rejected have no common beginning that could be the prompt: add a column prompt"),
        ("yes, a", "yes; b", "no common beginning"),
        (" yes", " no", "no common beginning"),
        (say("hi", "yes"), "no", "must be both text or both messages"),
        (say("hi", "yes"), say("ho", "no"), "must share all messages but the last, they part at message 1"),
        (say("hi", "yes"), say("hi", "yes", "and", "no"), "they part at message 2"),
        (say("yes", first="assistant"), say("no", first="assistant"), "must follow a user turn, got nothing before it"),
    ],
)
def test_pairs_without_a_common_prompt_are_named(chosen: Any, rejected: Any, message: str) -> None:
    assert message in complaint({"chosen": chosen, "rejected": rejected})


def test_margins_are_kept_and_wanted_in_every_row_or_none() -> None:
    row = ONE_PAIR[0]
    assert pair(row, CHAR).margin == 0.0
    assert pair(row | {"margin": 2}, CHAR).margin == 2.0
    assert pair(row | {"gap": -0.5}, CHAR, columns={"margin": "gap"}).margin == -0.5
    with pytest.raises(UserError, match="row 1: lacks column 'margin' of the pairs convention"):
        pairs([row, row | {"margin": 1.0}], data(), CHAR)


def test_lengths_over_the_limit_name_the_first_row() -> None:
    rows = [ONE_PAIR[0], ONE_PAIR[0] | {"rejected": "n" * 20}, ONE_PAIR[0] | {"chosen": "y" * 30}]
    with pytest.raises(UserError) as error:
        pairs(rows, data(max_length=20), CHAR, field="data.eval")
    assert str(error.value) == (
        "data.eval: 2 of 3 rows are longer than data.max_length 20 (first row 2, the longest has 36 tokens); "
        "data.overlong=drop leaves them out, data.overlong=truncate cuts them"
    )


LABELLED = {"prompt": "hi", "completion": "yes", "label": True}


@pytest.mark.parametrize("values", [{}, {"prompt": say("hi")}, {"completion": say("yes", first="assistant")}])
@pytest.mark.parametrize("label", [True, False, 1, 0])
def test_labelled_responses_render_as_pairs_do(values: dict[str, Any], label: Any) -> None:
    for tokenizer in (CHAR, byte_tokenizer(CHATML)):
        [found] = judged([LABELLED | values | {"label": label}], data(), tokenizer)
        assert found.desirable is bool(label)
        wanted = pair(ONE_PAIR[0], tokenizer).chosen
        assert np.array_equal(found.sequence.token_ids, wanted.token_ids)
        assert np.array_equal(found.sequence.action_mask, wanted.action_mask)


@pytest.mark.parametrize("label", ["true", 1.0, 2, None, -1])
def test_labels_of_another_kind_are_named(label: Any) -> None:
    message = complaint(LABELLED | {"label": label}, function=judged)
    assert message.startswith("column label must be true or false (or 1 or 0), got ")
    assert ("null" if label is None else repr(label)) in message


def test_labelled_rows_that_cannot_be_learned_from_are_named() -> None:
    assert "column completion must not be empty" in complaint(LABELLED | {"completion": ""}, function=judged)
    assert "must end with a user turn" in complaint(LABELLED | {"prompt": say("a", "b")}, function=judged)
    with pytest.raises(
        UserError, match=r"1 of 1 rows is longer than data.max_length 5 \(first row 1, the longest has 9"
    ):
        judged([LABELLED], data(max_length=5), CHAR)

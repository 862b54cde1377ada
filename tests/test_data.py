"""Prompts and sequences, token by token, and the order of visiting rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from actors.config import ModelInit, UserError
from actors.episodes import Sequence
from actors.models.tokenizer import build_char_tokenizer
from algorithms.batches import Batches
from algorithms.config import DataConfig
from algorithms.data.pairs import pairs, prompt_length
from algorithms.data.run_data import load_sets
from algorithms.data.tokens import prompts, sequences
from tests.one_set import load_rows

CHAR = build_char_tokenizer(ModelInit().alphabet)
ROOT = Path(__file__).parents[1]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k_test.jsonl"
HH_RLHF = ROOT.parent / "shared" / "data" / "hh_harmless_test.jsonl.gz"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "2+2"},
    {"role": "assistant", "content": "4"},
]


def byte_tokenizer(
    template: str | None = None, *, bos: bool = False, eos: str = "<|im_end|>"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a few merges, as pretrained models have; with `bos`, one that adds BOS by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<|im_start|>", "<|im_end|>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=special, vocab_size=290, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["user assistant hi yo \n\n question answer"] * 9, trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>" if bos else None, eos_token=eos, chat_template=template
    )


def data(**values: Any) -> DataConfig:
    return DataConfig(train="rows.jsonl", **values)


def trained(sequence: Sequence, tokenizer: PreTrainedTokenizerFast) -> str:
    assert not sequence.action_mask[0]
    return str(tokenizer.decode(sequence.token_ids[sequence.action_mask].tolist()))


def sft(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerFast, train_on: Any = "completions", **values: Any
) -> Sequence:
    [sequence] = sequences([row], data(**values), tokenizer, train_on=train_on)
    return sequence


def complaint(function: Any, *args: Any, **keywords: Any) -> str:
    with pytest.raises(UserError) as error:
        function(*args, **keywords)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("template", [CHATML, CHATML.replace("m.content", "(m.content | trim)")])
def test_masks_by_prefixes_train_each_turn_with_its_end_token_once(template: str) -> None:
    tokenizer = byte_tokenizer(template)
    sequence = sft({"messages": TALK}, tokenizer)
    assert trained(sequence, tokenizer) == "yo<|im_end|>4<|im_end|>"
    partial = sft({"prompt": TALK[:3], "completion": TALK[3:]}, tokenizer)
    assert trained(partial, tokenizer) == "4<|im_end|>"
    whole = sft({"messages": TALK}, tokenizer, train_on="all")
    assert whole.action_mask[1:].all() and not whole.action_mask[0]
    assert np.array_equal(whole.token_ids, sequence.token_ids)


def test_prefix_and_generation_marker_masks_agree() -> None:
    marked = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
        "{% generation %}{{ m.content }}{% endgeneration %}{{ '<|im_end|>\n' }}"
        "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    for row in ({"messages": TALK}, {"prompt": TALK[:3], "completion": TALK[3:]}, {"prompt": "hi", "completion": "yo"}):
        by_prefix, by_marker = sft(row, byte_tokenizer(CHATML)), sft(row, byte_tokenizer(marked))
        assert np.array_equal(by_prefix.token_ids, by_marker.token_ids)
        assert np.array_equal(by_prefix.action_mask, by_marker.action_mask)


def test_a_template_that_closes_turns_with_another_token_trains_the_turn_only() -> None:
    tokenizer = byte_tokenizer(CHATML, eos="</s>")
    assert trained(sft({"messages": TALK}, tokenizer), tokenizer) == "yo<|im_end|>4<|im_end|>"


def test_a_template_that_rewrites_history_by_turn_trains_the_words_of_each() -> None:
    counting = CHATML.replace("{% for", "{{ messages | length }}{% for", 1)
    tokenizer = byte_tokenizer(counting)
    sequence = sft({"messages": TALK}, tokenizer)
    assert trained(sequence, tokenizer) == "yo<|im_end|>4<|im_end|>"
    assert str(tokenizer.decode(sequence.token_ids.tolist())).startswith("4<|im_start|>user\nhi")
    assert trained(sft({"messages": TALK}, tokenizer, train_on="last"), tokenizer) == "4<|im_end|>"
    assert len(sft({"messages": TALK}, tokenizer, train_on="all"))


def test_a_template_that_drops_thoughts_from_earlier_turns_can_be_masked() -> None:
    """Qwen3 renders the last assistant turn otherwise than earlier ones."""
    thinking = CHATML.replace("+ m.content", "+ ('<think>' if loop.last and m.role == 'assistant' else '') + m.content")
    tokenizer = byte_tokenizer(thinking)
    assert trained(sft({"messages": TALK}, tokenizer), tokenizer) == "yo<|im_end|><think>4<|im_end|>"


def test_bos_is_written_once_and_never_trained_on() -> None:
    plain = byte_tokenizer(bos=True, eos="</s>")
    pair = sft({"prompt": "hi", "completion": " yo"}, plain)
    assert plain.decode(pair.token_ids.tolist()) == "<s>hi yo</s>"
    assert trained(pair, plain) == " yo</s>"
    text = sft({"text": "hi yo"}, plain)
    assert plain.decode(text.token_ids.tolist()) == "<s>hi yo</s>"
    assert trained(text, plain) == "hi yo</s>"
    templated_text = sft({"text": "<s>hi</s>"}, plain)
    assert plain.decode(templated_text.token_ids.tolist()) == "<s>hi</s>"
    [prompt] = prompts([{"prompt": "hi"}], data(), plain, max_prompt_tokens=9)
    assert prompt.token_ids == pair.token_ids[: len(prompt.token_ids)].tolist()
    chat = byte_tokenizer("{{ bos_token }}" + CHATML, bos=True)
    assert list(sft({"messages": TALK}, chat).token_ids).count(chat.bos_token_id) == 1


def test_sft_prompt_is_what_rl_samples_from() -> None:
    for tokenizer in (CHAR, byte_tokenizer(CHATML), byte_tokenizer()):
        row = {"prompt": "hi", "completion": "yo"}
        sequence = sft(row, tokenizer)
        [prompt] = prompts([row], data(), tokenizer, max_prompt_tokens=99)
        assert prompt.token_ids == sequence.token_ids[: int(sequence.action_mask.argmax())].tolist()


def test_messages_and_system_prompts_need_a_template() -> None:
    plain = byte_tokenizer()
    assert "row 1: messages need a tokenizer with a chat template" in complaint(sft, {"messages": TALK}, plain)
    for call in (sft, lambda row, tokenizer, **values: prompts([row], data(**values), tokenizer, max_prompt_tokens=99)):
        assert "data.system_prompt" in complaint(call, {"prompt": "x", "completion": "y"}, plain, system_prompt="S")
    own = {"messages": [{"role": "system", "content": "T"}, *TALK]}
    assert "has a system message of its own" in complaint(sft, own, CHAR, system_prompt="S")
    sequence = sft({"prompt": TALK[:3], "completion": TALK[3:]}, CHAR, system_prompt="S")
    assert str(CHAR.decode(sequence.token_ids.tolist())).startswith("<|system|>S<|end|><|user|>hi")
    assert trained(sequence, CHAR) == "4<|end|>"


def test_lengths_over_the_limit_are_counted() -> None:
    rows = [{"prompt": "p" * size} for size in (1, 20, 30)]
    assert complaint(prompts, rows, data(), CHAR, max_prompt_tokens=10) == (
        "data.train: 2 of 3 rows are longer than rollout.max_prompt_tokens 10 (first row 2, the longest has 33 "
        "tokens); data.overlong=drop leaves them out, data.overlong=truncate cuts them"
    )
    rows = [{"text": "t" * size} for size in (1, 20)]
    message = complaint(sequences, rows, data(max_length=20), CHAR, train_on="all", field="data.eval")
    assert message.startswith(
        "data.eval: 1 of 2 rows is longer than data.max_length 20 (first row 2, the longest has 21"
    )


def test_prompts_keep_text_and_row() -> None:
    rows = [{"prompt": "sort: ba", "answer": "ab"}]
    [prompt] = prompts(rows, data(system_prompt="S"), CHAR, max_prompt_tokens=99)
    assert CHAR.decode(prompt.token_ids) == "<|system|>S<|end|><|user|>sort: ba<|end|><|assistant|>"
    assert (prompt.index, prompt.text, prompt.row) == (0, "sort: ba", rows[0])
    [talk] = prompts([{"messages": TALK[:3], "answer": 4}], data(), CHAR, max_prompt_tokens=99)
    assert talk.text == "2+2" and str(CHAR.decode(talk.token_ids)).endswith("2+2<|end|><|assistant|>")
    message = complaint(prompts, [{"messages": TALK}], data(), CHAR, max_prompt_tokens=99)
    assert "must end with a user turn" in message


def test_renames_keep_the_original_column() -> None:
    [prompt] = prompts([{"q": "x", "a": "y"}], data(columns={"prompt": "q", "answer": "a"}), CHAR, max_prompt_tokens=9)
    assert prompt.row == {"q": "x", "a": "y", "prompt": "x", "answer": "y"}


def test_gsm8k_works_without_settings() -> None:
    if not GSM8K.exists():
        pytest.skip(f"needs {GSM8K.name} in ../shared/data")
    rows = load_rows(DataConfig(train=str(GSM8K), limit=20), "data.train")
    found = prompts(rows, data(), CHAR, max_prompt_tokens=2000)
    assert [item.text for item in found] == [row["question"] for row in rows]
    assert all(item.row["prompt"] == item.row["question"] and "####" in item.row["answer"] for item in found)


def test_load_rows_takes_the_fewer_of_limit_and_at_most(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"n": n}) + "\n" for n in range(9)))
    config = DataConfig(train=str(file), eval=str(file), limit=5, eval_limit=2)
    assert [len(load_rows(config, "data.train", at_most=most)) for most in (None, 3, 8)] == [5, 3, 5]
    assert [row["n"] for row in load_rows(config, "data.eval", at_most=8)] == [0, 1]
    assert "data.eval: required" in complaint(load_rows, data(), "data.eval")


def test_training_and_evaluation_read_their_splits(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text("def rows(split, **more):\n    yield {'prompt': split, **more}\n")
    source = f"{tmp_path}/made.py:rows"
    fields: tuple[Any, ...] = ("data.train", "data.eval")
    named: Any = {"split": "a", "eval_split": "b"}
    for names, splits in (({}, ["train", "test"]), (named, ["a", "b"])):
        config = DataConfig(train=source, eval=source, arguments={"answer": "x"}, **names)
        assert [load_rows(config, field) for field in fields] == [[{"prompt": s, "answer": "x"}] for s in splits]


def test_rows_of_several_sets_say_which_they_are_from(tmp_path: Path) -> None:
    for name, rows in (("a", [{"n": 1}, {"n": 2}, {"n": 3}]), ("b", [{"n": 4, "source": "own"}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in "ab"}
    config = DataConfig(train=files, eval=files["a"], limit=2, eval_limit=1)
    assert load_sets(config, "data.train") == {
        "a": [{"source": "a", "n": 1}, {"source": "a", "n": 2}],
        "b": [{"source": "own", "n": 4}],
    }
    assert load_sets(config, "data.eval") == {"": [{"n": 1}]}
    (tmp_path / "b.jsonl").write_text("")
    assert complaint(load_sets, DataConfig(train=files), "data.train").startswith("data.train.b: ")


def test_a_converter_comes_before_renames_and_limits(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"q": "x" * n}) + "\n" for n in range(9)))
    (tmp_path / "convert.py").write_text(
        "def odd(row):\n    return {'ask': row['q'] + '!'} if len(row['q']) % 2 else None"
    )
    config = DataConfig(
        train=str(file), eval=str(file), limit=3, converter=f"{tmp_path}/convert.py:odd", columns={"prompt": "ask"}
    )
    found = prompts(load_rows(config, "data.train"), config, CHAR, max_prompt_tokens=99)
    assert [item.text for item in found] == ["x!", "xxx!", "xxxxx!"]
    assert len(load_rows(config, "data.eval")) == 4


def test_the_example_preferences_are_pairs() -> None:
    found = pairs(load_rows(DataConfig(train=str(ROOT / "examples/preferences.jsonl")), "data.train"), data(), CHAR)
    assert len(found) == 20
    known = [ids for item in found for ids in (item.chosen.token_ids, item.rejected.token_ids)]
    assert all(CHAR.unk_token_id not in ids for ids in known)


def test_hh_rlhf_becomes_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    if not HH_RLHF.exists():
        pytest.skip(f"needs {HH_RLHF.name} in ../shared/data")
    monkeypatch.chdir(ROOT)
    config = DataConfig(train=str(HH_RLHF), converter="examples/hh_rlhf.py:to_messages", max_length=20_000)
    rows = load_rows(config, "data.train")
    assert len(rows) == 2299  # of 2312: the others have empty turns, or turns out of order
    for row, item in zip(rows, pairs(rows[:100], config, CHAR), strict=False):
        start = prompt_length(item.chosen)
        prompt = str(CHAR.decode(item.chosen.token_ids[:start].tolist()))
        assert prompt.count("<|assistant|>") == len(row["chosen"]) // 2
        for sequence, column in ((item.chosen, "chosen"), (item.rejected, "rejected")):
            assert sequence.token_ids[:start].tolist() == item.chosen.token_ids[:start].tolist()
            assert sequence.action_mask[start:].all() and not sequence.action_mask[:start].any()
            content = row[column][-1]["content"]
            response = CHAR.decode(sequence.token_ids[start:].tolist())
            assert response == f"{content}<|end|>" or not content.isascii()


@example(rows=10, takes=[15, 5], seed=1, shuffle=True, cut=1)
@example(rows=10, takes=[10, 10], seed=1, shuffle=True, cut=1)
@given(
    rows=st.integers(1, 12),
    takes=st.lists(st.integers(0, 9), max_size=12),
    seed=st.integers(-3, 2**70),
    shuffle=st.booleans(),
    cut=st.integers(0, 12),
)
def test_batches_visit_every_row_once_an_epoch_and_resume_anywhere(
    rows: int, takes: list[int], seed: int, shuffle: bool, cut: int
) -> None:
    batches = Batches(rows, seed=seed, shuffle=shuffle)
    resumed = Batches(rows, seed=seed, shuffle=shuffle)
    order: list[int] = []
    for index, take in enumerate(takes):
        if index == cut:
            resumed.load(Path(), json.loads(json.dumps(batches.save(Path()))))
        taken = batches.next(take)
        assert len(taken) == take
        if index >= cut:
            assert resumed.next(take) == taken
        order += taken
    for start in range(0, len(order), rows):
        epoch = order[start : start + rows]
        assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(rows))
        assert shuffle or epoch == list(range(len(epoch)))


def test_batches_shuffle_anew_each_epoch_and_by_seed() -> None:
    batches = Batches(50, seed=1, shuffle=True)
    first, second = batches.next(50), batches.next(50)
    assert first != second != list(range(50))
    assert first != Batches(50, seed=2, shuffle=True).next(50)
    other = Batches(49, seed=1, shuffle=True)
    assert "must hold the checkpoint's 50 rows to resume, got 49" in complaint(other.load, Path(), batches.save(Path()))

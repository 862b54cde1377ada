"""transformers 4.57 loads what this project exports with 5, and finds the same tokens, texts and logits in it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.interop.agreement import assert_ends_at_each, read

FAST = {
    "llama": "PreTrainedTokenizerFast",
    "qwen2": "Qwen2TokenizerFast",
    "plain": "PreTrainedTokenizerFast",
    "gpt2": "GPT2TokenizerFast",
}
WAYS = {"": "whole", "-lora": "with adapters", "-merged": "merged later"}
NEW = ("new-qwen2", "new-llama")
NAMES = [kind + way for kind in FAST for way in WAYS] + list(NEW)
every = pytest.mark.parametrize("name", NAMES)


def expected(directory: Path) -> dict[str, Any]:
    return read(directory, "expected")


def test_this_is_the_other_version() -> None:
    assert transformers.__version__.startswith("4.57.")


@every
def test_a_tokenizer_encodes_as_it_was_trained_with(name: str, exports: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exports / name)
    assert type(tokenizer).__name__ == FAST.get(name.partition("-")[0], "PreTrainedTokenizerFast")
    found = expected(exports / name)
    assert {text: tokenizer(text).input_ids for text in found["ids"]} == found["ids"]
    if found["rendered"]:
        rendered = tokenizer.apply_chat_template(found["messages"], tokenize=False, add_generation_prompt=True)
        assert rendered == found["rendered"]
        assert tokenizer(rendered, add_special_tokens=False).input_ids == found["prompt"]


@every
def test_a_tokenizer_is_that_of_its_source(name: str, exports: Path) -> None:
    source = AutoTokenizer.from_pretrained(expected(exports / name)["source"])
    tokenizer = AutoTokenizer.from_pretrained(exports / name)
    for part in ("special_tokens_map", "model_input_names", "model_max_length", "padding_side", "chat_template"):
        assert getattr(tokenizer, part) == getattr(source, part), part
    if type(tokenizer) is type(source):  # otherwise tokenizer.json says it alone
        assert getattr(tokenizer, "add_bos_token", None) == getattr(source, "add_bos_token", None)
    assert tokenizer.get_added_vocab() == source.get_added_vocab()


@every
def test_a_model_computes_the_same(name: str, exports: Path) -> None:
    found = expected(exports / name)
    tokenizer = AutoTokenizer.from_pretrained(exports / name)
    model = AutoModelForCausalLM.from_pretrained(exports / name)
    inputs = tokenizer(next(iter(found["ids"])), return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    torch.testing.assert_close(logits, torch.tensor(found["logits"]), atol=1e-5, rtol=1e-5)


@every
def test_an_answer_ends_at_each_of_the_tokens_that_end_it(name: str, exports: Path) -> None:
    assert_ends_at_each(exports / name)


@pytest.mark.parametrize("kind", FAST)
def test_an_adapter_alone_has_the_tokenizer_of_its_export(kind: str, exports: Path) -> None:
    found = expected(exports / f"{kind}-lora")
    tokenizer = AutoTokenizer.from_pretrained(exports / f"{kind}-lora/adapter")
    assert {text: tokenizer(text).input_ids for text in found["ids"]} == found["ids"]
    assert GenerationConfig.from_pretrained(exports / f"{kind}-lora/adapter").eos_token_id == found["ends"]

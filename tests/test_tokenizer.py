"""Tokenizers: exact text, ids that survive saving and AutoTokenizer, and clear errors."""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from actors import quick_import
from actors.config import ModelConfig, ModelInit, UserError
from actors.models.tokenizer import build_char_tokenizer, load_tokenizer, tokenizer_for

ALPHABET = ModelInit().alphabet
CHARACTERS = build_char_tokenizer(ALPHABET)
TALK = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": " 1 +\n\n2 = ?"},
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "sure ?"},
    {"role": "assistant", "content": " I'm sure ."},
]


@given(st.text(alphabet=ALPHABET, max_size=40))
def test_text_survives_encode_and_decode_exactly(text: str) -> None:
    # Text that spells a special token is that token, as in every tokenizer with a chat template.
    assume(not any(token in text for token in CHARACTERS.all_special_tokens))
    ids = CHARACTERS(text)["input_ids"]
    assert len(ids) == len(text)
    assert CHARACTERS.decode(ids) == text


def test_characters_beyond_ascii_are_one_token_each() -> None:
    tokenizer = build_char_tokenizer("aé日本 ")
    ids = tokenizer("é日 本a")["input_ids"]
    assert len(ids) == 5
    assert tokenizer.decode(ids) == "é日 本a"


def test_each_unknown_character_is_one_unknown_token() -> None:
    unknown = CHARACTERS.unk_token_id
    assert CHARACTERS("aéé日b")["input_ids"] == [
        *CHARACTERS("a")["input_ids"],
        *[unknown] * 3,
        *CHARACTERS("b")["input_ids"],
    ]


def test_chat_template_costs_two_tokens_a_turn_and_marks_assistant_turns() -> None:
    rendered = CHARACTERS.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    assert len(rendered["input_ids"]) == sum(len(message["content"]) + 2 for message in TALK)
    marked = [token for token, mark in zip(rendered["input_ids"], rendered["assistant_masks"], strict=True) if mark]
    assert CHARACTERS.decode(marked) == "3<|end|> I'm sure .<|end|>"
    prompt = CHARACTERS.apply_chat_template(TALK[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|system|>Be brief. <|end|><|user|> 1 +\n\n2 = ?<|end|><|assistant|>"


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_saved_tokenizer_renders_the_same_ids_with_auto_tokenizer(tmp_path: Path, family: str) -> None:
    """AutoTokenizer rebuilds qwen2 tokenizers as its own class, which once changed every id of a space."""
    from transformers import AutoTokenizer

    CHARACTERS.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    expected = CHARACTERS.apply_chat_template(TALK)["input_ids"]
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))):
        assert loaded.apply_chat_template(TALK)["input_ids"] == expected
        assert loaded.decode(expected) == CHARACTERS.decode(expected)
        assert (loaded.eos_token_id, loaded.pad_token_id) == (CHARACTERS.eos_token_id, CHARACTERS.pad_token_id)


def test_tokenizer_for_follows_the_configuration(tmp_path: Path) -> None:
    CHARACTERS.save_pretrained(tmp_path)
    loaded = tokenizer_for(ModelConfig(path=str(tmp_path)))
    built = tokenizer_for(ModelConfig(init=ModelInit(alphabet="ab")))
    assert loaded.get_vocab() == CHARACTERS.get_vocab()
    assert built.decode(built("abc")["input_ids"], skip_special_tokens=True) == "ab"


def test_building_and_loading_import_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from actors.models.tokenizer import build_char_tokenizer, load_tokenizer\n"
        f"build_char_tokenizer('ab').save_pretrained({str(tmp_path)!r}); load_tokenizer({str(tmp_path)!r})\n"
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize(("alphabet", "message"), [("", "at least one"), ("abca", "got 'a' twice")])
def test_useless_alphabets_are_refused(alphabet: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_char_tokenizer(alphabet)


def test_paths_that_hold_no_tokenizer_are_one_line_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "export").mkdir()
    expected = {
        str(tmp_path / "exprt"): f"no Hugging Face model directory (did you mean {tmp_path / 'export'}?)",
        str(tmp_path / "export"): "directory holds no tokenizer",
        "surely/not/a/hub/id": "no Hugging Face model directory",
        "tandem-tests/never-published": "no such directory, and the hub cannot give it",
    }
    for path, rule in expected.items():
        with pytest.raises(UserError) as error:
            load_tokenizer(path)
        assert str(error.value).startswith(f"model.path: {rule}")
        assert str(error.value).endswith(f"got {path}")
        assert "\n" not in str(error.value)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="later versions of Python keep their own")
def test_the_quick_list_of_packages_is_pythons_own() -> None:
    ours, own = quick_import.packages_distributions(), importlib.metadata.packages_distributions()
    assert {name: sorted(found) for name, found in ours.items()} == {name: sorted(own[name]) for name in own}
    assert len(own) > 50


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="later versions of Python keep their own")
def test_transformers_5_asks_for_the_list_of_packages_when_it_is_imported_and_gets_the_quick_one() -> None:
    """When a later version no longer does, actors/quick_import.py has served its time."""
    code = """
import importlib.metadata as metadata
from actors import quick_import
asked, own = [], metadata.packages_distributions
quick_import.packages_distributions = lambda ours=quick_import.packages_distributions: asked.append(1) or ours()
from actors.models.tokenizer import build_char_tokenizer
build_char_tokenizer("ab")
print(len(asked), metadata.packages_distributions is own)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1", "True"]


def test_a_policy_starts_without_what_it_does_not_need() -> None:
    """On CPU neither vLLM nor, through transformers 5, scikit-learn and SciPy's optimizers: 5 of 12 s of CPU."""
    code = """
import sys
from actors.quick_import import without_science
without_science()
import actors.train.policy, actors.models.load, actors.weights.publisher
print(*sorted({"vllm", "sklearn", "scipy.optimize"} & sys.modules.keys()), "transformers" in sys.modules)
"""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.split()[-1:] == ["True"] and found.stdout.split()[:-1] == []


def test_all_that_vllm_takes_from_the_module_that_is_left_out_is_a_patch_of_the_compiler() -> None:
    """vLLM 0.32 imports env_override for what it does, and one function of it: more, and quick_vllm would break it."""
    spec = importlib.util.find_spec("vllm")
    assert spec and spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    taken = {
        name
        for path in root.rglob("*.py")
        if b"env_override" in (content := path.read_bytes())
        for name in re.findall(r"from vllm\.env_override import \(?\s*([\w, ]+)", content.decode())
    }
    assert taken == {"_apply_constrain_to_fx_strides_patch"}

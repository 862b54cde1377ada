"""An adapter's directory alone, beside its base: the chat template that was trained with, and what ends an answer."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from actors.models.adapter_files import merge_adapter
from actors.models.chat_settings import ChatSettings
from actors.models.tokenizer import load_tokenizer
from tests.one_rank import alone  # noqa: F401
from tests.test_prepared_export import trainee
from tests.tokenizer_sources import KINDS, TEXTS, with_model

pytestmark = pytest.mark.usefixtures("alone")
TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
ASKED = [{"role": "user", "content": "the"}]


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return with_model(request.param, tmp_path / "source")


def ends_of(directory: Path) -> Any:
    return json.loads((directory / "generation_config.json").read_text())["eos_token_id"]


def test_an_adapter_has_the_tokenizer_template_and_ends_of_its_export(source: Path, tmp_path: Path) -> None:
    before, trained = ends_of(source), load_tokenizer(str(source))
    worker, export = trainee(source, lora=True), tmp_path / "export"
    worker.prepare_export(export, ChatSettings(template=TEMPLATE, ends=[5]))
    shutil.copytree(source, tmp_path / "base")
    shutil.rmtree(source)  # what is written later needs nothing of it
    worker.export(export)
    adapter = export / "adapter"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (adapter / name).read_bytes() == (export / name).read_bytes(), name
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    assert tokenizer.apply_chat_template(ASKED, tokenize=False) == "user: the\n"
    assert [tokenizer(text).input_ids for text in TEXTS] == [trained(text).input_ids for text in TEXTS]
    assert GenerationConfig.from_pretrained(adapter).eos_token_id == [5, before]
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), str(adapter))

    merge_adapter(adapter, str(tmp_path / "base"), tmp_path / "merged")
    assert ends_of(tmp_path / "merged") == [5, before]
    merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert merged.chat_template == TEMPLATE
    assert [merged(text).input_ids for text in TEXTS] == [trained(text).input_ids for text in TEXTS]


def test_ends_of_a_merged_model_are_its_bases_where_the_adapter_says_nothing(tmp_path: Path) -> None:
    source = with_model("qwen2", tmp_path / "source")
    worker = trainee(source, lora=True)
    worker.prepare_export(tmp_path / "export", ChatSettings(ends=[5]))
    worker.export(tmp_path / "export")
    (tmp_path / "export/adapter/generation_config.json").unlink()
    merge_adapter(tmp_path / "export/adapter", str(source), tmp_path / "merged")
    assert ends_of(tmp_path / "merged") == ends_of(source)

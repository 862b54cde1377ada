"""What ends an answer: learned from the chat template, known to the engines, and written into the export."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from actors.models.chat_settings import ChatSettings, write_chat_settings
from actors.models.tokenizer import load_tokenizer
from algorithms.data.chat_format import ChatFormat, stop_ids
from launch.checks.chat_template import check_chat_template
from launch.checks.check import examine
from launch.config import validate
from tests.chat.templates import STYLES
from tests.chat.tokenizers import tokenizer_of
from tests.conftest import Job
from tests.tokenizer_sources import llama, with_model

WORDS = ("red", "blue", "green", "grey")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def base_model(directory: Path) -> tuple[Path, int, int]:
    """A base model without a chat template, its end of a text, and the token that ends turns of ChatML."""
    with_model("qwen2", directory, hidden_size=64)  # vLLM serves heads of 32 and more on CPUs
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|endoftext|>"}))
    turn = json.loads((directory / "config.json").read_text())["eos_token_id"]
    give_end(directory, turn - 2)
    return directory, turn - 2, turn


def give_end(directory: Path, end: int) -> None:
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps(settings | {"eos_token_id": end}))


def test_a_chat_ends_by_itself_after_training_from_a_base_model(tandem: Callable[..., Job], tmp_path: Path) -> None:
    base, end, turn = base_model(tmp_path / "base")
    (tmp_path / "chatml.jinja").write_text(CHATML)
    rows = [
        {"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word}]}
        for word in WORDS * 4
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    learn: dict[str, Any] = {
        "algorithm": {"name": "sft", "steps": 160, "samples_per_update": 16},
        "model": {"path": str(base), "chat_template": str(tmp_path / "chatml.jinja")},
        "data": {"train": str(tmp_path / "rows.jsonl"), "max_length": 64},
        "policy": {"optimizer": {"lr": 5e-3, "warmup_ratio": 0.05}},
        "tracking": {"wandb": False},
        "run": {"name": "run"},
    }
    job = tandem(learn)
    assert job.wait() == 0, job.text
    export = job.directory / "export"
    assert json.loads((export / "generation_config.json").read_text())["eos_token_id"] == [turn, end]
    assert (export / "chat_template.jinja").read_text() == CHATML
    assert _chats(export) == dict.fromkeys(WORDS, turn)

    # The engines of a run know it by the template, also where the model's files say nothing of it.
    silent = tmp_path / "silent"
    shutil.copytree(export, silent)
    give_end(silent, end)
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"say {w}", "answer": w}) + "\n" for w in WORDS)
    )
    sample = learn | {
        "algorithm": {"name": "grpo", "steps": 1, "prompts_per_step": 4, "samples_per_prompt": 2},
        "model": {"path": str(silent)},
        "data": {"train": str(tmp_path / "prompts.jsonl")},
        "reward": {"functions": [{"name": "exact_match"}], "keep_special_tokens": False},
        "rollout": {"temperature": 0.01, "max_prompt_tokens": 40, "max_response_tokens": 16},
    }
    run = tandem(sample)
    assert run.wait() == 0, run.text
    [step] = run.metrics()
    assert step["rollout/truncated_fraction"] == 0 and step["reward/mean"] == 1.0, (
        "neither the end nor what follows is text"
    )


def _chats(export: Path) -> dict[str, int]:
    """The last token of a greedy answer for each word that is answered with itself."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(export)
    model: Any = AutoModelForCausalLM.from_pretrained(export)
    found = {}
    for word in WORDS:
        asked = [{"role": "user", "content": f"say {word}"}]
        text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        given = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        *said, last = model.generate(**given, max_new_tokens=20, do_sample=False)[0, given["input_ids"].shape[1] :]
        found[tokenizer.decode(said)] = int(last)
    return found


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("qwen2.5", ["<|im_end|>"]),
        ("chatml-base", ["<|im_end|>", "<|endoftext|>"]),
        ("glm4", ["<|user|>", "<|endoftext|>"]),
        ("glm4.5", ["<|user|>", "<|observation|>", "<|endoftext|>"]),
        ("gemma2", ["<end_of_turn>", "<eos>"]),
        ("phi3", ["<|end|>", "<|endoftext|>"]),
        ("gpt-oss", ["<|return|>", "<|call|>"]),
        ("vicuna", ["</s>"]),
        ("llama3.1", ["<|eot_id|>"]),
    ],
)
def test_one_notion_of_what_ends_a_turn(name: str, stops: list[str]) -> None:
    """Of gpt-oss, the token behind earlier answers is none of them: it ends thoughts, too."""
    tokenizer = tokenizer_of(STYLES[name])
    assert list(ChatFormat(tokenizer).habits().stops) == stops
    assert tokenizer.convert_ids_to_tokens(stop_ids(tokenizer, {})) == stops


def test_a_template_that_writes_no_token_leaves_the_end_to_the_tokenizers(tmp_path: Path) -> None:
    """Neither behind the last answer nor between turns; what is text behind the last one is not said."""
    llama(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    habits = ChatFormat(tokenizer).habits()
    assert (habits.last, habits.between, habits.tail, habits.stops) == ("", "", "\n", ("</s>",))


@pytest.mark.parametrize(
    ("files", "ends", "after"),
    [
        ({"generation_config.json": {"eos_token_id": 3, "top_p": 0.9}}, [3], None),
        ({"generation_config.json": {"eos_token_id": [5, 3]}}, [3, 5], None),
        ({"generation_config.json": {"eos_token_id": 3, "top_p": 0.9}}, [7, 3], {"eos_token_id": [7, 3], "top_p": 0.9}),
        ({"generation_config.json": {"eos_token_id": [3, 4]}}, [7, 3], {"eos_token_id": [7, 3, 4]}),
        ({"config.json": {"eos_token_id": 3, "pad_token_id": 0, "bos_token_id": None}}, [3], None),
        (
            {"config.json": {"eos_token_id": 3, "pad_token_id": 0, "bos_token_id": None}},
            [7, 3],
            {"eos_token_id": [7, 3], "pad_token_id": 0},
        ),
        ({"config.json": {}}, [7], {"eos_token_id": [7]}),
    ],
)
def test_exports_name_every_end_and_stay_as_they_are_where_they_do(
    tmp_path: Path, files: dict[str, dict[str, Any]], ends: list[int], after: dict[str, Any] | None
) -> None:
    for name, settings in files.items():
        (tmp_path / name).write_text(json.dumps(settings))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_chat_settings(tmp_path, ChatSettings(ends=ends))
    if after is None:
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    else:
        assert json.loads((tmp_path / "generation_config.json").read_text()) == after


def test_another_template_replaces_all_that_there_were(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    for name in ("additional_chat_templates/tools.jinja", "chat_template.jinja", "chat_template.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old", "eos_token": "</s>"}))
    write_chat_settings(tmp_path, ChatSettings(template="new"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat_template.jinja", "tokenizer_config.json"]
    assert (tmp_path / "chat_template.jinja").read_text() == "new"
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"eos_token": "</s>"}


def config_for(directory: Path, **data: Any) -> Any:
    return validate(
        {
            "algorithm": {"name": "sft", "steps": 1},
            "model": {"path": str(directory), "chat_template": str(directory / "own.jinja")},
            "data": {"train": "rows.jsonl"} | data,
        }
    )


def test_check_says_what_ends_answers_and_knows_the_templates_variables(tmp_path: Path) -> None:
    base, _, _ = base_model(tmp_path / "base")
    with pytest.raises(UserError, match=r"^model.chat_template: must be a file with a Jinja template, no such file"):
        check_chat_template(config_for(base))
    (base / "own.jinja").write_text(" \n")
    with pytest.raises(UserError, match=r"^model.chat_template: must hold a template, got an empty file"):
        check_chat_template(config_for(base))
    (base / "own.jinja").write_text("{% for %}")
    with pytest.raises(UserError, match=r"^model.chat_template: the template is broken \(line 1: .*own.jinja$"):
        check_chat_template(config_for(base))
    (base / "own.jinja").write_text(CHATML + "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}")
    told = check_chat_template(config_for(base, template_arguments={"enable_thinking": False}))
    assert told == ["model: answers end with <|im_end|>, also with <|endoftext|>"]
    wrong = r"^data.template_arguments.enable_thinkin: must be a variable that the chat template reads "
    with pytest.raises(UserError, match=wrong + r"\(enable_thinking\) \(did you mean enable_thinking\?\), got False$"):
        check_chat_template(config_for(base, template_arguments={"enable_thinkin": False}))
    with pytest.raises(
        UserError, match=r"^data.template_arguments.tools: must be left out, as rows and tokenizer give it, got 3$"
    ):
        check_chat_template(config_for(base, template_arguments={"tools": 3}))


def test_a_template_on_the_cluster_is_read_there(tmp_path: Path) -> None:
    """Submitting looks at what is here; a file that is nowhere is told of, also where the model is not here."""
    base, _, _ = base_model(tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}')
    config = config_for(base, train=str(tmp_path / "rows.jsonl"), max_length=64)
    config = config.model_copy(update={"run": config.run.model_copy(update={"output": str(tmp_path)})})
    found = examine(config, elsewhere=True)
    assert (
        f"model.chat_template: {base}/own.jinja is read on the cluster when the run starts, not checked here"
        in found.warnings
    )
    for model in (base, "owner/not-here"):
        missing = config.model_copy(update={"model": config.model.model_copy(update={"path": str(model)})})
        with pytest.raises(
            UserError, match=r"model\.chat_template: must be a file with a Jinja template, no such file"
        ):
            examine(missing)

"""The verb `data`: what is trained on is marked, and long rows are counted."""

import io
import json
from pathlib import Path

from rich.console import Console

from actors.models.tokenizer import build_char_tokenizer
from algorithms.config import DataConfig
from algorithms.data.tokens import sequences
from launch.config import validate
from launch.verbs.preview import marked, preview


def test_preview_shows_what_is_trained_on_and_counts_long_rows(tmp_path: Path) -> None:
    rows = [
        {"prompt": "[b]ba", "completion": "ab", "answer": 1},
        {"prompt": "x" * 40, "completion": "y", "answer": 2},
    ]
    train = tmp_path / "rows.jsonl"
    train.write_text("\n".join(map(json.dumps, rows)))
    sections = {
        "sft": {"data": {"train": str(train), "max_length": 30}},
        "grpo": {
            "data": {"train": str(train)},
            "reward": {"functions": ["exact_match"]},
            "rollout": {"max_prompt_tokens": 20},
        },
    }
    expected = {
        "sft": [
            "convention prompt-completion",
            "<|user|>[b]ba<|end|><|assistant|>«ab<|end|>»",
            "1 rows (50.0%) over data.max_length 30",
        ],
        "grpo": [
            "columns prompt, completion, answer",
            "<|user|>[b]ba<|end|><|assistant|>",
            "1 rows (50.0%) over rollout.max_prompt_tokens 20",
        ],
    }
    for name, texts in expected.items():
        config = validate({"model": {"init": {}}, "algorithm": {"name": name, "steps": 1}, **sections[name]})
        console = Console(width=200, color_system=None, record=True, file=io.StringIO())
        preview(config, rows=2, console=console)
        shown = console.export_text()
        for text in texts:
            assert text in shown


def test_preview_shows_pairs_and_judgements(tmp_path: Path) -> None:
    pair = {"prompt": "[b]ba", "chosen": "ab", "rejected": "ba", "margin": 0.5, "completion": "ab", "label": True}
    rows = [pair, pair | {"prompt": "x" * 30, "chosen": "y" * 9, "label": False}]
    train = tmp_path / "rows.jsonl"
    train.write_text("\n".join(map(json.dumps, rows)))
    both = [
        "convention pairs (prompt, chosen and rejected",
        "row 1, prompt 8 tokens, chosen 3, rejected 3, margin 0.5",
        "<|user|>[b]ba<|end|><|assistant|>",
        "chosen   «ab<|end|>»",
        "rejected «ba<|end|>»",
        "1 rows (50.0%) over data.max_length 30",
    ]
    single = [
        "convention labelled (prompt and completion",
        "row 1, desirable, prompt 8 tokens, response 3",
        "<|user|>[b]ba<|end|><|assistant|>«ab<|end|>»",
        "row 2, undesirable",
        "1 desirable rows, 1 undesirable ones",
        "1 rows (50.0%) over data.max_length 30",
    ]
    for name, loss, texts in (("reward", {}, both), ("dpo", {}, both), ("dpo", {"loss": "kto"}, single)):
        config = validate(
            {
                "model": {"init": {}},
                "algorithm": {"name": name, "steps": 1, **loss},
                "data": {"train": str(train), "max_length": 30},
            }
        )
        console = Console(width=200, color_system=None, record=True, file=io.StringIO())
        preview(config, rows=2, console=console)
        shown = console.export_text()
        for text in texts:
            assert text in shown


def test_colours_replace_the_marks() -> None:
    tokenizer = build_char_tokenizer("ab«")
    [sequence] = sequences(
        [{"prompt": "a", "completion": "b"}], DataConfig(train="rows"), tokenizer, train_on="completions"
    )
    text = marked(sequence, tokenizer, marks=False)
    assert text.plain == "<|user|>a<|end|><|assistant|>b<|end|>"
    styles = {text.plain[span.start : span.end]: span.style for span in text.spans}
    assert styles == {"<|user|>a<|end|><|assistant|>": "dim", "b<|end|>": "bold green"}

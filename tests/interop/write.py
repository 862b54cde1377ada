"""Writes exports for another version of transformers to read: `python -m tests.interop.write DIRECTORY`.

Each of `DIRECTORY/NAME` has in `expected.json` beside the model what it should do, as transformers 5 finds it.
"""

import json
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from actors.config import LoraConfig, ModelConfig, ModelInit
from actors.models.adapter_files import adapter_config, adapter_state, merge_adapter, write_adapter
from actors.models.adapter_settings import write_adapter_settings
from actors.models.chat_settings import ChatSettings, write_chat_settings
from actors.models.export import export_model
from actors.models.load import load_model
from actors.models.lora import add_adapters
from actors.models.skeleton import write_skeleton
from actors.models.tokenizer import load_tokenizer
from tests.interop.agreement import LEARNED
from tests.tokenizer_sources import KINDS, TEXTS, with_model
from tests.weights import weights_of

MESSAGES = [{"role": "user", "content": "the"}]
CHAT = ChatSettings(ends=[LEARNED])


def main(directory: Path, kinds: Iterable[str] = KINDS, families: Iterable[Any] = ("qwen2", "llama")) -> None:
    """Export a model of each kind of tokenizer, whole, with adapters and merged, and new ones; all of them with heads
    that are large enough for vLLM."""
    for kind in kinds:
        source = str(with_model(kind, directory / "sources" / kind, hidden_size=64))
        config = ModelConfig(path=source)
        _export(config, source, directory / kind)
        _export(config, source, directory / f"{kind}-lora", lora=True)
        _merge(source, directory / f"{kind}-lora", directory / f"{kind}-merged")
    for family in families:
        config = ModelConfig(init=ModelInit(family=family, hidden_size=64, layers=1, heads=2))
        _export(config, write_skeleton(config, directory / f"sources/new-{family}"), directory / f"new-{family}")


def _export(config: ModelConfig, source: str, target: Path, *, lora: bool = False) -> None:
    model: Any = load_model(config, source)
    torch.manual_seed(0)
    if lora:
        add_adapters(model, LoraConfig(rank=2), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():  # as if it had learned something
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 10)
    export_model(model, *weights_of(model), load_tokenizer(source), target)
    write_chat_settings(target, CHAT)
    if lora:
        state = adapter_state(model, lambda _: nullcontext(), keep=True)
        write_adapter_settings(target / "adapter", target)
        write_adapter(target / "adapter", adapter_config(model, source), state)
    _expect(model, source, target)


def _merge(source: str, adapted: Path, target: Path) -> None:
    merge_adapter(adapted / "adapter", source, target)
    (target / "expected.json").write_bytes((adapted / "expected.json").read_bytes())


def _expect(model: Any, source: str, target: Path) -> None:
    tokenizer = load_tokenizer(source)
    end = tokenizer.eos_token
    texts = [
        text
        for text in (*TEXTS, f"the{end}the{end} the\nthe")
        if tokenizer.unk_token_id not in tokenizer(text).input_ids
    ]
    ids = tokenizer(texts[0]).input_ids
    rendered, prompt = None, ids
    if tokenizer.chat_template:
        rendered = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(rendered, add_special_tokens=False).input_ids
    model.eval()
    model.set_attn_implementation("eager")  # ours is for packed rows
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    found = {
        "source": source,
        "ids": {text: tokenizer(text).input_ids for text in texts},
        "logits": logits.tolist(),
        "messages": MESSAGES,
        "rendered": rendered,
        "prompt": prompt,
        "ends": json.loads((target / "generation_config.json").read_text())["eos_token_id"],
    }
    (target / "expected.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

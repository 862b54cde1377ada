"""Embedding models and rerankers of every family: a text in a batch gives what it gives alone, whatever stands beside
it, though its tokenizer pads on the left; what does not is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from actors.config import EncoderHead, ModelConfig, ModelInit, TrainerConfig, UserError
from actors.models.encoders import load_encoder
from actors.models.quiet import quiet_config
from actors.models.skeleton import write_skeleton
from actors.models.tried import ENCODERS, TRIED
from actors.train.encoder import EncoderText, EncoderWorker
from actors.train.encoder_trial import try_texts
from tests.families.encoders import ENCODER_FAMILIES
from tests.families.table import CONSTANTS, FAMILIES
from tests.families.table import write as write_causal
from tests.one_rank import alone  # noqa: F401
from tests.test_families import gradients
from tests.test_trainer import unborn

TEXTS = ["red fox", "a", "in the morning the lamp is red, and blue at night", "the lamp", "q " * 20]
INIT = ModelInit(hidden_size=32, layers=1, heads=2, max_positions=64, alphabet="abcdefghijklmnopqrstuvwxyz, ")
EMBEDDING = EncoderHead(kind="embedding", pooling="last")
RERANKER = EncoderHead(kind="reranker")
KINDS = {"embedding": (EMBEDDING, AutoModel), "reranker": (RERANKER, AutoModelForSequenceClassification)}
OTHERS = {
    "doge": "must give a text in a batch what it gives it alone",
    "reformer local": "fails: If training, sequence length",
    "xlnet": "fails: output with shape",
}
"""Kinds that are refused when they are tried."""
_OF_MORE = ("fuyu", "git", "got_ocr2", "mllama", "phi4_multimodal", "whisper")
"""Models that read images or sound, too, by files of a processor that these have not."""
_LONGROPE = ("llama longrope", "longrope phi3", "longrope phi3 old fields")
"""Refused before a run starts; see tests/test_rope_checks.py."""
ALL = [
    name
    for name in FAMILIES | ENCODER_FAMILIES
    if name not in (*OTHERS, *_OF_MORE, *_LONGROPE) and not name.endswith("with vision")
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its directory; it pads on the left."""
    directory = tmp_path_factory.mktemp("tokenizer")
    write_skeleton(ModelConfig(init=INIT), directory)
    (directory / "config.json").unlink()
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left"}))
    return directory


def has(kind: str, name: str) -> bool:
    """Whether transformers has a model of the family for such a job."""
    config = CONFIG_MAPPING[(FAMILIES | ENCODER_FAMILIES)[name]["model_type"]]
    return KINDS[kind][1]._model_mapping.get(config, None) is not None


def write(kind: str, name: str, tokenizer: Path, directory: Path) -> None:
    """A directory with a model of random weights, and without dropout."""
    fields = (FAMILIES | ENCODER_FAMILIES)[name]
    config: Any = quiet_config(CONFIG_MAPPING[fields["model_type"]].from_dict(dict(fields)))
    config.num_labels = 1
    loader: Any = KINDS[kind][1]
    torch.manual_seed(1)
    model = loader.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            constant = tensor.is_floating_point() and bool((tensor == tensor.flatten()[0]).all())
            if constant and not key.endswith(CONSTANTS):
                tensor.add_(0.1 * torch.randn_like(tensor))
    model.save_pretrained(directory)
    shutil.copytree(tokenizer, directory, dirs_exist_ok=True)


def answers(model: Any, kind: str, texts: list[str]) -> torch.Tensor:
    """What is read of each text, or of each with another one."""
    given = texts if kind == "embedding" else [(text, f"the lamp of {text[:5]}") for text in texts]
    return model(model.preprocess(given))["sentence_embedding" if kind == "embedding" else "scores"]


def loaded(kind: str, name: str, tokenizer: Path, directory: Path) -> Any:
    write(kind, name, tokenizer, directory)
    return load_encoder(ModelConfig(path=str(directory)), KINDS[kind][0], str(directory))


@torch.no_grad()
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in ALL if has(kind, name)])
def test_a_text_gives_in_a_batch_what_it_gives_alone(kind: str, name: str, tokenizer: Path, tmp_path: Path) -> None:
    model = loaded(kind, name, tokenizer, tmp_path)
    for training in (False, True):
        # Which draws experts in training, as dropout draws what it drops.
        if training and name == "phimoe":
            continue
        model.train(training)
        together = answers(model, kind, TEXTS)
        one_by_one = torch.cat([answers(model, kind, [text]) for text in TEXTS])
        assert float((together - one_by_one).abs().max()) <= 2e-4
        # A last token that sees itself alone is the same in all pairs.
        assert together.std() > 1e-3 or name == "mistral window of one"


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "mistral sliding", "qwen3_5 text", "mamba"])
def test_and_the_gradient(name: str, tokenizer: Path, tmp_path: Path) -> None:
    model = loaded("embedding", name, tokenizer, tmp_path)
    weights = torch.randn(len(TEXTS), 32, generator=torch.Generator().manual_seed(0))
    found = []
    for batches in ([TEXTS], [[text] for text in TEXTS]):
        model.zero_grad()
        (torch.cat([answers(model, "embedding", batch) for batch in batches]) * weights).sum().backward()
        found.append(gradients(model.transformers_model))
    largest = max(float(grad.abs().max()) for grad in found[1].values())
    assert largest > 1e-3
    for parameter, grad in found[1].items():
        assert float((found[0][parameter] - grad).abs().max()) <= 1e-4 * largest, parameter


def worker(directory: Path, head: EncoderHead = EMBEDDING, **group: Any) -> Any:
    """A group's only rank, with its model and engine."""
    found = unborn(EncoderWorker)
    found.model_config, found.directory = ModelConfig(path=str(directory)), str(directory)
    found.head, found.guide_paths, found.shell = head, [], None
    found.group = TrainerConfig(**group)
    found.build("", 0, 1)
    return found


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", ["gpt2", "qwen3_5 text"])
def test_a_worker_reads_them_so_in_passes_of_any_size_and_so_does_its_export(
    name: str, tokenizer: Path, tmp_path: Path
) -> None:
    """The tokenizer of the export pads on the right, and is else that of its source."""
    from sentence_transformers import SentenceTransformer

    write("embedding", name, tokenizer, tmp_path / "model")
    texts = [EncoderText(kind="query", text=text) for text in TEXTS]
    reader = worker(tmp_path / "model")
    together = reader.encode(texts)
    np.testing.assert_allclose(worker(tmp_path / "model", micro_batch_tokens=60).encode(texts), together, atol=1e-5)
    reader.export(tmp_path / "export")
    exported = SentenceTransformer(str(tmp_path / "export"), device="cpu")
    np.testing.assert_allclose(exported.encode(TEXTS), together, atol=1e-5)
    one_by_one = np.concatenate([exported.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(one_by_one, together, atol=1e-5)
    given, written = (
        json.loads((directory / "tokenizer_config.json").read_text()) for directory in (tokenizer, tmp_path / "export")
    )
    assert written == given | {"padding_side": "right", "model_max_length": written["model_max_length"]}
    assert (tmp_path / "export/tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", OTHERS)
def test_a_kind_that_is_new_is_tried_with_texts(name: str, tokenizer: Path, tmp_path: Path) -> None:
    write("embedding", name, tokenizer, tmp_path)
    with pytest.raises(UserError, match=f"^model.path: .*{OTHERS[name]}"):
        worker(tmp_path)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", KINDS)
def test_one_that_is_right_is_trained(
    kind: str, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(kind, "qwen2", tokenizer, tmp_path)
    tried = []
    monkeypatch.setattr("actors.train.encoder.TRIED", frozenset())
    monkeypatch.setattr("actors.train.encoder.try_texts", lambda *given: tried.append(given) or try_texts(*given))
    worker(tmp_path, KINDS[kind][0])
    assert len(tried) == 1


def test_what_is_no_number_is_no_agreement() -> None:
    with pytest.raises(UserError, match="got a difference of nan in a new"):
        try_texts(lambda texts: torch.full((len(texts), 2), torch.nan), "new", "bf16")


def test_the_kinds_that_are_said_to_be_tried_are_those_tried_here() -> None:
    kinds = {name: fields.get("text_config", fields)["model_type"] for name, fields in FAMILIES.items()}
    for name in ALL:
        kinds[name] = (FAMILIES | ENCODER_FAMILIES)[name]["model_type"]
    encoders = {ENCODER_FAMILIES[name]["model_type"] for name in ENCODER_FAMILIES}
    assert encoders == ENCODERS
    causal = {kinds[name] for name in ALL if name in FAMILIES and has("embedding", name)}
    assert not causal & {"doge", "reformer", "xlnet"}
    assert TRIED - causal <= {"git", "mllama_text_model", "phi4_multimodal", "trocr", "whisper"}


@pytest.mark.parametrize(
    ("kind", "name", "line"),
    [
        ("reranker", "granite", "must be a model that transformers has for SequenceClassification, got a granite"),
        ("embedding", "trocr", "must be a model that transformers has for texts, got a trocr"),
        ("embedding", "qwen3_5 with vision", "cannot be loaded to read texts, Can't load image processor"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_a_line(
    kind: str, name: str, line: str, tokenizer: Path, tmp_path: Path
) -> None:
    write_causal(name, tmp_path)
    shutil.copytree(tokenizer, tmp_path, dirs_exist_ok=True)
    with pytest.raises(UserError, match=f"^model.path: {line}"):
        load_encoder(ModelConfig(path=str(tmp_path)), KINDS[kind][0], str(tmp_path))

"""Embedding models and rerankers through the command line on the real stack: each learns, chained by directory path."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.files.parts import read_arrays
from algorithms.retrieval_tasks import cross_lingual, cross_lingual_alphabet

Start = Callable[..., Any]
TASK = {"count": 3000, "eval_count": 50, "passages": 500}
DATA = {
    "train": "algorithms.retrieval_tasks:cross_lingual",
    "eval": "algorithms.retrieval_tasks:cross_lingual",
    "arguments": TASK,
}
PROMPTS = {"query": "find: ", "passage": "a: "}


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """A new bidirectional encoder on two ranks, with instructions and Matryoshka sizes, in several micro-batches."""
    sizes = {"family": "bert", "hidden_size": 64, "layers": 2, "heads": 4, "max_positions": 80}
    return {
        "algorithm": {
            "name": "embedding",
            "steps": 24,
            "samples_per_update": 64,
            "pooling": "mean",
            "prompts": PROMPTS,
            "matryoshka": [64, 32],
            "eval_every": 8,
            "best_by": "eval/ndcg@10",
        },
        "model": {"init": sizes | {"alphabet": cross_lingual_alphabet() + ":"}},
        "data": DATA | {"corpus": "algorithms.retrieval_tasks:cross_lingual_corpus"},
        "policy": {"ranks": 2, "micro_batch_tokens": 3000, "optimizer": {"lr": 4e-3, "warmup_updates": 6}},
        "checkpoint": {"every": 12, "keep": 3},
        "tracking": {"wandb": False},
    }


@pytest.fixture(scope="module")
def embedding(tandem: Start, settings: dict[str, Any]) -> Any:
    """An embedding run from start to end."""
    job = tandem(settings)
    assert job.wait() == 0, job.text
    return job


def test_an_embedding_model_learns(embedding: Any) -> None:
    """Held-out queries find their passages among 500, near-duplicates included; before training they do not."""
    metrics = embedding.metrics()
    first, last = metrics[0], metrics[-1]
    assert embedding.unknown_metrics() == []
    assert first["step"] == 0 and first["eval/ndcg@10"] < 0.1
    assert last["eval/ndcg@10"] > 0.6
    assert last["loss/embedding"] < metrics[1]["loss/embedding"] / 1.5
    assert {"eval/recall@1", "eval/mrr@10", "eval/dim32/ndcg@10", "embedding/accuracy"} <= last.keys()
    assert last["micro_batches"] > 1  # read twice: GradCache
    assert last["tokens/padding_fraction"] < 0.2


def test_the_export_is_what_sentence_transformers_loads(embedding: Any) -> None:
    """With its pooling, normalisation and instructions, and the same figures; and a card that says how it was made."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    directory = embedding.directory / "export"
    mode = (embedding.directory / "config.json").stat().st_mode
    assert all(path.stat().st_mode & mode == mode for path in directory.rglob("*") if path.is_file())
    model = SentenceTransformer(str(directory), device="cpu")
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
    assert model.prompts == {"query": "find: ", "document": "a: "}
    rows = cross_lingual("eval", **TASK)
    corpus = {text: text for row in rows for text in (*row["positives"], *row["negatives"])}
    queries = {row["query"]: row["query"] for row in rows}
    relevant = {row["query"]: set(row["positives"]) for row in rows}
    evaluator = InformationRetrievalEvaluator(queries, corpus, relevant, write_csv=False)
    assert evaluator(model)["cosine_ndcg@10"] > embedding.metrics()[-1]["eval/ndcg@10"] - 0.02  # a smaller corpus
    card = (directory / "README.md").read_text()
    best = max(embedding.metrics(), key=lambda row: row.get("eval/ndcg@10", 0))
    assert f"| ndcg@10 | {best['eval/ndcg@10']:.4f} |" in card and "infonce" in card and "`find: `" in card
    pointer = embedding.directory / "checkpoints/best"
    assert pointer.read_text() == f"step-{best['step']}"


def test_any_checkpoint_of_it_can_be_exported(embedding: Any, exported_step: Callable[[Path, int], Path]) -> None:
    """Step 8 was best, so its model is in export/; step 24's is another, and a whole model too."""
    from sentence_transformers import SentenceTransformer

    best = int((embedding.directory / "checkpoints/best").read_text().removeprefix("step-"))
    kept = {int(path.name.removeprefix("step-")) for path in (embedding.directory / "checkpoints").glob("step-*")}
    directories = [embedding.directory / "export", exported_step(embedding.directory, max(kept - {best}))]
    final, another = (SentenceTransformer(str(path), device="cpu").encode("find: abc") for path in directories)
    assert (final != another).any()


def as_the_version_before_wrote_it(checkpoint: Path) -> None:
    """One state of the loop in the manifest instead of parts, and rows that wait as lists in it instead of a file."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    parts, file = manifest.pop("parts"), checkpoint / "batches/waiting.safetensors"
    waits = read_arrays(file)
    for number, (_, task) in enumerate(sorted(parts["batches"]["tasks"].items())):
        task["waiting"] = waits[f"{number}"].tolist()
    manifest["state"] = parts["loop"] | {name: parts[name] for name in ("batches", "best")}
    shutil.rmtree(file.parent)
    for kept in (manifest["files"], manifest["sha256"]):
        del kept["batches/waiting.safetensors"]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("before", [False, True], ids=["of this version", "of the version before"])
def test_a_resumed_embedding_run_gives_the_same_numbers(
    tandem: Start, settings: dict[str, Any], embedding: Any, tmp_path: Path, before: bool
) -> None:
    """From the checkpoint in the middle: the same rows, negatives, losses and weights, bit for bit."""
    shutil.copytree(embedding.directory, tmp_path / "run", ignore=shutil.ignore_patterns("logs", "export"))
    checkpoints = tmp_path / "run/checkpoints"
    (checkpoints / "latest").write_text("step-12")
    (checkpoints / "best").write_text("step-8")
    if before:
        as_the_version_before_wrote_it(checkpoints / "step-12")
    resumed = tandem(settings, directory=tmp_path)
    assert resumed.wait() == 0, resumed.text
    assert "resuming from step 12" in resumed.text
    exact = ("loss/embedding", "grad_norm", "eval/ndcg@10", "tokens/trained")
    for one, other in zip(embedding.metrics(), resumed.metrics(), strict=True):
        assert [one.get(name) for name in exact] == [other.get(name) for name in exact]


def test_a_reranker_learns_from_the_embedding_model(tandem: Start, embedding: Any) -> None:
    """Its body is the encoder's, its head is new; a passage is told from near-duplicates better than by chance."""
    from sentence_transformers import CrossEncoder

    job = tandem(
        {
            "algorithm": {"name": "reranker", "steps": 8, "samples_per_update": 16, "loss": "bce", "prompt": "find: "},
            "model": {"path": str(embedding.directory / "export")},
            "data": DATA,
            "policy": {"optimizer": {"lr": 1e-3}},
            "tracking": {"wandb": False},
        }
    )
    assert job.wait() == 0, job.text
    metrics = job.metrics()
    assert job.unknown_metrics() == []
    assert metrics[-1]["loss/reranker"] < metrics[1]["loss/reranker"]
    assert {"eval/map", "eval/mrr@10", "eval/ndcg@10"} <= metrics[-1].keys()
    model = CrossEncoder(str(job.directory / "export"), device="cpu")
    assert model.prompts == {"query": "find: "} and model.default_prompt_name == "query"
    row = cross_lingual("eval", **TASK)[0]
    scores = model.predict([(row["query"], passage) for passage in (*row["positives"], *row["negatives"])])
    assert len(scores) == 5 and all(0 < score < 1 for score in scores)
    settings = json.loads((job.directory / "export/config.json").read_text())
    assert settings["architectures"] == ["BertForSequenceClassification"]

"""`tandem check` and `tandem data` for embedding models and rerankers: whole configurations, with tiny directories."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from actors.config import EncoderHead, ModelConfig, ModelInit, UserError
from actors.models.skeleton import hf_config, write_skeleton
from launch.checks.check import examine
from launch.checks.findings import Findings
from launch.checks.known_sizes import memory_of
from launch.config import validate
from launch.jobs.selection import select_files
from launch.jobs.uploadable import upload_problems
from launch.models.tensors import expected_tensors
from launch.sizes.estimate import encoder_parameters
from launch.verbs.preview import preview
from tests.fake_models import write_weights

Rows = list[dict[str, Any]]
ROOT = Path(__file__).resolve().parent.parent
INIT: dict[str, Any] = {"family": "bert", "hidden_size": 16, "layers": 1, "heads": 2, "max_positions": 64}
BODY = ModelConfig(init=ModelInit.model_validate(INIT))

RANKED: Rows = [
    {"query": f"what is {index}?", "pos": [f"{index} it is"], "neg": [f"no {index}", f"not {index}"], "pos_scores": [9]}
    | {"neg_scores": [1, -2.5]}
    for index in range(8)
]
PAIRS: Rows = [{"sentence1": "a cat", "sentence2": f"{index} cats", "score": index / 4} for index in range(5)]
LISTS: Rows = [{"query": "q", "documents": ["yes", "no", "never"], "labels": [1, 0, 0]}] * 3


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, rows in {"ranked": RANKED, "pairs": PAIRS, "lists": LISTS}.items():
        save(name, rows)


def save(name: str, rows: Rows) -> str:
    """A file of the working directory."""
    Path(f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return f"{name}.jsonl"


def body(name: str, **values: Any) -> str:
    """A directory with tokenizer, weights and a configuration with other `values`; it does not say how it pools."""
    directory = Path(name)
    write_skeleton(BODY, directory)
    found = json.loads((directory / "config.json").read_text()) | values
    (directory / "config.json").write_text(json.dumps(found))
    write_weights(directory, expected_tensors(found, "encoder") or {"a": (3, 5)})
    return name


def embedder(name: str, *more: str, pooling: dict[str, Any] | None = None, kind: str = "SentenceTransformer") -> str:
    """A directory as sentence-transformers writes it: mean pooling, and modules `more` after it."""
    directory = Path(body(name))
    places = {"Transformer": "", "Pooling": "1_Pooling"} | {module: module.lower() for module in more}
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling/config.json").write_text(json.dumps(pooling or {"pooling_mode": "mean"}))
    modules = [{"type": f"sentence_transformers.models.{module}", "path": path} for module, path in places.items()]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "config_sentence_transformers.json").write_text(json.dumps({"model_type": kind, "prompts": {}}))
    return name


def config(
    name: str, *, data: Any = None, model: Any = None, sections: dict[str, Any] | None = None, **algorithm: Any
) -> Any:
    """A run of `name` with rows that fit, and a new model with mean pooling unless `model` names a directory."""
    pooled = {"pooling": "mean"} if name == "embedding" and model is None else {}
    return validate(
        {
            "algorithm": {"name": name, "epochs": 1, "samples_per_update": 4} | pooled | algorithm,
            "model": {"init": INIT} if model is None else {"path": model},
            "data": {"train": "ranked.jsonl"} | (data or {}),
            "policy": {"optimizer": {"lr": 1e-5}},
            "cluster": {"cpus": 2},
        }
        | (sections or {})
    )


def checked(name: str, **settings: Any) -> Findings:
    """What `check` finds out."""
    return examine(config(name, **settings))


def problems(name: str, **settings: Any) -> list[str]:
    """The lines with which `check` refuses a configuration, when it is loaded or later."""
    with pytest.raises(UserError) as error:
        checked(name, **settings)
    assert all("\n" not in line for line in error.value.problems)
    return list(error.value.problems)


def test_an_embedding_model_says_how_it_pools() -> None:
    """Or the configuration does."""
    model = body("plain")
    assert problems("embedding", model=model) == [
        "algorithm.pooling: must be cls, mean, last or max for a model that does not say how it pools (no modules.json "
        "in plain), got nothing"
    ]
    for name, settings in {"plain": {"pooling": "last"}, embedder("said"): {}}.items():
        found = checked("embedding", model=name, **settings)
        assert (found.parameters, found.rows, found.warnings) == (6016, 8, [])
    assert checked("reranker", model=model).parameters == 6016


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"pooling": "cls"}, "pooling: must be left out for a model that says how it pools (mean in said), got cls"),
        (
            {"normalize": True},
            "normalize: must be left out for a model that says whether it normalises (false in said), got true",
        ),
    ],
)
def test_the_configuration_does_not_contradict_the_model(settings: dict[str, Any], line: str) -> None:
    """It may say the same."""
    embedder("said")
    assert problems("embedding", model="said", **settings) == [f"algorithm.{line}"]
    checked("embedding", model="said", pooling="mean", normalize=False)


def test_older_directories_say_it_in_other_words() -> None:
    """One entry for each way of pooling; several join their vectors."""
    flags = {"word_embedding_dimension": 16, "include_prompt": True}
    embedder("last", "Normalize", pooling=flags | {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False})
    checked("embedding", model="last", pooling="last", normalize=True, matryoshka=[16, 8])
    line = "algorithm.pooling: must be left out for a model that says how it pools (lasttoken in last), got mean"
    assert problems("embedding", model="last", pooling="mean") == [line]
    embedder("both", pooling=flags | {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True})
    checked("embedding", model="both", matryoshka=[32])
    line = "algorithm.pooling: must be left out for a model that says how it pools (cls_token, mean_tokens in both), "
    assert problems("embedding", model="both", pooling="mean") == [f"{line}got mean"]


def test_damaged_directories() -> None:
    """Are named, with the file."""
    embedder("said")
    Path("said/modules.json").write_text('{"0": "Transformer"}')
    line = "model.path: said/modules.json must list modules with type and path, got something else"
    assert problems("embedding", model="said") == [line]
    Path("said/config_sentence_transformers.json").write_text("{")
    [line] = problems("embedding", model="said")
    assert line.startswith("model.path: said/config_sentence_transformers.json cannot be read, Expecting ")
    [line] = problems("embedding", loss="gist", guide="said")
    assert line.startswith("algorithm.guide: said/config_sentence_transformers.json cannot be read, Expecting ")
    for file in Path("said").glob("token*"):
        file.unlink()
    [line] = problems("reranker", model="said")
    assert line.startswith("model.path: directory holds no tokenizer (")


def test_models_of_another_kind() -> None:
    """Each is one line that names it."""
    embedder("judge", kind="CrossEncoder")
    embedder("splade", kind="SparseEncoder")
    rule = "must be an embedding model of dense vectors, got a"
    assert problems("embedding", model="judge") == [f"model.path: {rule} reranker in judge"]
    assert problems("embedding", model="splade") == [f"model.path: {rule} sparse one in splade"]
    assert problems("embedding", loss="gist", guide="judge") == [f"algorithm.guide: {rule} reranker in judge"]
    labels = {str(index): f"LABEL_{index}" for index in range(3)}
    body("three", architectures=["BertForSequenceClassification"], id2label=labels)
    body("two", architectures=["BertForSequenceClassification"])
    body("one", architectures=["BertForSequenceClassification"], id2label={"0": "LABEL_0"})
    assert problems("reranker", model="three") == ["model.path: must give one score, got 3 classes in three"]
    assert problems("reranker", model="two") == ["model.path: must give one score, got 2 classes in two"]
    checked("reranker", model="one")
    checked("embedding", model="three", pooling="cls")  # of which only the body is used


def test_a_kind_that_gives_no_scores_is_no_reranker() -> None:
    body("granite", model_type="granite", architectures=["GraniteForCausalLM"])
    line = "model.path: must be a model that transformers has for SequenceClassification, got a granite"
    assert problems("reranker", model="granite") == [line]
    checked("embedding", model="granite", pooling="last")


def test_check_agrees_with_what_loads() -> None:
    """Of directories that transformers and sentence-transformers write."""
    from sentence_transformers import CrossEncoder
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from actors.models.encoders import load_encoder

    for name, classes in {"one": 1, "two": 2}.items():
        write_skeleton(BODY, Path(name))
        values = AutoConfig.from_pretrained(name, num_labels=classes)
        AutoModelForSequenceClassification.from_config(values).save_pretrained(name)
    assert "id2label" not in json.loads(Path("two/config.json").read_text())
    CrossEncoder("one", device="cpu").save_pretrained("judge")
    head = EncoderHead(kind="embedding", normalize=False, pooling="max")
    load_encoder(ModelConfig(path="one"), head, "one").save("own")
    for directory in ("one", "judge", "own"):
        load_encoder(ModelConfig(path=directory), EncoderHead(kind="reranker"), directory)
        checked("reranker", model=directory)
    with pytest.raises(UserError, match="one score, got 2 classes"):
        load_encoder(ModelConfig(path="two"), EncoderHead(kind="reranker"), "two")
    assert problems("reranker", model="two") == ["model.path: must give one score, got 2 classes in two"]
    assert problems("embedding", model="judge")[0].endswith("got a reranker in judge")
    load_encoder(ModelConfig(path="own"), head, "own")
    checked("embedding", model="own", pooling="max", normalize=False)
    contradictions: list[dict[str, Any]] = [{"pooling": "mean"}, {"normalize": True}]
    for wrong in contradictions:
        with pytest.raises(UserError) as error:
            load_encoder(ModelConfig(path="own"), EncoderHead(kind="embedding", **wrong), "own")
        assert problems("embedding", model="own", **wrong) == list(error.value.problems)


def test_texts_and_vectors_have_limits() -> None:
    """Those of the model, known from its directory or its numbers."""
    embedder("said")
    line = "algorithm.max_tokens: must not exceed the model's max_position_embeddings (64), got 65"
    assert problems("embedding", model="said", max_tokens=65) == [line]
    assert problems("reranker", model="said", max_tokens=65) == [line]
    line = "must not exceed the embedding's size (16), got 17"
    assert problems("embedding", model="said", matryoshka=[8, 17]) == [f"algorithm.matryoshka: {line}"]
    several = {"train": {"a": "ranked.jsonl"}}
    found = problems("embedding", data=several, tasks={"a": {"matryoshka": [17]}})
    assert found == [f"algorithm.tasks.a.matryoshka: {line}"]
    embedder("projected", "Dense")
    checked("embedding", model="projected", matryoshka=[32])  # known when it is loaded
    checked("embedding", matryoshka=[16, 8], max_tokens=64)


def test_packages_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the model is a new one, but not for a run on other machines."""
    tasks = ["STS12", "NFCorpus"]
    monkeypatch.setitem(sys.modules, "mteb", None)
    missing = "algorithm.mteb: needs the package mteb, which is not installed, got STS12, NFCorpus"
    assert problems("embedding", mteb=tasks) == [missing]
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    line = "algorithm.name: needs the package sentence-transformers, which is not installed, got reranker"
    assert problems("reranker", model=body("plain"), mteb=tasks) == [line, missing]
    examine(config("reranker", mteb=tasks), elsewhere=True)


def test_guides_are_embedding_models() -> None:
    """Of every task."""
    tasks = {"a": {"loss": "gist", "guide": "gide"}, "b": {"loss": "gist", "guide": body("plain")}}
    embedder("guide")
    data = {"train": {"a": "ranked.jsonl", "b": "ranked.jsonl"}}
    assert problems("embedding", data=data, tasks=tasks) == [
        "algorithm.tasks.a.guide: must be a model directory with a config.json (did you mean guide?), got gide",
        "algorithm.tasks.b.guide: must be an embedding model that says how it pools (modules.json), got plain",
    ]
    checked("embedding", loss="gist", guide="guide")


@pytest.mark.parametrize(
    ("settings", "rows", "line"),
    [
        ({}, [RANKED[0], RANKED[1] | {"pos": []}], "row 2: pos must hold a positive, got an empty list"),
        ({}, [{"query": "a", "pso": "b"}], "row 1: has columns query, pso (should pso be pos?), needs query "),
        (
            {"loss": "distill_kl"},
            [RANKED[0], RANKED[1] | {"neg_scores": [1]}],
            "row 2: neg_scores must have one number for each of the 2 negatives, got 1",
        ),
        (
            {"loss": "margin_mse"},
            [{"query": "a", "pos": "b", "neg": ["c"], "scores": [1, 2, 3]}],
            "row 1: scores must have one number for each of the 2 texts (1 positives, then the negatives), got 3",
        ),
        ({"loss": "triplet"}, [{"query": "a", "pos": "b"}], "row 1: must have a negative for loss triplet, got none"),
        ({"loss": "cosent"}, RANKED, "row 1: has columns query, pos, neg, pos_scores, neg_scores"),
    ],
)
def test_rows_that_do_not_fit_the_loss(settings: dict[str, Any], rows: Rows, line: str) -> None:
    """Field, row and column."""
    save("ranked", rows)
    [found] = problems("embedding", **settings)
    assert found.startswith(f"data.train: {line}")


def test_an_update_has_rows_of_different_texts() -> None:
    """Where the texts of other rows are negatives; other losses may see a row twice."""
    line = "algorithm.samples_per_update: must not exceed the rows of data.train with different texts (8), got 9"
    assert problems("embedding", samples_per_update=9) == [line]
    checked("embedding", samples_per_update=8)
    checked("embedding", samples_per_update=9, loss="triplet")
    checked("reranker", samples_per_update=9)
    save("same", [row | {"neg": ["no"]} for row in RANKED])
    line = "algorithm.samples_per_update: must not exceed the rows of data.train.b with different texts (1), got 4"
    data = {"train": {"a": "ranked.jsonl", "b": "same.jsonl"}}
    assert problems("embedding", data=data, tasks={"a": {}, "b": {}}) == [line]
    checked("embedding", data=data, tasks={"a": {}, "b": {"negatives": 0}})


def test_several_sources_by_name() -> None:
    """Mistakes of all of them name their sources; counts and lengths are those of all."""
    save("empty", [])
    tasks = {"web": {}, "sts": {"loss": "cosent"}}
    data = {"train": {"web": "ranked.jsonl", "sts": "pairs.jsonl"}}
    found = checked("embedding", data=data, tasks=tasks)
    assert found.rows == 13
    # Every character is a token, and a text has two more: 4 texts a row of ranked, 2 of pairs.
    lengths = [sum(len(text) + 2 for text in (row["query"], *row["pos"], *row["neg"])) for row in RANKED]
    lengths += [len(row["sentence1"]) + len(row["sentence2"]) + 4 for row in PAIRS]
    assert found.mean_tokens == pytest.approx(sum(lengths) / 13)
    for source, line in {
        "empty.jsonl": "must hold at least one row, got none from empty.jsonl",
        "pair.jsonl": "no such file (did you mean pairs.jsonl?), got pair.jsonl",
        "lists.jsonl": "row 1: has columns query, documents, labels (should documents be document?), needs ",
    }.items():
        [found] = problems("embedding", data={"train": data["train"] | {"sts": source}}, tasks=tasks)
        assert found.startswith(f"data.train.sts: {line}")
    assert problems("embedding", data={"train": {"web": "ranked.jsonl"}}, tasks=tasks) == [
        "algorithm.tasks: must have the names of data.train (web), got web, sts"
    ]


def test_names_in_the_configuration() -> None:
    """The nearest valid one, in a task too."""
    data = {"train": {"a": "ranked.jsonl"}}
    assert problems("embedding", data=data, tasks={"a": {"negative": 2, "prompts": {"querry": "q: "}}}) == [
        "algorithm.tasks.a.prompts.querry: unknown field (did you mean query?), got 'q: '",
        "algorithm.tasks.a.negative: unknown field (did you mean negatives?), got 2",
    ]
    [line] = problems("embedding", loss=["infonce", "cossent"])
    assert line.startswith("algorithm.loss.1.name: must be one of 'infonce', ")
    assert line.endswith("got 'cossent' (did you mean cosent?)")
    [line] = problems("reranker", loss={"name": "list_mle"})
    assert line.endswith("got 'list_mle' (did you mean listmle?)")


def test_a_learning_rate_of_reinforcement_learning_is_warned_about() -> None:
    """It is the default of all jobs."""
    [warning] = checked("embedding", sections={"policy": {}}).warnings
    assert warning.startswith("policy.optimizer.lr: 1e-06, the default, is that of reinforcement learning; usual")


def test_held_out_rows() -> None:
    """Both sets and the corpus are read; what a set is must be known."""
    ids: Rows = [{"query": "a", "positive_ids": ["7"]}]
    corpus = save("corpus", [{"id": 7, "text": "seven"}, {"id": 8, "text": "eight"}])
    by_name = {"eval": {"web": "ranked.jsonl", "ids": save("ids", ids), "sts": "pairs.jsonl"}, "corpus": corpus}
    assert checked("embedding", data=by_name).warnings == []
    for field, given, line in [
        ("corpus", save("empty", []), "data.corpus: must hold at least one row, got none from empty.jsonl"),
        ("corpus", save("other", [{"txt": "a"}]), "data.corpus: row 1: must have column text or passage"),
        ("eval", save("odd", [{"title": "a", "body": "b"}]), "data.eval: row 1 has columns title, body, needs query "),
        ("eval", {"web": save("gone", [{"query": "a", "positive_ids": [9]}])}, "data.eval.web: row 1: positive_ids "),
    ]:
        [found] = problems("embedding", data={"eval": "ranked.jsonl", "corpus": corpus} | {field: given})
        assert found.startswith(line)
    [found] = problems("reranker", data={"eval": "pairs.jsonl"})
    assert found.startswith("data.eval: must have query and positives with negatives or documents")
    line = "data.corpus: must only be given where data.eval searches it or names its ids, got corpus.jsonl"
    assert problems("reranker", data={"eval": "ranked.jsonl", "corpus": corpus}) == [line]


def test_all_problems_at_one_time() -> None:
    """Of model, data, guide and evaluation."""
    found = problems("embedding", model=body("plain"), loss="gist", guide="gone", data={"train": "a", "eval": "b"})
    assert [line.partition(":")[0] for line in found] == [
        "algorithm.pooling",
        "data.train",
        "data.eval",
        "algorithm.guide",
    ]


def test_what_is_on_other_machines_is_only_warned_about() -> None:
    """Absolute paths, of every kind."""
    where = "is read on the cluster when the run starts, not checked here"
    data = {"train": {"a": "/far/a.jsonl", "b": "ranked.jsonl"}, "eval": "/far/e.jsonl", "corpus": "/far/c.jsonl"}
    tasks = {"a": {"loss": "gist", "guide": "/far/guide"}, "b": {}}
    found = examine(config("embedding", model="/far/model", data=data, tasks=tasks), elsewhere=True)
    assert [line.removesuffix(f" {where}") for line in found.warnings] == [
        "model.path: /far/model",
        "data.train.a: /far/a.jsonl",
        "data.eval: /far/e.jsonl",
        "data.corpus: /far/c.jsonl",
        "algorithm.tasks.a.guide: /far/guide",
    ]
    assert (found.rows, memory_of(found)) == (None, {})


@pytest.mark.parametrize(("kind", "hidden"), [("bert", 24), ("roberta", 32), ("xlm-roberta", 16)])
def test_parameters_of_an_encoder(kind: str, hidden: int) -> None:
    """As many as the model that transformers builds from the same numbers has, so that .bin files are known too."""
    from transformers import AutoConfig, AutoModel

    numbers = {"hidden_size": hidden, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
    numbers |= {"vocab_size": 111, "max_position_embeddings": 50, "type_vocab_size": 3}
    built = AutoModel.from_config(AutoConfig.for_model(kind, **numbers))
    expected = sum(parameter.numel() for parameter in built.parameters())
    assert encoder_parameters(numbers) == expected
    Path(body("bin", model_type=kind, **numbers), "model.safetensors").unlink()
    torch.save(built.state_dict(), "bin/pytorch_model.bin")
    assert checked("embedding", model="bin", pooling="mean").parameters == expected


def test_parameters_and_memory_of_a_new_encoder() -> None:
    """Those of the model that will be built; there are no logits."""
    from transformers import AutoConfig, AutoModel

    found = checked("reranker", sections={"policy": {"zero_stage": 2, "ranks": 2}})
    values = hf_config(BODY.init or ModelInit(), "fp32", found.shape.vocab_size if found.shape else 0, 0, 0)
    built = AutoModel.from_config(AutoConfig.for_model(**values))
    assert found.parameters == sum(parameter.numel() for parameter in built.parameters())
    assert found.parameters is not None
    memory, size = memory_of(found)["policy"], found.parameters
    assert (memory.weights, memory.gradients) == (4 * size, 2 * size)
    assert memory.logits == 0


def test_check_prints_its_tables_quickly_and_imports_nothing_heavy() -> None:
    """With an evaluation set and a corpus."""
    corpus = save("corpus", [{"id": 1, "text": "one"}])
    run = config("embedding", data={"eval": "ranked.jsonl", "corpus": corpus}, sections={"run": {"name": "demo"}})
    Path("job.json").write_text(run.model_dump_json())
    program = (
        "import sys, time; from launch.cli import main; code = main(['check', 'job.json']);"
        "heavy = {'torch', 'ray', 'vllm', 'deepspeed', 'datasets', 'sentence_transformers', 'sklearn', 'mteb'};"
        "print(code, sorted(heavy & sys.modules.keys()), time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    *_, last = done.stdout.splitlines()
    assert last.startswith("0 [] "), done.stderr
    assert float(last.rpartition(" ")[2]) < 4  # 1.3 s on an idle core, as for other jobs
    placement, batches, memory = (done.stdout.index(f"\n{name}") for name in ("placement", "batches", "memory"))
    assert placement < batches < memory
    assert "  policy   1           0.25 " in done.stdout[placement:batches]
    assert "2 updates x 4 rows = 1 epochs of 8 rows; about 1 micro-batch of" in done.stdout[batches:memory]
    assert f"model of {checked('embedding').parameters:,} parameters" in done.stdout[memory:]


def shown(run: Any, rows: int = 1) -> str:
    """What `tandem data` prints."""
    console = Console(width=200, color_system=None, record=True, file=io.StringIO())
    preview(run, rows=rows, console=console)
    return console.export_text()


def in_order(text: str, *parts: str) -> None:
    """The parts are in the text, each behind the one before."""
    place = 0
    for part in parts:
        found = text.find(part, place)
        assert found >= 0, f"{part!r} is not in {text[place:]}"
        place = found + len(part)


def test_data_of_an_embedding_model() -> None:
    """Columns, the first rows with their instructions, lengths of all, and the evaluation sets."""
    rows = [row | {"prompt": "own: [b]" if number == 1 else None} for number, row in enumerate(RANKED)]
    data = {"train": save("ranked", rows), "eval": {"web": "ranked.jsonl", "sts": "pairs.jsonl"}}
    prompts = {"query": "query: ", "passage": "passage: "}
    text = shown(config("embedding", data=data, prompts=prompts, negatives=1, max_tokens=18), rows=2)
    in_order(
        text,
        "data.train: 8 rows; query: query, positives: pos (1 a row), negatives: neg (2 a row), prompt: prompt, "
        "teacher scores: no, not read: pos_scores neg_scores",
        "data.train row 1",
        "query: what is 0?",
        "+ passage: 0 it is",
        "- passage: ",
        "data.train row 2",
        "own: [b]what is 1?",
        "data.train lengths",
        "data.eval.web: 8 queries",
        "data.eval.sts: 5 pairs with scores",
    )
    assert "row 3" not in text
    lengths = {line.split()[1]: line for line in text.splitlines() if line.startswith("│ ")}
    # 'query: what is 0?' or 'own: [b]what is 1?', a token for each character and two more.
    assert [cell.strip() for cell in lengths["query"].split("│")[2:6]] == ["19", "19", "19.65", "20"]
    assert "8 rows (100.0%) over algorithm.max_tokens 18" in lengths["query"]
    save("ranked", [row | {"query": "中文"} for row in RANKED])
    assert "data.train: 16 unknown tokens (text that the tokenizer cannot express)" in shown(config("embedding"))


def test_data_of_pairs_and_of_several_tasks() -> None:
    """Each with its own columns and instructions; both texts of a pair get that of queries."""
    data = {"train": {"sts": "pairs.jsonl", "kd": "ranked.jsonl"}}
    tasks = {"sts": {"loss": "cosent", "prompts": {"query": "same: "}}, "kd": {"loss": "distill_kl"}}
    in_order(
        shown(config("embedding", data=data, tasks=tasks), rows=5),
        "data.train.sts: 5 rows; first text: sentence1, second text: sentence2, score: score",
        "data.train.sts row 2",
        "same: a cat",
        "  0.25 same: 1 cats",
        "data.train.sts lengths",
        "data.train.kd: 8 rows; query: query, positives: pos (1 a row), teacher scores: pos_scores + neg_scores, ",
        "data.train.kd row 1",
        "what is 0?",
        "     9 0 it is",
        "     1 no 0",
        "  -2.5 not 0",
    )


def test_data_of_a_reranker() -> None:
    """Labels or scores of the passages, and how long query and passage are together."""
    text = shown(config("reranker", data={"train": "lists.jsonl", "eval": "ranked.jsonl"}, prompt="judge: "))
    in_order(
        text,
        "data.train: 3 rows; query: query, passages: documents, labels: labels, passages a row: 3",
        "judge: q",
        "     1 yes",
        "     0 no",
        "     0 never",
        "together",
        "data.eval: 8 queries",
    )
    # '<cls>judge: q<sep>never<sep>' is the longest.
    together = next(line for line in text.splitlines() if line.startswith("│ together"))
    assert [cell.strip() for cell in together.split("│")[2:6]] == ["13", "14", "16", "16"]
    in_order(
        shown(config("reranker", loss="listnet", targets="scores")),
        "teacher scores: pos_scores + neg_scores",
        "     9 0 it is",
        "     1 no 0",
        "  -2.5 not 0",
    )


def test_paths_that_are_not_uploaded() -> None:
    """Of named data, corpus and guides, as they stand in the configuration."""
    save("corpus", [{"text": "a"}])
    Path("sets").mkdir()
    Path("ranked.jsonl").rename("sets/web.jsonl")
    embedder("guide")
    Path(".gitignore").write_text("sets/\ncorpus.jsonl\n*.safetensors\n")
    data = {"train": {"web": "sets/web.jsonl", "sts": "pairs.jsonl"}, "eval": {"sts": "pairs.jsonl"}}
    data |= {"corpus": "./corpus.jsonl", "eval": {"sts": "pairs.jsonl", "web": "sets/web.jsonl"}}
    tasks = {"web": {"loss": "gist", "guide": "guide"}, "sts": {"loss": "cosent"}}
    run = config("embedding", data=data, tasks=tasks, sections={"run": {"output": "/shared/outputs"}})
    rule = "must be in the upload, or absolute on storage that all nodes share"
    assert upload_problems(run, select_files(Path.cwd())) == [
        f"data.train.web: {rule} (sets is left out by .gitignore line 1 (sets/)), got sets/web.jsonl",
        f"data.eval.web: {rule} (sets is left out by .gitignore line 1 (sets/)), got sets/web.jsonl",
        f"data.corpus: {rule} (corpus.jsonl is left out by .gitignore line 2 (corpus.jsonl)), got ./corpus.jsonl",
        f"algorithm.tasks.web.guide: {rule} (guide/model.safetensors is left out by .gitignore line 3 "
        "(*.safetensors)), got guide",
    ]
    Path(".gitignore").unlink()
    assert upload_problems(run, select_files(Path.cwd())) == []
    single = config("embedding", data={"train": "pairs.jsonl"}, loss="gist", guide="../guide")
    assert upload_problems(single, select_files(Path.cwd()))[1:] == []
    Path("inner").mkdir()
    os.chdir("inner")
    below = "must be below the working directory, which is uploaded, or absolute on storage that all nodes share"
    assert upload_problems(single, select_files(Path.cwd()))[1:] == [f"algorithm.guide: {below}, got ../guide"]

"""The last step leaves a model, whatever its source holds, and what could not be written is told before training."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from actors.config import EncoderHead, LoraConfig, ModelConfig, ModelInit, UserError
from actors.models.as_source import generation_problem
from actors.models.encoders import load_encoder
from actors.models.skeleton import write_skeleton
from actors.models.tokenizer import load_tokenizer
from actors.pulse import Watched, Work
from actors.train.encoder import EncoderWorker
from actors.train.policy import PolicyWorker
from actors.train.trainer import TrainedWorker
from launch.config import RunConfig, validate
from launch.run import run
from launch.run.roster import Roster
from launch.verbs.chat import _Speaker
from tests.one_rank import alone  # noqa: F401
from tests.test_exports import _source
from tests.test_trainer import unborn

pytestmark = pytest.mark.usefixtures("alone")
UNREAD: dict[str, Any] = {
    "a temperature without sampling": {"temperature": 0.6, "top_p": 0.9},
    "several samples without sampling": {"num_return_sequences": 4},
    "beams of one": {"num_beams": 1, "early_stopping": True, "length_penalty": 2.0},
    "a cache of another library": {"cache_implementation": "paged"},
    "no room": {"max_new_tokens": -5},
    "settings of its own": {"chat_format": "chatml", "compile_config": {"mode": "x"}},
    "a list": [1],
    "half of it": '{"eos_token_id": ',
}
"""What a generation_config.json may hold: transformers 5 writes none of these, and loads no model with some."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return _source(tmp_path / "source", generation=False)


def trainee(source: Path, lora: bool = False) -> Any:
    """A policy that could be trained, in this process."""
    worker = unborn(PolicyWorker)
    worker.model_config = ModelConfig(path=str(source), lora=LoraConfig(rank=2) if lora else None)
    worker.directory = str(source)
    worker.build("", 0, 1)
    return worker


def give(source: Path, held: object) -> bytes:
    """A generation_config.json; returns its bytes."""
    text = held if isinstance(held, str) else json.dumps(held)
    (source / "generation_config.json").write_text(text)
    return text.encode()


@pytest.mark.parametrize("held", UNREAD.values(), ids=UNREAD)
@pytest.mark.parametrize("lora", [False, True])
def test_whatever_a_source_says_of_sampling_there_is_an_export(
    lora: bool, held: object, source: Path, tmp_path: Path
) -> None:
    given = give(source, held)
    worker = trainee(source, lora)
    notes = worker.prepare_export(tmp_path / "export")
    worker.export(tmp_path / "export")
    target = tmp_path / "export"
    assert (target / "generation_config.json").read_bytes() == given
    AutoModelForCausalLM.from_pretrained(target, generation_config=GenerationConfig())
    AutoTokenizer.from_pretrained(target)
    try:
        AutoModelForCausalLM.from_pretrained(target)
    except (ValueError, TypeError):
        [note] = notes
        assert note.startswith("generation_config.json of the model is kept as it is, and transformers cannot read it")
    assert (target / "adapter/adapter_model.safetensors").is_file() == lora


def test_how_far_loading_and_exporting_are_is_told(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the pulse of the rank: of all tensors of the model, those that are done."""
    told: list[tuple[str | None, int, int, str]] = []

    class Telling(Work):
        def progressed(self) -> None:
            super().progressed()
            pulse = self.pulse()
            told.append((pulse.method, pulse.done, pulse.of, pulse.what))

    monkeypatch.setattr(Watched, "work", Telling())
    worker = trainee(source)
    loaded, told[:] = list(told), []
    worker.prepare_export(tmp_path / "export")
    assert told == [], "nothing of it is a tensor"
    worker.export(tmp_path / "export")
    tensors = len(list(worker.hf_model.parameters()))
    counted = range(1, tensors + 1)
    assert loaded == [("build", done, tensors, "tensors") for done in counted]
    assert told == [("export", done, tensors, "tensors") for done in counted]
    assert worker.pulse().of == 0, "over, it counts nothing"


def test_all_but_the_weights_is_prepared(source: Path, tmp_path: Path) -> None:
    """What becomes of the model's directory while a run trains does not matter to its export."""
    give(source, {"eos_token_id": 2})
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    worker = trainee(source, lora=True)
    assert worker.prepare_export(tmp_path / "export") == []
    assert not (tmp_path / "export/model.safetensors").exists()
    shutil.rmtree(source)
    worker.export(tmp_path / "export")
    after = {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir() if path.is_file()}
    assert {name: after[name] for name in before if name not in ("config.json", "model.safetensors")} == {
        name: text for name, text in before.items() if name not in ("config.json", "model.safetensors")
    }
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "export").config.model_type == "qwen2"
    assert load_tokenizer(str(tmp_path / "export"))("ab").input_ids


def test_what_cannot_be_written_is_one_line_of_the_users(source: Path, tmp_path: Path) -> None:
    worker = trainee(source)
    worker.hf_model.config.strange = {1, 2}  # JSON has no sets
    with pytest.raises(UserError) as caught:
        worker.prepare_export(tmp_path / "export")
    (line,) = caught.value.problems
    assert line.startswith("model.path: must be a model that can be exported when training has ended (")
    assert "\n" not in line and "set" in line and line.endswith(f"got {source}")


def test_a_file_that_transformers_can_read_is_no_problem(tmp_path: Path) -> None:
    assert generation_problem(tmp_path) is None
    give(tmp_path, {"temperature": 0.6})
    assert generation_problem(tmp_path) is None


@pytest.mark.parametrize(("held", "ends"), [({"eos_token_id": [2, 5], "max_new_tokens": -5}, [2, 5]), ([1], 2)])
def test_a_chat_goes_on_without_what_cannot_be_read(held: object, ends: object, source: Path) -> None:
    """With the tokens that end an answer, and no more of the file; or those of config.json."""
    give(source, held)
    speaker = _Speaker(source, temperature=0, max_tokens=3)
    assert speaker._model.generation_config.eos_token_id == ends
    assert isinstance(speaker.answer([{"role": "user", "content": "ab"}]), str)


class Policy:
    """A group of one rank that prepares and exports, or cannot."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.asked: list[str] = []

    def call(self, method: Any, directory: Path, chat: Any = None) -> list[Any]:
        self.asked.append(method.__name__)
        directory.mkdir(exist_ok=True)
        (directory / self.asked[-1]).write_text("")
        if self.fails:
            raise UserError("model.path: no")
        (directory / "config.json").write_text("{}")
        return [[] if method is TrainedWorker.prepare_export else None]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    (tmp_path / "first").mkdir()
    values = {"algorithm": {"name": "sft", "steps": 1}, "model": {"init": {}}, "data": {"train": "rows.jsonl"}}
    return validate(values | {"run": {"output": str(tmp_path), "name": "first"}})


def _learn(config: RunConfig, policy: Policy, monkeypatch: pytest.MonkeyPatch, train: Any) -> None:
    """Let a run of this policy learn; `train` is its training."""
    loop = SimpleNamespace(
        train=train, step=1, checkpoint=SimpleNamespace(finish=lambda *_: None, close=lambda *_: True)
    )
    kind = SimpleNamespace(build=lambda *_: loop, finish_export=lambda _: None, chat_settings=lambda: None)
    roster = Roster("")
    roster._started["policy"] = policy
    monkeypatch.setattr(run, "job_kind", lambda _: kind)
    monkeypatch.setattr(run, "_started", lambda *_: run.contextlib.nullcontext((None, roster)))
    display: Any = SimpleNamespace(phase=lambda *_: None)
    reporter: Any = SimpleNamespace(note=print, phase=lambda _: None, uploads=None)
    (config.directory / "logs").mkdir()
    (config.directory / "config.json").write_text("{}")
    run._learn_and_export(config, reporter, display, None)


def test_a_run_prepares_its_export_before_it_trains(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy()
    _learn(config, policy, monkeypatch, lambda: policy.asked.append("train"))
    assert policy.asked == [TrainedWorker.prepare_export.__name__, "train", TrainedWorker.export.__name__]
    assert sorted(path.name for path in (config.directory / "export").iterdir()) == [
        "config.json",
        "export",
        "prepare_export",
    ]
    assert not (config.directory / "export.partial").exists()


def test_a_run_that_could_not_export_does_not_train(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(fails=True)
    (config.directory / "export.partial").mkdir()
    with pytest.raises(UserError, match=r"model\.path: no"):
        _learn(config, policy, monkeypatch, lambda: policy.asked.append("train"))
    assert policy.asked == ["prepare_export"]
    assert not (config.directory / "export.partial").exists()


def test_a_run_that_is_interrupted_leaves_no_half_export(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _learn(config, Policy(), monkeypatch, interrupted)
    assert sorted(path.name for path in config.directory.iterdir()) == ["config.json", "logs"]


def test_an_embedding_model_is_prepared_too(tmp_path: Path) -> None:
    """Its directory may go as well, and the export be prepared by a process that is no more."""
    init = ModelConfig(init=ModelInit(family="bert", hidden_size=16, heads=2, layers=1))
    skeleton = write_skeleton(init, tmp_path / "skeleton")
    head = EncoderHead(kind="embedding", pooling="mean")
    load_encoder(init, head, skeleton).save(str(tmp_path / "source"))

    def rank(source: Path) -> Any:
        worker = unborn(EncoderWorker)
        worker.model_config, worker.directory = ModelConfig(path=str(source)), str(source)
        worker.head, worker.guide_paths, worker.shell = EncoderHead(kind="embedding"), [], None
        worker.build("", 0, 1)
        return worker

    worker = rank(tmp_path / "source")
    assert worker.prepare_export(tmp_path / "export") == []
    assert not list((tmp_path / "export").rglob("model*.safetensors"))
    rank(tmp_path / "source").export(tmp_path / "export")
    shutil.rmtree(tmp_path / "source")
    worker.export(tmp_path / "export")
    path = str(tmp_path / "export")
    again = load_encoder(ModelConfig(path=path), EncoderHead(kind="embedding"), path)
    assert again.encode("abc").shape == (16,)

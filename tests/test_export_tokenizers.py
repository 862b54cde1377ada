"""An export has the tokenizer files of its source, byte by byte, in the kinds that transformers 4 writes."""

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

from actors.config import EncoderHead, LoraConfig, ModelConfig
from actors.models.adapter_files import adapter_config, adapter_state, merge_adapter, write_adapter
from actors.models.encoders import load_encoder, load_shell, other_parameters, write_encoder
from actors.models.export import export_model
from actors.models.load import load_model
from actors.models.lora import add_adapters
from actors.models.tokenizer import load_tokenizer
from actors.models.tokenizer_files import restore_tokenizer
from tests.tokenizer_sources import KINDS, TEXTS, with_model
from tests.weights import weights_of

OURS = {"config.json", "model.safetensors"}
"""Files of an export that are not its source's."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("sources")
    return {kind: with_model(kind, directory / kind) for kind in KINDS}


def export(source: str, target: Path, *, lora: bool = False, place: Path | None = None) -> Path:
    """What a run leaves whose model.path is `source`; with adapters, which are also written to `place`."""
    model = load_model(ModelConfig(path=source), source)
    if lora:
        add_adapters(model, LoraConfig(rank=2), seed=0)
    export_model(model, *weights_of(model), load_tokenizer(source), target)
    if place:
        state = adapter_state(model, lambda _: nullcontext(), keep=True)
        write_adapter(place, adapter_config(model, source), state)
    return target


def names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def changed(source: Path, target: Path) -> list[str]:
    """Files beside config.json and the weights that are not those of the source, which must be there."""
    assert names(target) == names(source)
    kept = names(source) - OURS
    return [name for name in kept if (source / name).read_bytes() != (target / name).read_bytes()]


def assert_kept(source: Path, target: Path) -> None:
    """All files but config.json and the weights are those of the source."""
    assert changed(source, target) == []


def settings(directory: Path, name: str = "tokenizer_config.json") -> dict[str, Any]:
    return json.loads((directory / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_keeps_the_files_of_its_tokenizer(kind: str, sources: dict[str, Path], tmp_path: Path) -> None:
    source = sources[kind]
    made = [
        export(str(source), tmp_path / "whole"),
        export(str(source), tmp_path / "adapted", lora=True, place=tmp_path / "adapter"),
        tmp_path / "merged",
    ]
    merge_adapter(tmp_path / "adapter", str(source), tmp_path / "merged")
    for target in made:
        # What was trained elsewhere, and is only merged, has been trained with whatever reads its base.
        read_otherwise = kind == "llama" and target.name != "merged"
        assert changed(source, target) == ["tokenizer_config.json"] * read_otherwise
        AutoModelForCausalLM.from_pretrained(target)
        before: Any = load_tokenizer(str(source)) if read_otherwise else AutoTokenizer.from_pretrained(source)
        after = AutoTokenizer.from_pretrained(target)
        assert [after(text).input_ids for text in TEXTS] == [before(text).input_ids for text in TEXTS]


def test_all_that_belongs_to_a_tokenizer_is_kept(sources: dict[str, Path], tmp_path: Path) -> None:
    """Also what transformers 5 neither reads nor writes."""
    source = shutil.copytree(sources["qwen2"], tmp_path / "source")
    others = ("spiece.model", "qwen.tiktoken", "additional_chat_templates/tools.jinja", "added_tokens.json")
    for name in (*others, "preprocessor_config.json", "processor_config.json"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}")
    assert_kept(source, export(str(source), tmp_path / "export"))
    (source / "notes.txt").write_text("not of the tokenizer")
    assert "notes.txt" not in names(export(str(source), tmp_path / "again"))


@pytest.mark.parametrize("linked", [False, True])
def test_a_model_of_the_hubs_cache_keeps_its_files(
    linked: bool, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of a snapshot are links to blobs; the cache itself may be reached through a link."""
    commit, cache = "1" * 40, tmp_path / "cache"
    snapshot, blobs = (cache / "models--owner--name" / each for each in (f"snapshots/{commit}", "blobs"))
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for index, file in enumerate(sources["plain"].iterdir()):
        shutil.copyfile(file, blobs / str(index))
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / str(index), snapshot))
    if linked:
        (tmp_path / "elsewhere").symlink_to(cache)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere" if linked else cache))
    assert_kept(sources["plain"], export(f"owner/name@{commit}", tmp_path / "export"))


def test_a_directory_that_cannot_be_written_to_is_exported(sources: dict[str, Path], tmp_path: Path) -> None:
    source = shutil.copytree(sources["qwen2"], tmp_path / "source")
    for path in (*source.iterdir(), source):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        target = export(str(source), tmp_path / "export")
        assert_kept(source, target)
        assert [path.name for path in target.iterdir() if not path.stat().st_mode & 0o200] == []
    finally:
        source.chmod(0o755)


def test_a_tokenizer_of_links_keeps_its_class(sources: dict[str, Path], tmp_path: Path) -> None:
    """What a link leads to is not copied, but read and written anew, which must not change what it is."""
    source = shutil.copytree(sources["qwen2"], tmp_path / "source")
    for file in sources["qwen2"].iterdir():
        (source / file.name).unlink()
        (source / file.name).symlink_to(file)
    target = export(str(source), tmp_path / "export")
    given, found = settings(source), settings(target)
    assert {name: found[name] for name in given.keys() & {"tokenizer_class", "add_bos_token", "add_eos_token"}} == {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
    }
    one, other = load_tokenizer(str(source)), load_tokenizer(str(target))
    assert [other(text).input_ids for text in TEXTS] == [one(text).input_ids for text in TEXTS]
    assert other.chat_template == one.chat_template


def test_a_class_whose_code_is_not_copied_is_replaced(sources: dict[str, Path], tmp_path: Path) -> None:
    source = shutil.copytree(sources["plain"], tmp_path / "source")
    file = source / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}, "tokenizer_class": "OwnTokenizer"}
    file.write_text(json.dumps(settings(source) | own))
    target = export(str(source), tmp_path / "export")
    expected = {name: value for name, value in settings(source).items() if name != "auto_map"}
    assert settings(target) == expected | {"tokenizer_class": "PreTrainedTokenizerFast"}
    assert (
        AutoTokenizer.from_pretrained(target)("the one").input_ids == load_tokenizer(str(source))("the one").input_ids
    )


def test_merging_takes_the_adapters_own_tokenizer(sources: dict[str, Path], tmp_path: Path) -> None:
    """A trainer that has added a chat template writes it beside the adapters."""
    source, place = sources["gpt2"], tmp_path / "adapter"
    export(str(source), tmp_path / "export", lora=True, place=place)
    for name in names(source) - OURS - {"generation_config.json"}:
        shutil.copyfile(source / name, place / name)
    (place / "chat_template.jinja").write_text("{{ messages }}")
    merge_adapter(place, str(source), tmp_path / "merged")
    assert (tmp_path / "merged/chat_template.jinja").read_text() == "{{ messages }}"
    assert settings(tmp_path / "merged") == settings(source)


def _bert(directory: Path) -> Path:
    """An encoder as transformers 4 writes it, vocab.txt included."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"theonm", *(f"##{letter}" for letter in "theonm")]
    backend = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    sizes = {"vocab_size": len(pieces), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(**sizes, intermediate_size=32, max_position_embeddings=64)).save_pretrained(directory)
    backend.save(str(directory / "tokenizer.json"))
    (directory / "vocab.txt").write_text("\n".join(pieces) + "\n")
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    (directory / "special_tokens_map.json").write_text(json.dumps(named))
    values = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    values |= {"model_max_length": 64, "never_split": None, "tokenizer_class": "BertTokenizer"}
    (directory / "tokenizer_config.json").write_text(json.dumps(named | values))
    return directory


def _written(source: str, head: EncoderHead, target: Path) -> Path:
    """What a run leaves: all but the weights first, and again with them."""
    config = ModelConfig(path=source)
    model, shell = load_encoder(config, head, source), load_shell(config, head, source)
    metas, tensors = weights_of(model.transformers_model)
    write_encoder(shell, metas, None, {}, head, target)
    assert not list(target.rglob("model*.safetensors"))
    others = other_parameters(model, lambda _: nullcontext())
    write_encoder(shell, metas, tensors, others, head, target)
    return target


def test_embedding_models_and_rerankers_keep_the_files_of_their_tokenizers(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    source = _bert(tmp_path / "bert")
    own = names(source) - OURS
    for kind in ("embedding", "reranker"):
        head = EncoderHead(kind=kind, pooling="mean" if kind == "embedding" else None)
        target = _written(str(source), head, tmp_path / kind)
        assert [name for name in own if (source / name).read_bytes() != (target / name).read_bytes()] == []
    shorter = EncoderHead(kind="embedding", pooling="mean", max_tokens=8)
    assert settings(_written(str(source), shorter, tmp_path / "shorter")) == settings(source) | {"model_max_length": 8}
    decoder = EncoderHead(kind="embedding", pooling="last")
    target = _written(str(sources["qwen2"]), decoder, tmp_path / "decoder")
    # The model has fewer positions than its tokenizer says, and reads no more.
    assert settings(target) == settings(sources["qwen2"]) | {"model_max_length": 64}


def test_a_border_between_two_texts_is_kept(sources: dict[str, Path], tmp_path: Path) -> None:
    """The one change that training makes to a tokenizer: what separates the texts of a reranker made of a decoder."""
    source = str(sources["qwen2"])
    before = load_tokenizer(source)
    target = _written(source, EncoderHead(kind="reranker"), tmp_path / "reranker")
    after = load_tokenizer(str(target))
    end = before.eos_token_id
    one, two = before("the").input_ids, before("one").input_ids
    assert before("the", "one").input_ids == [*one, *two]
    assert after("the", "one").input_ids == [*one, end, *two, end]
    assert settings(target)["tokenizer_class"] != "TokenizersBackend"


def test_a_tokenizer_without_a_source_stays(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever lies in the working directory."""
    target = shutil.copytree(sources["gpt2"], tmp_path / "target")
    monkeypatch.chdir(sources["qwen2"])
    for source in ("", str(tmp_path / "gone")):
        restore_tokenizer(target, source, changed=False)
        assert names(target) == names(sources["gpt2"])
        assert settings(target) == settings(sources["gpt2"])

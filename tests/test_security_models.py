"""No code of a model's directory runs, nobody is asked whether it may, and no text is written by a template unseen."""

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from actors.models.tokenizer import load_tokenizer
from launch.verbs.encoder_files import load_embedding_model, load_reranker
from tests.encoder_models import MODEL, needs_model, save_reranker

ROOT = Path(__file__).resolve().parent.parent
LOADERS = ("from_pretrained", "from_config", "SentenceTransformer", "CrossEncoder", "Transformer", "loader")
PARTS = ("model_kwargs", "processor_kwargs", "config_kwargs")
"""What sentence-transformers' Transformer hands on to transformers."""


def loading() -> dict[str, ast.Call]:
    """Calls that load a model, its configuration or its tokenizer, by where they stand."""
    found = {}
    for file in (path for folder in ("actors", "algorithms", "launch") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) == "PeftModel.from_pretrained":
                continue  # adapters name no code
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in LOADERS and "modules" not in [word.arg for word in node.keywords]:
                found[f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"] = node
    return found


def is_refused(call: ast.Call) -> bool:
    """Whether a call says that no code of the model's directory may run."""
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if ast.unparse(call.func) == "Transformer":
        return all("_NO_CODE" in given.get(part, "") for part in PARTS)
    return given.get("trust_remote_code") == "False"


def test_every_loader_refuses_code_of_models() -> None:
    """Where nothing is said, transformers asks on the terminal, and runs the code after a y."""
    found = loading()
    assert len(found) > 20
    assert [where for where, call in found.items() if not is_refused(call)] == []


def test_a_tokenizer_with_code_is_an_error_and_no_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text="": asked.append(text) or "y")
    (tmp_path / "evil.py").write_text("open('ran', 'w')\nclass Evil: pass\n")
    code = {"auto_map": {"AutoTokenizer": ["evil.Evil", None], "AutoConfig": "evil.Evil"}, "model_type": "evil"}
    (tmp_path / "config.json").write_text(json.dumps(code))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(code | {"tokenizer_class": "EvilTokenizer"}))
    (tmp_path / "vocab.txt").write_text("a\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="tokenizer cannot be read"):
        load_tokenizer(str(tmp_path))
    assert asked == []
    assert not Path("ran").exists()


@needs_model
@pytest.mark.parametrize("kind", ["embedding", "reranker"])
def test_a_model_that_writes_texts_by_its_template_is_refused(kind: str, tmp_path: Path) -> None:
    if kind == "embedding":
        shutil.copytree(MODEL, tmp_path / "model")
        load: Any = load_embedding_model
    else:
        save_reranker(tmp_path)
        (tmp_path / "saved").rename(tmp_path / "model")
        load = load_reranker
    directory = tmp_path / "model"
    output = {"embedding": "last_hidden_state", "reranker": "logits"}[kind]
    way = {"method": "forward", "method_output_name": output}
    file = directory / "sentence_bert_config.json"
    settings = json.loads(file.read_text()) if file.is_file() else {}
    settings["module_output_name"] = {"embedding": "token_embeddings", "reranker": "scores"}[kind]
    file.write_text(json.dumps(settings | {"modality_config": {"text": way}}))
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert load(directory, "MODEL") is not None, "its texts stay texts"
    file.write_text(json.dumps(settings | {"modality_config": {"text": way, "message": way | {"format": "flat"}}}))
    with pytest.raises(UserError, match=r"^MODEL: must take texts as they are, got a model that writes them by its"):
        load(directory, "MODEL")

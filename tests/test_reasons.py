"""What is shown of errors of libraries: one line that says what is wrong, also where the first line is a heading."""

from pathlib import Path

import pyarrow
import pytest
import torch
from pydantic import BaseModel, ValidationError
from transformers import GenerationConfig

from actors.config import UserError
from actors.failure import first_sentence, reason_of
from actors.group import first_line
from launch.kube.rules_job import _runtime_env


class _Size(BaseModel):
    width: int


def test_a_heading_brings_what_stands_below_it() -> None:
    with pytest.raises(ValueError, match="is invalid: \n") as invalid:
        GenerationConfig(top_p=0.3, do_sample=False).validate(strict=True)
    assert reason_of(invalid.value).startswith("GenerationConfig is invalid: - `top_p`: `do_sample` is not set to")
    assert "If you're using a pretrained model" not in reason_of(invalid.value), "what follows the list"
    with pytest.raises(RuntimeError) as missing:
        torch.nn.Linear(2, 3, bias=False).load_state_dict({})
    assert reason_of(missing.value) == (
        'Error(s) in loading state_dict for Linear: Missing key(s) in state_dict: "weight".'
    )
    with pytest.raises(ValidationError) as wrong:
        _Size.model_validate({"width": "wide"})
    assert reason_of(wrong.value).startswith("1 validation error for _Size width Input should be a valid integer")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ""),
        ("\n \n a \n b", "a"),
        ("it failed:\n\nno room\nask someone", "it failed: no room"),
        ("it failed:\nin part:\n  1. a\n  2. b\nask someone", "it failed: in part: 1. a 2. b"),
        ("it failed:\n- a\n- b:\n- c\n\nd", "it failed: - a - b: - c"),
        ("it failed:", "it failed:"),
        ("it failed\n- a", "it failed"),
        ("a:\r\nb\r\nc", "a: b"),
        ("a: b\u2028c", "a: b"),
        ("x" * 500 + "\ny", "x" * 500),
        ("it failed:\n" + "- of many things\n" * 99, f"{('it failed: ' + '- of many things ' * 99)[:396]} ..."),
        ("got:\nhttps://me:secret@host/a?token=abc", "got: https://***@host/a?token=***"),
        ("key:\n-----BEGIN RSA PRIVATE KEY-----\nab\ncd\n-----END RSA PRIVATE KEY-----\nx", "key: ***"),
    ],
)
def test_a_reason_is_one_line_without_secrets(text: str, said: str) -> None:
    assert first_sentence(text) == said
    assert reason_of(OSError(text)) == (said or "OSError")


def test_of_a_traceback_it_is_what_was_raised() -> None:
    frames = '  File "/a/b.py", line 3, in f\n    raise ValueError(text)\n    ^^^^^^\n'
    told = "ValueError: GenerationConfig is invalid:\n- `top_p`: is 2\n\n- `top_k`: is -1\nSee the manual"
    traceback = f"\x1b[36mray::f()\x1b[39m (pid=1, ip=127.0.0.1)\n{frames}KeyError: 'a'\n\nAnother:\n\n{frames}{told}"
    assert first_line(traceback) == "ValueError: GenerationConfig is invalid: - `top_p`: is 2 - `top_k`: is -1"
    assert first_line("ray::f() died\nof age") == "of age"
    assert first_line("") == "no message"


def test_parquet_and_yaml_tell_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from algorithms.data.row_parquet import rows_of_parquet

    def broken_file(path: Path) -> None:
        raise pyarrow.ArrowInvalid(f"cannot open {path.name}:\n  no footer\n")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile", broken_file)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(UserError, match=r"cannot be read as Parquet \(cannot open a.parquet: no footer\)$"):
        list(rows_of_parquet(tmp_path / "a.parquet", "data.train"))
    assert list(_runtime_env("a: [")) == ["spec.runtimeEnvYAML: must be YAML, got while parsing a flow node"]

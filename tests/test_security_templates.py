"""A chat template is a program of whoever made the model: whatever it does is one line, and takes neither time nor
memory without bound."""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from actors.models.tokenizer import build_char_tokenizer
from algorithms.config import DataConfig
from algorithms.data import rendering
from algorithms.data.tokens import prompts, sequences
from algorithms.user import deadline
from launch.models.files import template_fault
from launch.verbs.chat import _render

ROOT = Path(__file__).resolve().parent.parent
ROWS = [{"prompt": "ab", "answer": "b"}]
SAYS_NOTHING = "{{ messages[0].content }}"
RAISES = {
    "zero": ("{{ 1 / 0 }}", "division by zero"),
    "none": ("{{ messages[0].nothing.nothing }}", "has no attribute 'nothing'"),
    "index": ("{{ messages[7].content }}", "has no element 7"),
    "text": ("{{ 'a' + 1 }}", 'can only concatenate str (not "int") to str'),
    "value": ("{{ '%d' % 'a' }}", "%d format"),
    "itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth exceeded"),
    "range": ("{% for i in range(10**9) %}a{% endfor %}", "Range too big"),
    "sandbox": ("{{ messages.__class__.__base__ }}", "access to attribute '__class__' of 'list' object is unsafe"),
    "digits": ("{{ 10 ** 5000 }}", "Exceeds the limit (4300 digits)"),
    "own": ("{{ raise_exception('no\\nsuch turn') }}", "no"),
    "syntax": ("{% for %}", "Expected"),
    "brackets": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion"),
}
TAKES = {
    "loops": (
        "{% for i in range(5000) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
        "took longer than 0.5 s",
    ),
    "power": ("{{ 7 ** (7 ** 9) }}", "took longer than 0.5 s"),
    "product": ("{{ 'a' * 4 * 10**8 }}", "it needs more than 200 MiB of memory"),
    "format": ("{{ '%400000000d' % 1 }}", "it needs more than 200 MiB of memory"),
    "centre": ("{{ 'a' | center(400000000) }}", "it needs more than 200 MiB of memory"),
    "double": (  # To 4 GiB, as memory that earlier tests freed serves half a GiB without asking the kernel for any.
        "{% set n = namespace(s='a' * 1000) %}{% for i in range(22) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "it needs more than 200 MiB of memory",
    ),
}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits so small that templates show them which are harmless without; a busy machine must not end this process."""
    monkeypatch.setattr(rendering, "_TEMPLATE_S", 0.5)
    monkeypatch.setattr(rendering, "_ENDED_AFTER", 60)
    monkeypatch.setattr(rendering, "_TEMPLATE_MIB", 200)


def tokenizer_with(template: Any) -> Any:
    tokenizer = build_char_tokenizer("abcdefgh")
    tokenizer.chat_template = template
    return tokenizer


def problem(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    [line] = caught.value.problems
    return line


@pytest.mark.parametrize("kind", [*RAISES, *TAKES])
def test_whatever_a_template_does_is_one_line(kind: str) -> None:
    template, says = (RAISES | TAKES)[kind]
    tokenizer, data = tokenizer_with(template), DataConfig(train="rows.jsonl")
    started = time.monotonic()
    line = problem(lambda: prompts(ROWS, data, tokenizer, max_prompt_tokens=99))
    assert line.startswith("data.train: row 1: the chat template refuses it (")
    assert says in line
    assert "\n" not in line
    assert says in problem(lambda: _render(tokenizer, [{"role": "user", "content": "a"}]))
    if kind in TAKES:
        assert says in (template_fault(tokenizer) or "")
    assert time.monotonic() - started < 60


def test_a_long_conversation_may_need_more_memory_and_the_line_says_how_much() -> None:
    tokenizer, rows = tokenizer_with(TAKES["product"][0]), [{"messages": [{"role": "user", "content": "a" * 100_000}]}]
    line = problem(lambda: prompts(rows, DataConfig(train="rows.jsonl"), tokenizer, max_prompt_tokens=99))
    assert "it needs more than 300 MiB of memory" in line


def test_a_text_far_longer_than_its_conversation_is_refused_though_there_is_memory_for_it() -> None:
    """Memory that was freed before is free again, whatever the limit: of such a text, tokens take forty times more."""
    line = problem(
        lambda: prompts(
            ROWS, DataConfig(train="rows.jsonl"), tokenizer_with("{{ 'ab' * 9 * 10**6 }}"), max_prompt_tokens=99
        )
    )
    assert line == "data.train: row 1: the chat template refuses it (it writes 17 MiB for 6 characters)"
    marked = "{% generation %}{{ 'ab' * 9 * 10**6 }}{% endgeneration %}"
    talk = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    line = problem(
        lambda: sequences(talk, DataConfig(train="rows.jsonl"), tokenizer_with(marked), train_on="completions")
    )
    assert "it writes 17 MiB" in line


@pytest.mark.parametrize("key", ["name", "tool_calls", "weight"])
@pytest.mark.parametrize("value", [None, 1, [], {"a": [1, "b"]}])
def test_a_message_may_have_keys_of_any_kind(key: str, value: Any) -> None:
    """Tables fill keys that other rows have with null; OpenAI's messages have a weight and calls of tools. What is
    neither of these is one line."""
    tokenizer, data = tokenizer_with(build_char_tokenizer("a").chat_template), DataConfig(train="rows.jsonl")
    rows = [{"messages": [{"role": "user", "content": "ab", key: value}]}]
    if key == "name" or value is None or (key, value) in (("weight", 1), ("tool_calls", [])):
        [prompt] = prompts(rows, data, tokenizer, max_prompt_tokens=99)
        assert prompt.text == "ab"
    else:
        line = problem(lambda: prompts(rows, data, tokenizer, max_prompt_tokens=99))
        assert line.startswith("data.train: row 1: ") and key.removesuffix("s") in line


HASHES = "{% set n = namespace(t=(1, 2)) %}{% for i in range(99) %}{% set n.t = (n.t, n.t) %}{% endfor %}{{ {n.t: 1} }}"
"""The hash of a tuple is that of its parts, and is kept nowhere: this one takes 2**99 steps, all within one call."""


def hash_long() -> None:
    """For a process of its own, which this ends."""
    rendering._TEMPLATE_S = 0.5
    rendering.run_template(tokenizer_with(HASHES), ROWS)


ASIDE = """
from launch.checks.tokenizer_process import Aside
with Aside() as aside:
    from tests.test_security_templates import hash_long
    assert aside._connection is not None
    aside.call(hash_long)
"""


def test_what_nothing_interrupts_is_ended() -> None:
    there = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", ASIDE], env=there, capture_output=True, text=True, timeout=120)
    assert "UserError: data: must be rendered by the chat template in seconds, got one that never" in done.stderr


def test_of_several_templates_one_must_be_the_default() -> None:
    tokenizer, data = tokenizer_with({"rag": SAYS_NOTHING, "tool": SAYS_NOTHING}), DataConfig(train="rows.jsonl")
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    make = functools.partial(sequences, rows, data, tokenizer, train_on="completions")
    assert problem(make).startswith("data.train: row 1: the chat template ")


def test_usual_templates_are_quick_and_limits_are_gone_afterwards() -> None:
    import resource

    tokenizer = build_char_tokenizer("abcdefgh")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    started = time.process_time()
    for _ in range(1000):
        rendering.render_messages([{"role": "user", "content": "ab"}], tokenizer)
    assert time.process_time() - started < 3
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_check_says_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from launch.cli import main

    monkeypatch.chdir(tmp_path)
    tokenizer_with("{{ messages[0].content.nothing() }}").save_pretrained("model")
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 20}
    Path("model/config.json").write_text(json.dumps(config))
    Path("rows.jsonl").write_text(json.dumps(ROWS[0]))
    Path("job.yaml").write_text(
        "algorithm: {name: grpo, steps: 1}\nmodel: {path: model}\ndata: {train: rows.jsonl}\n"
        "reward: {functions: [exact_match]}\n"
    )
    assert main(["data", "job.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: data.train: row 1: the chat template refuses it ('str object' has no attribute")
    assert said.count("\n") == 1


def test_a_template_that_has_to_wait_for_the_machine_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template only computes: it is given its time, however long others have the cores."""
    monkeypatch.setattr(rendering, "_TEMPLATE_S", 0.5)
    monkeypatch.setattr(deadline, "_LOOK_EVERY_S", 0.05)

    class Slow:
        def apply_chat_template(self, messages: list[Any], **options: Any) -> str:
            time.sleep(0.8)  # as seen by who waits for a core
            return "done"

    assert rendering.run_template(Slow(), []) == "done"

"""Which sources a configuration loads, what their process keeps of the environment, and what a scorer hands on."""

import math
import os
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from actors.episodes import Episode, Prompt
from algorithms.config import RewardConfig
from algorithms.rewards import scores as rewards
from algorithms.rewards.scores import Score, load_scorer, load_sources, score_batch, score_rollouts, sources_labels
from tests.episodes import episode

FUNCTIONS = """
import os

SEEN = {name: os.environ.get(name) for name in ("JUDGE_TOKEN", "OTHER_TOKEN", "PLAIN")}

def score(completion):
    return float(len(completion))

def nothing(completion):
    return None
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {"JUDGE_TOKEN": "secret one", "OTHER_TOKEN": "secret two", "PLAIN": "x"}.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "mine.py"
    path.write_text(FUNCTIONS)
    return path


def rollout(text: str, status: Any = "ok") -> Episode:
    return episode([1], [2], status=status, text=text, finish_reason="abort" if status == "failed" else "stop")


def config(path: Path, **settings: Any) -> RewardConfig:
    endpoints = [{"url": f"http://{host}/score", "headers": {"A": f"${name}"}} for host, name in _HOSTS]
    values: dict[str, Any] = {"functions": [f"{path}:score", f"{path}:nothing"], "endpoints": endpoints}
    return RewardConfig(**(values | settings))


_HOSTS = [("one", "JUDGE_TOKEN"), ("two", "OTHER_TOKEN")]
PROMPT = Prompt(index=0, token_ids=[1], text="1+1=", row={"answer": "2"})


def test_sources_have_their_labels_and_settings_functions_first(mine: Path) -> None:
    loaded = load_sources(config(mine, deadline_s=10))
    assert [source.label for source in loaded] == ["score", "nothing", "score_2", "score_3"]
    assert [source.name for source in loaded[:2]] == [f"{mine}:score", f"{mine}:nothing"]
    headers: list[Any] = [source.headers for source in loaded[2:]]  # type: ignore[union-attr]
    assert headers == [{"A": "secret one"}, {"A": "secret two"}]
    shorter: Any = load_sources(config(mine, deadline_s=5))[2]
    assert 0 < shorter.deadline_s == loaded[2].deadline_s / 2  # type: ignore[union-attr]


@pytest.mark.parametrize("passed", [[], ["OTHER_TOKEN"]])
def test_a_confined_process_forgets_what_only_endpoints_need(mine: Path, passed: list[str]) -> None:
    """Before it imports functions; their sources have read it."""
    assert len(load_sources(config(mine, pass_env=passed))) == 4
    assert os.environ["JUDGE_TOKEN"] == "secret one" and os.environ["OTHER_TOKEN"] == "secret two"
    load_sources(config(mine, pass_env=passed), confined=True)
    told = {name: os.environ.get(name) for name in ("JUDGE_TOKEN", "OTHER_TOKEN", "PLAIN")}
    assert told == {"JUDGE_TOKEN": None, "OTHER_TOKEN": "secret two" if passed else None, "PLAIN": "x"}


def test_a_scorer_is_confined_and_waits_for_reward_models_with_a_weight(mine: Path) -> None:
    """Without one, nothing is still to come for a response on which all abstain."""
    only_nothing = {"functions": [f"{mine}:nothing"], "endpoints": []}
    models = [[], [{"path": "a", "weight": 0.0}], [{"path": "a", "weight": 0.0}, {"path": "b", "weight": 2.0}]]
    for listed, status in zip(models, ["failed", "failed", "abstained"], strict=True):
        scorer = load_scorer(config(mine, models=listed, **only_nothing))
        [score] = scorer(PROMPT, [rollout("abc")], math.inf)
        assert score.status == status
    load_scorer(config(mine))
    assert "JUDGE_TOKEN" not in os.environ


def test_mistakes_of_endpoints_alone_are_told(mine: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_sources(RewardConfig(functions=[f"{mine}:score"], endpoints=["http://me:secret@two/score"]))  # type: ignore[list-item]
    assert [line.split(":")[0] for line in caught.value.problems] == ["reward.endpoints.0.url"]
    with pytest.raises(UserError) as caught:
        load_sources(RewardConfig(functions=[f"{mine}:scores"]))  # type: ignore[list-item]
    assert [line.split(":")[0] for line in caught.value.problems] == ["reward.functions.0.name"]


def test_whole_rollouts_are_scored_by_a_deadline_and_failed_ones_name_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def batch(sources: Any, samples: Any, until: float | None, *, models: bool) -> list[Score]:
        asked.append((sources, samples.prompts, samples.completions, samples.columns, until, models))
        return [Score(reward=float(text), parts={}, status="ok") for text in samples.completions]

    monkeypatch.setattr(rewards, "score_batch", batch)
    rollouts = [rollout("3"), rollout("half", "failed"), rollout("5", "truncated")]
    for given, until, models in (((), None, False), ((9.5,), 9.5, False), ((9.5,), 9.5, True)):
        options = {"models": True} if models else {}
        first, failed, last = score_rollouts(["source"], PROMPT, rollouts, *given, **options)  # type: ignore[list-item]
        assert asked.pop() == (["source"], ["1+1="] * 2, ["3", "5"], {"answer": ["2", "2"]}, until, models)
        assert (first.reward, last.reward) == (3.0, 5.0)
        assert (failed.status, failed.cause) == ("failed", "the rollout failed (abort)")
        assert failed.error == "the rollout failed (abort); prompt '1+1=', completion 'half'"


def test_endpoints_alone_get_the_deadline(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_sources(config(mine))
    told: list[float | None] = []

    def evaluate(self: Any, samples: Any, until: float | None) -> list[float]:
        told.append(until)
        return [0.0] * len(samples.completions)

    monkeypatch.setattr(rewards.LoadedEndpoint, "evaluate", evaluate)
    for until in (None, 4.5):
        [score] = score_batch(found, rewards.Samples(prompts=["p"], completions=["abc"], columns={}), until)
        assert score.parts == {"score": 3.0, "score_2": 0.0, "score_3": 0.0} and score.reward == 3.0
        assert told[-2:] == [until, until]


@pytest.mark.parametrize(
    ("path", "label"),
    [("/", "model"), ("..", "model"), ("/export", "export"), ("a/export", "a"), ("../export", "export"), ("a/b", "b")],
)
def test_the_label_of_a_model_is_the_last_part_of_its_path_that_tells(path: str, label: str) -> None:
    assert sources_labels(RewardConfig(models=[{"path": path}])) == ([], [label], [])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("url", "label"), [("http://[", "endpoint"), ("http:///", "endpoint"), ("http://h/", "h"), ("http://h/a/b", "b")]
)
def test_the_label_of_an_endpoint_is_the_last_part_of_its_path_or_its_host(url: str, label: str) -> None:
    made = RewardConfig.model_construct(functions=[], models=[], endpoints=[_Endpoint(url)])  # type: ignore[list-item]
    assert sources_labels(made) == ([], [], [label])


class _Endpoint:
    """One whose address was not checked yet."""

    def __init__(self, url: str) -> None:
        self.url = url

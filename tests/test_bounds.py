"""No number of a configuration is without bounds: a slip of a digit is told at once, and what large runs use passes."""

import re
from typing import Any

import pytest

from actors.config import UserError
from launch.config import load, validate
from launch.settings.tree import range_text, settings, type_text

NUMBERS = [item for item in settings() if re.search("number", type_text(item)) and not item.sections]
ANY = {"model.init.seed"}
"""A seed may be any number."""


def test_every_number_has_bounds() -> None:
    """Above and below, as the documentation says them."""
    assert len(NUMBERS) > 150
    for item in NUMBERS:
        if item.path not in ANY:
            assert re.search("at most|below", range_text(item)), f"{item.path} has no upper bound"
            assert re.search("above|at least", range_text(item)), f"{item.path} has no lower bound"


ABSURD = {
    "algorithm.steps=1000000000000000": "algorithm.steps: must be at most 1e9, got 1000000000000000",
    "algorithm.samples_per_prompt=1000000000": "algorithm.samples_per_prompt: must be at most 1e6, got 1000000000",
    "algorithm.prompts_per_step=1000000000": "algorithm.prompts_per_step: must be at most 1e6, got 1000000000",
    "algorithm.epochs_per_step=1000000000": "algorithm.epochs_per_step: must be at most 1e6, got 1000000000",
    "algorithm.clip_high=1e30": "algorithm.clip_high: must be at most 1e6, got 1e+30",
    "policy.ranks=1000000": "policy.ranks: must be at most 100000, got 1000000",
    "policy.optimizer.lr=1000": "policy.optimizer.lr: must be at most 100, got 1000",
    "rollout.engines=1000000": "rollout.engines: must be at most 100000, got 1000000",
    "rollout.max_concurrent=1000000000000": "rollout.max_concurrent: must be at most 1e6, got 1000000000000",
    "rollout.max_response_tokens=1000000000000": "rollout.max_response_tokens: must be at most 1e8, got 1000000000000",
    "rollout.temperature=1e9": "rollout.temperature: must be at most 1e6, got 1000000000.0",
    "rollout.stop_token_ids=[1000000000000]": "rollout.stop_token_ids.0: must be at most 1e9, got 1000000000000",
    "model.init.hidden_size=1000000000": "model.init.hidden_size: must be at most 1e6, got 1000000000",
    "model.init.max_positions=1000000000": "model.init.max_positions: must be at most 1e8, got 1000000000",
    "cluster.gpus=1000000000": "cluster.gpus: must be at most 1e6, got 1000000000",
    "cluster.kubernetes.fs_group=4294967296": "cluster.kubernetes.fs_group: must be below 2147483648, got 4294967296",
    "reward.functions=[{name: f, weight: 1e300}]": "reward.functions.0.weight: must be at most 1e6, got 1e+300",
}  # fmt: skip


def job() -> dict[str, Any]:
    return {
        "algorithm": {"name": "grpo", "steps": 10},
        "model": {"init": {}},
        "data": {"train": "x.jsonl"},
        "reward": {"functions": ["exact_match"]},
    }


@pytest.mark.parametrize("given", ABSURD)
def test_what_no_run_has_is_refused(given: str, tmp_path: Any) -> None:
    import yaml

    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job()))
    with pytest.raises(UserError) as caught:
        load(str(path), [given])
    assert caught.value.problems == (ABSURD[given],)


def test_what_a_large_laboratory_has_passes() -> None:
    values = job()
    values["algorithm"] |= {"steps": 1_000_000, "prompts_per_step": 16_384, "samples_per_prompt": 256}
    values["model"] = {"path": "somewhere"}
    values["policy"] = {"ranks": 16_384, "gpus_per_rank": 1, "optimizer": {"max_grad_norm": 1e10}}
    values["rollout"] = {"engines": 10_000, "max_prompt_tokens": 1_000_000, "max_response_tokens": 1_000_000}
    values["data"]["limit"] = 10**10
    assert validate(values).rollout.max_model_len == 2_000_000


def test_pods_of_the_largest_run_are_packed_at_once() -> None:
    """Each bundle looks only at nodes that may have room: 100,000 engines beside as many ranks."""
    from launch.kube.packing import pack_nodes
    from launch.sizes.placement import reservations

    values = job()
    values["algorithm"] |= {"prompts_per_step": 100_000}
    values["policy"] = {"ranks": 100_000, "gpus_per_rank": 1}
    values["rollout"] = {"engines": 100_000, "gpus_per_engine": 1}
    nodes = pack_nodes(reservations(validate(values)), 8)
    assert len(nodes) == 25_000
    assert all(sum(node.processes.values()) == 8 for node in nodes)

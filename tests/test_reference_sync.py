"""When the reference follows the policy: after every n steps of a loop, over a file that is then gone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from algorithms.config_offline import DPOConfig
from algorithms.loop import Clock
from algorithms.offline.dpo import DPO
from launch.config import validate
from launch.run.groups import reference_sync


def recorder(calls: list[tuple[Any, ...]]) -> Any:
    """A group that writes down what it is told, and the file it is told to write."""

    def call(method: Any, file: Path, *arguments: Any) -> None:
        calls.append((method.__name__, *arguments))
        if method.__name__ == "write_weights":
            file.write_text("weights")
        else:
            assert file.read_text() == "weights"

    return SimpleNamespace(call=call)


def test_the_reference_follows_every_so_many_steps(tmp_path: Path) -> None:
    config = validate(
        {
            "algorithm": {"name": "dpo", "steps": 9},
            "model": {"init": {}},
            "data": {"train": "rows.jsonl"},
            "reference": {"sync_every": 4, "sync_mix": 0.5},
            "run": {"output": str(tmp_path.parent), "name": tmp_path.name},
        }
    )
    calls: list[tuple[Any, ...]] = []
    settings: dict[str, Any] = dict.fromkeys(
        ("roster", "rows", "batches", "evaluation", "checkpoint", "reference", "read_reference", "cache")
    )
    loop = DPO(
        config=DPOConfig(name="dpo", steps=9),
        reporter=SimpleNamespace(phase=lambda name: None),  # type: ignore[arg-type]
        micro_batch_tokens=1,
        reference_tokens=1,
        max_length=1,
        total_updates=9,
        sync_reference=reference_sync(config, {"policy": recorder(calls), "reference": recorder(calls)}),
        **settings,
    )
    clock = Clock(loop.reporter)
    after = {}
    for loop.step in range(1, 10):
        loop.after_update(clock)
        after[loop.step] = len(calls)
    assert after == {1: 0, 2: 0, 3: 0, 4: 2, 5: 2, 6: 2, 7: 2, 8: 4, 9: 4}
    assert calls == [("write_weights",), ("follow", 0.5)] * 2
    assert list(tmp_path.iterdir()) == []

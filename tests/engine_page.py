"""docs/models.md: how each family is trained, and how engines serve it, by what `tests.engine_families` has found."""

from collections.abc import Iterable
from typing import Any

HEAD = """# Models

Made by `make families`: every causal family of transformers 5.19 as a tiny random model, through vLLM 0.32 on CPU,
in an environment without torchvision. Weights are updated in place three times, and logprobs of a prompt's 45 tokens
and of sampled ones compared with the trainer's, in fp32.

- trained *packed*: sequences share a row, and responses their prompt; *rows*: each in a row of its own.
- rollout by *vLLM*: by its own class, by *transformers*: by the code of transformers with vLLM's attention, experts and
  linear layers in it. `tandem check` tells which one it is, and refuses what is listed as refused.
- difference: the largest of a logprob, over all versions and shapes. `weights/canary_difference` is that of a run.

What is refused on CPU for its kernels may run on GPUs, where the canary alone says whether an update has arrived.

| family | trained | rollout on CPU | shapes | difference |
|---|---|---|---|---|
"""


def written(found: Iterable[dict[str, Any]]) -> str:
    """The page, from the lines of `tests.engine_families`."""
    rows: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for each in found:
        rows.setdefault((each["kind"], each.get("way", ""), _rollout(each)), []).append(each)
    lines = []
    for (kind, way, rollout), alike in sorted(rows.items()):
        most = max((max(each["differences"]) for each in alike if "differences" in each), default=None)
        shapes = ", ".join(each["name"] for each in alike)
        difference = "" if most is None else f"{most:.0e}"
        lines.append(f"| {kind} | {way or 'refused'} | {rollout} | {shapes} | {difference} |")
    return HEAD + "\n".join(lines) + "\n"


def _rollout(each: dict[str, Any]) -> str:
    if "refused" in each:
        rule = each["refused"].partition(": ")[2]
        return f"refused: {rule.partition(', which ')[2] or rule}"
    return "transformers" if each["engine"].startswith("Transformers") else "vLLM"

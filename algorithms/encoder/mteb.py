"""Tasks of the Massive Text Embedding Benchmark (MTEB, arXiv 2210.07316), by name, for an exported model."""

import importlib
from pathlib import Path
from typing import Any, Literal

from actors.config import UserError
from algorithms.user.code import cause_of
from algorithms.words import nearest


def mteb_tasks(names: list[str]) -> list[Any]:
    """The tasks of these names; no data is loaded yet.

    Raises:
        UserError: mteb is not installed or cannot be imported, no name is given, or it has no task of a name.
    """
    try:
        # By name, as it is an extra: type checkers should not ask for it.
        mteb = importlib.import_module("mteb")
    except ImportError as error:
        raise UserError(
            f'algorithm.mteb: needs the package mteb (pip install "tandem-rlhf[mteb]"), '
            f"importing it raised {cause_of(error)}"
        ) from None
    if not names:
        raise UserError("algorithm.mteb: must name at least one task, got []")
    found = []
    for name in names:
        try:
            found.append(mteb.get_task(name))
        except KeyError:
            known = [task.metadata.name for task in mteb.get_tasks(exclude_superseded=False, exclude_private=False)]
            raise UserError(
                f"algorithm.mteb: there is no task of this name{nearest(name, known)}, got {name}"
            ) from None
    return found


def run_mteb(path: Path, tasks: list[str], output: Path, kind: Literal["embedding", "reranker"]) -> dict[str, float]:
    """Main score of every task by its name: MTEB's mean over its splits and languages.

    Data comes from the hub, or its cache. Each task's results are written to `output`/NAME.json once it is done.

    Args:
        path: directory that sentence-transformers loads: of an embedding model, or of a reranker (a cross-encoder).

    Raises:
        UserError: as mteb_tasks does, or a task fails: its data cannot be had, or it is not one for rerankers.
    """
    found = mteb_tasks(tasks)
    mteb = importlib.import_module("mteb")
    from sentence_transformers import CrossEncoder, SentenceTransformer

    loader = SentenceTransformer if kind == "embedding" else CrossEncoder
    model = loader(str(path), trust_remote_code=False)
    output.mkdir(parents=True, exist_ok=True)
    scores = {}
    for task in found:
        name = task.metadata.name
        try:
            # No cache: it goes by the model's name, which a directory does not have, and would give old results.
            result = mteb.evaluate(model, task, cache=None, show_progress_bar=False).task_results[0]
        except Exception as error:  # downloads and the code of hundreds of tasks: any failure is reported as the task's
            raise UserError(
                f"algorithm.mteb: task {name} failed for the {kind} model in {path} ({cause_of(error)})"
            ) from error
        result.to_disk(output / f"{name}.json")
        scores[name] = float(result.main_score)
    return scores

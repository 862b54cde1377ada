"""The verb `search`: what an embedding model or a reranker finds for a query, to look at."""

import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from actors.config import UserError
from actors.files.own_files import stranger
from launch.config import RunConfig, load
from launch.kinds.encoder import EncoderKind
from launch.kinds.table import job_kind
from launch.screen.shown import visible
from launch.settings.named_code import code_of
from launch.verbs.encoder_files import (
    encoder_directory,
    encoder_kind,
    load_embedding_model,
    load_reranker,
    read_passages,
    say,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from algorithms.encoder.rows import Graded, Ranking, Scored

_MOST_OWN, _MOST_RERANKED = 10_000, 200
_SHOWN_CHARACTERS = 300
_CANDIDATES = 50

Found = list[tuple[float, str]]
"""Scores and passages, best first. Example: [(0.87, "Paris is the capital of France.")]."""
Searcher = Callable[[str], Found]


def search(
    model: str,
    *,
    corpus: str | None,
    query: str | None,
    top: int,
    first_stage: str | None,
    candidates: int | None,
) -> int:
    """Print the best passages for `query`, or for each line of standard input. Returns exit code 0.

    Raises:
        UserError: a model or corpus that cannot be used, or options that do not belong to this kind of model.
    """
    if candidates is not None and first_stage is None:
        raise UserError(f"--candidates: needs --first-stage, got {candidates}")
    directory = encoder_directory(model)
    kind = encoder_kind(directory)
    if first_stage is not None and kind == "embedding":
        raise UserError(f"--first-stage: is for a reranker, got an embedding model in {directory}")
    # Each once: the same text at several places would fill the answer.
    passages = list(dict.fromkeys(read_passages(corpus) if corpus is not None else own_passages(Path(model))))
    if kind == "embedding":
        find = embedding_search(directory, passages, top)
    elif first_stage is not None:
        first = embedding_search(
            encoder_directory(first_stage, "--first-stage"), passages, candidates or _CANDIDATES, "--first-stage"
        )
        find = reranker_search(directory, lambda text: [passage for _, passage in first(text)], top)
    elif len(passages) > _MOST_RERANKED:
        raise UserError(
            f"--corpus: must have at most {_MOST_RERANKED} passages for a reranker alone; a corpus this large needs an "
            f"embedding model first, with --first-stage DIR, got {len(passages)}"
        )
    else:
        find = reranker_search(directory, lambda text: passages, top)
    if query is not None:
        _show(find(query))
        return 0
    print(f"{directory}: {len(passages)} passages" + (" (Ctrl-D ends)" if sys.stdin.isatty() else ""), flush=True)
    for line in _queries():
        _show(find(line))
    return 0


def embedding_search(directory: Path, passages: list[str], top: int, field: str = "MODEL") -> Searcher:
    """Search by an embedding model's own similarity, with the prompts that it keeps; `field` is for messages."""
    model = load_embedding_model(directory, field)
    say(f"encoding {len(passages)} passages")
    vectors = model.encode_document(passages, convert_to_tensor=True)

    def find(query: str) -> Found:
        scores = model.similarity(model.encode_query([query], convert_to_tensor=True), vectors)[0].float()
        best, places = scores.topk(min(top, len(passages)))
        return [(score, passages[place]) for score, place in zip(best.tolist(), places.tolist(), strict=True)]

    return find


def reranker_search(directory: Path, candidates: Callable[[str], list[str]], top: int) -> Searcher:
    """Order the candidates of a query by a reranker's scores."""
    model = load_reranker(directory, "MODEL")

    def find(query: str) -> Found:
        passages = candidates(query)
        scores: NDArray[np.float32] = model.predict([(query, passage) for passage in passages])
        order = (-scores).argsort(kind="stable")[:top]  # stable: of equal ones the first stage's order stays
        return [(float(scores[place]), passages[place]) for place in order]

    return find


def own_passages(run: Path) -> list[str]:
    """The passages that a run's configuration names: held-out ones, its corpus, then those it has learned."""
    path = run / "config.json"
    if not (run / "export").is_dir() or not path.is_file():
        raise UserError(f"--corpus: required for a model that is no run directory, got {run}")
    if why := stranger(path):
        raise UserError(f"--corpus: required for a run of somebody else's, as {path} {why}, got {run}")
    config, found = load(str(path), []), dict[str, None]()
    if code := [(field, name) for field, name in code_of(config) if field.startswith("data.")]:
        field, name = code[0]
        raise UserError(
            f"--corpus: required for a run whose passages come from code, which is not run for a search ({field}: "
            f"{name}), got {run}"
        )
    for text in _texts(config, run):
        found[text] = None  # a set that keeps the order
        if len(found) == _MOST_OWN:
            say(f"only the first {_MOST_OWN} passages of the run's data are searched; --corpus names others")
            break
    return list(found)


def _texts(config: RunConfig, run: Path) -> Iterator[str]:
    from algorithms.encoder.data import training_tasks
    from algorithms.encoder.held_out import RankedSet, held_out

    kind, data = job_kind(config), config.data
    if not isinstance(kind, EncoderKind):
        name = config.algorithm.name
        raise UserError(f"--corpus: required for a run of {name}, which has no passages, got {run}")
    if data.eval is not None:
        for held in held_out(data, reranker=kind.reranks):
            if isinstance(held, RankedSet):
                yield from held.corpus or chain.from_iterable(held.candidates)
            else:
                yield from chain.from_iterable(map(_passages, held.rows))
    for task in training_tasks(kind.algorithm, data, at_most=_MOST_OWN):
        for row in task.rows:
            yield from _passages(row)


def _passages(row: "Ranking | Scored | Graded") -> tuple[str, ...]:
    from algorithms.encoder.rows import Ranking, Scored

    if isinstance(row, Scored):
        return row.first, row.second
    return row.positives + row.negatives if isinstance(row, Ranking) else row.passages


def _show(found: Found) -> None:
    for score, passage in found:
        text = visible(" ".join(passage.split()))
        text = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " ..."
        print(f"{score:.3f}  {text}", flush=True)


def _queries() -> Iterator[str]:
    """Lines from the person or the pipe, blank ones left out; a pipe's are shown where a person would have typed."""
    typed = sys.stdin.isatty()
    while True:
        try:
            line = input("> " if typed else "").strip()
        except EOFError:
            if typed:
                print()
            return
        if line:
            if not typed:
                print(f"> {line}")
            yield line

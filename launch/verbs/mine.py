"""The verb `mine`: hard negatives for every row of a data set, found by an embedding model and perhaps judged
by a reranker.

What takes long is kept beside the output as it is made (launch/verbs/mining_parts.py): an interrupted run continues.
"""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from actors.config import UserError
from actors.files.own_files import stranger
from algorithms.config import DataConfig
from algorithms.config_encoder import EmbeddingConfig
from algorithms.data.sources import read_rows
from launch.config import load
from launch.screen.display import Display, working_on_stderr
from launch.verbs.encoder_files import (
    encoder_directory,
    encoder_kind,
    load_embedding_model,
    load_reranker,
    read_passages,
)
from launch.verbs.mining_parts import digest_of_files, digest_of_values, mining_parts, refuse_existing

if TYPE_CHECKING:
    from algorithms.encoder.mining import MiningRules, MiningTask
    from algorithms.encoder.rows import Graded, Ranking, Scored
    from launch.verbs.miner import Mined, Scores

_Row = TypeVar("_Row", "Ranking", "Scored", "Graded")
_QUANTILES = {"min": 0.0, "10%": 0.1, "50%": 0.5, "90%": 0.9, "max": 1.0}


@dataclass(frozen=True, kw_only=True)
class MineOptions:
    """The arguments of `tandem mine`, by their names there; `window` is --range."""

    model: str
    data: str
    output: str
    corpus: str | None = None
    negatives: int = 7
    window: tuple[int, int] | None = None
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    sampling: Literal["top", "random"] = "top"
    reranker: str | None = None
    rescore: bool = False
    rank: bool = False
    batch_size: int = 32
    seed: int = 0
    query_prompt: str | None = None
    passage_prompt: str | None = None

    @property
    def rescores(self) -> bool:
        """Whether the reranker's scores, not the embedding model's, choose negatives."""
        limits = (self.max_score, self.min_score, self.absolute_margin, self.relative_margin)
        return self.reranker is not None and (self.rescore or any(limit is not None for limit in limits))


def mine(options: MineOptions) -> int:
    """Write the mined rows and print what was found. Returns exit code 0.

    Raises:
        UserError: options that exclude each other, data, corpus or models that cannot be used, or an output that is
            there already or was begun otherwise.
    """
    started = time.monotonic()
    _check(options)
    output = Path(options.output)
    refuse_existing(output)
    model, reranker = _directories(options)
    task = _task(options)
    rules = mining_rules(options, task)
    with working_on_stderr() as display:
        mined, width = _mined(options, task, rules, (model, reranker), display)
    for line in _report(task, rules, mined, width, rank=options.rank):
        print(line)
    print(f"{output}: {time.monotonic() - started:.1f} s")
    return 0


def _mined(
    options: MineOptions, task: "MiningTask", rules: "MiningRules", models: tuple[Path, Path | None], display: Display
) -> "tuple[Mined, int]":
    """What is found, written to the output, and how many passages were looked at for a query; raises UserError."""
    display.phase("loading the model")
    from launch.verbs.miner import Miner  # imports torch, after all that can be refused without it

    (model, reranker), output = models, Path(options.output)

    def told(doing: str, done: int, of: int, what: str) -> None:
        display.phase(doing)
        display.progress(done, of, what)

    miner = Miner(
        task=task,
        rules=rules,
        model=load_embedding_model(model),
        reranker=load_reranker(reranker, "--reranker") if reranker else None,
        rescores=options.rescores,
        rank=options.rank,
        batch_size=options.batch_size,
        seed=options.seed,
        query_prompt=options.query_prompt,
        passage_prompt=options.passage_prompt,
        told=told,
    )
    # The device, too: scores of a GPU and of a CPU differ in the last bits, and parts must agree.
    identity = _identity(options, task, model, reranker) | {"device": miner.model.device.type}
    with mining_parts(output, identity) as parts:
        try:
            mined = miner.run(parts)
            if not (mined.ids >= 0).any():
                parts.discard()
                raise UserError(f"{output}: no row has a negative ({_excluded(mined)})")
            parts.finish(_ranked(task, mined) if options.rank else _rows(task, mined, scored=reranker is not None))
        except KeyboardInterrupt:
            display.note(f"{parts.directory} keeps what is done: the same command continues")
            raise
    return mined, miner.width


def _check(options: MineOptions) -> None:
    if not options.output.endswith(".jsonl"):
        raise UserError(f"--output: must end in .jsonl, got {options.output}")
    if options.rescore and options.reranker is None:
        raise UserError("--rescore: needs --reranker, got none")
    if options.window and options.window[0] >= options.window[1]:
        first, last = options.window
        raise UserError(f"--range: A must be smaller than B, got {first} {last}")
    if options.rank:
        unused = ("window", "max_score", "min_score", "absolute_margin", "relative_margin", "reranker")
        given = [name for name in unused if getattr(options, name) is not None]
        if given or options.sampling != "top":
            name = given[0].replace("window", "range").replace("_", "-") if given else "sampling"
            raise UserError(f"--rank: writes the passages as they are ranked, without choosing, got --{name}")


def _directories(options: MineOptions) -> tuple[Path, Path | None]:
    model = encoder_directory(options.model)
    if encoder_kind(model) == "reranker":
        raise UserError(f"MODEL: must be an embedding model, a reranker goes to --reranker, got {model}")
    if options.reranker is None:
        return model, None
    reranker = encoder_directory(options.reranker, "--reranker")
    if encoder_kind(reranker, "--reranker") == "embedding":
        raise UserError(f"--reranker: must be a reranker, which scores pairs, got an embedding model in {reranker}")
    return model, reranker


def _task(options: MineOptions) -> "MiningTask":
    from algorithms.encoder.mining import mining_task
    from algorithms.encoder.rows import rankings

    if options.data in ("data.train", "data.eval"):
        rows, corpus = _own_rows(options)
    else:
        found = read_rows(options.data, split="train", arguments={}, limit=None, field="--data")
        rows, corpus = rankings(found, DataConfig(train=options.data), "--data"), []
    corpus = corpus + (read_passages(options.corpus) if options.corpus is not None else [])
    for number, row in enumerate(rows, start=1):
        if not row.positives:
            raise UserError(f"--data: row {number} must have at least one positive, got none")
    return mining_task(rows, corpus)


def _own_rows(options: MineOptions) -> tuple[list["Ranking"], list[str]]:
    """Rows of the run's own data, all of those that have positives, and of its corpus where that is evaluation's."""
    from algorithms.encoder.data import training_tasks
    from algorithms.encoder.held_out import RankedSet, held_out
    from algorithms.encoder.rows import Ranking

    path = Path(options.model) / "config.json"
    if path.is_file() and (why := stranger(path)):
        raise UserError(f"--data: must be a file for a run of somebody else's, as {path} {why}, got {options.data}")
    config = load(str(path), []) if (Path(options.model) / "export").is_dir() and path.is_file() else None
    if config is None or not isinstance(config.algorithm, EmbeddingConfig):
        raise UserError(
            f"--data: {options.data} needs MODEL to be the directory of an embedding run, got {options.model}"
        )
    if options.data == "data.train":
        tasks = training_tasks(config.algorithm, config.data)
        rows = [_instructed(row, config.algorithm, task.name) for task in tasks for row in task.rows]
        rows, corpus = [row for row in rows if isinstance(row, Ranking)], []
    else:
        sets = [held for held in held_out(config.data, reranker=False) if isinstance(held, RankedSet)]
        rows = [_instructed(row, config.algorithm, held.name) for held in sets for row in held.rows]
        corpus = [passage for held in sets for passage in held.corpus]
    if not rows:
        raise UserError(f"--data: {options.data} of {options.model} must have rows of a query with positives, got none")
    return rows, corpus


def _instructed(row: _Row, algorithm: EmbeddingConfig, name: str) -> _Row:
    """The row with the instruction that its task puts before queries, where tasks have their own."""
    task = algorithm.tasks.get(name)
    own = task.prompts.query if task else None
    # Rows of two texts and a score have no prompt; a row's own stays.
    return replace(row, prompt=own) if own is not None and getattr(row, "prompt", "") is None else row


def mining_rules(options: MineOptions, task: "MiningTask") -> "MiningRules":
    """The rules that the options mean for this data.

    Raises:
        UserError: when no query can have so many negatives.
    """
    from algorithms.encoder.mining import MiningRules

    count = options.negatives
    if options.window:
        first, last = options.window
        if count > last - first:
            raise UserError(f"--negatives: must not exceed the {last - first} candidates of --range, got {count}")
    else:
        bounded = (options.max_score, options.absolute_margin, options.relative_margin)
        # As in sentence-transformers: ten times as many where some will be excluded.
        several = options.rescores or any(limit is not None for limit in bounded)
        first, last = 0, count * (10 if several else 1) + task.most_positives
    # By the query of the fewest positives: others get as many negatives as there are, without an error.
    others = len(task.passages) - (0 if options.rank else min(map(len, task.positives)))
    if count > others:
        kind = "passages" if options.rank else "passages that are no positives of a query"
        raise UserError(f"--negatives: must not exceed the {others} {kind}, got {count}")
    return MiningRules(
        negatives=count,
        first=first,
        last=last,
        max_score=options.max_score,
        min_score=options.min_score,
        absolute_margin=options.absolute_margin,
        relative_margin=options.relative_margin,
        sampling=options.sampling,
    )


def _identity(options: MineOptions, task: "MiningTask", model: Path, reranker: Path | None) -> dict[str, object]:
    """All that the result depends on."""
    read = ([row.prompt, row.query, row.positives] for row in task.rows)
    # What these hold is told by the digests; where the result goes changes nothing in it.
    elsewhere = {"model", "data", "corpus", "reranker", "output"}
    settings = {name: value for name, value in asdict(options).items() if name not in elsewhere}
    return {
        "model": digest_of_files(model),
        "reranker": digest_of_files(reranker) if reranker else None,
        "data": digest_of_values([*read, task.passages]),
        "settings": json.loads(json.dumps(settings)),  # as they come back from the file: tuples are lists
    }


def _rows(task: "MiningTask", mined: "Mined", *, scored: bool) -> Iterator[dict[str, object]]:
    """Rows as FlagEmbedding has them; those without a negative are left out."""
    from algorithms.encoder.mining import same_text

    starts = [0]  # where the scores of each query's positives begin
    for positives in task.positives:
        starts.append(starts[-1] + len(positives))
    for row, query in zip(task.rows, task.query_of_row, strict=True):
        ids = mined.ids[query][mined.ids[query] >= 0]
        if not len(ids):
            continue
        made: dict[str, object] = {"query": row.query, "pos": list(row.positives)}
        made["neg"] = [task.passages[item] for item in ids]
        if scored:
            keys = [same_text(task.passages[item]) for item in task.positives[query]]
            # The query's positives are those of all its rows: each row has the scores of its own.
            by_text = dict(zip(keys, _plain(mined.positive_scores[starts[query] : starts[query + 1]]), strict=True))
            made["pos_scores"] = [by_text[same_text(text)] for text in row.positives]
            made["neg_scores"] = _plain(mined.scores[query][: len(ids)])
        yield made if row.prompt is None else made | {"prompt": row.prompt}


def _ranked(task: "MiningTask", mined: "Mined") -> Iterator[dict[str, object]]:
    """Distinct queries with all their positives and the passages in order."""
    for (prompt, query), positives, ids in zip(task.queries, task.positives, mined.ids, strict=True):
        made: dict[str, object] = {"query": query, "positive": [task.passages[item] for item in positives]}
        made["documents"] = [task.passages[item] for item in ids[ids >= 0]]
        yield made if prompt is None else made | {"prompt": prompt}


def _plain(scores: "Scores") -> list[float]:
    """The shortest decimals that are these float32 numbers."""
    return [float(str(score)) for score in scores]


def _report(task: "MiningTask", rules: "MiningRules", mined: "Mined", width: int, *, rank: bool) -> Iterator[str]:
    counts = (mined.ids >= 0).sum(axis=1)
    yield f"rows                   {len(task.rows)}, of {len(task.queries)} distinct queries"
    yield f"candidates per query   {width} of {len(task.passages)} passages"
    if not rank:
        of_rows = counts[list(task.query_of_row)]
        fewer = int(((of_rows > 0) & (of_rows < rules.negatives)).sum())
        yield f"excluded candidates    {_excluded(mined)}"
        yield f"fewer than {f'{rules.negatives} negatives':12}{fewer} rows, written with those they have"
        yield f"no negative            {int((of_rows == 0).sum())} rows, left out"
    yield " " * 23 + "".join(f"{name:>9}" for name in _QUANTILES)
    yield from _quantiles("scores of positives", mined.positive_scores)
    yield from _quantiles("scores of passages" if rank else "scores of negatives", mined.scores[mined.ids >= 0])


def _quantiles(title: str, scores: "Scores") -> Iterable[str]:
    import numpy as np

    found = np.quantile(scores, list(_QUANTILES.values()))
    return [f"{title:23}" + "".join(f"{value:9.4f}" for value in found)]


def _excluded(mined: "Mined") -> str:
    from algorithms.encoder.mining import EXCLUSIONS

    return ", ".join(f"{count} {name}" for count, name in zip(mined.excluded, EXCLUSIONS, strict=True) if count)

"""Retrieval with known right answers, as data sources: `data.train: algorithms.retrieval_tasks:cross_lingual`.

Records of five facts (colour, animal, city, number, thing). A query tells all facts of a record in English, its passage
in Chinese, so that query and passage share no character:

    red fox in oslo with three lamps          奥斯陆的红狐有三盏灯。

Negatives are passages of other records that differ in one fact or more. A record has one query and one passage, and no
two records share either: exactly one passage of a corpus answers a query, and passages of other rows are negatives too.

Whether a record is for training or held out depends on the record alone (one in five is held out), and negatives and
corpus are of the same split: no text of one split is in the other, whatever count and seed. The functions take the same
arguments, so that they can stand side by side as train, eval and corpus of one job.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence

from actors.config import UserError

Record = tuple[int, ...]
"""Which word of every list of _FACTS. Example: (0, 0, 0, 1, 0)."""

_COLOURS = {
    "red": "红",
    "blue": "蓝",
    "green": "绿",
    "white": "白",
    "black": "黑",
    "grey": "灰",
    "gold": "金",
    "pink": "粉",
}
_ANIMALS = {"fox": "狐", "cat": "猫", "dog": "狗", "bear": "熊", "wolf": "狼", "lion": "狮", "duck": "鸭", "goat": "羊"}
_CITIES = {
    **{"oslo": "奥斯陆", "rome": "罗马", "paris": "巴黎", "cairo": "开罗"},
    **{"delhi": "德里", "tokyo": "东京", "lima": "利马", "quito": "基多"},
}
_NUMBERS = {
    "two": "两",
    "three": "三",
    "four": "四",
    "five": "五",
    "six": "六",
    "seven": "七",
    "eight": "八",
    "nine": "九",
}
_THINGS = {
    **{"lamps": "盏灯", "books": "本书", "drums": "面鼓", "boats": "条船"},
    **{"rings": "枚戒指", "keys": "把钥匙", "bells": "口钟", "maps": "张地图"},
}
_FACTS = tuple(tuple(words.items()) for words in (_COLOURS, _ANIMALS, _CITIES, _NUMBERS, _THINGS))
_QUERIES = (
    "{0} {1} in {2} with {3} {4}",
    "in {2} the {0} {1} has {3} {4}",
    "who has {3} {4} in {2}? {0} {1}",
    "{3} {4} of a {0} {1} in {2}",
)
_PASSAGES = (
    "{2}的{0}{1}有{3}{4}。",
    "{0}{1}在{2}买了{3}{4}。",
    "在{2}{3}{4}归{0}{1}。",
    "{3}{4}是{2}{0}{1}的。",
)
_HELD_OUT_SPLITS = ("test", "eval")
_NEGATIVES = (1, 1, 2, 4)


def cross_lingual(
    split: str,
    *,
    count: int,
    eval_count: int | None = None,
    seed: int = 0,
    words: int = 8,
    negatives: Sequence[int] = _NEGATIVES,
    passages: int = 1000,
) -> list[dict[str, str | list[str]]]:
    """Rows of query, positive and negatives for training; of query, positives and negatives for a held-out split.

    `count` rows (`eval_count` of a held-out split, where it is given). Every kind of fact has `words` values. A row has
    a negative for every item of `negatives`, which says in how many facts it differs. `passages` is the corpus's.

    Example of a row for training:
        {"query": "red fox in oslo with three lamps", "positive": "奥斯陆的红狐有三盏灯。",
         "negatives": ["在奥斯陆三盏灯归红猫。", "红狐在巴黎买了四盏灯。"]}

    Raises:
        UserError: unknown split, a number out of its range, or fewer records of the split than rows wanted.
    """
    rows = []
    for record, others in _groups(split, count, eval_count, seed, words, negatives):
        answer = passage_of(record)
        positive = {"positive": answer} if split == "train" else {"positives": [answer]}
        rows.append({"query": query_of(record), **positive, "negatives": [passage_of(other) for other in others]})
    return rows


def cross_lingual_corpus(
    split: str,
    *,
    count: int,
    eval_count: int | None = None,
    seed: int = 0,
    words: int = 8,
    negatives: Sequence[int] = _NEGATIVES,
    passages: int = 1000,
) -> list[dict[str, str]]:
    """`passages` rows of id and text in random order: the positives and negatives of the rows that cross_lingual gives
    for the same arguments, and passages of further records of the split.

    Raises:
        UserError: as cross_lingual does, or `passages` are fewer than those of the rows or more than the split has.
    """
    groups = _groups(split, count, eval_count, seed, words, negatives)
    records = dict.fromkeys(record for first, others in groups for record in (first, *others))
    if len(records) > passages:
        raise UserError(
            f"passages must be at least the {len(records)} positives and negatives of split {split}, got {passages}"
        )
    generator = random.Random(f"{seed} {split} corpus")
    for record in _records(split, words, generator):
        if len(records) == passages:
            break
        records[record] = None
    if len(records) < passages:
        raise UserError(f"passages must not exceed the {len(records)} records of split {split}, got {passages}")
    texts = [passage_of(record) for record in records]
    generator.shuffle(texts)  # else the answers would come first
    return [{"id": f"p{number}", "text": text} for number, text in enumerate(texts)]


def cross_lingual_alphabet() -> str:
    """The characters of all queries and passages, sorted: what `model.init.alphabet` must hold."""
    texts = [*_QUERIES, *_PASSAGES, *(text for fact in _FACTS for pair in fact for text in pair)]
    return "".join(sorted(set("".join(texts)) - set("{01234}")))


def query_of(record: Record) -> str:
    """The question that tells all facts of `record`, in the phrasing that is the record's."""
    return _QUERIES[_digest(record)[1] % len(_QUERIES)].format(*_told(record, 0))


def passage_of(record: Record) -> str:
    """The passage about `record`, in the phrasing that is the record's."""
    return _PASSAGES[_digest(record)[2] % len(_PASSAGES)].format(*_told(record, 1))


def _told(record: Record, language: int) -> list[str]:
    return [fact[word][language] for fact, word in zip(_FACTS, record, strict=True)]


def _digest(record: Record) -> bytes:
    # Not Python's hash, which differs from process to process.
    return hashlib.sha256(" ".join(_told(record, 0)).encode()).digest()


def _in_split(record: Record, split: str) -> bool:
    """One record in five is held out, chosen by its hash."""
    # The first byte decides this, the next two the phrasings: neither tells of the other.
    return (_digest(record)[0] % 5 == 0) == (split in _HELD_OUT_SPLITS)


def _groups(
    split: str, count: int, eval_count: int | None, seed: int, words: int, negatives: Sequence[int]
) -> list[tuple[Record, list[Record]]]:
    """As many records of `split` as rows are wanted, in random order, each with its negatives."""
    wanted = count if split == "train" or eval_count is None else eval_count
    _check_arguments(split, wanted, words, negatives)
    generator = random.Random(f"{seed} {split}")
    found: list[tuple[Record, list[Record]]] = []
    for record in _records(split, words, generator):
        others = _others(record, split, words, negatives, generator)
        if others is not None:
            found.append((record, others))
        if len(found) == wanted:
            return found
    raise UserError(
        f"count (or eval_count) must not exceed the {len(found)} records of split {split} that have such negatives, "
        f"got {wanted}"
    )


def _check_arguments(split: str, wanted: int, words: int, negatives: Sequence[int]) -> None:
    if split != "train" and split not in _HELD_OUT_SPLITS:
        raise UserError(f"split must be train or one of {', '.join(_HELD_OUT_SPLITS)}, got {split!r}")
    if wanted < 1:
        raise UserError(f"count and eval_count must be at least 1, got {wanted}")
    most = min(len(fact) for fact in _FACTS)
    if not 2 <= words <= most:
        raise UserError(f"words must be between 2 and {most}, got {words}")
    if not isinstance(negatives, Sequence) or any(facts not in range(1, len(_FACTS) + 1) for facts in negatives):
        raise UserError(f"negatives must be a list of numbers of facts between 1 and {len(_FACTS)}, got {negatives}")


def _records(split: str, words: int, generator: random.Random) -> Iterator[Record]:
    """All records of `split`, each once, in random order."""
    size = words ** len(_FACTS)
    for index in generator.sample(range(size), size):
        # The digits of the index in base `words`: every number is another record.
        record = tuple(index // words**fact % words for fact in range(len(_FACTS)))
        if _in_split(record, split):
            yield record


def _others(
    record: Record, split: str, words: int, negatives: Sequence[int], generator: random.Random
) -> list[Record] | None:
    """Different records of `split`, each differing from `record` in as many facts as its item of `negatives` says.

    None when twenty draws for one of them find none.
    """
    found: dict[Record, None] = {}
    for number, facts in enumerate(negatives, start=1):
        for _ in range(20):
            other = _changed(record, facts, words, generator)
            if _in_split(other, split):
                found[other] = None
            if len(found) == number:
                break
        else:  # of the loop: none of the draws will do
            return None
    return list(found)


def _changed(record: Record, facts: int, words: int, generator: random.Random) -> Record:
    """A record that differs from `record` in exactly `facts` facts."""
    changed = list(record)
    for fact in generator.sample(range(len(record)), facts):
        # Never by 0, so that the word is another.
        changed[fact] = (record[fact] + generator.randrange(1, words)) % words
    return tuple(changed)

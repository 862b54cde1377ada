"""The retrieval task: one right passage for a query, distractors that differ in facts asked for, disjoint splits."""

import itertools
import random
from typing import Any

import pytest

from actors.config import UserError
from actors.models.tokenizer import build_char_tokenizer
from algorithms.retrieval_tasks import cross_lingual, cross_lingual_alphabet, cross_lingual_corpus

# What the words mean, written down again: (English, Chinese) by kind of fact, to read texts without the generator.
MEANINGS = (
    "red 红 blue 蓝 green 绿 white 白 black 黑 grey 灰 gold 金 pink 粉",
    "fox 狐 cat 猫 dog 狗 bear 熊 wolf 狼 lion 狮 duck 鸭 goat 羊",
    "oslo 奥斯陆 rome 罗马 paris 巴黎 cairo 开罗 delhi 德里 tokyo 东京 lima 利马 quito 基多",
    "two 两 three 三 four 四 five 五 six 六 seven 七 eight 八 nine 九",
    "lamps 灯 books 书 drums 鼓 boats 船 rings 戒指 keys 钥匙 bells 钟 maps 地图",
)
SIZES: dict[str, Any] = {"count": 300, "eval_count": 100, "negatives": [1, 1, 2, 5]}

FIRST_HELD_OUT = ["in rome the black wolf has five rings", "nine keys of a white goat in cairo"]


def facts_of(text: str, language: int) -> tuple[str, ...]:
    """The English words of the facts that a query (0) or a passage (1) tells; exactly one of every kind."""
    found = []
    for kind in MEANINGS:
        words = kind.split()
        pairs = [pair for pair in zip(words[::2], words[1::2], strict=True) if pair[language] in text]
        assert len(pairs) == 1, (text, pairs)
        found.append(pairs[0][0])
    return tuple(found)


def passages_of(rows: list[dict[str, Any]]) -> list[str]:
    """All passages of rows for training or held out."""
    return [text for row in rows for text in [*row.get("positives", [row.get("positive")]), *row["negatives"]]]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_positive_tells_the_facts_and_a_negative_differs_in_as_many_as_was_asked(split: str) -> None:
    """Also: a row's negatives are different ones, and training rows name one positive, held-out rows a list."""
    rows = cross_lingual(split, **SIZES)
    assert len(rows) == {"train": 300, "test": 100}[split]
    for row in rows:
        asked = facts_of(row["query"], 0)
        positives = [row["positive"]] if split == "train" else row["positives"]
        assert [facts_of(text, 1) for text in positives] == [asked]
        told = [facts_of(text, 1) for text in row["negatives"]]
        assert [sum(a != b for a, b in zip(asked, facts, strict=True)) for facts in told] == [1, 1, 2, 5]
        assert len(set(told)) == 4


def test_negatives_differ_in_every_kind_of_fact_equally_often() -> None:
    """Of 3000 negatives that differ in one fact, each of the five kinds has about 600."""
    counts = [0] * 5
    for row in cross_lingual("train", count=1500, negatives=[1, 1]):
        asked = facts_of(row["query"], 0)
        for text in row["negatives"]:
            counts[[a != b for a, b in zip(asked, facts_of(text, 1), strict=True)].index(True)] += 1
    assert sum(counts) == 3000 and min(counts) > 500 and max(counts) < 700


def test_exactly_one_passage_of_the_corpus_answers_a_query() -> None:
    """And the corpus holds the rows' passages, each text and id once, in no order that tells which are positives."""
    rows = cross_lingual("test", **SIZES)
    corpus = cross_lingual_corpus("test", **SIZES)
    texts = [passage["text"] for passage in corpus]
    assert len(texts) == len(set(texts)) == len({passage["id"] for passage in corpus}) == 1000
    assert set(passages_of(rows)) <= set(texts)
    told = [facts_of(text, 1) for text in texts]
    for row in rows:
        assert told.count(facts_of(row["query"], 0)) == 1
    places = [texts.index(row["positives"][0]) for row in rows]
    assert 350 < sum(places) / len(places) < 650


def test_queries_and_passages_share_no_character() -> None:
    """So the words of a query do not find its passage."""
    rows = cross_lingual("test", **SIZES)
    queries, passages = set("".join(row["query"] for row in rows)), set("".join(passages_of(rows)))
    assert not queries & passages


def test_no_text_of_one_split_is_in_the_other() -> None:
    """Whatever count and seed: neither queries, nor positives, nor negatives, nor the corpus."""
    train = cross_lingual("train", count=6000, seed=3)
    held_out = cross_lingual("eval", count=6000, eval_count=800, seed=4)
    corpus = cross_lingual_corpus("eval", count=6000, eval_count=100, seed=5, passages=3000)
    assert not {row["query"] for row in train} & {row["query"] for row in held_out}
    assert not set(passages_of(train)) & {*passages_of(held_out), *(passage["text"] for passage in corpus)}


def test_the_splits_of_a_small_space_cover_it() -> None:
    """Two words of each kind are 32 records; the most rows of both splits together are all of them."""
    queries: list[str] = []
    for split in ("train", "test"):
        with pytest.raises(UserError, match="must not exceed the") as error:
            cross_lingual(split, count=33, words=2, negatives=[])
        most = int(str(error.value).partition("exceed the ")[2].split()[0])
        queries += [row["query"] for row in cross_lingual(split, count=most, words=2, negatives=[])]
    wanted = [kind.split()[:4:2] for kind in MEANINGS]
    assert sorted(facts_of(query, 0) for query in queries) == sorted(itertools.product(*wanted))


def test_rows_depend_on_the_arguments_only() -> None:
    """The same in every process: what one run trains on, no other run may hold out."""
    random.seed(0)
    first = cross_lingual("train", **SIZES), cross_lingual_corpus("test", **SIZES)
    random.seed(1)
    assert (cross_lingual("train", **SIZES), cross_lingual_corpus("test", **SIZES)) == first
    assert cross_lingual("train", **SIZES, seed=1) != first[0]
    assert cross_lingual_corpus("test", **SIZES, seed=1) != first[1]
    assert [row["query"] for row in cross_lingual("test", count=2)] == FIRST_HELD_OUT


def test_the_alphabet_is_what_the_texts_use() -> None:
    """Each character once, and a text comes back as it was from its tokens, one per character."""
    rows = cross_lingual("train", count=500)
    texts = [*(row["query"] for row in rows), *passages_of(rows)]
    alphabet = cross_lingual_alphabet()
    assert sorted(set("".join(texts))) == list(alphabet)
    assert not set(alphabet) & set("\"\\\n'")  # it stands in double quotes in a YAML file
    tokenizer = build_char_tokenizer(alphabet)
    for text in texts[:50] + texts[-50:]:
        ids = tokenizer.encode(text)
        assert len(ids) == len(text) and tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"split": "trian"}, "split must be train or one of test, eval, got 'trian'"),
        ({"count": 0}, "count and eval_count must be at least 1, got 0"),
        ({"split": "test", "eval_count": 0}, "count and eval_count must be at least 1, got 0"),
        ({"words": 1}, "words must be between 2 and 8, got 1"),
        ({"words": 9}, "words must be between 2 and 8, got 9"),
        ({"negatives": [1, 6]}, r"negatives must be a list of numbers of facts between 1 and 5, got \[1, 6\]"),
        ({"negatives": [0]}, r"negatives must be a list of numbers of facts between 1 and 5, got \[0\]"),
        ({"negatives": 4}, "negatives must be a list of numbers of facts between 1 and 5, got 4"),
        ({"words": 2, "negatives": [5, 5]}, "must not exceed the 0 records of split train that have such negatives"),
        ({"words": 4, "count": 900}, "must not exceed the .* records of split train"),
        ({"split": "test", "words": 4, "eval_count": 300}, "must not exceed the .* records of split test"),
        ({"passages": 20}, "passages must be at least the 50 positives and negatives of split train, got 20"),
        (
            {"split": "test", "words": 4, "passages": 300},
            "passages must not exceed the .* records of split test, got 300",
        ),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, Any], named: str) -> None:
    """In one line that says the rule and the value."""
    with pytest.raises(UserError, match=named) as error:
        cross_lingual_corpus(**({"split": "train", "count": 10} | wrong))
    assert "\n" not in str(error.value)

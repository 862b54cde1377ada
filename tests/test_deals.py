"""Who gets what: what each rank receives in a step, against the size of its own samples; real stages on FakeRanks."""

import pickle
import threading
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.episodes import Episode, Place, Prompt
from actors.group_errors import GroupError, RankLost
from actors.rollout.types import RolloutInfo, Sampling
from actors.rollout.worker import RolloutWorker
from actors.train.policy import PolicyWorker
from algorithms.config_rl import GRPOConfig, PPOConfig
from algorithms.division import deals
from algorithms.division.deals import Parts, Taker, hand_episodes, split_by
from algorithms.division.work import RankWork, samples_of
from algorithms.loop import Clock
from algorithms.rewards.scores import Score
from algorithms.rl.grpo import GRPO
from algorithms.rl.overlapped_reads import OverlappedReads
from algorithms.rl.ppo import PPO
from algorithms.rl.reward_models import RewardModelGroup, Scorers
from algorithms.rl.shaper import RewardShaper
from algorithms.rollouts.groups import ScoredGroup
from algorithms.rollouts.membership import Membership
from tests.episodes import turn
from tests.fake_ranks import FakeRanks, done, split_fake

PROMPTS, SAMPLES = 12, 4
SIZES: dict[str, Any] = {"prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES}
OWN = 1.1
"""What a rank may receive for one byte of its own samples."""


@pytest.fixture(autouse=True)
def episodes_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those here would have to be ten times as long for all groups to be worth a split."""
    monkeypatch.setattr(deals, "_FEW_TOKENS", 0)


def _formula(shift: int) -> Any:
    return lambda token, position: -1 - ((7 + shift) * token + 3 * position) % 16 / 16


def _episode(generator: np.random.Generator, prompt: list[int]) -> Episode:
    lengths = generator.integers(60, 900, size=2)
    first, second = (generator.integers(3, 30_000, size=length).tolist() for length in lengths)
    logprobs = [generator.normal(-1.5, 0.25, size=length) for length in lengths]
    turns = [turn(prompt, first, logprobs[0]), turn(list(range(30)), second, logprobs[1])]
    return Episode(turns=turns, status="truncated" if lengths[1] > 800 else "ok", text="x" * 200)


def _groups() -> list[ScoredGroup]:
    """In a third of them all rewards are equal."""
    generator, found = np.random.default_rng(9), []
    for number in range(PROMPTS):
        prompt = generator.integers(3, 30_000, size=60).tolist()
        episodes = [_episode(generator, prompt) for _ in range(SAMPLES)]
        rewards = np.zeros(SAMPLES) if number % 3 == 0 else generator.normal(size=SAMPLES)
        found.append(
            ScoredGroup(
                prompt=Prompt(index=number, token_ids=prompt, text="", row={}),
                rollouts=done(episodes),
                infos=[RolloutInfo.of(each) for each in episodes],
                scores=[Score(reward=float(reward), parts={}, status="ok") for reward in rewards],
            )
        )
    return found


GROUPS = _groups()
ALL = {(n, i): each for n, group in enumerate(GROUPS) for i, each in enumerate(group.rollouts.result())}


def _settings(ranks: int) -> dict[str, Any]:
    shaper = RewardShaper(normalize=False, clip=None, overlong=None, missing_eos_penalty=0, max_response_tokens=999)
    roster: Any = {"policy": FakeRanks(ranks, _formula(0)), "reference": FakeRanks(ranks, _formula(2))}
    return {
        "reporter": SimpleNamespace(phase=lambda _: None),
        "roster": roster,
        "reads": OverlappedReads(roster, split_fake),
        "reference": "reference",
        "read_reference": PolicyWorker.reference_logprobs,
        "models": [],
        "split": split_fake,
        "shaper": shaper,
        "evaluation": [],
        "sampling": Sampling(samples=SAMPLES, temperature=1.0, max_tokens=999),
        "micro_batch_tokens": dict.fromkeys(("policy", "critic", "reference"), 4096),
        "seed": 1,
        "total_steps": 1,
        **dict.fromkeys(("rollouts", "batches", "publish", "checkpoint")),
    }


CORRECTED: dict[str, Any] = {"importance_correction": {"level": "token", "cap": 1.1}, "samples_per_update": 24}
JOBS: dict[str, Any] = {
    "ppo": PPOConfig(name="ppo", kl_coef=0.1, **CORRECTED, **SIZES),
    "ppo, several epochs": PPOConfig(name="ppo", kl_coef=0.1, epochs_per_step=2, samples_per_update=16, **SIZES),
    "grpo": GRPOConfig(name="grpo", **CORRECTED, **SIZES),
    "grpo without some samples": GRPOConfig(name="grpo", mask_truncated=True, **CORRECTED, **SIZES),
    "grpo, KL in the loss": GRPOConfig(name="grpo", kl_coef=0.1, **SIZES),
    "grpo, KL in the reward": GRPOConfig(name="grpo", kl_coef=0.1, kl_in="reward", **CORRECTED, **SIZES),
}
READS: dict[tuple[str, str], set[str]] = {
    ("policy", "update"): {"advantages", "old_logprobs", "reference_logprobs"},
    ("critic", "update"): {"values", "returns"},
    ("critic", "advantages"): {"values", "reference_logprobs"},
    ("policy", "advantages"): {"reference_logprobs"},
}
"""Fields that a stage may read, as far as the job has them."""


def _learned(name: str, ranks: int) -> tuple[Any, dict[str, FakeRanks], dict[str, float]]:
    """The loop after a step, its groups, and the step's metrics."""
    config, settings = JOBS[name], _settings(ranks)
    groups = settings["roster"]
    if isinstance(config, PPOConfig):
        groups["critic"] = FakeRanks(ranks, _formula(4))
        loop: Any = PPO(config=config, **settings)
    else:
        loop = GRPO(config=config, **settings)
        if not config.kl_coef:
            loop.reference = None
    metrics, _ = loop.learn(loop.shape(GROUPS), Clock(loop.reporter))
    return loop, groups, metrics


def _places(method: str, arguments: tuple[Any, ...]) -> list[Place]:
    """Samples that a rank works on in a call."""
    if method == "update":
        named = (sample[:2] for plan in arguments[0] for batch in plan for sample in batch)
        return sorted(set(named))
    if method == "advantages":
        return [(key, index) for key, scores in arguments[1].items() for index in range(len(scores))]
    return sorted(place for batch in arguments[1] for place in batch)


def _fields(arguments: tuple[Any, ...]) -> list[tuple[Place, str, np.ndarray]]:
    """Place, name and values of all that a call was given."""
    parts = [each for each in arguments if isinstance(each, dict) and all(isinstance(x, dict) for x in each.values())]
    return [(place, name, values) for part in parts for place, own in part.items() for name, values in own.items()]


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("name", JOBS)
def test_a_rank_receives_its_own_samples_and_little_else(name: str, ranks: int) -> None:
    """In each call: at most 1.1 bytes for one of its episodes and their fields, all arguments together."""
    _, groups, metrics = _learned(name, ranks)
    assert np.isfinite(list(metrics.values())).all()
    seen: dict[str, int] = defaultdict(int)
    for which, group in groups.items():
        for rank, method, arguments, received in group.calls:
            places, given = _places(method, arguments), _fields(arguments)
            names = {each for _, each, _ in given}
            assert names <= READS.get((which, method), set())
            assert sorted((place, each) for place, each, _ in given) == sorted((p, n) for p in places for n in names)
            own = {
                place: (ALL[place], {each: np.zeros(ALL[place].tokens, np.float32) for each in names})
                for place in places
            }
            assert places or received < 4000, "a rank without samples gets none"
            if places:
                assert received <= OWN * len(pickle.dumps(own)), f"{which}[{rank}].{method}"
            seen[method] += len(places)
    assert seen["update"] >= 20 and len(seen) > 1


@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize("name", JOBS)
def test_losses_are_those_of_ranks_that_get_everything(name: str, ranks: int) -> None:
    """Bit for bit: whole groups and all fields to all ranks, as it was done before."""
    _, groups, _ = _learned(name, ranks)
    for which in groups.keys() & {"policy", "critic"}:
        group = groups[which]
        calls = {rank: arguments for rank, method, arguments, _ in group.calls if method == "update"}
        assert len(calls) == ranks
        fields: dict[Place, dict[str, np.ndarray]] = {}
        for arguments in calls.values():
            for place, each, values in _fields(arguments):
                fields.setdefault(place, {})[each] = values
        held = [(number, list(range(SAMPLES))) for number in range(PROMPTS)]
        everything = [each.rollouts for each in GROUPS]
        method: Any = PolicyWorker.update
        exact = group.scatter(method, [calls[rank] for rank in range(ranks)])
        whole = group.scatter(
            method,
            [(calls[rank][0], held, *calls[rank][2:5], *everything, fields) for rank in range(ranks)],
        )
        for found, expected in zip(exact, whole, strict=True):
            for update, other in zip(found, expected, strict=True):
                del update["time/update_rank"], other["time/update_rank"]
                assert update == other


def test_updates_are_balanced_without_the_samples_that_are_not_computed() -> None:
    """A third of the groups teaches nothing: the others are dealt as if those had never been there."""
    loop, groups, _ = _learned("grpo", 8)
    tokens = []
    for _, method, arguments, _ in groups["policy"].calls:
        if method == "update":
            tokens.append(sum(ALL[place].tokens for place in _places(method, arguments)))
    assert len(tokens) == 8 and max(tokens) < 1.25 * np.mean(tokens)
    samples = loop._advantages(loop.shape(GROUPS))
    assert sum(tokens) == sum(each.tokens for each in samples if each.advantage != 0)


def _work(*places: list[Place]) -> list[RankWork]:
    return [RankWork(plans=[[[(number, index, 0.0) for number, index in own]]]) for own in places]


def _asked(asked: list[tuple[Any, list[list[int]]]]) -> Any:
    return [[f"{group.result()[0].text[:1]} {share}" for share in shares] for group, shares in asked]


def test_a_group_is_split_where_it_is_divided_or_mostly_not_needed() -> None:
    work = _work([(1, 2), (0, 0), (0, 3), (0, 1), (0, 2)], [(1, 0), (1, 3), (1, 1)], [(2, 1)], [])
    handed = hand_episodes(GROUPS, work, _asked)
    assert [held for held, _ in handed] == [
        [(1, [2]), (0, [0, 1, 2, 3])],
        [(1, [0, 1, 3])],
        [(2, [1])],
        [],
    ]
    assert [given for _, given in handed] == [
        ["x [2]", GROUPS[0].rollouts],
        ["x [0, 1, 3]"],
        ["x [1]"],
        [],
    ]


def test_no_group_is_split_for_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that a rank gets: what it needs not is 128 KiB at most, in however many groups."""
    work = _work([(1, 2), (0, 0), (0, 1), (0, 2)], [(1, 0), (1, 3), (1, 1)])
    needed = {(number, index) for number, index in work[0].places}
    spare = sum(
        ALL[number, index].tokens for number in (0, 1) for index in range(SAMPLES) if (number, index) not in needed
    )
    monkeypatch.setattr(deals, "_FEW_TOKENS", spare)
    everything = [(1, [0, 1, 2, 3]), (0, [0, 1, 2, 3])], [GROUPS[1].rollouts, GROUPS[0].rollouts]
    assert hand_episodes(GROUPS, work, _asked) == [everything, ([(1, [0, 1, 2, 3])], [GROUPS[1].rollouts])]
    monkeypatch.setattr(deals, "_FEW_TOKENS", spare - 1)
    assert hand_episodes(GROUPS, work, _asked)[0] == ([(1, [2]), (0, [0, 1, 2])], ["x [2]", "x [0, 1, 2]"])


class FakeEngines:
    """Remembers what engines are asked to split."""

    def __init__(self, count: int) -> None:
        self.count, self.asked, self.waited = count, list[Any](), list[Any]()

    def __len__(self) -> int:
        return self.count

    def submit(self, engine: int, method: Any, shares: Any, *groups: Any, num_returns: int) -> list[str]:
        self.asked.append((engine, method, shares, groups))
        parts = [f"{group} {share}" for group, of_group in zip(groups, shares, strict=True) for share in of_group]
        assert num_returns == 1 + len(parts)
        return [f"told by {engine}", *parts]

    def gather(self, refs: Any, what: str, ranks: Any) -> list[None]:
        self.waited.append((list(refs), what, ranks))
        return [None] * len(refs)


@pytest.mark.parametrize("engines", [1, 2, 5])
def test_engines_split_groups_each_some_of_them(engines: int) -> None:
    """One call to each, however many groups; a wait that has a deadline and a name."""
    fake: Any = FakeEngines(engines)
    asked = [(f"group {number}", [[0, number], [2]] if number else [[1]]) for number in range(3)]
    found = split_by(fake, RolloutWorker.split, Membership(engines))(asked)
    assert found == [[f"{group} {share}" for share in shares] for group, shares in asked]
    calls = min(engines, 3)
    assert [engine for engine, _, _, _ in fake.asked] == list(range(calls))
    assert fake.waited == [([f"told by {engine}" for engine in range(calls)], "split", list(range(calls)))]


def test_engines_that_are_lost_are_not_asked_to_split() -> None:
    """As often as a step needs it: one may be lost between two of them."""
    fake, members = FakeEngines(4), Membership(4)
    split = split_by(fake, RolloutWorker.split, members)  # type: ignore[arg-type]
    asked: Any = [(f"group {number}", [[0], [1]]) for number in range(3)]
    for gone, left in ((None, [0, 1, 2]), (1, [0, 2, 3]), (0, [2, 3]), (3, [2])):
        if gone is not None:
            members.lose(gone, GroupError("it died"), 0)
        fake.asked, fake.waited = [], []
        assert split(asked) == [[f"{group} {share}" for share in shares] for group, shares in asked]
        assert [engine for engine, _, _, _ in fake.asked] == left
        assert [(name, ranks) for _, name, ranks in fake.waited] == [("split", left)]
    members.lose(2, GroupError("it died as well"), 0)
    with pytest.raises(GroupError, match=r"^it died as well$"):
        split(asked)


def test_what_a_lost_engine_was_to_split_others_split() -> None:
    """Also where the call finds out; where none is left, one that comes back does, and nobody waits for ever."""
    fake, members, died = FakeEngines(3), Membership(3), dict[int, GroupError]()
    members.on_lost = lambda engine, error: None
    gather = fake.gather

    def fails(refs: Any, what: str, ranks: Any) -> list[None]:
        for rank in ranks:
            if rank in died:
                raise died.pop(rank)
        return gather(refs, what, ranks)

    fake.gather = fails  # type: ignore[method-assign]
    split = split_by(fake, RolloutWorker.split, members, restart_s=0.05)  # type: ignore[arg-type]
    asked: Any = [(f"group {number}", [[0], [1]]) for number in range(3)]
    expected = [[f"{group} {share}" for share in shares] for group, shares in asked]
    died[1] = RankLost("it died", "rollout", 1)
    assert split(asked) == expected and members.there() == [0, 2] and members.losses == [0, 1, 0]
    died |= {0: RankLost("it died", "rollout", 0), 2: RankLost("it died", "rollout", 2)}
    with pytest.raises(GroupError, match=r"^rollout: no engine was back within 0\.05 s, after it died$"):
        split(asked)
    members.restarting(1)
    members.ready(1)
    assert split(asked) == expected and fake.waited[-1][2] == [1]
    members.lose(1, GroupError("it died"), 1)
    split = split_by(fake, RolloutWorker.split, members, restart_s=60)  # type: ignore[arg-type]
    died[3] = RankLost("a new one died, too", "rollout", 3)
    threading.Timer(0.1, lambda: members.ready(members.join())).start()
    threading.Timer(0.3, lambda: (members.restarting(1), members.ready(1))).start()
    assert split(asked) == expected and fake.waited[-1][2] == [1] and members.losses[3] == 1


def test_an_engine_gives_the_episodes_of_every_share() -> None:
    import asyncio

    worker: Any = object.__new__(RolloutWorker)
    groups: Any = [["a", "b", "c"], ["d", "e"]]
    assert asyncio.run(worker.split([[[2, 0], [1]], [[1]]], *groups)) == (None, ["c", "a"], ["b"], ["e"])


def test_parts_are_kept_by_who_takes_them() -> None:
    """A sample may be with another rank in each epoch; both need its fields."""
    places = [[(0, 0), (1, 0)], [(1, 0), (1, 1)]]
    taker = Taker.of("policy", ["advantages"], places)
    assert taker.shares([(1, 0), (0, 0), (7, 7)]) == {0: [(1, 0), (0, 0)], 1: [(1, 0)]}
    parts = Parts({("policy", 0): ["a"]}) + Parts({("policy", 0): ["b"], ("critic", 0): ["c"]})
    assert (parts.of(taker, 0), parts.of(taker, 1)) == (["a", "b"], [])


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_reward_models_receive_their_own_samples_too(ranks: int) -> None:
    group: Any = FakeRanks(ranks, _formula(1))
    model = RewardModelGroup(label="model", weight=1.0, group="model", micro_batch_tokens=4096)
    scored = Scorers(models=[model], roster={"model": group}, split=split_fake).score(GROUPS)
    assert [score.parts.keys() for each in scored for score in each.scores] == [{"model"}] * PROMPTS * SAMPLES
    taken = []
    for _, _, arguments, received in group.calls:
        places = sorted(place for batch in arguments[0] for place in batch)
        taken += places
        assert received <= OWN * len(pickle.dumps([ALL[place] for place in places]))
    everything = samples_of(GROUPS, [np.zeros(SAMPLES)] * PROMPTS)
    assert sorted(taken) == [(each.group, each.index) for each in everything]

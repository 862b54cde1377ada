"""The reward pool on a real Ray: what a function or service does wrong stays with its samples."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from actors.config import UserError
from actors.episodes import Episode, Prompt
from actors.group_errors import DataLost
from algorithms.config import RewardConfig, RewardEndpoint, RewardFunction
from algorithms.rewards.pool import RewardFailure, RewardPool
from algorithms.rollouts.failures import Failures
from tests.episodes import episode

GONE = ObjectLostError("7", None, "")
REWARD = '''
import os, re, signal, time

class Mute(Exception):
    def __str__(self):
        raise OSError

def alarm(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, alarm)

def score(completions, answer):
    """Does what the completions say."""
    if "length" in completions:
        return [1.0]
    values = []
    for completion in completions:
        if completion == "raise":
            raise KeyError("lost")
        if completion == "interrupt":
            raise KeyboardInterrupt
        if completion == "exit":
            raise SystemExit
        if completion == "mute":
            raise Mute
        if completion == "alarm":
            signal.setitimer(signal.ITIMER_REAL, 0.3)
        if completion == "twice":  # hangs, until it has been killed for it twice
            with open("begun", "a") as file:
                file.write(f"{os.getpid()}\\n")
            if len(open("begun").readlines()) < 3:
                time.sleep(600)
        if completion == "hang":
            time.sleep(600)
        if completion == "regex":
            re.match(r"(a+)+$", "a" * 60 + "b")  # holds the interpreter lock for ages
        if completion == "die":
            os._exit(1)
        if completion == "memory":
            values.append(float(len(bytearray(2**29))))
            continue
        if completion == "secrets":
            values.append(float(len([name for name in os.environ if name.startswith("TANDEM_TEST_TOKEN")])))
            continue
        if completion == "slow":
            time.sleep(0.15)
        special = {"nan": float("nan"), "none": None, "process": os.getpid()}
        values.append(special.get(completion, float(completion == answer[0])))
    return values
'''

TOKEN = "t0ken-of-the-pool"


@pytest.fixture(scope="module", autouse=True)
def small_ray(tmp_path_factory):
    home = os.environ.get("HOME")
    os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))
    ray.shutdown()  # that which other modules share: its processes have another environment
    # Ray's processes inherit the environment.
    os.environ |= {"TANDEM_TEST_TOKEN": TOKEN, "no_proxy": "127.0.0.1"}
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 1024**2
    )
    yield
    ray.shutdown()
    os.environ.pop("TANDEM_TEST_TOKEN")
    os.environ.pop("HOME") if home is None else os.environ.update(HOME=home)


@pytest.fixture
def make_pool(tmp_path, monkeypatch):
    """Makes pools over my_reward.py, named relative to the driver's working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_reward.py").write_text(REWARD)
    pools = []

    def make(name: str | None = "my_reward.py:score", *, workers=1, deadline_s=20.0, **sources):
        functions = [] if name is None else [RewardFunction(name=name)]
        config = RewardConfig(functions=functions, workers=workers, deadline_s=deadline_s, **sources)
        pools.append(RewardPool(config))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


PROMPT = Prompt(index=7, token_ids=[1], text="say yes", row={"answer": "yes"})


def rollouts(*texts: str) -> list[Episode]:
    return [episode([1], [2], text=text) for text in texts]


def submit(pool: RewardPool, *texts: str) -> int:
    return pool.submit(PROMPT, rollouts(*texts), len(texts))


def await_start(pool: RewardPool) -> None:
    refs = pool.refs()
    done, _ = ray.wait(refs, num_returns=len(refs), timeout=60)
    assert len(done) == len(refs)
    assert pool.ready(0) == [] and pool.refs() == []


def gather(pool: RewardPool, count: int, timeout_s: float = 40, failures: Failures | None = None) -> dict:
    """Scores by ticket: the reward, or the error as text. `failures` hears of them."""
    found = {}
    until = time.monotonic() + timeout_s
    while len(found) < count and time.monotonic() < until:
        for ticket, scores in pool.ready(timeout_s=1):
            if failures:
                failures.not_scored(scores, 50)
            found[ticket] = [score.error if score.status == "failed" else score.reward for score in scores]
    assert len(found) == count, f"{len(found)} of {count} batches in {timeout_s} s"
    return found


def test_mistakes_fail_their_samples_only(make_pool):
    pool = make_pool()
    tickets = [
        submit(pool, "yes", "raise", "no"),
        submit(pool, "yes", "length"),
        submit(pool, "nan", "yes", "none"),
        pool.submit(PROMPT, ray.put(rollouts("no", "yes")), 2),
    ]
    failures = Failures(0.1)
    found = gather(pool, 4, failures=failures)
    first, second, third, fourth = (found[ticket] for ticket in tickets)
    assert (first[0], first[2]) == (1.0, 0.0)
    assert "KeyError: 'lost' (my_reward.py line" in first[1]
    assert "prompt 'say yes', completion 'raise'" in first[1]
    assert all("returned 1 values for 2 completions" in error for error in second)
    assert "nan" in third[0] and third[1] == 1.0 and "abstained" in third[2]
    assert fourth == [0.0, 1.0]
    assert failures.unscored == 5
    with pytest.raises(RewardFailure) as caught:
        failures.not_scored([], 49)
    message = str(caught.value)
    assert "5 samples could not be scored in a step of 49" in message and "\n" not in message
    assert "KeyError" in message and "completion 'raise'" in message and "and 1 more causes" in message


def test_what_ends_a_program_fails_its_sample_only(make_pool):
    """A KeyboardInterrupt, sys.exit(), and an exception whose message raises."""
    pool = make_pool()
    ticket = submit(pool, "yes", "interrupt", "exit", "mute")
    found = gather(pool, 1)[ticket]
    assert found[0] == 1.0
    for error, cause in zip(found[1:], ["KeyboardInterrupt", "SystemExit", "Mute: its message cannot be"], strict=True):
        assert error.startswith(f"my_reward.py:score: {cause}"), error


def test_an_interrupt_outside_of_the_function_costs_the_process_not_the_run(make_pool):
    """A timer of the function's that goes off too late."""
    pool = make_pool()
    first = submit(pool, "alarm")
    gather(pool, 1)
    time.sleep(0.6)
    second = submit(pool, "yes")
    assert gather(pool, 1)[second] == [1.0], first


def test_functions_have_so_much_memory_and_no_secrets(make_pool):
    pool = make_pool(memory_mib=300)
    ticket = submit(pool, "yes", "memory", "secrets", "no")
    first, memory, secrets, last = gather(pool, 1)[ticket]
    assert (first, secrets, last) == (1.0, 0.0, 0.0)
    cause = r"my_reward\.py:score: MemoryError \(my_reward\.py line \d+\): more than reward\.memory_mib allows"
    assert re.match(cause, memory), memory
    named = make_pool(pass_env=["TANDEM_TEST_TOKEN"])
    ticket = submit(named, "secrets", "memory")
    assert gather(named, 1)[ticket] == [1.0, 2.0**29]


@pytest.mark.parametrize(("end", "what"), [("regex", "no answer within 2 s"), ("die", "the process died")])
def test_a_lost_process_fails_the_guilty_sample_and_the_pool_recovers(make_pool, end, what):
    pool = make_pool(deadline_s=2.0)
    first = submit(pool, "process")
    pid = int(gather(pool, 1)[first][0])
    bad = pool.submit(PROMPT, ray.put(rollouts("yes", end, "yes")), 3)
    good = submit(pool, "no", "yes")
    found = gather(pool, 2)
    assert found[bad][0] == 1.0
    assert f"{what}; prompt 'say yes', completion '{end}'" in found[bad][1]
    assert "not scored, because of sample 1 of the same batch" in found[bad][2]
    assert found[good] == [0.0, 1.0]
    assert not os.path.exists(f"/proc/{pid}")


def has_started(pool: RewardPool, place: int, generation: int) -> int:
    """The process of the worker that is the one of this generation in its place, as soon as it has started."""
    until = time.monotonic() + 40
    while time.monotonic() < until:
        assert pool.ready(timeout_s=0) == []
        found, process = pool.processes()[place]
        if found == generation and process:
            assert os.path.exists(f"/proc/{process.pid}")
            return process.pid
        time.sleep(0.05)
    pytest.fail("no worker within 40 s")


def test_a_process_that_died_with_nothing_to_do_costs_no_sample(make_pool):
    """Who watches over it tells the pool, which replaces it before it is given anything."""
    pool = make_pool()
    pid = has_started(pool, 0, 0)
    assert not pool.lost(0, 1), "no such one"
    os.kill(pid, signal.SIGKILL)
    assert pool.lost(0, 0)
    assert has_started(pool, 0, 1) != pid
    assert not pool.lost(0, 0), "it was replaced"
    ticket = submit(pool, "yes", "no")
    assert gather(pool, 1)[ticket] == [1.0, 0.0]
    assert pool.processes()[0][0] == 1 and pool.deaths() == []


def test_a_process_that_somebody_kills_is_not_its_samples_fault(make_pool, tmp_path):
    """The first time nothing is held against them; the second time each is scored alone, and fails no sooner."""
    pool = make_pool()
    ticket, others, found = submit(pool, "yes", "twice", "no"), submit(pool, "no", "yes"), {}
    begun, killed = tmp_path / "begun", set()
    until = time.monotonic() + 60
    while len(found) < 2 and time.monotonic() < until:
        for done, scores in pool.ready(timeout_s=0.1):
            found[done] = [score.status for score in scores]
        for line in begun.read_text().split()[len(killed) :] if begun.exists() and len(killed) < 2 else ():
            os.kill(int(line), signal.SIGKILL)
            killed.add(line)
    assert found == {ticket: ["ok"] * 3, others: ["ok"] * 2}
    assert len(killed) == 2 and pool.deaths() == [(0, 0), (0, 1)] and pool.deaths() == []
    assert pool.processes()[0][0] == 2


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_process_that_dies_in_its_start_is_started_once_more(make_pool, tmp_path, deaths):
    (tmp_path / "fatal.py").write_text(
        "import os\n"
        "with open('begun', 'a') as file:\n"
        "    file.write('x')\n"
        f"if os.path.getsize('begun') <= {deaths}:\n"
        "    os._exit(1)\n"
        "def score(completions):\n"
        "    return [1.0] * len(completions)\n"
    )
    pool = make_pool("fatal.py:score")
    ticket = submit(pool, "yes")
    if deaths == 1:
        assert gather(pool, 1)[ticket] == [1.0]
        return
    with pytest.raises(RewardFailure, match=r"a reward worker did not start \(fatal\.py:score\): the process died"):
        gather(pool, 1)


def test_a_hang_blocks_only_its_own_worker(make_pool):
    pool = make_pool(workers=2, deadline_s=20.0)
    await_start(pool)
    started = time.monotonic()
    hanging = submit(pool, "hang")
    others = [submit(pool, "yes", "no") for _ in range(4)]
    found = {}
    while len(found) < 4 and time.monotonic() - started < 15:
        ray.wait(pool.refs(), timeout=1)
        found |= dict(pool.ready(0))
    assert sorted(found) == others and hanging not in found


def test_batches_are_spread_over_processes_that_close_ends(make_pool):
    pool = make_pool(workers=2)
    await_start(pool)
    for _ in range(4):
        submit(pool, "process")
    pids = {int(values[0]) for values in gather(pool, 4).values()}
    assert len(pids) == 2 and os.getpid() not in pids
    pool.close()
    until = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def _calls(pool: RewardPool, count: int) -> int:
    """How many calls a worker needs for `count` batches that wait."""
    for _ in range(count):
        submit(pool, "yes", "no")
    calls: set = set()
    found: dict = {}
    until = time.monotonic() + 30
    while len(found) < count and time.monotonic() < until:
        found |= dict(pool.ready(0))
        calls |= set(pool.refs())
        ray.wait(pool.refs(), timeout=1) if pool.refs() else None
    assert len(found) == count
    assert all([score.reward for score in scores] == [1.0, 0.0] for scores in found.values())
    return len(calls)


def _process(pool: RewardPool) -> int:
    """Process id of a worker."""
    ticket = pool.submit(PROMPT, rollouts("process"), 1)
    until = time.monotonic() + 40
    while time.monotonic() < until:
        for found, [score] in pool.ready(timeout_s=1):
            assert found == ticket
            return int(score.parts["score"])
    pytest.fail("no answer within 40 s")


def test_quick_batches_share_calls_and_slow_ones_do_not(make_pool):
    pool = make_pool()
    await_start(pool)
    _calls(pool, 1)
    assert _calls(pool, 12) < 12, "the first batch showed that the function is quick"
    slow = submit(pool, "yes", "slow")
    assert gather(pool, 1)[slow] == [1.0, 0.0]
    assert _calls(pool, 2) == 2


def test_a_hang_in_a_shared_call_fails_the_guilty_sample_only(make_pool):
    pool = make_pool(deadline_s=2.0)
    await_start(pool)
    _calls(pool, 4)
    good = [submit(pool, "yes", "no") for _ in range(3)]
    bad = submit(pool, "no", "hang", "yes")
    good += [submit(pool, "no", "yes") for _ in range(3)]
    found = gather(pool, 7)
    assert [found[ticket] for ticket in good] == [[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3
    assert found[bad][0] == 0.0
    assert "no answer within 2 s; prompt 'say yes', completion 'hang'" in found[bad][1]
    assert "not scored, because of sample 1" in found[bad][2]


def test_a_function_that_does_not_load_in_the_worker_is_a_user_error(make_pool):
    pool = make_pool("my_reward.py:scoer")
    submit(pool, "yes")
    with pytest.raises(UserError, match=r"reward\.functions\.0\.name: .*did you mean score\?"):
        gather(pool, 1)


def test_a_shared_call_that_turns_out_slow_ends_early_and_the_rest_is_sent_again(make_pool):
    pool = make_pool(deadline_s=2.0)
    await_start(pool)
    _calls(pool, 4)
    pid = _process(pool)
    tickets = [submit(pool, "yes", *["slow"] * 6) for _ in range(4)]  # 0.9 s each, and together beyond the deadline
    found = gather(pool, 4)
    assert [found[ticket] for ticket in tickets] == [[1.0] + [0.0] * 6] * 4
    assert _process(pool) == pid


# --- endpoints


@pytest.fixture
def service() -> Iterator[str]:
    """Rewards are lengths, for whoever has the token; it says nothing to `silence`, 400 to `refuse`."""
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if "silence" in body["completions"]:
                closing.wait(60)
                return
            allowed = self.headers["Authorization"] == f"Bearer {TOKEN}" and body["rows"][0] == {"answer": "yes"}
            rewards = [None if text == "pass" else len(text) for text in body["completions"]]
            answer = json.dumps({"rewards": rewards}).encode()
            self.send_response(200 if allowed and "refuse" not in body["completions"] else 400)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/length"
    closing.set()
    server.shutdown()
    server.server_close()


def endpoint(url: str, token: str = "$TANDEM_TEST_TOKEN", **values) -> RewardEndpoint:
    return RewardEndpoint(url=url, headers={"Authorization": f"Bearer {token}"}, **values)


def test_endpoints_alone_and_beside_functions(make_pool, service):
    alone = make_pool(None, endpoints=[endpoint(service)])
    ticket = submit(alone, "pass", "abc")
    nothing, length = gather(alone, 1)[ticket]
    assert nothing == "every reward source abstained (gave no value); prompt 'say yes', completion 'pass'"
    assert length == 3.0
    both = make_pool(endpoints=[endpoint(service, weight=0.5)])
    ticket = submit(both, "yes", "no", "pass", "none")
    assert gather(both, 1)[ticket] == [2.5, 1.0, 0.0, 2.0]


def test_abstaining_waits_for_reward_models(make_pool, service):
    pool = make_pool(None, endpoints=[endpoint(service)], models=["outputs/rm/export"])
    ticket = submit(pool, "pass", "abc")
    [(found, scores)] = pool.ready(timeout_s=40)
    assert found == ticket
    assert [(score.status, score.parts) for score in scores] == [("abstained", {}), ("ok", {"length": 3.0})]


@pytest.mark.parametrize(
    ("completion", "what"),
    [("refuse", "answered 400 Bad Request"), ("silence", "no answer in time (2 attempts, within reward.deadline_s)")],
)
def test_a_service_without_an_answer_fails_the_batch_and_costs_no_process(make_pool, service, completion, what):
    pool = make_pool(endpoints=[endpoint(service, retries=1)], deadline_s=3.0)
    await_start(pool)
    pid = _process(pool)
    bad, good = submit(pool, completion, "yes"), submit(pool, "no", "yes")
    failures = Failures(0.1)
    found = gather(pool, 2, failures=failures)
    assert all(f"{service}: {what}" in error for error in found[bad])
    assert found[good] == [2.0, 4.0]
    assert _process(pool) == pid
    with pytest.raises(RewardFailure, match=r"2 samples could not be scored in a step of 8 .*http://127") as caught:
        failures.not_scored([], 8)
    assert TOKEN not in str(caught.value) and "\n" not in str(caught.value)


def test_a_header_whose_variable_is_missing_is_a_user_error(make_pool, service):
    pool = make_pool("exact_match", endpoints=[endpoint(service, token="$TANDEM_TEST_GONE")])
    submit(pool, "yes")
    with pytest.raises(
        UserError, match=r"reward\.endpoints\.0\.headers\.Authorization: \$TANDEM_TEST_GONE must be set"
    ):
        gather(pool, 1)


def test_a_pool_without_a_source_is_refused():
    with pytest.raises(ValueError, match="functions or endpoints"):
        RewardPool(RewardConfig(models=["outputs/rm/export"]))


@pytest.mark.parametrize("error", [GONE, RayTaskError("score", "", GONE), RayActorError()])
def test_responses_that_are_lost_are_no_fault_of_a_reward(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """With the node that they lay on, or with the process that had them: the run goes on from its last checkpoint."""

    def lost(*_: object, **__: object) -> None:
        raise error

    pool, actor = object.__new__(RewardPool), SimpleNamespace(_actor_id=SimpleNamespace(hex=lambda: "another"))
    monkeypatch.setattr(pool, "_config", SimpleNamespace(deadline_s=1.0, memory_mib=None), raising=False)
    monkeypatch.setattr(ray, "get", lost)
    with pytest.raises(DataLost, match=r"^reward: responses are lost: "):
        pool._receive(cast("Any", SimpleNamespace(call="a call", actor=actor, jobs=["a job"])))

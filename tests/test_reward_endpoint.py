"""Reward endpoints against a real HTTP server in this process. No Ray."""

import json
import math
import socket
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread, current_thread
from typing import Any

import pytest

from actors.config import UserError
from algorithms.config import RewardConfig, RewardEndpoint, RewardFunction
from algorithms.rewards import endpoint as reward_endpoint
from algorithms.rewards.calls import LoadedFunction, Samples
from algorithms.rewards.endpoint import LoadedEndpoint, check_endpoint, load_endpoint, shown_address
from algorithms.rewards.scores import load_sources, score_batch

SECRET = "s3cr3t-t0ken"


class Service:
    """An HTTP server whose answers the test scripts: one entry per request, the last one for all that follow."""

    def __init__(self) -> None:
        self.answers: list[Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]] = []
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.paths: list[str] = []
        self.closing = Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.requests.append((dict(self.headers), body))
                service.paths.append(self.path)
                answer = service.answers[min(len(service.requests), len(service.answers)) - 1]
                answer(self, body)

            def do_GET(self) -> None:
                service.paths.append(f"GET {self.path}")
                self.send_error(404)

            def log_message(self, format: str, *args: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/score"

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


def reply(code: int, body: bytes, **headers: str) -> Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]:
    def answer(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        handler.send_response(code)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def lengths(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    """Reward: the completion's length; abstains from `pass`."""
    rewards = [None if text == "pass" else len(text) for text in body["completions"]]
    reply(200, json.dumps({"rewards": rewards}).encode())(handler, body)


def hang_up(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def service() -> Iterator[Service]:
    found = Service()
    yield found
    found.close()


@pytest.fixture(autouse=True)
def direct_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of the machine's, and short pauses."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(reward_endpoint, "FIRST_PAUSE_S", 0.02)


def endpoint(
    url: str, *, deadline_s: float = 20.0, environment: dict[str, str] | None = None, **values
) -> LoadedEndpoint:
    return load_endpoint(RewardEndpoint(url=url, **values), 0, "score", deadline_s, environment or {})


def samples(*completions: str, **columns: Any) -> Samples:
    values = {name: [value] * len(completions) for name, value in columns.items()}
    return Samples(prompts=["1+1="] * len(completions), completions=list(completions), columns=values)


def causes(loaded: LoadedEndpoint, batch: Samples, until: float | None = None) -> set[str]:
    """Why the samples failed, all of them."""
    scores = score_batch([loaded], batch, until)
    assert len(scores) == len(batch.completions)
    assert all(score.status == "failed" and math.isnan(score.reward) for score in scores)
    assert not any("\n" in str(score.error) or SECRET in str(score.error) for score in scores)
    return {str(score.cause) for score in scores}


def test_a_batch_is_one_post_with_all_that_is_known(service):
    service.answers = [lengths]
    headers = {"Authorization": "Bearer $RM_TOKEN", "X-Team": "$TEAM$RM_TOKEN", "X-Price": "5$ or $5"}
    loaded = endpoint(
        service.url, weight=0.5, headers=headers, environment={"RM_TOKEN": SECRET, "TEAM": "blue", "RM": "wrong"}
    )
    scores = score_batch([loaded], samples("ab", "pass", "ä", answer="2", level=3, tags=["x", None]))
    assert [score.reward for score in scores if score.status == "ok"] == [1.0, 0.5]
    assert [score.parts for score in scores] == [{"score": 2.0}, {}, {"score": 1.0}]
    assert "every reward source abstained" in str(scores[1].cause)
    [(received, body)] = service.requests
    assert body == {
        "prompts": ["1+1="] * 3,
        "completions": ["ab", "pass", "ä"],
        "rows": [{"answer": "2", "level": 3, "tags": ["x", None]}] * 3,
    }
    assert received["Authorization"] == f"Bearer {SECRET}" and received["X-Price".title()] == "5$ or $5"
    assert received["X-Team".title()] == f"blue{SECRET}" and received["Content-Type"] == "application/json"
    assert SECRET not in repr(loaded)


def test_functions_and_endpoints_add_up_and_one_may_abstain(service):
    service.answers = [lengths]
    function = LoadedFunction(
        name="f", label="f", weight=1.0, arguments={}, call=lambda completion: None if completion == "abc" else 10.0
    )
    scores = score_batch([function, endpoint(service.url, weight=2.0)], samples("abc", "pass", "z"))
    assert [(score.reward, score.parts) for score in scores] == [
        (6.0, {"score": 3.0}),
        (10.0, {"f": 10.0}),
        (12.0, {"f": 10.0, "score": 1.0}),
    ]


@pytest.mark.parametrize(
    "passing",
    [
        reply(500, b"oh no"),
        reply(503, b""),
        reply(429, b"slow down", Retry_After="0"),
        hang_up,
        reply(200, b'{"rewards"', Content_Length="100"),
    ],
)
def test_what_may_pass_is_tried_again(service, passing):
    service.answers = [passing, passing, lengths]
    assert [score.reward for score in score_batch([endpoint(service.url, retries=2)], samples("a", "bb"))] == [1.0, 2.0]
    assert len(service.requests) == 3

    service.answers, service.requests[:] = [passing], []
    [cause] = causes(endpoint(service.url, retries=1), samples("a", "bb"))
    assert cause.startswith(f"{service.url}: ") and "(2 attempts, within reward.deadline_s)" in cause
    assert len(service.requests) == 2


def test_pauses_double_and_a_service_may_ask_for_longer_ones(service, monkeypatch):
    pauses: list[float] = []
    caller, sleep = current_thread(), time.sleep
    # Other threads of this process go on sleeping.
    monkeypatch.setattr(
        reward_endpoint.time, "sleep", lambda s: pauses.append(s) if current_thread() is caller else sleep(s)
    )
    service.answers = [reply(500, b""), reply(500, b""), reply(503, b"", Retry_After="2"), reply(500, b"")]
    causes(endpoint(service.url, retries=4), samples("a"))
    assert pauses == pytest.approx([0.02, 0.04, 2.0, 0.16])
    service.answers, service.requests[:] = [reply(429, b"", Retry_After="3600")], []
    [cause] = causes(endpoint(service.url, retries=4), samples("a"))
    assert "answered 429 Too Many Requests (1 attempt," in cause and len(service.requests) == 1


@pytest.mark.parametrize("code", [400, 401, 404, 422, 302, 307])
def test_other_refusals_fail_at_once_and_show_what_the_service_says(service, code):
    elsewhere = service.url.replace("/v1/score", "/elsewhere")
    body = f"field 'rows'\n is wrong for {SECRET}".encode()
    service.answers = [reply(code, body, Location=elsewhere)]
    loaded = endpoint(service.url, headers={"Authorization": "$RM_TOKEN"}, environment={"RM_TOKEN": SECRET})
    [cause] = causes(loaded, samples("a", "b"))
    assert cause.startswith(f"{service.url}: answered {code} ")
    assert cause.endswith(""": "field 'rows' is wrong for ***\"""")
    assert service.paths == ["/v1/score"]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b'{"rewards": [1.0]}', "returned 1 rewards for 2 completions"),
        (b'{"rewards": []}', "returned 0 rewards for 2 completions"),
        (b'{"rewards": {"0": 1}}', 'returned an object without that list, not {"rewards": [...]}'),
        (b"[1.0, 2.0]", 'returned a list, not {"rewards": [...]}'),
        (b"<html>Log in</html>", "returned what is not JSON, '<html>Log in</html>'"),
        (b"\xff\xfe\x00", "returned what is not JSON, "),
        (b"[" * 200_000, "returned what is not JSON, "),
        (b'{"rewards": [NaN, NaN]}', "returned nan, not a finite number"),
        (b'{"rewards": [1e999, 1e999]}', "returned inf, not a finite number"),
        (b'{"rewards": ["1", "2"]}', "returned text, not a number"),
        (b'{"rewards": [[1], [2]]}', "returned a list, not a number"),
    ],
)
def test_answers_of_the_wrong_form_fail_their_samples(service, body, what):
    service.answers = [reply(200, body)]
    [cause] = causes(endpoint(service.url), samples("a", "b"))
    assert cause.startswith(f"{service.url}: {what}") and len(cause) < 300
    assert len(service.requests) == 1


def test_one_wrong_value_fails_alone(service):
    service.answers = [reply(200, b'{"rewards": [1, NaN, null, -2.5, "3"]}')]
    scores = score_batch([endpoint(service.url)], samples(*"abcde"))
    assert [score.status for score in scores] == ["ok", "failed", "failed", "ok", "failed"]
    assert [scores[0].reward, scores[3].reward] == [1.0, -2.5]


def test_an_answer_without_end_is_cut(service, monkeypatch):
    monkeypatch.setattr(reward_endpoint, "MAX_ANSWER_BYTES", 1000)
    service.answers = [reply(200, b" " * 5000)]
    assert causes(endpoint(service.url), samples("a")) == {f"{service.url}: returned more than 1000 bytes"}


def test_rows_that_are_not_json_fail_and_nothing_is_sent(service):
    service.answers = [lengths]
    [cause] = causes(endpoint(service.url), samples("a", when=object()))
    assert "the data row cannot be sent as JSON: Object of type object" in cause
    [cause] = causes(endpoint(service.url), samples("a", value=math.nan))
    assert "the data row cannot be sent as JSON" in cause
    assert service.requests == []


# --- deadlines


def test_a_lost_answer_is_asked_for_again_in_time(service):
    service.answers = [lambda handler, body: service.closing.wait(30), lengths]
    started = time.monotonic()
    [score] = score_batch([endpoint(service.url, deadline_s=3.0)], samples("abc"))
    assert score.reward == 3.0 and 1.2 < time.monotonic() - started < 2.7


@pytest.mark.parametrize("retries", [0, 3])
def test_a_silent_service_is_given_up_before_the_deadline(service, retries):
    service.answers = [lambda handler, body: service.closing.wait(30)]
    started = time.monotonic()
    [cause] = causes(endpoint(service.url, deadline_s=1.5, retries=retries), samples("a", "b"))
    assert "no answer in time" in cause
    assert time.monotonic() - started < 1.5
    assert len(service.requests) >= min(2, retries + 1)


def test_a_service_that_sends_byte_after_byte_is_given_up_too(service):
    def trickle(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not service.closing.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    service.answers = [trickle]
    started = time.monotonic()
    [cause] = causes(endpoint(service.url, deadline_s=1.0, retries=0), samples("a"))
    assert "no answer in time" in cause and time.monotonic() - started < 1.0


def test_the_time_that_others_took_is_gone(service):
    service.answers = [lengths]
    [cause] = causes(endpoint(service.url), samples("a"), until=time.monotonic() - 1)
    assert "not asked, as other reward sources took the time" in cause and service.requests == []


def test_a_service_that_is_not_there_is_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/score"
        [cause] = causes(endpoint(f"{url}?key={SECRET}", retries=1), samples("a"))
    assert cause.startswith(f"{url}: cannot be reached: [Errno 111] Connection refused (2 attempts")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ALL_PROXY", f"socks5://me:{SECRET}@host"), ("HTTP_PROXY", f"http://{SECRET}:port")],
)
def test_a_proxy_that_cannot_be_used_is_no_end_of_the_run(service, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    [cause] = causes(endpoint(service.url, retries=1), samples("a"))
    assert "cannot be asked (" in cause and "ALL_PROXY" in cause and SECRET not in cause


def test_an_address_that_none_can_have_is_no_end_of_the_run():
    [cause] = causes(endpoint("http://256.1.1.1:8000/score", retries=1), samples("a"))
    assert "cannot be" in cause


# --- settings


def problems(values: dict[str, Any], environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(UserError) as caught:
        check_endpoint(RewardEndpoint(**values), 2, environment)
    assert SECRET not in str(caught.value)
    return list(caught.value.problems)


def test_addresses_are_checked_and_never_shown_with_secrets():
    assert shown_address(f"https://me:{SECRET}@host:8000/score?key={SECRET}#x") == "https://host:8000/score"
    [line] = problems({"url": f"http://me:{SECRET}@host/score"})
    assert line.startswith("reward.endpoints.2.url: must hold no user and password")
    assert line.endswith("got http://host/score")
    for url in ("http:///score", "http://host:port/score", "http://[::1/score", f"http://host:99999/?{SECRET}"):
        assert "reward.endpoints.2.url: must be an address like" in problems({"url": url})[0]
    assert "must be ASCII without spaces" in problems({"url": f"http://host/a b?{SECRET}"})[0]


def test_headers_are_checked_and_variables_only_where_they_are_known():
    values = {
        "url": "http://host/score",
        "headers": {"Authorization": "Bearer $RM_TOKEN", "X Team": "a", "X-Two": "$TEAM$GONE", "X-Bad": "a\nb"},
    }
    line = "must be one line of printable Latin-1 with variables filled in, without blanks at its ends, got another"
    line += " (not shown)"
    assert problems(values) == [
        "reward.endpoints.2.headers: a name must be letters, digits and hyphens, got 'X Team'",
        f"reward.endpoints.2.headers.X-Bad: {line}",
    ]
    missing = problems(values, {"RM_TOKEN": f"{SECRET}\n", "TEAM": ""})
    rule = "must be set in the environment of the reward processes, is missing or empty"
    assert missing == [
        f"reward.endpoints.2.headers.Authorization: {line}",
        "reward.endpoints.2.headers: a name must be letters, digits and hyphens, got 'X Team'",
        f"reward.endpoints.2.headers.X-Two: $TEAM {rule}",
        f"reward.endpoints.2.headers.X-Two: $GONE {rule}",
        f"reward.endpoints.2.headers.X-Bad: {line}",
    ]


def test_variables_are_read_when_the_sources_are_loaded(monkeypatch):
    config = RewardConfig(
        functions=[RewardFunction(name="exact_match")],
        endpoints=[
            RewardEndpoint(url="http://host/score", headers={"Authorization": "$TANDEM_TEST_TOKEN"}, weight=2.0)
        ],
        deadline_s=10,
    )
    with pytest.raises(
        UserError, match=r"reward\.endpoints\.0\.headers\.Authorization: \$TANDEM_TEST_TOKEN must be set"
    ):
        load_sources(config)
    monkeypatch.setenv("TANDEM_TEST_TOKEN", SECRET)
    function, loaded = load_sources(config)
    assert isinstance(function, LoadedFunction) and isinstance(loaded, LoadedEndpoint)
    assert loaded.headers == {"Authorization": SECRET} and (loaded.label, loaded.weight) == ("score", 2.0)
    assert loaded.deadline_s < 10

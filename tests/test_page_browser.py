"""The page in a real browser, over the real server: seen, pressed and typed into as a reader does."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch.page.report_file import write_report
from tests.page_questions import CONTRASTS, MATHS, UNNAMED
from tests.page_reader import CHROMIUM, NO_CHROMIUM, NO_PLAYWRIGHT, HeldUp, Reader, copied, cut_back
from tests.page_runs import DRIVER, Watch, add_steps, say_now, write_long

expect = pytest.importorskip("playwright.sync_api", reason=NO_PLAYWRIGHT).expect
pytestmark = pytest.mark.skipif(not CHROMIUM, reason=NO_CHROMIUM)
pytest_plugins = ("tests.page_browser",)

TABS = ("curves", "phases", "faults", "groups", "heldout", "settings", "logs")
ODD = "<script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'>\x07\x1b[31mred \u202e end"


def test_runs_are_listed_and_drawn_over_each_other(reader: Reader) -> None:
    page = reader.open()
    assert "token" not in page.url
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="second"))
    for text in ("died", "20 / 300", "reward/mean", "GRPO", "Qwen"):
        expect(row).to_contain_text(text)
    for name in ("second", "first"):
        page.get_by_role("checkbox", name=f"Choose {name}").check()
    page.get_by_role("link", name="Curves of 2 runs together").click()
    entropy = page.get_by_role("img", name=re.compile("^entropy.*: second from .* at step 20.*; first from .* step 40"))
    expect(entropy).to_be_visible()
    assert page.evaluate("location.hash") == "#run=second&beside=first"


def test_curves_are_searched_smoothed_zoomed_and_read_as_a_table(reader: Reader) -> None:
    page = reader.open(run="first")
    page.get_by_label("Metrics").fill("^time/(roll|upd)")
    expect(page.get_by_role("status").filter(has_text="2 of")).to_be_visible()
    expect(page.get_by_role("figure")).to_have_count(2)
    chart = page.get_by_role("img", name=re.compile("time.rollout from"))
    box = page.locator("figure .u-over").first.bounding_box()
    assert box is not None
    for place in range(80):
        page.mouse.move(box["x"] + box["width"] * (0.4 + place / 160), box["y"] + 50)
        if page.locator(".tip").first.is_visible():
            break
    expect(page.locator(".tip").first).to_contain_text(re.compile(r"^step \d+: "))
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 60, steps=3)
    page.mouse.up()
    page.get_by_role("button", name="All steps").click()
    chart.press("+")
    expect(page.get_by_role("button", name="All steps")).to_be_visible()
    chart.press("Escape")
    expect(page.get_by_role("button", name="All steps")).to_be_hidden()
    page.get_by_label("Smoothing").fill("0.9")
    page.get_by_role("button", name="Table").first.press("Enter")
    expect(page.get_by_role("region", name="time/rollout").get_by_role("cell").first).to_have_text("40")
    page.mouse.move(0, 0)
    page.get_by_text("Events on the axis").click()
    expect(page.get_by_role("cell", name="checkpoint of step 20")).to_be_visible()


def test_a_curve_grows_with_its_run_and_is_cut_with_it(reader: Reader, watch: Watch) -> None:
    run = copied(watch, "growing")
    page = reader.open(run="growing")
    curve = page.get_by_role("img", name=re.compile("^reward:"))
    expect(curve).to_have_accessible_name(re.compile("at step 20"))
    add_steps(run, 21, 23)
    expect(curve).to_have_accessible_name(re.compile("at step 23"), timeout=3000)
    expect(page.locator(".head")).to_contain_text("23 of 300")
    see = "(hidden) => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
    see += " document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(see, True)  # another tab is before it
    add_steps(run, 24, 24)
    page.evaluate(see, False)
    expect(curve).to_have_accessible_name(re.compile("at step 24"), timeout=3000)
    cut_back(run, 12)
    expect(curve).to_have_accessible_name(re.compile("at step 12"), timeout=3000)


def test_a_run_beside_is_cut_with_its_file_also_where_another_is_gone(browser: Any, watch: Watch) -> None:
    run, other = copied(watch, "beside"), copied(watch, "besides")
    reader = Reader(browser, watch)
    reader.page.clock.install()
    page = reader.open(run="first", beside="besides&beside=beside")
    entropy = page.get_by_role("img", name=re.compile("^entropy"))
    expect(entropy).to_have_accessible_name(re.compile("; beside from .* at step 20"))
    shutil.rmtree(other)
    cut_back(run, 12)
    page.clock.fast_forward(6000)
    expect(entropy).to_have_accessible_name(re.compile("; beside from .* at step 12"))
    page.close()


def test_seven_runs_at_most_are_drawn_over_another_one(reader: Reader, watch: Watch) -> None:
    names = [f"few-{number}" for number in range(9)]
    for name in names:
        (watch.directory / name).mkdir()
        (watch.directory / name / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
    page = reader.open()
    for box in page.locator("tbody input").all()[:8]:
        box.check()
    assert page.locator("tbody input:disabled").count() == page.locator("tbody input").count() - 8
    expect(page.get_by_role("link", name="Curves of 8 runs together, the most there can be")).to_be_visible()
    page = reader.open(run="first", beside="&beside=".join(names))
    page.get_by_text("Beside 7 more, 2 left out: at most 7").click()
    page.get_by_role("checkbox", name="few-0").uncheck()
    expect(page.get_by_role("checkbox", name="few-8")).to_be_enabled()
    for name in names:
        shutil.rmtree(watch.directory / name)


def test_steps_that_come_while_an_answer_is_waited_for_are_kept(reader: Reader, watch: Watch) -> None:
    run = copied(watch, "waiting")
    page = reader.open(run="waiting")
    late = HeldUp(page, "api/metrics.*trainer_wait")
    page.get_by_label("Metrics").fill("trainer_wait")
    late.wait()
    add_steps(run, 21, 21)
    expect(page.get_by_role("img", name=re.compile("^reward:.*at step 21"))).to_be_visible()
    late.let_go()
    expect(page.get_by_role("img", name=re.compile("trainer_wait_seconds from .* at step 21,"))).to_be_visible()


def test_an_answer_that_comes_late_is_not_shown(reader: Reader) -> None:
    page = reader.open(run="first", tab="groups", step="9")
    late = HeldUp(page, "api/groups.*step=8$")
    page.get_by_role("button", name="Earlier step").dblclick()
    expect(page.get_by_text("Step 7 (")).to_be_visible()
    late.let_go()
    assert page.evaluate("location.hash").endswith("step=7") and page.get_by_text("Step 7 (").is_visible()
    late = HeldUp(page, "api/search.*text=boxed")
    for text in ("boxed", "divide"):
        page.get_by_label("Search all steps").fill(text)
        page.get_by_label("Search all steps").press("Enter")
    expect(page.locator(".hits li")).to_have_count(50)
    late.let_go()
    assert {*page.locator(".hits mark").all_text_contents()} == {"divide"}
    page.get_by_role("link", name="Held-out").click()
    late = HeldUp(page, "api/heldout.*prompt=1")
    page.get_by_label("Held-out prompt").select_option(index=1)
    page.get_by_label("Held-out prompt").select_option(index=2)
    expect(page.locator("pre.prompt")).to_have_text("How many days are 4 weeks?")
    late.let_go()
    expect(page.locator("pre.prompt")).to_have_text("How many days are 4 weeks?")
    page.get_by_role("link", name="Logs").click()
    expect(page.locator(".log")).to_contain_text("engine 0: step 39")
    late = HeldUp(page, "api/log.*rollout-1")
    logs = page.get_by_role("combobox", name="Log")
    logs.select_option("rollout-1.log")
    with page.expect_response(re.compile("api/log.*rollout-0")):
        logs.select_option("rollout-0.log")
    late.let_go()
    assert "engine 0: step 39" in page.locator(".log").text_content()


def test_phases_of_a_long_run_are_means_of_all_its_steps(reader: Reader, watch: Watch) -> None:
    rows = write_long(copied(watch, "long"), steps=5003)
    of = {name: sum(row.get(name, 0.0) for row in rows) for name in ("rollout", "evaluate", "step")}
    share = {name: f"{100 * of[name] / of['step']:.1f} %" for name in of}
    page = reader.open(run="long")
    with page.expect_response(re.compile("api/metrics.*mean=1")):
        page.get_by_label("Smoothing").fill("0.9")
    page.get_by_role("link", name="Phases").click()
    name = f"Seconds of a step, by phase, on average: rollout {share['rollout']}, evaluate {share['evaluate']}, idle"
    expect(page.get_by_role("img", name=name)).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="rollout")).to_contain_text(f"{of['rollout'] / 5003:.1f} s")


def test_a_group_is_reached_by_keys_alone(reader: Reader) -> None:
    page = reader.open()

    def tab_to(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            focused = page.locator(":focus")
            said = focused.evaluate("(element) => element.getAttribute('aria-label') ?? element.textContent")
            if focused.count() and said == name:
                outline = focused.evaluate("(element) => getComputedStyle(element).outlineStyle")
                assert outline == "solid", f"{name} does not show that it has the focus"
                return
        pytest.fail(f"no Tab leads to {name}")

    tab_to("first")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("first")
    tab_to("Groups")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=re.compile("Group 0"))).to_be_visible()
    tab_to("Tokens of sample 0 of group 0")
    page.keyboard.press("Space")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Tokens of sample 0")).to_be_focused()


def test_samples_are_chosen_by_reward_and_status_and_found_by_text(reader: Reader, watch: Watch) -> None:
    page = reader.open(run="first", tab="groups", step="7")
    rows = [json.loads(line) for line in (watch.directory / "first/samples.jsonl").read_text().splitlines()]
    of_step = [row for row in rows if row["step"] == 7]
    cards = page.get_by_role("article")
    expect(cards).to_have_count(len(of_step))
    assert page.locator(".sample header .quiet").all_text_contents() == 4 * [f"#{number}" for number in range(8)]
    expect(page.get_by_text(re.compile(r"^8 of 8 shown, mean reward of those shown \d\.\d+$"))).to_have_count(4)
    best = sum(row["reward"] == 1.1 for row in of_step)
    page.get_by_role("button", name=re.compile(rf"^{best} samples? with reward 1.100")).click()
    expect(cards).to_have_count(best)
    page.get_by_role("button", name=re.compile("with reward 1.100")).click()
    page.get_by_role("combobox", name="Status", exact=True).select_option("truncated")
    expect(cards).to_have_count(sum(row["status"] == "truncated" for row in of_step))
    expect(page.get_by_text("1 of 8 shown").first).to_be_visible()
    wanted = next(row["completion"] for row in rows if row["step"] == 31 and row["status"] == "ok")
    page.get_by_label("Search all steps").fill(wanted.partition("\n")[0][-60:])
    page.get_by_label("Search all steps").press("Enter")
    page.get_by_role("link", name=re.compile(r"^step 31, sample \d of group \d")).first.click()
    expect(page.get_by_label("Step", exact=True)).to_have_value("31")
    assert re.search(r"#run=first&tab=groups&step=31&sample=\d+$", page.url), "it can be linked, without the token"


def test_faults_stand_on_the_timeline(reader: Reader) -> None:
    page = reader.open(run="first", tab="faults")
    bar = page.get_by_role("button", name=re.compile(r"rollout\[1\] died; noticed after 0.7 s; restarted; stood 19 s"))
    bar.focus()
    expect(bar).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".chosen")).to_contain_text("(killed by signal 9); samples: data row 17, data row 4")
    expect(page.get_by_role("group", name="Faults over time").get_by_role("button")).to_have_count(4)
    row = page.get_by_role("row").filter(has_text="disk")
    expect(row).to_contain_text("not over")
    page.get_by_role("row").filter(has_text="policy[0]").get_by_role("link").click()
    expect(page.get_by_label("Step", exact=True)).to_have_value("20")


def test_tokens_are_coloured_and_those_that_were_given_marked(reader: Reader) -> None:
    page = reader.open(run="first", tab="groups", step="9")
    page.get_by_role("button", name="Tokens of sample 0").click()
    page.locator(".tokens .given").first.wait_for()
    pieces = page.locator(".tokens span")
    seen = "(spans) => spans.map((span) => [span.className, getComputedStyle(span).backgroundColor])"
    looks = pieces.evaluate_all(seen)
    assert {look for look, _ in looks} > {"given", "q0"}
    assert len({colour for look, colour in looks if look != "given"}) >= 3
    assert sum(look == "given" for look, _ in looks) == 3
    expect(page.locator(".legend.scale")).to_contain_text("not sampled")
    page.get_by_label("Colour by").select_option("versions")
    assert set(pieces.evaluate_all("(spans) => spans.map((span) => span.className)")) == {"v0", "v1", "given"}
    page.locator(".tokens").press("ArrowRight")
    expect(page.get_by_role("dialog").get_by_role("status")).to_contain_text(re.compile(r"^1 of \d+: .* logprob .?\d"))


def test_markup_and_control_characters_are_text(reader: Reader, watch: Watch) -> None:
    run = copied(watch, "odd")
    row = {"step": 20, "prompt": ODD, "completion": ODD, "reward": None, "status": "failed", "answer": ODD}
    long = row | {"prompt": 6000 * "why " + "so", "completion": 100_000 * "long " + "at last"}
    (run / "samples.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(long) + "\n")
    (run / "eval_samples.jsonl").write_text(json.dumps({"row": 0, "group": 0, "sample": 0, **row}) + "\n")
    (run / "logs/rollout-0.log").write_text(ODD)
    page = reader.open(run="odd", tab="groups")
    card, other = page.get_by_role("article").all()
    shown = "<script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'>␇␛[31mred [U+202E] end"
    expect(card.locator("pre")).to_have_text(shown)
    expect(card).to_contain_text("not scored")
    other.get_by_role("button", name="Whole").click()
    expect(other).to_contain_text("long at last")
    expect(page.get_by_text(re.compile("^1 shown, mean reward of those shown"))).to_have_count(2)
    page.locator("summary").filter(has_text="why").click()
    page.get_by_role("button", name="Whole prompt").click()
    expect(page.locator("details.prompt pre")).to_have_text(re.compile("why so$"))
    assert page.evaluate("window.harmed") is None
    for tab in ("heldout", "logs"):
        expect(reader.open(run="odd", tab=tab).locator("main")).to_contain_text("␛[31mred [U+202E] end")
        assert page.evaluate("window.harmed") is None


def test_stop_asks_once_more_and_ends_the_driver(reader: Reader, watch: Watch) -> None:
    run = copied(watch, "stopped")
    command = [sys.executable, "-c", DRIVER, str(run / "metrics.jsonl"), "tandem run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as driver:
        try:
            assert driver.stdout is not None and driver.stdout.readline() == b"ready\n"
            say_now(run, 21, "update", driver=driver.pid, at=time.time())
            page = reader.open(run="stopped")
            expect(page.locator(".state")).to_have_text(re.compile("running"))
            page.get_by_role("button", name="Stop …").click()
            page.get_by_role("button", name="Keep it running").click()
            assert driver.poll() is None
            page.get_by_role("button", name="Stop …").click()
            page.get_by_role("button", name="Stop the run").click()
            expect(page.get_by_text("The run was asked to stop.")).to_be_visible()
            assert driver.wait(10) == 7
            expect(page.locator(".state")).not_to_have_text(re.compile("running"))
        finally:
            driver.kill()


def test_held_out_answers_settings_and_logs_are_there(reader: Reader) -> None:
    page = reader.open(run="first", tab="heldout")
    page.get_by_label("Held-out prompt").select_option(index=1)
    expect(page.locator(".diff ins")).to_contain_text("which makes")
    expect(page.locator(".diff del")).to_contain_text("so")
    page.get_by_role("link", name="Settings").click()
    page.get_by_label("Differences to").select_option("second")
    differences = page.get_by_role("region", name="Differences to second")
    expect(differences.get_by_role("row").filter(has_text="policy.optimizer.lr")).to_contain_text("0.000003")
    page.get_by_role("searchbox", name="Settings").fill("clip_(low|high)$")
    expect(page.get_by_role("region", name="Settings", exact=True).get_by_role("row")).to_have_count(3)
    page.get_by_role("link", name="Logs").click()
    page.get_by_role("combobox", name="Log").select_option("rollout-1.log")
    expect(page.locator(".log")).to_contain_text("engine 1: step 39")
    page.get_by_role("link", name="Phases").click()
    expect(page.get_by_role("img", name=re.compile(r"^Seconds of a step.*idle \(no phase\) \d"))).to_be_visible()


def test_every_view_is_named_legible_and_no_wider_than_a_telephone(reader: Reader) -> None:
    reader.page.set_viewport_size({"width": 390, "height": 800})
    grounds = []
    for words in ({}, *({"run": "first", "tab": tab} for tab in TABS)):
        page = reader.open(**words)
        page.locator(".body > *, table").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 390, words
        assert page.evaluate(UNNAMED) == [], words
        for role in ("banner", "main", *(["navigation"] if words else [])):
            expect(page.get_by_role(role).first).to_be_visible()
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            low = [(name, ratio) for name, ratio in page.evaluate(CONTRASTS) if not ratio >= 4.5]
            assert low == [], (words, scheme)
            grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    light, dark = "rgb(255, 255, 255)", "rgb(20, 23, 26)"
    assert set(grounds[::2]) == {dark} and set(grounds[1::2]) == {light}
    for chosen, ground in (("light", light), ("dark", dark), ("auto", light)):
        page.get_by_role("button", name="Theme: ").click()
        expect(page.get_by_role("button", name=f"Theme: {chosen}")).to_be_visible()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
    page.set_viewport_size({"width": 1280, "height": 800})


def test_what_is_computed_for_the_page_is_right(reader: Reader) -> None:
    assert reader.open().evaluate(MATHS) == {
        "long": ["gone", "new"],
        "kept": ["same one ", "gone two ", "new 2 ", "same three"],
        "smooth": [2000, 2000, 2000, 3600],
        "even": [2000, 3600],
        "means": {"step": [5], "values": {"a": [2]}, "counts": {"a": [9]}},
        "thin": {"steps": [1, 3, 5], "values": [5, 7, 9]},
        "bars": [13, 101],
        "each": True,
    }


def test_who_has_not_the_address_is_told_to_open_it(reader: Reader, watch: Watch) -> None:
    reader.page.context.clear_cookies()
    reader.page.goto(watch.address.partition("?")[0])
    expect(reader.page.get_by_role("alert")).to_have_text("Open the address that `tandem watch` has printed.")
    reader.wrong.clear()  # its questions were refused


def test_it_says_so_when_the_run_or_the_server_is_gone(reader: Reader, watch: Watch) -> None:
    run = copied(watch, "gone")
    page = reader.open(run="gone")
    watch.end()
    expect(page.get_by_text("The server does not answer")).to_be_visible()
    add_steps(run, 21, 22)
    watch.start()
    expect(page.get_by_role("img", name=re.compile("^reward:.*at step 22"))).to_be_visible()
    expect(page.locator("#connection")).to_be_hidden()
    shutil.rmtree(run)
    expect(page.get_by_text("This run is no longer there.")).to_be_visible()
    page.goto("about:blank")
    reader.wrong.clear()  # the browser tells of each request without an answer


def test_a_report_opens_without_a_server(
    reader: Reader, watch: Watch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report([str(watch.directory / name) for name in ("first", "second")], str(tmp_path / "report.html"))
    capsys.readouterr()
    asked: list[str] = []
    reader.page.on("request", lambda request: asked.append(request.url.partition(":")[0]))
    page = reader.open(f"file://{tmp_path}/report.html")
    page.get_by_role("link", name="first").click()
    expect(page.get_by_role("img", name=re.compile("^reward:.*at step 40"))).to_be_visible()
    page.get_by_role("link", name="Groups").click()
    expect(page.get_by_role("article")).to_have_count(32)
    page.get_by_role("button", name="Tokens of sample 0").click()
    expect(page.locator(".tokens .given")).to_have_count(3)
    page.keyboard.press("Escape")
    page.get_by_label("Search all steps").fill("boxed")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("link", name=re.compile("^step 1, sample"))).not_to_have_count(0)
    assert set(asked) <= {"file", "data", "about"}

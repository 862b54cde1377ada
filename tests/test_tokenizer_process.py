"""The second process of `tandem check`: same answers, same errors, and nothing left of it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import os, sys
from actors.config import UserError
from launch.checks.tokenizer_process import Aside

def pid():
    return os.getpid()

def refuse():
    raise UserError("a: must be b, got c", "d: must be e, got f")

def wrong():
    raise KeyError("nobody expects it")

def odd():
    return lambda: 7  # cannot be pickled

def dies():
    if os.getpid() != own:
        os._exit(3)
    return "here"

own = os.getpid()
sys.modules["calls"] = sys.modules["__main__"]
with Aside() as aside:
    other = aside.call(pid)
    print("process", other != own)
    for function in (refuse, wrong):
        try:
            aside.call(function)
        except (UserError, KeyError) as error:
            print(type(error).__name__, error.args)
    print("unpicklable", aside.call(odd)())
    print("then here", aside.call(pid) == own)
try:
    os.kill(other, 0)
except ProcessLookupError:
    print("gone")
with Aside() as aside:
    try:
        aside.call(dies)
    except UserError as error:
        print(error)
    print("died", aside.call(pid) == own)
import threading
stop = threading.Event()
threading.Thread(target=stop.wait).start()
with Aside() as aside:
    print("with threads here", aside.call(pid) == own)
stop.set()
"""


def test_calls_are_answered_as_if_they_were_made_here() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "process True",
        "UserError ('a: must be b, got c\\nd: must be e, got f',)",
        "KeyError ('nobody expects it',)",
        "unpicklable 7",
        "then here True",
        "gone",
        "data: must be read without ending the process (is there memory for it? what does a converter or generator "
        "do?), got exit code 3",
        "died True",
        "with threads here True",
    ], done.stderr


def test_a_check_that_is_interrupted_leaves_no_process(tmp_path: Path) -> None:
    """The process ends with whoever started it, however that ends."""
    code = (
        "import os, signal\nfrom launch.checks.tokenizer_process import Aside\n"
        "aside = Aside().__enter__()\nprint(aside.call(os.getpid), flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == -9
    other = Path("/proc") / done.stdout.strip()
    deadline = 50
    while other.exists() and deadline:
        deadline -= 1
        subprocess.run(["sleep", "0.1"], check=True)
    assert not other.exists() or "Z" in (other / "stat").read_text().split(")")[1][:3]
    assert os.getpid() != int(done.stdout)

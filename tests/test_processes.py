"""What /proc tells of real processes, the signs of life made of it, and who is killed."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from actors.pulse import ProcessId, own_process
from launch.run.processes import can_run, descendants, is_there, kill_tree, look, switches
from launch.run.signs import EXIT, STOPPED, Signs
from tests.children import (
    COMPUTES_WITH_THE_LOCK,
    HAS_A_CHILD,
    HOLDS_THE_LOCK,
    NAMED,
    SLEEPS,
    SPINS,
    Start,
    processes,
)

DEADLINE_S = 30.0
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def start() -> Iterator[Start]:
    with processes() as start:
        yield start


def seen(pid: int) -> ProcessId:
    """Of a process that there is."""
    found = look(pid)
    assert found is not None
    return found.process


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.01)


def started(pid: int) -> int:
    """As psutil has it, in ticks."""
    boot = next(int(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if line[:5] == "btime")
    return round((psutil.Process(pid).create_time() - boot) * os.sysconf("SC_CLK_TCK"))


def state(pid: int) -> str:
    """Of a process; empty when it is gone."""
    found = look(pid)
    return found.state if found else ""


def is_halted(pid: int) -> bool:
    return state(pid) in ("T", "t")


# --- looks


def test_a_process_is_seen_as_it_sees_itself() -> None:
    found = look(os.getpid())
    assert found is not None
    assert found.process == own_process()
    assert (found.parent, found.state) == (os.getppid(), "R")
    assert found.threads == len(os.listdir("/proc/self/task"))
    assert found.cpu_s == pytest.approx(sum(os.times()[:2]), abs=0.1)


def test_a_name_may_have_brackets_and_spaces(start: Start) -> None:
    pid, _ = start("import ctypes; ctypes.CDLL(None).prctl(15, b'a) R (b c'); " + SLEEPS)
    found = look(pid)
    assert found is not None
    assert (found.name, found.parent, found.process.started) == ("a) R (b c", os.getpid(), started(pid))


def test_what_has_ended_is_dead_before_and_after_it_is_taken_in(start: Start) -> None:
    pid, _ = start(SLEEPS)
    known = seen(pid)
    assert is_there(known)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_there(known), "the end of a killed process")
    zombie = look(pid)
    assert zombie is not None and zombie.is_dead and zombie.state == "Z"
    os.waitpid(pid, 0)
    assert look(pid) is None and not is_there(known)


def test_a_process_lives_on_without_its_first_thread(start: Start) -> None:
    program = (
        "import ctypes, threading, time\n"
        "def rest():\n"
        "    time.sleep(1)\n"
        "    print('up', flush=True)\n"
        "    time.sleep(600)\n"
        "threading.Thread(target=rest).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    pid, _ = start(program)
    found = look(pid)
    assert found is not None
    assert (found.state, found.is_dead) == ("Z", False)


def test_descendants_are_found_whoever_of_the_threads_has_started_them(start: Start) -> None:
    program = (
        "import subprocess, sys, threading, time\n"
        "def rest():\n"
        "    child = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE)\n"
        "    print(child.stdout.readline().decode(), end='', flush=True)\n"
        "    time.sleep(600)\n"
        "threading.Thread(target=rest).start()\n"
    )
    pid, grandchild = start(program, "-c", HAS_A_CHILD, SLEEPS)
    found = descendants(pid)
    assert [each.process.pid for each in found][-1:] == [grandchild]
    assert [each.parent for each in found] == [pid, found[0].process.pid]


def test_a_file_system_that_does_not_answer_is_waited_for(start: Start, tmp_path: Path) -> None:
    """One in user space, for which the kernel lets a process sleep as for anything else."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        pytest.skip("needs /dev/fuse")
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
    if libc.mount(b"test", str(tmp_path).encode(), b"fuse", 0, options):
        pytest.skip("needs leave to mount")
    try:
        request = os.read(device, 1 << 17)
        # Its first question, FUSE_INIT, is answered; no other is. struct fuse_out_header, fuse_init_out.
        answer = (7).to_bytes(4, "little") + (31).to_bytes(4, "little") + bytes(56)
        os.write(device, (16 + len(answer)).to_bytes(4, "little") + bytes(4) + request[8:16] + answer)
        program = "import ctypes, sys; print('up', flush=True); ctypes.PyDLL(None).access(sys.argv[1].encode(), 0)"
        pid, _ = start(program, f"{tmp_path}/file")
        wait_until(lambda: state(pid) == "S" and can_run(pid), "a process that waits for a file")
    finally:
        os.close(device)
        libc.umount2(str(tmp_path).encode(), 2)


def test_who_moves_is_counted(start: Start) -> None:
    pid, _ = start(SLEEPS)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_halted(pid), "a stopped process")
    before = switches(pid)
    time.sleep(0.3)
    assert switches(pid) == before
    os.kill(pid, signal.SIGCONT)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_halted(pid) and switches(pid) > before, "a move")


# --- kills


def test_a_killed_tree_leaves_nothing(start: Start) -> None:
    """Of one whose process is stopped, and of one whose process has ended before: its child is known from then."""
    pid, child = start(HAS_A_CHILD, SLEEPS)
    tree = [seen(pid), seen(child)]
    os.kill(pid, signal.SIGSTOP)
    kill_tree(tree[0])
    wait_until(lambda: not any(map(is_there, tree)), "the end of a tree")
    pid, child = start(HAS_A_CHILD, SLEEPS)
    tree = [seen(pid), seen(child)]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_there(tree[0]), "the end of a process")
    kill_tree(tree[0])
    assert is_there(tree[1])
    kill_tree(*tree[:1], others=tree[1:])
    wait_until(lambda: not is_there(tree[1]), "the end of what it has left behind")


@pytest.mark.parametrize("change", [{"started": 1}, {"pids": "elsewhere-1"}])
def test_whoever_has_the_number_now_is_left_alone(start: Start, change: dict[str, int | str]) -> None:
    """Of one that has ended, or of another machine's."""
    pid, child = start(HAS_A_CHILD, SLEEPS)
    other = replace(seen(pid), **change)
    kill_tree(other, [replace(seen(child), **change)])
    assert not is_there(other)
    assert Signs(other, 0.0).look(1.0) == EXIT
    time.sleep(0.2)
    assert is_there(seen(pid)) and is_there(seen(child))


def test_whom_one_may_not_kill_is_no_error(start: Start) -> None:
    if os.getuid():
        pytest.skip("needs to become another user")
    pid, _ = start(SLEEPS)
    program = (
        "import os; from launch.run.processes import kill_tree, look\n"
        f"known = look({pid}).process; os.setuid(12345); kill_tree(known); print('done')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout.strip() == "done", done.stderr
    time.sleep(0.2)
    assert is_there(seen(pid))


# --- signs: looks a second apart, of a clock that need not be waited for where nothing can happen meanwhile


def test_a_stopped_process_is_told_of_at_the_second_look(start: Start) -> None:
    pid, _ = start(SLEEPS)
    signs = Signs(seen(pid), 100.0)
    assert signs.look(101.0) is None
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_halted(pid), "a stopped process")
    assert signs.look(102.0) is None
    assert signs.look(102.5) is None
    assert signs.look(103.0) == STOPPED
    assert signs.alive_at == 101.0


def test_one_that_goes_on_between_looks_has_not_stopped(start: Start) -> None:
    """As under a profiler, which stops it again and again."""
    pid, _ = start(SLEEPS)
    signs = Signs(seen(pid), 100.0)
    for second in range(1, 6):
        before = switches(pid)
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda before=before: is_halted(pid) and switches(pid) > before, "a stopped process")
        assert signs.look(100.0 + second) is None
    assert signs.look(106.0) == STOPPED


def test_a_traced_process_has_stopped(start: Start) -> None:
    """As under a debugger."""
    pid, _ = start(SLEEPS)
    program = (
        "import ctypes, os, sys, time; libc = ctypes.CDLL(None)\n"
        "assert libc.ptrace(16, int(sys.argv[1]), None, None) == 0\n"  # PTRACE_ATTACH
        "print('up', flush=True); time.sleep(600)"
    )
    start(program, str(pid))
    wait_until(lambda: is_halted(pid), "a traced process")
    found, signs = look(pid), Signs(seen(pid), 100.0)
    assert found is not None and found.state == "t"
    assert [signs.look(101.0), signs.look(102.0)] == [None, STOPPED]


def test_nobody_has_looked_for_long(start: Start) -> None:
    pid, _ = start(SLEEPS)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_halted(pid), "a stopped process")
    signs = Signs(seen(pid), 100.0)
    assert signs.look(101.0) is None
    signs.begin_anew()
    assert signs.look(161.0) is None
    assert signs.look(162.0) == STOPPED


def test_a_stopped_child_is_its_parents_and_a_stopped_stranger_is_not(start: Start) -> None:
    pid, child = start(HAS_A_CHILD, SLEEPS)
    signs, alone = Signs(seen(pid), 100.0), Signs(seen(pid), 100.0, family=False)
    os.kill(child, signal.SIGSTOP)
    wait_until(lambda: is_halted(child), "a stopped child")
    assert [signs.look(101.0), signs.look(102.0)] == [None, STOPPED]
    assert [alone.look(101.0), alone.look(102.0)] == [None, None]
    signs.kill()
    wait_until(lambda: state(child) in ("", "Z"), "the end of the child")


@pytest.mark.parametrize(("program", "sign"), [(NAMED, EXIT), (SLEEPS, None)])
def test_only_the_end_of_a_vital_child_is_its_parents(start: Start, program: str, sign: str | None) -> None:
    pid, child = start(HAS_A_CHILD, program)
    signs = Signs(seen(pid), 100.0)
    assert signs.look(101.0) is None
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: state(child) == "Z", "a zombie")
    assert signs.look(102.0) == sign


def test_what_a_dead_process_has_left_behind_is_killed(start: Start) -> None:
    pid, child = start(HAS_A_CHILD, SLEEPS)
    signs, left = Signs(seen(pid), 100.0), seen(child)
    assert signs.look(101.0) is None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert signs.look(102.0) == EXIT
    signs.kill()
    wait_until(lambda: not is_there(left), "the end of the child")


def test_a_starved_process_is_at_work(start: Start) -> None:
    """At niceness 19 beside four that spin, on as few cores as there are: for 15 looks none finds it still."""
    for _ in range(4):
        start(SPINS)
    nice, other = (start(program, niceness=19)[0] for program in (SPINS, COMPUTES_WITH_THE_LOCK))
    both = [Signs(seen(pid), time.monotonic()) for pid in (nice, other)]
    for _ in range(15):
        time.sleep(0.25)  # a quarter of what lies between a watch's looks: it has even less of a core in between
        now = time.monotonic()
        assert [signs.look(now) for signs in both] == [None, None]
        assert [signs.still_s(now) for signs in both] == [0.0, 0.0]
        assert [signs.moved_at for signs in both] == [now, now]


def test_one_that_sleeps_is_still_and_one_whose_child_works_is_not(start: Start) -> None:
    asleep, _ = start(HOLDS_THE_LOCK)
    parent, _ = start(HAS_A_CHILD, SPINS)
    alone, family = (Signs(seen(pid), time.monotonic()) for pid in (asleep, parent))
    assert [alone.look(time.monotonic()), family.look(time.monotonic())] == [None, None]
    deadline, found = time.monotonic() + DEADLINE_S, 0.0
    while found <= 1.1:  # not at once: on a busy machine it may still be on its way to sleep
        assert time.monotonic() < deadline
        time.sleep(0.4)
        now = time.monotonic()
        found = alone.still_s(now)
        assert family.still_s(now) == 0.0
    assert found < 10
    alone.begin_anew()
    assert alone.still_s(time.monotonic()) == 0.0

import os
import pty
import signal
import subprocess
import sys
import threading

import pytest

from gaternet_jax.signals import interruptible, spared_children


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_asks_for_an_end(signum):
    before = signal.getsignal(signum)
    with interruptible() as interrupted:
        assert not interrupted()
        signal.raise_signal(signum)
        assert interrupted()
    assert signal.getsignal(signum) is before


def test_second_interrupt_ends_at_once():
    with interruptible() as interrupted, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_children_do_not_get_what_a_terminal_sends_to_all(signum):
    with spared_children():
        child = subprocess.Popen(["sleep", "0.3"])
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    child.send_signal(signum)
    assert child.wait() == (-signum if signum == signal.SIGTERM else 0)


def test_repeated_sigterm_is_harmless(capfd):
    with interruptible() as interrupted:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert interrupted()
    assert capfd.readouterr().err.count("Ending in good order") == 1


def test_other_threads_are_never_interrupted():
    answers = []

    def work():
        with interruptible() as interrupted:
            answers.append(interrupted())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]


def test_hangup_that_is_ignored_stays_so():
    """nohup: the run outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible() as interrupted:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupted()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


RUN_IN_A_TERMINAL = """
import sys, time
from gaternet_jax.signals import interruptible
with interruptible() as interrupted:
    print("at work", flush=True)
    deadline = time.monotonic() + 20
    while not interrupted() and time.monotonic() < deadline:
        time.sleep(0.01)
    print("saving", flush=True)
    print("saving", file=sys.stderr, flush=True)
    open(sys.argv[1], "w").write("saved" if interrupted() else "not asked")
"""


def test_closed_terminal_asks_for_an_end_and_what_is_printed_then_is_no_error(tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", RUN_IN_A_TERMINAL, str(tmp_path / "file")]
    terminal = dict(stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    # A session's leader gets SIGHUP when its terminal, the first one that it opens, is closed.
    wrapper = ["-c", "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.argv[1], sys.argv[1:])"]
    process = subprocess.Popen([sys.executable, *wrapper, *command], **terminal)
    os.close(theirs)
    said = b""
    while b"at work" not in said:
        said += os.read(ours, 1000)
    os.close(ours)
    assert process.wait(30) == 0
    assert (tmp_path / "file").read_text() == "saved"

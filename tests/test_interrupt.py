import signal
import threading

import pytest

from gaternet_jax.interrupt import interruptible


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
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

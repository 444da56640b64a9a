import os
import signal
import threading

import pytest

from syntheocc.engine.stopping import StopSignals, leave_signals_to_the_parent


@pytest.fixture(autouse=True)
def own_handlers():
    """Puts the handlers back, whatever a test leaves behind."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_wish(number):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # torchrun passes on what the process has already had
        assert signals.received == number.name
    assert signal.getsignal(number) == before


def test_the_third_ctrl_c_is_no_wish():
    with pytest.raises(KeyboardInterrupt), StopSignals():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)


def test_other_threads_are_left_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run():
        with StopSignals() as signals:
            seen.append((signals.received, signal.getsignal(signal.SIGTERM) == before))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(None, True)]


def test_a_reading_process_outlives_one_sigterm_and_no_more():
    leave_signals_to_the_parent()
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

"""The first signal is a request, the second is not, and outside all is as it was."""

import os
import signal
import threading

import pytest

from abyssal.train.stopping import Stopping

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def _handlers_are_put_back():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_remembered_and_nothing_else_happens(number):
    with Stopping() as stopping:
        assert stopping.signal is None
        send(number)
        assert stopping.signal == number


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_interrupts(first, second):
    with Stopping() as stopping:
        send(first)
        with pytest.raises(KeyboardInterrupt):
            send(second)
        assert stopping.signal == first


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_signals_do_what_they_did_before(number):
    heard = []
    signal.signal(number, lambda *_: heard.append("outside"))
    with Stopping():
        send(number)
    assert heard == []
    send(number)
    assert heard == ["outside"]


def test_the_handlers_are_put_back_after_an_error_too():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ZeroDivisionError), Stopping():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_in_a_thread_signals_are_left_alone():
    before = [signal.getsignal(number) for number in SIGNALS]
    seen = []

    def work():
        with Stopping() as stopping:
            seen.append((stopping.signal, [signal.getsignal(number) for number in SIGNALS]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]

"""Signals as requests to stop: whole work is finished, and none is lost."""

import os
import signal

import pytest

from pgnas_cli.signals import Stopped, StopRequest, received, stoppable

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_asks_and_the_second_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), StopRequest() as request:
        os.kill(os.getpid(), number)
        assert request.asked == number
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", NUMBERS)
def test_a_request_that_nobody_answers_is_passed_on(number: signal.Signals) -> None:
    done = []
    with pytest.raises(Stopped) as stop, stoppable():
        with StopRequest() as outer:
            with StopRequest() as inner:
                os.kill(os.getpid(), number)
                assert inner is outer
            done.append("the rest of what must be whole")
        done.append("what comes after it")
    assert done == ["the rest of what must be whole"]
    assert (stop.value.number, received()) == (number, 0)


def test_a_signal_that_was_swallowed_is_found_by_the_next_request() -> None:
    with pytest.raises(Stopped), stoppable():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Stopped:  # as in a destructor
            assert received()
        with StopRequest() as request:
            assert request.asked == signal.SIGTERM


def test_a_request_that_was_answered_is_not_passed_on() -> None:
    with stoppable(), pytest.raises(ValueError, match="answer"), StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("answer")

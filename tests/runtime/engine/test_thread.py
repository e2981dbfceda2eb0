"""The engine's thread: requests from many threads, and how it ends."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime.decoding.sampling import Sampling
from runtime.engine.request import Failed, Finished, Request
from runtime.engine.thread import ClosedError, EngineThread

from .asking import alone, engine_of, random_ids, tokens_prompt

pytestmark = pytest.mark.slow


class Waiting:
    """Events of one answer, and a wait for the last."""

    def __init__(self, thread, ids, max_new_tokens=20):
        self.request = Request(tokens_prompt(ids), Sampling(), max_new_tokens)
        self.events, self.ended = [], threading.Event()
        thread.submit(self.request, self.deliver)

    def deliver(self, event):
        self.events.append(event)
        if isinstance(event, Finished | Failed):
            self.ended.set()

    def wait(self):
        assert self.ended.wait(60)
        return self


def test_many_threads_ask_at_once(reader):
    thread = EngineThread(engine_of(reader, 4))
    with ThreadPoolExecutor(8) as pool:
        asked = list(pool.map(lambda seed: Waiting(thread, random_ids(seed, 40)).wait(), range(40)))
    assert thread.alive
    thread.close(10)
    assert not thread.alive
    for one in asked:
        assert [event.token for event in one.events[:-1]] == alone(reader, one.request)


def test_closing_finishes_what_has_come(reader):
    thread = EngineThread(engine_of(reader, 1))
    asked = [Waiting(thread, random_ids(seed, 100)) for seed in range(5)]
    thread.close(60)
    assert all(isinstance(one.events[-1], Finished) for one in asked)
    with pytest.raises(ClosedError, match=r"^the server is stopping"):
        Waiting(thread, random_ids(1, 10))


def test_closing_at_once_fails_what_is_left(reader):
    thread = EngineThread(engine_of(reader, 1))
    asked = [Waiting(thread, random_ids(seed, 1500)) for seed in range(20)]
    start = time.monotonic()
    thread.close(0)
    assert time.monotonic() - start < 5
    assert all(one.ended.is_set() for one in asked)
    assert isinstance(asked[-1].events[-1], Failed)
    assert "stopping" in str(asked[-1].events[-1].error)


def test_a_fault_ends_the_thread_and_every_request(reader, capsys, recwarn):
    """As a fault of the program would: here a caller's function raises."""
    thread = EngineThread(engine_of(reader, 1))
    other = Waiting(thread, random_ids(1, 1500))

    def deliver(event):
        if not isinstance(event, Failed):
            raise RuntimeError("a fault")

    thread.submit(Request(tokens_prompt(random_ids(2, 10)), Sampling(), 5), deliver)
    last = Waiting(thread, random_ids(3, 10))
    last.wait()
    thread._thread.join(10)
    assert not thread.alive
    assert isinstance(other.events[-1], Finished)
    assert "the engine has stopped" in str(last.events[-1].error)
    assert "RuntimeError: a fault" in capsys.readouterr().err


def test_a_turn_that_does_not_end_is_seen(reader):
    """As of a kernel that hangs: events are delivered within a turn."""
    thread = EngineThread(engine_of(reader, 1))
    entered, leave = threading.Event(), threading.Event()

    def deliver(event):
        entered.set()
        leave.wait(60)

    assert thread.turn_seconds == 0
    thread.submit(Request(tokens_prompt(random_ids(1, 10)), Sampling(), 1), deliver)
    assert entered.wait(60)
    time.sleep(0.1)
    assert 0.1 <= thread.turn_seconds < 60
    leave.set()
    thread.close(60)
    assert thread.turn_seconds == 0

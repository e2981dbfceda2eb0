"""Who has the engine: many that share it, or one alone."""

import random
import threading
import time
from functools import partial

import pytest

from runtime.batch.workers.turns import Turns

SECONDS = 10  # until a thread that waits is taken for stuck
SOON = 0.05  # in which a thread that need not wait has its turn


def started(function):
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


class Holder:
    """A thread that takes a turn and keeps it until it is told."""

    def __init__(self, turn):
        self.has, self.release = threading.Event(), threading.Event()
        self._turn = turn
        self.thread = started(self._hold)

    def _hold(self):
        with self._turn:
            self.has.set()
            assert self.release.wait(SECONDS)

    def end(self):
        self.release.set()
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()


@pytest.mark.parametrize("seed", range(3))
def test_nobody_shares_while_one_is_alone(seed):
    turns, lock = Turns(), threading.Lock()
    inside, seen = {"shared": 0, "alone": 0}, []

    def take(kind, rounds):
        for pause in rounds:
            with getattr(turns, kind)():
                with lock:
                    inside[kind] += 1
                    seen.append(tuple(inside.values()))
                time.sleep(pause)
                with lock:
                    inside[kind] -= 1

    dice = random.Random(seed)
    kinds = ("shared", "alone", "shared", "shared", "alone", "shared")
    threads = [started(partial(take, kind, [dice.random() / 1000 for _ in range(30)])) for kind in kinds]
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads)
    assert len(seen) == 6 * 30
    assert all((shared == 0 and alone == 1) or (shared > 0 and alone == 0) for shared, alone in seen)
    assert max(shared for shared, _ in seen) > 1


def test_many_share_at_the_same_time():
    turns = Turns()
    holders = [Holder(turns.shared()) for _ in range(4)]
    assert all(holder.has.wait(SECONDS) for holder in holders)
    for holder in holders:
        holder.end()


def test_whoever_wants_to_be_alone_waits_for_those_who_share_and_not_for_later_ones():
    turns = Turns()
    first = Holder(turns.shared())
    assert first.has.wait(SECONDS)
    alone = Holder(turns.alone())
    assert not alone.has.wait(SOON)
    later = Holder(turns.shared())
    assert not later.has.wait(SOON)
    first.end()
    assert alone.has.wait(SECONDS)
    assert not later.has.is_set()
    alone.end()
    assert later.has.wait(SECONDS)
    later.end()


def test_one_after_another_is_alone():
    turns = Turns()
    first = Holder(turns.alone())
    assert first.has.wait(SECONDS)
    second = Holder(turns.alone())
    assert not second.has.wait(SOON)
    first.end()
    assert second.has.wait(SECONDS)
    second.end()


def test_who_takes_one_turn_alone_after_another_lets_others_between():
    """A shard whose pages are answered one by one would stop the others of its worker until it is done."""
    turns = Turns()
    begun, others, enough = threading.Event(), threading.Event(), threading.Event()

    def one_by_one():
        while not enough.is_set():
            with turns.alone():
                begun.set()
                time.sleep(0.002)

    def share():
        with turns.shared():
            others.set()

    thread = started(one_by_one)
    assert begun.wait(SECONDS)
    started(share)
    assert others.wait(SECONDS)
    enough.set()
    thread.join(SECONDS)
    assert not thread.is_alive()


@pytest.mark.parametrize("kind", ["shared", "alone"])
def test_an_error_ends_a_turn(kind):
    turns = Turns()
    with pytest.raises(ZeroDivisionError), getattr(turns, kind)():
        _ = 1 / 0
    for turn in (turns.alone(), turns.shared()):
        holder = Holder(turn)
        assert holder.has.wait(SECONDS)
        holder.end()

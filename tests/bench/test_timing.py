"""How a call is timed."""

import time

from bench.timing import Quartiles, timed


def test_a_call_is_timed_after_a_warm_up():
    calls = []
    timing = timed(lambda: (calls.append(None), time.sleep(0.02 if len(calls) <= 2 else 0.001)), seconds=0, least=7)
    assert timing.count == 7
    assert len(calls) == 9
    assert timing.low <= timing.median <= timing.high < 0.02


def test_quartiles_are_scaled_and_shown():
    quartiles = Quartiles.of([4.0, 1.0, 2.0, 3.0, 5.0])
    assert quartiles == Quartiles(3.0, 2.0, 4.0, 5)
    assert quartiles.scaled(0.5) == Quartiles(1.5, 1.0, 2.0, 5)
    assert str(quartiles) == "3.00 (2.00–4.00)"

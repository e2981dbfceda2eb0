"""What drafts cost: the arithmetic by hand, and that the calls which are timed are those of an answer."""

import numpy as np
import pytest

from bench.scale.drafting import COUNTS, Calls, Cost, costs, deeper, table, time_calls
from bench.timing import Quartiles
from runtime.model import Model

WINDOW = 64  # of the reader


def exact(value):
    return Quartiles(value, value, value, 1)


def by_count(rounds, **kinds):
    return {kind: {n: np.full(rounds, value * n) for n in COUNTS} for kind, value in kinds.items()}


@pytest.mark.parametrize("tokens", [WINDOW // 2, 3 * WINDOW])
def test_every_kind_of_call_is_timed_with_windows_part_full_and_full(tokens, exported):
    model = Model(exported("w4"), "cpu")
    timed = time_calls([model, model], tokens, 3)
    for calls in timed:
        assert calls.step.shape == (3,)
        for kind in (calls.draft, calls.check, calls.keep, calls.rewind):
            assert list(kind) == list(COUNTS)
            assert all(times.shape == (3,) and (times > 0).all() for times in kind.values())
    assert len(timed) == 2
    assert len(table("layers", [("4", costs(calls)) for calls in timed])) == 2 + 2 * len(COUNTS)


def test_a_deeper_model_is_on_the_line_through_two():
    """A step of 1 + layers, a check of 2 + 2 layers; the MTP layer drafts as fast as ever."""
    shallow, deep = (
        Calls(
            np.full(3, 1.0 + layers),
            **by_count(3, draft=0.5),
            check={n: np.full(3, 2.0 + 2 * layers) for n in COUNTS},
            **by_count(3, keep=0.1 * layers, rewind=0.2 * layers),
        )
        for layers in (4, 8)
    )
    whole = deeper(shallow, deep, (4, 8), 64)
    assert whole.step == pytest.approx(np.full(3, 65))
    one, two, _ = costs(whole)
    assert one.check.median == pytest.approx(130 / 65)
    assert two.draft.median == pytest.approx(1 / 65)
    assert two.keep.median == pytest.approx(2 * 6.4 / 65)
    assert two.rewind.median == pytest.approx(2 * 12.8 / 65)


def test_where_drafts_pay():
    """One draft for 1.5 steps, and 0.25 to take it back: 1 + a tokens for 1.5 + 0.25 (1 - a) steps, even at a = 0.6."""
    cost = Cost(1, exact(0.2), exact(1.2), exact(0.1), exact(0.25))
    assert cost.speed(1) == pytest.approx(2 / 1.5)
    assert cost.speed(0) == pytest.approx(1 / 1.75)
    assert cost.pays_from == pytest.approx(0.6, abs=1e-3)
    assert Cost(1, exact(1.0), exact(1.2), exact(0.0), exact(0.0)).pays_from is None
    three = Cost(3, exact(0.3), exact(1.7), exact(0.0), exact(0.5))
    assert three.tokens(0.5) == 1.875
    assert three.speed(0.5) == pytest.approx(1.875 / (2 + 0.875 * 0.5))


def test_the_table_says_what_is_measured_and_where_drafts_pay():
    rows = table("layers | context", [("4 | 300", [Cost(1, *map(exact, (0.2, 1.2, 0.1, 0.25)))])])
    assert rows[0].startswith("| layers | context | drafts |")
    assert rows[1].count("|") == rows[0].count("|") == rows[2].count("|")
    assert rows[2] == (
        "| 4 | 300 | 1 | 0.20 (0.20–0.20) | 1.20 (1.20–1.20) | 0.10 (0.10–0.10) | 0.25 (0.25–0.25) "
        "| 1.60 (0.60) | 1.16 | 1.33 |"
    )

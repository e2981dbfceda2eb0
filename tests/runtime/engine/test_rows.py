"""Which rows step together, in how many calls."""

import numpy as np
import pytest

from runtime.engine.rows import MAX_GAP, Rows

pytestmark = pytest.mark.slow


class Prompt:
    """What a row needs of a sequence."""

    def __init__(self, tokens):
        self.content, self.generated, self.cached_tokens = np.arange(tokens), [], 0


def rows_of(reader, running, reading=(), count=12, length=10):
    """Rows of a cache, of which some run and some have read a part of a prompt."""
    rows = Rows(reader.decoder.new_cache(200, count), 64, reuse=True)
    for row in rows._all:
        if row.number in (*running, *reading):
            row.sequence, row.running, row.length = Prompt(length), row.number in running, length
    return rows


@pytest.mark.parametrize(
    ("running", "groups"),
    [
        ([], []),
        ([5], [(5, 6)]),
        ([0, 1, 2], [(0, 3)]),
        ([0, MAX_GAP + 1], [(0, MAX_GAP + 2)]),
        ([0, MAX_GAP + 2], [(0, 1), (MAX_GAP + 2, MAX_GAP + 3)]),
        ([1, 3, 9, 11], [(1, 4), (9, 12)]),
    ],
)
def test_idle_rows_are_computed_where_that_saves_a_call(running, groups, reader):
    found = rows_of(reader, running).groups()
    assert [(rows[0].number, rows[-1].number + 1) for _, rows in found] == groups
    for cache, rows in found:
        assert np.shares_memory(cache.lengths, rows[0].cache.lengths)
        assert cache.buffers[0].shape[0] == len(rows)
        assert cache.buffers[0].address == rows[0].cache.buffers[0].address


def test_a_prompt_that_is_read_stays_out_of_a_step_once_its_windows_are_full(reader):
    for length, calls in ((63, 1), (64, 2)):
        rows = rows_of(reader, [0, 2], reading=[1], length=length)
        assert len(rows.groups()) == calls


def test_a_group_keeps_its_view(reader):
    rows = rows_of(reader, [0, 1])
    assert rows.groups()[0][0] is rows.groups()[0][0]

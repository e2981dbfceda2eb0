"""Commands in processes of their own: what they say, and that memory is theirs alone."""

import numpy as np
import pytest

from bench import process
from console.errors import InputError


def test_a_command_is_run_and_watched():
    calls = []
    finished = process.run("calendar", "2026", "2", watch=lambda: calls.append(None))
    assert finished.output.split()[:2] == ["February", "2026"]
    assert finished.messages == ""
    assert 0 < finished.processor < 10
    assert 0 < finished.seconds < 60


def test_memory_of_the_caller_does_not_count():
    """Linux gives a process the peak of the one that forked it."""
    held = np.ones(100 << 20, np.uint8)
    assert 5 < process.run("this").peak < 100
    assert held.nbytes == 100 << 20


def test_a_command_that_fails_says_why():
    with pytest.raises(InputError, match=r"`python -m nothing_of_this_name a` failed: .*No module named nothing_of"):
        process.run("nothing_of_this_name", "a")

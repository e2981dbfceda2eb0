"""A text in any pieces ends where plain search, character by character, finds a stop string."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from console.errors import InputError
from runtime.decoding.stop_strings import StopStrings


def oracle(text, stop):
    """The text before the stop string that is complete first, and whether there is one."""
    for end in range(1, len(text) + 1):
        if complete := [one for one in stop if text[:end].endswith(one)]:
            return text[: end - max(map(len, complete))], True
    return text, False


def longest_beginning(text, stop):
    """Characters at the end of a text that begin a stop string."""
    return max(
        (n for n in range(len(text) + 1) if any(one.startswith(text[len(text) - n :]) for one in stop)), default=0
    )


SHORT = st.text("ab한\n", max_size=14)


@settings(max_examples=1500, deadline=None, derandomize=True, database=None)
@given(st.lists(SHORT, max_size=8), st.lists(st.text("ab한\n", min_size=1, max_size=5), max_size=4))
def test_any_pieces_give_what_a_search_of_the_whole_text_gives(pieces, stop):
    strings, shown = StopStrings(stop), ""
    for number, piece in enumerate(pieces):
        shown += strings.push(piece)
        expected, found = oracle("".join(pieces[: number + 1]), stop)
        assert strings.found == found
        held = 0 if found else longest_beginning(expected, stop)
        assert shown == expected[: len(expected) - held]
    shown += strings.finish()
    assert (shown, strings.found) == oracle("".join(pieces), stop)
    assert strings.finish() == ""


def test_after_a_stop_string_nothing_is_shown():
    strings = StopStrings(["\n\n", "END"])
    assert [strings.push(piece) for piece in ("1,200 E", "U", "R\n", "\nmore", "more")] == ["1,200 ", "EU", "R", "", ""]
    assert strings.found
    assert strings.finish() == ""


def test_what_was_held_back_is_shown_at_the_end():
    strings = StopStrings(["END"])
    assert (strings.push("the EN"), strings.finish(), strings.found) == ("the ", "EN", False)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(InputError, match="stop: has an empty text"):
        StopStrings(["a", ""])

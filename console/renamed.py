"""Former option names: they still work, and one line says today's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from console.progress import say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def current_arguments(arguments: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    """Replace former option names in a command's arguments.

    renamed: today's name of each former one. A former name that ends in " N" holds only where a number follows.
    """
    current = list(arguments)
    for i, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        following = value if equals else "".join(arguments[i + 1 : i + 2])
        name = renamed.get(f"{option} N" if following.isdecimal() else option) or renamed.get(option)
        if name:
            current[i] = name + equals + value
            say(f"{option} is now {name}")
    return current

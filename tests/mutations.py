"""Every single change of a value's kind in a JSON file, and files that hold no JSON object at all."""

import copy
import math
from collections.abc import Iterator

KINDS = (None, "text", -1, 0, 1.5, 10**18, 10**400, True, ["x"], {"x": 1}, math.nan)
NO_OBJECTS = {
    "empty": b"",
    "not JSON": b'{"format": ',
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "a list": b"[1]",
    "a number": b"3",
    "null": b"null",
    "nested deeply": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}
_MEMBERS = 2  # of a list or a long object that are changed: the others are alike


def mutants(content: dict) -> Iterator[tuple[str, dict]]:
    """What was changed, and the changed content."""
    for path in _paths(content):
        for value in ("removed", *KINDS):
            changed = copy.deepcopy(content)
            *parents, last = path
            holder = changed
            for key in parents:
                holder = holder[key]
            if value == "removed":
                del holder[last]
            else:
                holder[last] = value
            yield f"{'.'.join(map(str, path))} = {str(value)[:20]}", changed


def _paths(value: object) -> Iterator[tuple]:
    members = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, member in members[:_MEMBERS] if isinstance(value, list) or len(members) > 30 else members:
        yield (key,)
        yield from ((key, *path) for path in _paths(member))

"""Which split a document belongs to, by a hash: the same on every machine, whatever else there is.

The splits of one source never share a document. Rendered documents are split by the values printed on them, all others
by the item they come from: its name, its picture where several questions share one, or its prompt where it has none.
"""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

Split = Literal["training", "calibration", "evaluation"]
SPLITS: tuple[Split, ...] = get_args(Split)


def split_of_value(text: str) -> Split:
    """The one split that a printed value may appear in: 80 % training, 10 % calibration, 10 % evaluation."""
    tenth = hashlib.blake2b(text.encode(), digest_size=8).digest()[0] % 10
    return "calibration" if tenth == 8 else "evaluation" if tenth == 9 else "training"


def split_of_item(key: str) -> Split:
    """The split of an item by its key: 60 % calibration, 40 % evaluation."""
    fifth = int.from_bytes(hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()) % 5
    return "calibration" if fifth < 3 else "evaluation"

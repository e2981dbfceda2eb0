"""The text of a rendered document: its rows, and the fields that can be asked about.

Splits cannot overlap: every value (a price, a date, a name with a number, ...) belongs to exactly one split by a hash
of its text, and a document of a split has only values of that split. Every line, answer and document holds such a
value, so no text that is scored in evaluation occurs in calibration or training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from calib_data.rendered import vocabulary as words
from calib_data.splits import split_of_value

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from calib_data.splits import Split


@dataclass(frozen=True)
class Row:
    """One printed row."""

    cells: tuple[str, ...]
    """Texts from left to right."""
    setting: Literal["left", "center", "spread"] = "left"
    """How they are set; "spread" is justified."""

    @property
    def text(self) -> str:
        """Transcription."""
        return " ".join(self.cells)


@dataclass
class Content:
    """A document before it is drawn."""

    rows: list[Row] = field(default_factory=list)
    """From top to bottom."""
    fields: dict[str, str] = field(default_factory=dict)
    """Field key -> printed value."""
    korean: bool = False
    """In Korean, else in English."""

    @property
    def text(self) -> str:
        """Transcription: one line a row."""
        return "\n".join(row.text for row in self.rows)


def _money(rng: Random, korean: bool) -> str:
    if korean:
        amount = f"{rng.randrange(1, 10 ** rng.randint(2, 4)) * 100:,}"
        return rng.choice((f"{amount}원", f"{amount}원", amount, f"₩{amount}"))
    amount = f"{rng.randrange(100, 10 ** rng.randint(3, 6)) / 100:,.2f}"
    return rng.choice((amount, f"${amount}", f"${amount}", f"{amount} USD"))


def _date(rng: Random, korean: bool) -> str:
    year, month, day = rng.randint(2015, 2029), rng.randint(1, 12), rng.randint(1, 28)
    shapes = [f"{year}-{month:02}-{day:02}", f"{year}.{month:02}.{day:02}", f"{year}/{month:02}/{day:02}"]
    if not korean:
        shapes += [f"{day} {words.MONTHS[month - 1]} {year}", f"{month:02}/{day:02}/{year}"]
    return rng.choice(shapes)


def _phone(rng: Random, korean: bool) -> str:
    area = rng.choice(("02", "051", "010", "032")) if korean else f"({rng.randint(201, 989)})"
    return f"{area}{'-' if korean else ' '}{rng.randint(200, 9999)}-{rng.randint(0, 9999):04}"


def _number(rng: Random, _korean: bool) -> str:
    letters = "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=rng.randint(1, 3)))
    digits = "".join(rng.choices("0123456789", k=rng.randint(3, 5)))
    return rng.choice((f"{letters}-{digits}", f"{letters}{digits}", f"#{digits}", f"{digits}/{letters}"))


def _store(rng: Random, korean: bool) -> str:
    if korean:
        return "".join(map(rng.choice, words.STORES_KO)) + f" {rng.randint(1, 99)}호점"
    name = " ".join(map(rng.choice, words.STORES_EN))
    return rng.choice((f"{name} {rng.randint(2, 99)}", f"{name} & Co", f"The {name}", name))


def _name(rng: Random, korean: bool) -> str:
    if korean:
        return rng.choice(words.NAMES_KO[0]) + "".join(rng.sample(words.NAMES_KO[1], 2))
    first, last = map(rng.choice, words.NAMES_EN)
    return rng.choice((f"{first} {last}", f"{first} {rng.choice('ABCDEFGHJKLMNPRSTW')}. {last}"))


def _address(rng: Random, korean: bool) -> str:
    if korean:
        place = f"{rng.choice(words.CITIES_KO)} {rng.choice(words.DISTRICTS_KO)}"
        return f"{place} {rng.randint(1, 99)}-{rng.randint(1, 99)}"
    return f"{rng.randint(1, 999)} {rng.choice(words.STREETS_EN)}"


_VALUES: dict[str, Callable[[Random, bool], str]] = {
    "total": _money, "tax": _money, "cash": _money, "amount": _money, "price": _money, "date": _date,
    "phone": _phone, "number": _number, "store": _store, "name": _name, "address": _address,
}  # fmt: skip


def value(rng: Random, key: str, korean: bool, split: Split) -> str:
    """Draw random values of a field until one belongs to the split."""
    while split_of_value(text := _VALUES[key](rng, korean)) != split:
        pass
    return text


def label(rng: Random, key: str, korean: bool) -> str:
    """Choose one of the labels of a field."""
    return rng.choice(words.LABELS[key][korean])


def line(rng: Random, split: Split) -> Content:
    """Write a single row: a value, or a label and a value."""
    korean = rng.random() < 0.5
    key = rng.choice(list(words.QUESTIONS))
    text = answer = value(rng, key, korean, split)
    if len(text) < 11 and rng.random() < 0.5:
        text = f"{label(rng, key, korean)}{rng.choice((' ', ': '))}{answer}"
    return Content([Row((text,))], {key: answer}, korean)


class _Writer:
    """Collects rows and fields of one document."""

    def __init__(self, rng: Random, split: Split) -> None:
        self.rng, self.split = rng, split
        self.content = Content(korean=rng.random() < 0.5)
        self.spread = rng.random() < 0.5
        self.colon = rng.choice(("", ":"))

    def value(self, key: str) -> str:
        return value(self.rng, key, self.content.korean, self.split)

    def row(self, *cells: str, setting: Literal["left", "center", "spread"] = "left") -> None:
        self.content.rows.append(Row(cells, setting))

    def title(self, kind: str) -> None:
        self.row(self.rng.choice(words.TITLES[kind][self.content.korean]), setting="center")

    def pair(self, key: str) -> None:
        text = self.content.fields[key] = self.value(key)
        name = label(self.rng, key, self.content.korean) + self.colon
        self.row(name, text, setting="spread" if self.spread else "left")

    def bare(self, key: str) -> None:
        text = self.content.fields[key] = self.value(key)
        self.row(text, setting=self.rng.choice(("left", "center")))

    def item(self) -> None:
        name = self.rng.choice(words.ITEMS[self.content.korean])
        quantity = (str(self.rng.randint(1, 20)),) if self.rng.random() < 0.5 else ()
        self.row(name, *quantity, self.value("price"), setting="spread")

    def sample(self, keys: str, low: int, high: int) -> list[str]:
        choices = keys.split()
        return self.rng.sample(choices, min(len(choices), max(1, self.rng.randint(low, high))))


def _receipt(w: _Writer, rows: int) -> None:
    if rows > 3:
        w.title("receipt")
    w.bare("store")
    for _ in range(rows - 3 - (rows > 3)):
        w.item()
    w.pair(w.rng.choice(("date", "phone", "cash", "tax")))
    w.pair("total")


def _invoice(w: _Writer, rows: int) -> None:
    w.title("invoice")
    for key in w.sample("number date store name address", rows - 3, rows - 2):
        w.pair(key)
    if len(w.content.rows) < rows - 1:
        w.pair("tax")
    w.pair("total")


def _form(w: _Writer, rows: int) -> None:
    if rows > 2:
        w.title("form")
    for key in w.sample("name date phone address number amount", rows - 1, rows):
        w.pair(key)


def _table(w: _Writer, rows: int) -> None:
    if rows > 3:
        w.title("table")
    head = [label(w.rng, key, w.content.korean) for key in ("item", "price")]
    w.row(*head, setting="spread")
    for _ in range(max(1, rows - 2 - (rows > 3))):
        w.row(w.rng.choice(words.ITEMS[w.content.korean]), w.value("price"), setting="spread")
    w.spread = True
    w.pair("total")


def _letter(w: _Writer, rows: int) -> None:
    if rows > 4:
        w.title("letter")
    hello, pay, due, thanks = words.LETTER[w.content.korean]
    w.content.fields["name"] = name = w.value("name")
    w.row(hello.format(name))
    w.content.fields["amount"] = amount = w.value("amount")
    w.row(pay.format(amount))
    if rows > 2:
        w.content.fields["date"] = date = w.value("date")
        w.row(due.format(date))
    if rows > 3:
        w.row(thanks)


LAYOUTS: dict[str, Callable[[_Writer, int], None]] = {
    "receipt": _receipt, "invoice": _invoice, "form": _form, "table": _table, "letter": _letter,
}  # fmt: skip


def document(rng: Random, split: Split, rows: int) -> Content:
    """Write a receipt, invoice, form, table or letter of about this many rows (2 to 8)."""
    writer = _Writer(rng, split)
    LAYOUTS[rng.choice(list(LAYOUTS))](writer, rows)
    return writer.content


def glyphs(rng: Random, rows: int) -> Content:
    """Write a training page of values and random characters: every glyph next to every other."""
    return Content([Row((_glyph_row(rng),)) for _ in range(rows)])


def _glyph_row(rng: Random) -> str:
    """Write about one row's width of words, half of them random strings."""
    width, parts = rng.randint(4, 22), []
    while width > 0:
        if rng.random() < 0.5:
            part = value(rng, rng.choice(list(_VALUES)), rng.random() < 0.5, "training")
        else:
            alphabet = rng.choice((words.ASCII, words.HANGUL, words.HANGUL, words.ALPHABET))
            part = "".join(rng.choices(alphabet, k=rng.randint(2, 7)))
        parts.append(part)
        width -= sum(2 if char in words.HANGUL else 1 for char in part) + 1
    return " ".join(parts)

"""Tables of text, which the terminal and the HTML report show alike, and how numbers are written in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable


@dataclass(frozen=True)
class Table:
    """``words``: how many of the first columns hold words, not numbers. ``long``: of interest only on request."""

    title: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    long: bool = False


def print_to(console: Console, table: Table) -> None:
    shown = RichTable(title=table.title, title_justify="left", caption=table.note, caption_justify="left", box=SIMPLE)
    for number, name in enumerate(table.head):
        words = number < table.words
        shown.add_column(name, justify="left" if words else "right", no_wrap=words)
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)


def shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def exponent(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def fixed(value: float) -> str:
    return f"{value:.2f}"


def ratio(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}x"


def count(value: float) -> str:
    return f"{value:g}"


def plural(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def milliseconds(seconds: float) -> str:
    return number(seconds * 1e3)


def number(value: float) -> str:
    """About three digits."""
    if value == 0:
        return "0"
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3f}"

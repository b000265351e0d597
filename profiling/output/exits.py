"""What can go wrong with what a user names, each with one sentence and an exit code of its own."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the commands."""

    WRONG_RESULTS = 1  # a result of ours is further from float64 than rounding explains, or a regression was found
    USAGE = 2
    NO_FILE = 3
    BROKEN_GZIP = 4
    NO_TRACE = 5
    NO_BATCH_NORM = 6
    NO_MODEL = 7
    NO_SPACE = 8


class Failure(ValueError):
    """One sentence for the user, and the code to exit with."""

    def __init__(self, code: Exit, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code

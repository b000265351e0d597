"""``python -m profiling``."""

import errno
import sys

from profiling.cli import app
from profiling.output.exits import Exit, Failure

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main() -> None:
    """Runs the command; where a disk is full or a trace came out broken, one sentence and the code to exit with."""
    try:
        app(prog_name="python -m profiling")
    except Failure as failure:
        _end(failure.code, str(failure))
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _end(Exit.NO_SPACE, f"{error.filename or 'results'}: expected room on the disk, got {error.strerror}")


def _end(code: Exit, sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()

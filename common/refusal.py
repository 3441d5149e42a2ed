"""How this repository says no: one sentence with what was found, the rule and the fix; exit code 2; no traceback."""

import os
import sys


class Refusal(Exception):
    """Raised for anything a user can mend. Its text is the whole message: what was found, the rule it broke, the fix."""


def guard(main):
    """Run `main()` as a command: a `Refusal`, or a full disk, becomes a sentence on stderr and exit code 2, Ctrl-C exit code 130.

    Of several ranks rank 0 speaks; what has a cause (out of memory) may have happened on one rank alone and is always said.
    """
    try:
        main()
    except Refusal as refusal:
        if os.environ.get("RANK", "0") == "0" or refusal.__cause__ is not None:
            print(f"error: {refusal}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not is_disk_full(error):
            raise
        where = f" ({error.filename})" if getattr(error, "filename", None) else ""
        print(f"error: the disk is full, or a quota used up{where}; free some space there and start again: what is committed is whole, "
              "--resume-from-checkpoint auto goes on from it", file=sys.stderr)  # fmt: skip
        sys.exit(2)


def is_disk_full(error):
    """True where this error, or one that led to it, is a full disk or an exceeded quota, in whatever words a library puts it."""
    while error is not None:
        if any(words in str(error) for words in ("No space left on device", "Disk quota exceeded", "os error 28", "os error 122")):
            return True
        error = error.__cause__ or error.__context__
    return False

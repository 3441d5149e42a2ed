"""How this repository says no: one sentence with what was found, the rule and the fix; exit code 2; no traceback."""

import os
import sys


class Refusal(Exception):
    """Raised for anything a user can mend. Its text is the whole message: what was found, the rule it broke, the fix."""


def guard(main):
    """Run `main()` as a command: a `Refusal` becomes its sentence on stderr and exit code 2, Ctrl-C exit code 130.

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

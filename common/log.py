"""What a run says: once, on rank 0, to the terminal and to the run's training.log."""

import os
import sys
import time

_lines, _file = [], None


def is_rank_0():
    """True in the one process that speaks: rank 0 of all nodes, or the only process."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) or 0) == 0


def say(text="", terminal=True):
    """Print `text` (rank 0 only) and append it to training.log; what was said before the file is known is kept for it."""
    if not is_rank_0():
        return
    if terminal:
        try:
            print(text, file=sys.stdout, flush=True)
        except OSError:  # whoever read it, `| tee` or ssh, is gone: no reason to lose what is trained
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python flushes it once more at the end
    stamped = "".join(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n" for line in str(text).splitlines() or [""])
    if _file is None:
        _lines.append(stamped)
    else:
        _file.write(stamped)
        _file.flush()


def say_once(text):
    """`say`, but only into the file in a rank whose parent said it on the terminal already."""
    say(text, terminal="RECIPES_ANNOUNCED" not in os.environ)


def warn(text):
    """Say `text` as a warning and remember it for run.json; a repeated one is said once. Returns True when it was new."""
    if text in warnings:
        return False
    warnings.append(text)
    say(f"warning: {text}")
    return True


def write_to(path):
    """Append to `path` from now on, beginning with what was said already."""
    global _file
    if is_rank_0():
        path.parent.mkdir(parents=True, exist_ok=True)
        _file = path.open("a", encoding="utf-8")
        _file.writelines(_lines)
        _lines.clear()


def close():
    """End the file and forget the warnings, so that a second run in this process starts anew."""
    global _file
    if _file is not None:
        _file.close()
    _file = None
    _lines.clear()
    warnings.clear()


warnings = []

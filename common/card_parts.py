"""What every model card is made of: text that is no markup and tells nothing of the machine, and how the training went."""

import json
import re

from common.run_facts import as_dict, is_number
from common.safe_text import setting, shorten, visible, without_machine_paths, without_secrets


def plain(text, limit=300):
    """Text from elsewhere as one line without secrets and without paths of the machine."""
    return " ".join(without_machine_paths(without_secrets(visible(shorten(text, limit)))).split())


def inline(text, limit=300):
    """The same as Markdown prose: nothing in it is markup."""
    return re.sub(r"([\\`*<>|\[\]])", r"\\\1", plain(text, limit))


def code(text, limit=300):
    """The same as a piece of inline code."""
    return f"`{plain(text, limit).replace('`', chr(39))}`"


def yaml(text):
    """A JSON string, which YAML reads as it stands."""
    return json.dumps(text, ensure_ascii=False)


def unfinished(facts):
    status = facts.run.get("status")
    return f" The run's status is “{inline(status, 40)}”: this is not the end of its training." if status in ("failed", "stopped") else ""


def tiny(facts):
    if facts.run.get("tiny") is not True:
        return ""
    return " It comes from a `--tiny` run, which shows that the recipe works and learns; the model itself is of no use."


def training(facts, constants):
    """Steps, time, hardware, those of `constants` (names) that the run has, command and versions."""
    lines = []
    hardware, seconds, last = facts.run.get("hardware"), facts.run.get("seconds"), facts.history.last_step
    words = [f"{last:,} optimiser steps"] if last else []
    words += [f"{seconds / 3600:.1f} hours" if seconds >= 6000 else f"{seconds / 60:.1f} minutes"] if is_number(seconds) else []
    words += [f"on {inline(hardware, 100)}"] if hardware else []
    if words:
        lines.append(", ".join(words) + ".\n")
    lines += [f"- {name} = {code(setting(name, facts.constants[name]))}" for name in constants if name in facts.constants]
    command = facts.run.get("command")
    if command:
        lines.append(f"\nThe command:\n\n    {plain(command, 1000)}")
    versions = [f"{inline(k, 60)} {inline(v, 60)}" for k, v in as_dict(facts.run.get("versions")).items()]
    if versions:
        lines.append(f"\nVersions: {', '.join(versions)}.")
    return "\n".join(lines) or "Nothing about the training was recorded."

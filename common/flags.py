"""Flags: the command line of a recipe. Every constant is one, explained by its own comment in the file; then the switches."""

import argparse
import re
import sys
import typing

from common import switches
from common.declarations import in_words, nearest
from common.refusal import Refusal


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Refusal(f"{message}; see --help")


def read(argv, annotations, original, script, doc, aliases=()):
    """({switch: value}, {constant: text}) of a command line, unchecked; what was not typed is in neither. --help prints and exits.

    aliases: {other name that a flag may have: constant}.

    Raises `Refusal` for a flag that there is not, and for one without its value.
    """
    parser = _Parser(prog=f"python {script.parent.name}/{script.name}", description=doc, allow_abbrev=False, add_help=False,
                     argument_default=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    group = parser.add_argument_group("switches")
    group.add_argument("--help", "-h", action="store_true", help="this text")
    found_here = switches.available(annotations)
    for switch in found_here:
        words, example = switch.metadata["help"], switch.metadata["example"]
        options = {"metavar": example} if example else {"action": "store_true"}
        group.add_argument(*_spellings(switch.name), dest=switch.name, help=words, **options)
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # appended by launchers
    comments = _comments(script)
    group = parser
    for name, annotation in annotations.items():
        section, comment = comments.get(name, (None, ""))
        if section:
            group = parser.add_argument_group(section)
        text = f"{comment} [{in_words(original[name])}]".replace("%", "%%")
        options = {"dest": name, "metavar": "VALUE", "help": text}
        names = [name, *_aliases_of(name, aliases)]
        spelled = [spelling for one in names for spelling in _spellings(one)]
        if annotation in (bool, bool | None):
            group.add_argument(*spelled, nargs="?", const="true", **options)
            group.add_argument(*(switches.flag(f"no_{one}") for one in names), dest=name, action="store_const", const="false",
                               help=argparse.SUPPRESS)  # fmt: skip
        else:
            group.add_argument(*spelled, **options)
    known, unknown = parser.parse_known_args(argv)
    if "help" in known:
        parser.print_help()
        sys.exit(0)
    if unknown:
        flag = unknown[0].split("=")[0]
        flags = [
            option for action in parser._actions if action.dest != "local_rank" for option in action.option_strings if "_" not in option
        ]
        raise Refusal(f"there is no flag {flag}{nearest(flag, flags)}; see --help")
    typed = [word.split("=")[0] for word in argv if word.startswith("--")]
    lists = [name for name, annotation in annotations.items() if typing.get_origin(annotation) in (list, dict)]
    spelled = {name: [*_spellings(name), *(s for alias in _aliases_of(name, aliases) for s in _spellings(alias))] for name in lists}
    twice = next((name for name in lists if sum(map(typed.count, spelled[name])) > 1), None)
    if twice:  # of others the last one counts, as everywhere; lists are thought to add up
        raise Refusal(f"{switches.flag(twice)} is given twice, and only one counts; give it once, with commas: a,b")
    found = vars(known)
    found.pop("local_rank", None)
    return {switch.name: found.pop(switch.name) for switch in found_here if switch.name in found}, found


def _aliases_of(name, aliases):
    return [alias for alias, constant in dict(aliases).items() if constant == name]


def _spellings(name):
    """--lora-r and --lora_r; one word has one spelling."""
    return dict.fromkeys([switches.flag(name), f"--{name.lower()}"])


def _comments(script):
    """{constant: (group that starts here or None, comment)} read from the recipe's own lines."""
    section, found = None, {}
    for line in script.read_text(encoding="utf-8").splitlines():
        if re.match(r"(TINY|def )", line):
            break
        if line.startswith("# "):
            section = line[2:]
        elif match := re.match(r"([A-Z][A-Z0-9_]*): .*?(?:  # (.*))?$", line):
            found[match[1]] = (section, match[2] or "")
            section = None
    return found

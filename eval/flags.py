"""Flags that eval_checkpoint.py and eval_all.py share: what is generated and how. Standard library only, so `--help` is instant."""

import argparse
import difflib
import re
import sys


class Parser(argparse.ArgumentParser):
    """argparse whose message for an unknown flag names the nearest known one. Flags cannot be abbreviated."""

    def __init__(self, doc):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def parse_args(self, args=None, namespace=None):
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        for given in sys.argv[1:] if args is None else args:  # before argparse looks, which would first miss what was misspelt
            name = given.partition("=")[0]
            if name.startswith("-") and not name.startswith("--") and name not in ("-", "-h") and not re.match(r"-[0-9.]", name):
                self.exit(2, f"error: unknown flag {name}; flags begin with two dashes, `{self.prog} --help` lists them\n")
            if name.startswith("--") and name not in known:
                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"the nearest is {nearest[0]}" if nearest else f"known are {', '.join(known)}"
                self.exit(2, f"error: unknown flag {name}; {hint}\n")
        return super().parse_args(args, namespace)

    def error(self, message):
        self.exit(2, f"error: {message}; `{self.prog} --help` lists the flags\n")


def add_generation_flags(parser):
    """Everything that changes the figures, and how fast they come."""
    parser.add_argument("--rows", type=positive, metavar="N", help="judge N rows, spread over the file (default: all)")
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", help="longest answer (default: 512 or by the references)")
    parser.add_argument("--batch-size", type=positive_or_auto, default="auto", metavar="N", help="default: auto, halved when memory ends")
    parser.add_argument(
        "--gpus-per-model",
        type=positive_or_auto,
        default="auto",
        metavar="N",
        help="spread each model over N GPUs (default: auto, as few as hold its weights and the longest row)",
    )
    parser.add_argument("--greedy", action="store_true", help="the likeliest token each time; this is the default")
    parser.add_argument("--temperature", type=float, metavar="T", help="sample at this temperature instead of greedily")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample from the likeliest tokens that together have this probability")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default: 0)")
    parser.add_argument("--load-in-4bit", choices=("auto", "true", "false"), default="auto", help="base in NF4; auto: as trained")
    parser.add_argument("--report-to", choices=("auto", "wandb", "none"), default="auto", help="W&B; auto: as the run's REPORT_TO says")
    parser.add_argument("--force", action="store_true", help="judge again what was already judged with the same settings")


def check(parser, options):
    """Rules that concern several flags."""
    sampled = options.temperature is not None or options.top_p is not None
    if options.greedy and sampled:
        parser.error("--greedy takes no --temperature or --top-p")
    if options.temperature is not None and options.temperature <= 0:
        parser.error(f"--temperature {options.temperature:g} must be above 0; leave it out to take the likeliest token each time")
    if options.top_p is not None and not 0 < options.top_p <= 1:
        parser.error(f"--top-p {options.top_p:g} must be above 0 and at most 1")
    asked = {"temperature": options.temperature or 1.0, "top_p": options.top_p or 1.0, "seed": options.seed}
    options.sampling = asked if sampled else "greedy"
    return options


def positive(text):
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def positive_or_auto(text):
    return text if text == "auto" else positive(text)

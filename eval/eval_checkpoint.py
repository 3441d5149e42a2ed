#!/usr/bin/env python
"""Judge one checkpoint on the rows its run held out: loss, perplexity, ROUGE, numbers, speed, examples beside the base model's.

    python eval/eval_checkpoint.py --checkpoint outputs/llama32_qlora/final_model
    python eval/eval_checkpoint.py --checkpoint outputs/llama32_qlora/checkpoint-500 --temperature 0.7 --seed 1
    python eval/eval_checkpoint.py --checkpoint base --run-dir outputs/llama32_qlora

An adapter, a merged or a full model, loaded with plain transformers and PEFT: so this also checks the files that training left.
Where the questions are documents, also what is copied and repeated, how long answers are and whether they end; where rows list facts, how
many are named, by their place in the document. A model that does not fit one GPU beside its longest row lies on several.
Of a pretraining run: loss and bits per byte on held-out tokens, and continuations beside the true text. There is no base.
The figures go to eval/<name>.json in the run directory; what is there with the same settings is not judged twice.
"""

from pathlib import Path

import flags
import kinds

from common import hardware
from common.refusal import Refusal, guard
from common.run_directory import RunDirectory, newest


def parse(arguments=None):
    parser = flags.Parser(__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="directory of an adapter or a model, or the word base")
    parser.add_argument("--run-dir", metavar="DIR", help="the run whose held-out rows are used (default: what is above the checkpoint)")
    parser.add_argument("--output", metavar="FILE", help="where the JSON goes (default: eval/<name>.json in the run directory)")
    parser.add_argument("--no-base", action="store_true", help="do not judge the base model where that is still to do")
    flags.add_generation_flags(parser)
    return flags.check(parser, parser.parse_args(arguments))


def main():
    options = parse()
    hardware.prepare_torch()
    import saved_model
    import table
    import tracker

    if options.checkpoint == "base":
        run = RunDirectory(Path(options.run_dir)) if options.run_dir else newest()
        name, path = "base", None
    else:
        path = Path(options.checkpoint)
        saved_model.describe(path, path.name)
        run = RunDirectory(Path(options.run_dir) if options.run_dir else path.resolve().parent)
        name = path.name if path.resolve().parent == run.path.resolve() else f"{path.resolve().parent.name}-{path.name}"
    if not run.path.is_dir():
        raise Refusal(f"{run.path} is not a directory; --run-dir names a run directory such as outputs/llama32_qlora")
    kind = kinds.of(run)
    judge = kind.Judge(run, options)
    results = {}
    if name != "base" and kind.HAS_BASE and not options.no_base:
        try:
            results["base"], _ = judge("base", None, run.eval / "base.json")
        except Refusal as reason:
            print(f"the base model is not judged: {reason}")
    output = Path(options.output) if options.output else run.eval / f"{name}.json"
    results[name], fresh = judge(name, path, output)
    for note in judge.notes:
        print(f"note: {note}")
    print(table.text(list(results.values())))
    print(table.side_by_side(results[name], results.get("base")))
    print(f"{'written to' if fresh else 'already judged with these settings:'} {output}")
    if fresh:
        tracker.log(run, [results[name]], results.get("base"), options.report_to)


if __name__ == "__main__":
    guard(main)

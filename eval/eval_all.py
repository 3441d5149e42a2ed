#!/usr/bin/env python
"""Judge the base, every checkpoint, the final and the merged model of a run; table, curves, the best one's name, report and cards.

    bash eval/eval_all_checkpoints.sh [RUN_DIR]      the same, with the repository's own Python

RUN_DIR is a run directory such as outputs/llama32_qlora; without it the newest under outputs/. The base's weights are loaded once and
the adapters swapped on them. What is judged already with the same settings and weights is not judged again. A broken checkpoint
is named at the end and the exit code is 1; the others are judged all the same. With several GPUs each takes its share, and a model
that does not fit one of them beside its longest row lies on as many as it needs.
A pretraining run has no base; its checkpoints are judged by their loss on held-out tokens.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import flags
import kinds

from common import hardware, model_card, report
from common.refusal import Refusal, guard
from common.run_directory import RunDirectory, newest, read_json, step_of, write_json

SMALL = 1 << 28  # bytes of base weights: up to here several copies on a CPU are no matter


def parse(arguments=None):
    parser = flags.Parser(__doc__)
    parser.add_argument("run_dir", nargs="?", metavar="RUN_DIR", help="default: the newest run under outputs/")
    parser.add_argument(
        "--workers",
        type=flags.positive_or_auto,
        default="auto",
        metavar="N",
        help="processes (default: as many as models have GPUs; for a small model on a CPU, several)",
    )
    parser.add_argument("--only", metavar="NAMES", help="judge only these, separated by commas, such as base,checkpoint-100")
    parser.add_argument("--no-summary", action="store_true", help="write each model's JSON and nothing else")
    flags.add_generation_flags(parser)
    return flags.check(parser, parser.parse_args(arguments))


def judge_models(run, names, options, failures=None):
    """{name: sentence} of those that failed; every other name's JSON lies in the run's eval/ afterwards.

    failures: a file of {name: sentence} that says of each name why it is not judged; true after every model, should this process die.
    """
    kind = kinds.of(run)
    judge, failed = kind.Judge(run, options), {}
    waiting = read_json(failures, {}) if failures else {}

    def note(name):
        waiting.pop(name, None)
        if failures:
            write_json(failures, waiting | failed)

    for name, path in kind.saved_models(run):
        if name not in names:
            continue
        start = time.perf_counter()
        try:
            result, fresh = judge(name, path, run.eval / f"{name}.json", answering=name != "merged_model")  # it answers as final_model does
        except Refusal as reason:
            failed[name] = str(reason)
            (run.eval / f"{name}.json").unlink(missing_ok=True)  # figures of what lay there before it broke
            note(name)
            print(f"{name}: not judged: {reason}", flush=True)
            continue
        note(name)
        found = result["metrics"]
        how = f"in {time.perf_counter() - start:.1f} s" if fresh else "judged before"
        how = f"same weights as {result['same_weights_as']}" if fresh and "same_weights_as" in result else how
        rouge = f", ROUGE-L {found['rougeL']['mean']:.3f}" if found.get("rougeL") else ""
        rouge += f", facts {found['fact_recall']['mean']:.2f}" if found.get("fact_recall") else ""
        bits = f", {found['bits_per_byte']['mean']:.3f} bits per byte" if found.get("bits_per_byte") else ""
        print(f"{name}: loss {found['loss']['mean']:.3f}{rouge}{bits}, {how}", flush=True)
    for note in judge.notes:
        print(f"note: {note}", flush=True)
    return failed


def judge_in_workers(run, names, count, arguments, per_model=1):
    """The same in `count` processes, each with `per_model` GPUs of its own where there are GPUs; {name: sentence} of what failed."""
    devices = groups(gpus(), per_model)
    workers = []
    cores = {} if devices else {"OMP_NUM_THREADS": str(max(1, hardware.cpu_cores() // count))}
    for number, share in enumerate(shares(run, names, count)):
        failures = run.eval / f".failed-{number}.json"
        write_json(failures, dict.fromkeys(share, "its process died before it was judged; its last lines stand above"))
        environment = os.environ | cores | ({"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if devices else {})
        command = [sys.executable, __file__, str(run.path), *arguments, "--workers", "1", "--only", ",".join(share), "--no-summary"]
        command += ["--gpus-per-model", str(per_model)] if devices else []
        workers.append((subprocess.Popen(command, env=environment | {"EVAL_FAILURES": str(failures)}), failures))
    failed = {}
    for process, failures in workers:
        process.wait()
        failed |= read_json(failures, {})
        failures.unlink(missing_ok=True)
    return failed


def shares(run, names, count):
    """`names` for each of `count` workers; the final model beside the checkpoint whose weights it probably has, to take its figures."""
    jobs = [[name] for name in names if name != "final_model"]
    if "final_model" in names:
        twins = [read_json(run.run, {}).get("best_checkpoint"), *reversed([name for name in names if step_of(name) is not None])]
        beside = next((job for twin in twins for job in jobs if job == [twin]), None)
        if beside:
            beside.append("final_model")
        else:
            jobs.append(["final_model"])
    return [[name for job in jobs[start::count] for name in job] for start in range(min(count, len(jobs)))]


def default_workers(run, names, per_model=1):
    """One for the GPUs of each model; on a CPU, where a small model cannot use many cores, two or more that share them; else one."""
    if gpus():
        return len(groups(gpus(), per_model))
    import saved_model

    try:
        source = Path(saved_model.base_of(run).source) if kinds.of(run).HAS_BASE else dict(kinds.of(run).saved_models(run))[names[-1]]
    except Refusal:
        return 1
    small = source.is_dir() and sum(path.stat().st_size for path in source.glob("*.safetensors")) < SMALL
    return min(hardware.cpu_cores(), 4, (len(names) + 1) // 2) if small else 1


def gpus():
    """What CUDA_VISIBLE_DEVICES would be for each GPU that this process may use; found without importing torch."""
    count = len(hardware.gpus())
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(number) for number in range(count)])[:count]


def gpus_per_model(run, kind, options):
    """How many GPUs each model is to lie on: as flagged, else as few as hold it with the longest row."""
    if not kind.HAS_BASE or (len(gpus()) < 2 and options.gpus_per_model == "auto"):
        return 1
    import placement

    return placement.needed(run, options, kind.Rows.of(run, options.rows).all)[0]


def groups(devices, size):
    """`devices` by `size`, each group as CUDA_VISIBLE_DEVICES names it; those left over, too few for a model, belong to none."""
    return [",".join(devices[start : start + size]) for start in range(0, len(devices) - size + 1, size)]


def main():
    options = parse()
    hardware.prepare_torch()
    run = RunDirectory(Path(options.run_dir)) if options.run_dir else newest()
    if not run.path.is_dir():
        raise Refusal(f"{run.path} is not a directory; name a run directory such as outputs/llama32_qlora")
    kind = kinds.of(run)
    known = [name for name, _ in kind.saved_models(run)]
    if not known:
        raise Refusal(f"{run.path} has no checkpoint and no final model yet; train first")
    names = options.only.split(",") if options.only else known
    strange = [name for name in names if name not in known]
    if strange:
        raise Refusal(f"{run.path} has no {strange[0]}; it has {', '.join(known)}")
    kind.require_rows(run, options.rows)  # refuses before anything heavy is imported
    before = written(run, names)
    per_model = gpus_per_model(run, kind, options)
    count = min(len(names), options.workers if options.workers != "auto" else default_workers(run, names, per_model))
    if count > 1:
        arguments = [a for a in sys.argv[1:] if a != options.run_dir]
        failed = judge_in_workers(run, names, count, arguments, per_model)
    else:
        failed = judge_models(run, names, options, os.environ.get("EVAL_FAILURES"))
    if options.no_summary:
        sys.exit(1 if failed else 0)
    results = [r for name in known if name not in failed and (r := read_json(run.eval / f"{name}.json"))]
    summarise(run, results, failed, options, fresh=written(run, names) != before)
    sys.exit(1 if failed else 0)


def written(run, names):
    """When each model's JSON was written: what changes was judged now."""
    files = [run.eval / f"{name}.json" for name in names]
    return [path.stat().st_mtime_ns for path in files if path.is_file()]


def summarise(run, results, failed, options, fresh):
    """summary.json, table.md, curves.png, W&B, the model cards, the report, and the last words on the terminal."""
    import curves
    import table
    import tracker

    run.eval.mkdir(parents=True, exist_ok=True)
    name, best = run.path.resolve().name, table.best(results)
    facts = {"run": name, "best": best, "best_by": table.chosen_by(results) if best else None}
    write_json(run.eval / "summary.json", facts | {"names": [r["name"] for r in results], "failed": failed})
    if results:
        (run.eval / "table.md").write_text(table.markdown(results, failed), encoding="utf-8")
        curves.draw(results, name, run.eval / "curves.png", read_json(run.run, {}).get("steps"))
        print("\n" + table.text(results))
        print(table.verdict(results))
        if fresh:
            tracker.log(run, results, next((r for r in results if r["name"] == "base"), None), options.report_to)
    for failure, reason in failed.items():
        print(f"{failure} was not judged: {reason}")
    for saved in (run.final_model, run.merged_model):
        if saved.is_dir():
            model_card.write(saved, run)
    report.write(run)
    print(f"figures in {run.eval}, report in {run.report}")


if __name__ == "__main__":
    guard(main)

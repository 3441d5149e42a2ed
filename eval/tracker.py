"""The figures and examples in Weights & Biases, in the run that training logged to."""

import table

from common import measures, tracking
from common.run_directory import read_json


def log(run, results, base, report_to):
    """Log `results` where `report_to` ("auto": the run's REPORT_TO) asks for it. Offline, and saying so, where nobody is logged in."""
    facts, constants = read_json(run.run, {}), read_json(run.constants, {})
    if not wanted(constants.get("REPORT_TO"), report_to):
        return None
    import wandb

    tracking.prepare(["wandb"], run, facts.get("wandb_run_id"))  # says where it writes when nobody is logged in
    tracked = wandb.init(job_type="eval")
    tracked.define_metric("eval/*", step_metric="eval/step")  # training's own steps only go up; these come after it
    for result in results:
        figures = {f"eval/{key}": found["mean"] for key, found in result["metrics"].items() if found}
        figures |= {f"eval/{key}_{side}": found[side] for key, found in result["metrics"].items() if found for side in ("low", "high")}
        if result["step"] is None:
            tracked.summary.update({f"{result['name']}/{key.removeprefix('eval/')}": value for key, value in figures.items()})
        else:
            tracked.log(
                {"eval/step": result["step"], "eval/tokens_per_second": (result["speed"] or {}).get("tokens_per_second"), **figures}
            )
    tracked.log({"eval/examples": _examples(wandb, results, base)})
    directory = tracked.dir
    tracked.finish()
    return directory


def wanted(constant, report_to):
    """Whether W&B is asked for: by the flag, else by REPORT_TO, a name or a list of names."""
    if report_to != "auto":
        return report_to == "wandb"
    names = [constant] if isinstance(constant, str) else constant or []
    return "wandb" in names or "all" in names


def _examples(wandb, results, base):
    if any(measures.is_pretraining(r) for r in results):
        columns = ["model", "id", "beginning", "true text", "continuation"]
        keys = ("id", "beginning", "reference", "continuation")
        return wandb.Table(columns=columns, data=[[r["name"], *(e[key] for key in keys)] for r in results for e in r["examples"]])
    bases = {example["id"]: example["answer"] for example in base["examples"]} if base else {}
    columns = ["model", "id", "question", "reference", "base answer", "answer", "rougeL", "numbers"]
    shown = [(r["name"], e) for r in results if r["name"] != "base" for e in r["examples"]]
    rows = [
        [name, e["id"], e["question"], e["reference"], bases.get(e["id"], ""), e["answer"], e["rougeL"], e["numbers"]] for name, e in shown
    ]
    if any(e.get("facts") for _, e in shown):
        columns += ["facts found", "facts missed"]
        rows = [[*row, *(", ".join(words) for _, words in table.facts(e))] for row, (_, e) in zip(rows, shown, strict=True)]
    return wandb.Table(columns=columns, data=rows)

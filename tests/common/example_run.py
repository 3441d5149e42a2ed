"""A run directory as a finished `--tiny` run with evaluation leaves it, written file by file; for the tests of what reads one."""

import importlib.util
import inspect
import json
import math
import random
from pathlib import Path

from common.run_directory import RunDirectory, write_json

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "llama32_qlora.py"
FLAGS = {
    "MODEL_NAME": "meta-llama/Llama-3.2-3B-Instruct",
    "MODEL_REVISION": "0cb88a4f764b7a12671c53f0838cd831a0843b95",
    "TRAIN_FILES": {"samples/cross_validated.jsonl": 1.0, "samples/arxiv.jsonl": 0.5},
    "BAD_ROWS": "skip",
    "MAX_SEQ_LENGTH": 256,
    "NUM_TRAIN_EPOCHS": 3.0,
    "SAVE_STEPS": 50,
    "EVAL_STEPS": 10,
    "LOGGING_STEPS": 2,
}


def constants():
    """The recipe's own constants as `--tiny` and `FLAGS` resolve them."""
    spec = importlib.util.spec_from_file_location("recipe_of_the_example", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    names = [name for name in inspect.get_annotations(recipe) if name.isupper()]
    return {name: getattr(recipe, name) for name in names} | recipe.TINY | FLAGS


CONSTANTS = constants()

QUESTIONS = [
    (
        "An A/B test had 2,000 users per arm; 240 converted in A and 288 in B. What is the absolute lift?",
        "The conversion rates are 12.0% and 14.4%, so the absolute lift is 2.4 percentage points.",
        "The conversion rates are 12.0% and 14.8%, so the absolute lift is 2.8 percentage points.",
    ),
    (
        "Why should I not stop an experiment as soon as the p-value drops below 0.05?",
        "Each look is another chance to cross the line by luck, so the false positive rate grows above 5%. "
        "Fix the sample size beforehand or use a sequential test.",
        "Each look is another chance to cross the line by luck, so the false positive rate grows. "
        "Fix the sample size beforehand or use a sequential test.",
    ),
    (
        "What does a 95% confidence interval mean?",
        "If the experiment were repeated many times, 95% of the intervals built this way would contain the true value.",
        "If the experiment were repeated many times, 95% of the intervals built this way would contain the true value.",
    ),
    (
        "A sample of 64 has standard deviation 16. What is the standard error of the mean?",
        "The standard error is the standard deviation divided by the square root of n: 16 / 8 = 2.0.",
        "The standard error is the standard deviation divided by the square root of n: 16 / 6 = 2.7.",
    ),
    (
        "When is Welch's t-test preferable to Student's?",
        "When the variances of the two groups may differ, which is nearly always; it loses almost nothing when they are equal.",
        "When the two groups may differ.",
    ),
]
BASE_ANSWERS = ["I think the value is the of the test.", "The the sample of sample.", "", "It is 16.", "A test is a test."]


def interval(mean, half):
    return {"mean": mean, "low": mean - half, "high": mean + half}


def judged(name, step, loss, rouge, numbers, half=0.05):
    """What eval/<name>.json holds."""
    tuned = name != "base"
    examples = []
    for i in range(12):
        question, reference, answer = QUESTIONS[i % len(QUESTIONS)]
        answer = answer if tuned else BASE_ANSWERS[i % len(QUESTIONS)]
        score = (0.86, 0.9, 1.0, 0.88, 0.38)[i % 5] if tuned else 0.12
        right = (0.33, 1.0, 1.0, 0.67, None)[i % 5] if tuned else 0.0
        example = {"id": f"cv_{1000 + i}", "group": f"lift_of_rates_{i % 4}", "question": question, "reference": reference}
        examples.append(example | {"answer": answer, "rougeL": score, "numbers": right})
    return {
        "name": name,
        "step": step,
        "path": name,
        "settings": {
            "judge": 1,
            "test": "0aca7a9475b41716",
            "validation": "c7742b58ade6530a",
            "rows": 60,
            "max_new_tokens": 96,
            "max_length": 256,
            "sampling": "greedy",
            "dtype": "float32",
            "4bit": True,
            "base_weights": "NF4, written out as float32 once",
            "tokenizer": "6efb0bd69ce7be50",
            "loaded_with": "transformers and PEFT, without Unsloth",
        },
        "settings_key": "5d41402abc4b2a76b9719d911017c592",
        "weights": f"{name} on 587e50f581088ea4",
        "rows": 60,
        "groups": 12,
        "metrics": {
            "loss": interval(loss, 2 * half),
            "perplexity": {"mean": math.exp(loss), "low": math.exp(loss - 2 * half), "high": math.exp(loss + 2 * half)},
            "rouge1": interval(rouge + 0.05, half),
            "rouge2": interval(max(0.06, rouge - 0.1), half),
            "rougeL": interval(rouge, half),
            "numbers": interval(numbers, half),
            "validation_loss": interval(loss + 0.04, 2 * half),
        },
        "speed": {
            "tokens_per_second": 812.4 + len(name),
            "seconds_per_answer": 0.052,
            "generated_tokens": 2534,
            "prompt_and_answer_tokens": 9120,
            "seconds_of_generation": 3.12,
            "seconds_of_loss": 1.24,
            "batch_size": 64,
        },
        "examples": examples,
    }


def metrics_lines(steps=150, every=2, seed=7):
    chance, lines = random.Random(seed), []
    for step in range(every, steps + 1, every):
        loss = 0.28 + 4.6 * math.exp(-step / 22) + chance.gauss(0, 0.09)
        lr = 5e-3 * min(1, step / 5) * 0.5 * (1 + math.cos(math.pi * step / steps))
        entry = {"step": step, "epoch": step / 50, "seconds": step * 0.2, "loss": loss, "learning_rate": lr}
        entry |= {"grad_norm": 0.5 + 2.5 * math.exp(-step / 30) + chance.random() * 0.4}
        lines.append(entry | {"tokens_per_second": 5200 + chance.gauss(0, 260), "memory_gb": 1.31 + 0.0004 * step})
        if step % 10 == 0:
            held_out = 0.36 + 4.5 * math.exp(-step / 21) + 0.0006 * max(0, step - 100)
            lines.append({"step": step, "epoch": step / 50, "seconds": step * 0.2, "eval_loss": held_out})
    return lines


RUN = {
    "run_id": "3f1c09a2b7d84e65",
    "asked_name": "llama32_qlora_tiny",
    "started": "2026-11-20T11:30:00+00:00",
    "recipe": "llama32_qlora",
    "model_name": CONSTANTS["MODEL_NAME"],
    "model_revision": CONSTANTS["MODEL_REVISION"],
    "tiny": True,
    "command": "python recipes/llama32_qlora.py --tiny --config example.yaml",
    "hardware": "CPU, 2 cores, 24 GiB",
    "versions": {"torch": "2.13.0", "transformers": "5.17.0", "trl": "1.14.2", "peft": "0.21.2", "unsloth": "2026.10.9"},
    "wandb_run_id": "251adeda",
    "notes": ["no GPU: rows are grouped by length in place of packing and the 8-bit optimisers are not covered"],
    "data_key": "5f2d8c1e9a7b4630",
    "status": "finished",
    "padding_share": 0.0314,
    "steps": 150,
    "train_loss": 0.29,
    "eval_loss": 0.39,
    "tokens_per_second": 812.5,
    "best_checkpoint": "checkpoint-100",
    "merge": {"relative_rms": 0.0092, "top1_agreement": 0.9937, "tolerance": 0.05},
    "finished": "2026-11-20T11:30:31+00:00",
    "seconds": 31.2,
    "warnings": ["The held-out loss has risen since step 100."],
}
AT_THE_END = ("train_loss", "eval_loss", "tokens_per_second", "best_checkpoint", "steps", "merge")  # not there yet when training breaks off


def write_example_run(path, evaluated=True):
    """The whole directory; returns its RunDirectory."""
    run = RunDirectory(path)
    write_json(run.constants, CONSTANTS)
    write_json(run.run, RUN)
    lengths = {"50": 61, "90": 112, "99": 170, "100": 203}
    split = {"rows": 480, "groups": 96, "tokens": 33120, "label_tokens": 14022, "length_percentiles": lengths}
    taken = {"tokens": 260, "share": 0.0078, "50": 130, "100": 170}
    split |= {"duplicates": 3, "shortened": 2, "taken": taken, "dropped": 0, "too_long": 0}
    spans = [
        ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n", False),
        (QUESTIONS[0][0], False),
        ("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", False),
        (QUESTIONS[0][1] + "<|eot_id|>", True),
    ]
    weights = CONSTANTS["TRAIN_FILES"].items()
    files = {f: {"rows": 300, "weight": w, "rows_after_weighting": int(300 * w), "format_counts": {"messages": 300}} for f, w in weights}
    write_json(
        run.data,
        {
            "rows_read": 602,
            "bad_rows": [{"file": "samples/arxiv.jsonl", "line": 17, "reason": "the last message is the user's"}],
            "bad_row_count": 2,
            "files": files,
            "splits": {"train": split, "validation": split | {"rows": 60, "groups": 12}, "test": split | {"rows": 60, "groups": 12}},
            "max_length": CONSTANTS["MAX_SEQ_LENGTH"],
            "end_of_turn": "<|eot_id|>",
            "split_by": CONSTANTS["SPLIT_BY"],
            "too_large": None,
            "too_long_count": 0,
            "too_long": [],
            "example": {"id": "cv_1000", "spans": [{"text": text, "label": label} for text, label in spans]},
        },
    )
    write_metrics(run, metrics_lines())
    if evaluated:
        models = [judged("base", 0, 4.9, 0.21, 0.06, half=0.03), judged("checkpoint-50", 50, 0.81, 0.44, 0.22)]
        models += [judged("checkpoint-100", 100, 0.44, 0.64, 0.42), judged("checkpoint-150", 150, 0.46, 0.63, 0.41)]
        models += [judged("final_model", None, 0.46, 0.63, 0.41) | {"same_weights_as": "checkpoint-150"}]
        for model in models:
            write_json(run.eval / f"{model['name']}.json", model)
        summary = {"run": run.path.name, "best": "checkpoint-100", "best_by": "lowest loss on validation.jsonl"}
        write_json(run.eval / "summary.json", summary | {"names": [m["name"] for m in models], "failed": {}})
    return run


def write_metrics(run, lines):
    run.metrics.parent.mkdir(parents=True, exist_ok=True)
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

"""The model card (README.md) that is saved beside a model: what it is, what it was trained on, how good it is, how to load and serve it."""

import os
import re
from pathlib import Path

from common import judgement, measures, pretrained_card, run_facts, serving
from common.card_parts import code, inline, plain, tiny, training, unfinished, yaml
from common.chat_text import DATE
from common.run_facts import as_dict, as_list, interval, is_number, with_interval

# The constants somebody needs to judge or repeat a run, those of every recipe; what a run has not is left out.
CONSTANTS = (
    *("MAX_SEQ_LENGTH", "LOAD_IN_4BIT", "LORA_R", "LORA_ALPHA", "LORA_DROPOUT", "TARGET_MODULES", "LEARNING_RATE", "LR_SCHEDULER_TYPE"),
    *("WARMUP_RATIO", "NUM_TRAIN_EPOCHS", "MAX_STEPS", "PER_DEVICE_TRAIN_BATCH_SIZE", "GRADIENT_ACCUMULATION_STEPS"),
    *("OPTIM", "WEIGHT_DECAY", "MAX_GRAD_NORM", "SEED"),
)
ADAPTER_OF = {"merged_model": "final_model"}
QUESTION = "Hello"  # a card is published: no row of the data stands in it


def write(directory, run):
    """Write README.md into `directory`, which holds a saved model of the `RunDirectory` `run`; return its path."""
    directory = Path(directory)
    path = directory / "README.md"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    facts = run_facts.read(run)
    write_card = pretrained_card.card if measures.is_pretraining(facts.run) else card
    temporary.write_text(write_card(facts, directory), encoding="utf-8")
    os.replace(temporary, path)
    return path


def card(facts, directory):
    """The text of the card."""
    adapter = (directory / "adapter_config.json").is_file()
    base = str(facts.run.get("model_name") or facts.constants.get("MODEL_NAME") or "unknown")
    base = plain(base if is_hub_name(base) else Path(base.replace("\\", "/")).name)
    four_bit = facts.constants.get("LOAD_IN_4BIT") is True
    kind = ("A QLoRA adapter" if four_bit else "A LoRA adapter") if adapter else "A model"
    sections = [
        front_matter(facts, base, adapter),
        f"# {inline(facts.name)}",
        f"{kind} trained from {code(base)} with the recipe {code(facts.run.get('recipe') or facts.name)}.{unfinished(facts)}{tiny(facts)}",
        f"## Data\n\n{data(facts)}",
        f"## Training\n\n{training(facts, CONSTANTS)}",
        f"## Figures\n\n{figures(facts, directory.resolve().name)}",
        f"## Loading it\n\n{loading(facts, base, adapter, four_bit, date_of(directory))}",
        f"## Serving it\n\n{served(facts, base, adapter, date_of(directory))}",
        f"## Limits\n\n{limits(facts, directory.resolve().name)}",
    ]
    return "\n\n".join(sections) + "\n"


def is_hub_name(name):
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name)) and not Path(name).exists()


def data_files(facts):
    names = as_dict(facts.data.get("files")) or as_dict(facts.constants.get("TRAIN_FILES"))
    return [plain(Path(str(name).replace("\\", "/")).name) for name in names]


def front_matter(facts, base, adapter):
    """The YAML block; every value is written as a JSON string, which YAML reads as it stands."""
    tags = [plain(facts.run.get("recipe") or facts.name), "unsloth", *(["lora"] if adapter else [])]
    lines = ["---", f"base_model: {yaml(base)}", f"library_name: {'peft' if adapter else 'transformers'}", "pipeline_tag: text-generation"]
    lines += ["tags:", *(f"- {yaml(tag)}" for tag in dict.fromkeys(tags))]
    files = data_files(facts)
    lines += ["datasets:", *(f"- {yaml(name)}" for name in files)] if files else []
    return "\n".join([*lines, "---"])


def data(facts):
    lines = []
    for name, found in as_dict(facts.data.get("files")).items():
        rows, weight = as_dict(found).get("rows"), as_dict(found).get("weight")
        words = [f"{rows:,} rows"] if is_number(rows) else []
        words += [f"weight {weight:g}"] if is_number(weight) else []
        lines.append(f"- {code(Path(str(name)).name)}" + (f": {', '.join(words)}" if words else ""))
    splits = [(inline(k, 40), as_dict(v).get("rows")) for k, v in as_dict(facts.data.get("splits")).items()]
    parts = [f"{rows:,} for {name}" for name, rows in splits if is_number(rows)]
    sentences = [f"Rows after splitting: {', '.join(parts)}."] if parts else []
    split = run_facts.split_sentence(facts.data)
    sentences += [inline(split)] if split else []
    sentences.append("Only the assistant's turns and their end-of-turn tokens are labels.")
    lines.append("\n" * bool(lines) + " ".join(sentences))
    return "\n".join(lines)


def figures(facts, name):
    """The figures of this model. A merged model stands beside the adapter in it; no other model's figures are shown."""
    own, adapter = facts.judged.get(name), facts.judged.get(ADAPTER_OF.get(name))
    reason = as_dict(facts.summary.get("failed")).get(name)
    sentences = [f"It could not be judged: {inline(reason, 600)}"] if reason and not own else []
    main = adapter or own
    if not main:
        return " ".join(sentences) or "Not evaluated yet."
    base = facts.base if facts.base and not run_facts.differing_settings(facts.base, main) else None
    if adapter:
        sentences.append(merged_sentence(facts, own, adapter))
    columns = {"base": base, adapter["name"] if adapter else "this model": main} | ({"this model": own} if adapter and own else {})
    rows = [f"On {inline(judgement.held_out(facts, main))}, with 95 % intervals from a bootstrap over groups:", ""]
    rows += [f"| | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for key, metric in measures.shown(facts.run, [as_dict(main.get("metrics"))]).items():
        cells = [with_interval(interval(model, key), percent=metric.percent) for model in columns.values()]
        other_rows = " (on validation.jsonl)" if key == "validation_loss" else f" ({metric.unit})" if metric.about == "document" else ""
        if interval(main, key):
            rows.append(f"| {metric.name}{other_rows} | {' | '.join(cells)} |")
    clauses = {"ROUGE-L": judgement.compared(base, main, "rougeL"), "Facts": judgement.compared(base, main, "fact_recall")}
    said = " ".join(f"{name} {clause}." for name, clause in clauses.items() if clause)
    parts = [" ".join(sentences)] * bool(sentences) + ["\n".join(rows)] + [said] * bool(said)
    return "\n\n".join(parts)


def merged_sentence(facts, own, adapter):
    """Whose figures a merged model's card shows, and how near the two are."""
    sentence = f"This is {adapter['name']} merged into its base, and the figures are those of {adapter['name']}"
    if own:
        differ = run_facts.differing_settings(own, adapter)
        sentence += " beside what was measured of this model itself" + (f" (other settings: {differ})" if differ else "")
    distance = as_dict(facts.run.get("merge")).get("relative_rms")
    near = f" When it was merged, its logits were within {100 * distance:.1f} % of the adapter's." if is_number(distance) else ""
    return inline(f"{sentence}.{near}", 600)


def date_of(directory):
    """The date that training wrote into prompts, where the model's chat template has one or lies elsewhere; else None."""
    template = directory / "chat_template.jinja"
    return DATE if not template.is_file() or "date_string" in template.read_text(encoding="utf-8") else None


def loading(facts, base, adapter, four_bit, date):
    """Code that loads the model with transformers and peft and asks it something, with this date in the prompt."""
    hub, revision = is_hub_name(base), revision_of(facts, base)
    pinned = f", revision={yaml(revision)}" if revision else ""
    quantised = adapter and four_bit
    lines = ["import torch"] + ["from peft import PeftModel"] * adapter
    lines += [f"from transformers import AutoModelForCausalLM, AutoTokenizer{', BitsAndBytesConfig' if quantised else ''}", ""]
    lines += ['MODEL = "."  # this directory']
    if adapter:
        lines.append(f"BASE = {yaml(base)}" + ("" if hub else "  # the directory of the base model"))
    if quantised:
        lines += ["nf4 = BitsAndBytesConfig(", '    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,']
        lines += ["    bnb_4bit_compute_dtype=torch.bfloat16,", ")  # as in training"]
    source = "BASE" if adapter else "MODEL"
    options = (pinned if adapter else "") + (", quantization_config=nf4" if quantised else "")
    lines += ["model = AutoModelForCausalLM.from_pretrained(", f'    {source}{options}, dtype=torch.bfloat16, device_map="auto",', ")"]
    lines += ["model = PeftModel.from_pretrained(model, MODEL)"] * adapter
    lines += ["tokenizer = AutoTokenizer.from_pretrained(MODEL)", ""]
    lines += [f'messages = [{{"role": "user", "content": {yaml(QUESTION)}}}]']
    dated = f' date_string="{date}",  # of every prompt in training' if date else ""
    lines += ["inputs = tokenizer.apply_chat_template(", f"    messages,{dated}"]
    lines += ['    add_generation_prompt=True, return_dict=True, return_tensors="pt",', ")"]
    lines += ["output = model.generate(**inputs.to(model.device), max_new_tokens=256, do_sample=False)"]
    lines += ['print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))']
    return fenced("python", *lines)


def revision_of(facts, base):
    """The revision of a base on the hub, a name or a commit; a commit looks like a W&B key, so it goes past the hiding of those."""
    revision = facts.run.get("model_revision") or facts.constants.get("MODEL_REVISION")
    return re.sub(r"[^\w./-]", "", str(revision))[:100] if revision and is_hub_name(base) else None


def served(facts, base, adapter, date):
    """Commands that serve the model from its own directory: an adapter by vLLM on its base, the rest from the merged model beside it."""
    length = facts.constants.get("MAX_SEQ_LENGTH")
    length, rank = length if is_number(length) else 2048, facts.constants.get("LORA_R")
    whole, alone = ("../merged_model" if adapter else "."), None
    if adapter and is_number(rank):
        alone = serving.vllm_adapter(base, ".", facts.name, rank, length, revision_of(facts, base))
    code, file = serving.gguf(whole)
    merged = f" All{' but vLLM' if alone else ''} take `{whole}`, which the recipe's MERGE writes beside this adapter." if adapter else ""
    parts = [
        f"From this directory.{merged} vLLM goes into an environment of its own, since it brings its own torch:",
        fenced("bash", alone or serving.vllm(whole, facts.name, length)),
        fenced("bash", serving.curl(facts.name, QUESTION, date)),
        'The same from transformers, after `pip install "transformers[serving]"`; there the request has no `"model"`, or this path:',
        fenced("bash", serving.transformers(whole)),
        "As GGUF for llama.cpp and Ollama, in the environment of the training on a GPU. Unsloth fetches llama.cpp, built or to be built "
        "with cmake, so it needs the network:",
        fenced("python", *code),
        fenced("bash", serving.llama_server(file, length)),
    ]  # fmt: skip
    return "\n\n".join(parts)


def fenced(language, *lines):
    return "\n".join([f"```{language}", *lines, "```"])


def limits(facts, name):
    """What it gets wrong, where this model or the adapter in it was judged; what the run did not cover; what holds for every model."""
    judged = facts.tuned and facts.tuned["name"] in (name, ADAPTER_OF.get(name))
    lines = [f"- {sentence}" for sentence in judgement.shortcomings(facts) if "shown" not in sentence] if judged else []
    lines += [f"- {inline(note, 600)}" for key in ("notes", "warnings") for note in as_list(facts.run.get(key))]
    length = facts.constants.get("MAX_SEQ_LENGTH")
    if is_number(length):
        lines.append(f"- It was trained on conversations of up to {length:,} tokens; longer ones are untested.")
    lines.append("- It answers in the manner of its training data and may be wrong with confidence; check what matters.")
    lines.append("- The licence of the base model holds for this model too.")
    return "\n".join(lines)

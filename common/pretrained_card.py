"""The model card of a model that was trained from scratch on tokens."""

from common.card_parts import code, inline, plain, tiny, training, unfinished, yaml
from common.measures import OF_TOKENS
from common.pretrained_view import model_words, tokens_trained
from common.refusal import Refusal
from common.run_directory import read_json
from common.run_facts import as_dict, as_list, figure, interval, is_number, with_interval

SIZES = ("NUM_HIDDEN_LAYERS", "HIDDEN_SIZE", "NUM_ATTENTION_HEADS")
CONSTANTS = (
    *("MODEL_NAME", *SIZES, "MAX_SEQ_LENGTH", "DROPOUT", "TRAIN_BATCH_SIZE"),
    *("NUM_TRAIN_EPOCHS", "MAX_STEPS", "LEARNING_RATE", "MIN_LR_RATE", "WARMUP_STEPS", "WEIGHT_DECAY", "ADAM_BETA1", "ADAM_BETA2"),
    *("MAX_GRAD_NORM", "PRECISION", "SEED"),
)


def card(facts, directory):
    """The text of the card of the model in `directory`."""
    recipe = facts.run.get("recipe") or facts.name
    tags = "\n".join(f"- {yaml(tag)}" for tag in dict.fromkeys([plain(recipe), "gpt2", "trained-from-scratch"]))
    sections = [
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n{tags}\n---",
        f"# {inline(facts.name)}",
        f"A language model ({inline(model_words(facts))}), trained from scratch with the recipe {code(recipe)}: "
        f"a `GPT2LMHeadModel`{shape(directory)}. "
        f"It goes on with texts; it was not taught to answer.{unfinished(facts)}{tiny(facts)}",
        f"## Data\n\n{data(facts)}",
        f"## Training\n\n{trained(facts)}{training(facts, chosen(facts))}",
        f"## Figures\n\n{figures(facts, directory.resolve().name)}",
        f"## Loading it\n\n{loading(directory)}",
        f"## Limits\n\n{limits(facts)}",
    ]
    return "\n\n".join(sections) + "\n"


def chosen(facts):
    """The names of the constants that say something: not those that leave the size to MODEL_NAME, nor it where they say all."""
    names = [name for name in CONSTANTS if facts.constants.get(name) is not None]
    return [name for name in names if name != "MODEL_NAME" or not all(size in names for size in SIZES)]


def shape(directory):
    """The sizes that config.json says, in words."""
    try:
        config = as_dict(read_json(directory / "config.json", {}))
    except Refusal:
        return ""
    words = {"n_layer": "layers", "n_embd": "wide", "n_head": "heads", "n_positions": "positions", "vocab_size": "tokens"}
    found = [f"{config[key]:,} {word}" for key, word in words.items() if is_number(config.get(key))]
    return f" of {', '.join(found)}" if found else ""


def data(facts):
    lines = []
    for name, found in as_dict(facts.data.get("splits")).items():
        counts = {key: as_dict(found).get(key) for key in ("tokens", "files", "documents")}
        words = ", ".join(f"{n:,} {key if n != 1 else key[:-1]}" for key, n in counts.items() if is_number(n))
        lines.append(f"- {inline(name, 40)}: {words}")
    tokenizer = as_dict(facts.data.get("tokenizer"))
    sentences = []
    if is_number(tokenizer.get("vocab_size")):
        sentences.append(f"The tokenizer has {tokenizer['vocab_size']:,} tokens (digest {code(tokenizer.get('digest') or 'unknown', 40)}).")
    sentences.append("Documents stand one after another, each followed by the token that ends a text.")
    return "\n".join([*lines, "\n" * bool(lines) + " ".join(sentences)])


def trained(facts):
    tokens = tokens_trained(facts)
    return f"{figure_of_tokens(tokens)} tokens were learned. " if tokens else ""


def figure_of_tokens(count):
    """Such as 1.05 million."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:,}"


def figures(facts, name):
    """The figures of this model."""
    own, reason = facts.judged.get(name), as_dict(facts.summary.get("failed")).get(name)
    if not own:
        return f"It could not be judged: {inline(reason, 600)}" if reason else "Not evaluated yet."
    rows = [f"On {inline(held_out(own))}, with 95 % intervals from a bootstrap over {inline(own.get('resampled') or 'groups', 100)}:"]
    rows += ["", "| | this model |", "|---|---|"]
    for key, metric in OF_TOKENS.items():
        found = interval(own, key)
        if found:
            rows.append(f"| {metric.name}{f', {metric.unit}' if metric.unit else ''} | {with_interval(found, metric.digits)} |")
    guessed = own.get("frequency_loss")
    if is_number(guessed):
        rows.append(f"\nWhoever knew only how often each of these tokens comes would have a loss of {figure(guessed, 3)}.")
    return "\n".join(rows)


def held_out(judged):
    tokens, rows = judged.get("tokens"), judged.get("rows")
    return f"{tokens:,} held-out tokens in {rows:,} rows" if is_number(tokens) and is_number(rows) else "held-out tokens"


def loading(directory):
    """Code that loads the model with transformers and lets it write, from the token after which a text begins."""
    words = (directory / "tokenizer.json").is_file()
    lines = ["import torch", f"from transformers import AutoModelForCausalLM{', AutoTokenizer' if words else ''}", ""]
    lines += ['MODEL = "."  # this directory']
    lines += ['model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16, device_map="auto")']
    if words:
        lines += ["tokenizer = AutoTokenizer.from_pretrained(MODEL)", ""]
        lines += ['text = tokenizer.eos_token + "The history of"  # a text begins where another ended: <|endoftext|>']
        lines += ['ids = tokenizer(text, return_tensors="pt").input_ids']
    else:
        lines += ["", "ids = torch.tensor([[model.config.bos_token_id]])  # a text begins where another ended; the tokenizer was not saved"]
    lines += ["output = model.generate(", "    ids.to(model.device), attention_mask=torch.ones_like(ids).to(model.device),"]
    lines += ["    max_new_tokens=100, do_sample=True, temperature=0.8, top_p=0.95,", ")"]
    lines += ["print(tokenizer.decode(output[0], skip_special_tokens=True))" if words else "print(output[0].tolist())"]
    return "\n".join(["```python", *lines, "```"])


def limits(facts):
    lines = [f"- {inline(note, 600)}" for key in ("notes", "warnings") for note in as_list(facts.run.get(key))]
    length = facts.constants.get("MAX_SEQ_LENGTH")
    rows = f"rows of {length:,} tokens" if is_number(length) else "rows"
    lines.append(f"- It was trained on {rows}, cut wherever one was full, so often in the middle of a document; and within a row it "
                 "attended across documents, to the ones before.")  # fmt: skip
    if is_number(length):
        lines.append(f"- It knows {length:,} positions; nothing longer can be read or written.")
    lines.append("- It goes on with a text as its training data would, true or not, and follows no instructions until it is fine-tuned.")
    lines.append("- The licences of its training data hold; it may repeat stretches of them.")
    return "\n".join(lines)

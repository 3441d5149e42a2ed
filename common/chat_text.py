"""From messages to token ids and labels through the model's own chat template.

Labels are the assistant's turns and the end-of-turn token after each; everything else is -100.
"""

import json
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

from common.chat_rows import BadRow
from common.refusal import Refusal

IGNORED = -100
DATE = "26 Jul 2024"  # Llama 3.1+ templates print today's date: fixed here, or every day would train on another prompt
OMISSION = "\n[...]\n"
# What DeepSeek-R1's distilled models have in their templates: answers lose their reasoning, and every answer has to begin with some.
DROPS_REASONING = "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
BEGINS_REASONING = "<｜Assistant｜><think>\\n"


@dataclass(slots=True)
class Encoded:
    """input_ids and labels, list[int] of one length; shortened says what was taken away, "" for nothing."""

    input_ids: list
    labels: list
    shortened: str


def load_tokenizer(path, revision=None):
    """The tokenizer of a model directory or hub name; `Refusal` where it has no chat template."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise Refusal(f"the tokenizer of {path} cannot be loaded: {str(error).splitlines()[0]}") from None
    if not tokenizer.chat_template:
        raise Refusal(
            f"the tokenizer of {path} has no chat template, so it does not say how a conversation is written; "
            "take the Instruct variant of the model, or add chat_template.jinja beside its tokenizer.json"
        )
    keep_reasoning(tokenizer)
    return tokenizer


def keep_reasoning(tokenizer):
    """Give a tokenizer whose template drops the reasoning of answers one that keeps it; True where that was so.

    R1's distilled models render an answer without all up to `</think>`, so that training on it would unlearn to reason, and end every
    prompt with `<think>`, which the rows without reasoning do not have. The variant writes answers as they are, and lets the model
    begin them. Saved with the model, so that it is asked as it was trained.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str) or DROPS_REASONING not in template:
        return False
    tokenizer.chat_template = template.replace(DROPS_REASONING, "").replace(BEGINS_REASONING, BEGINS_REASONING.partition("<think>")[0])
    return True


def render(tokenizer, messages, **options):
    """The conversation as text, as the model's template writes it."""
    return tokenizer.apply_chat_template(messages, tokenize=False, date_string=DATE, **options)


def answer_spans(tokenizer, messages):
    """(text, [(start, end), …]) with the characters of every assistant turn, its end-of-turn token included.

    A turn reaches from the generation prompt to the last character that the template writes for it. Raises `Refusal`
    where the template rewrites earlier turns (some drop the reasoning of old answers), for then no part can be masked.
    """
    text, spans = render(tokenizer, messages), []
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            before = render(tokenizer, messages[:place], add_generation_prompt=True)
            through = text if place == len(messages) - 1 else render(tokenizer, messages[: place + 1])
            if not (text.startswith(through) and through.startswith(before)):
                raise Refusal(
                    "the chat template rewrites earlier turns when a later one is added, so labels cannot be told from prompts; "
                    "use a training variant of the template that keeps every turn as it is"
                )
            reasoning = message["content"].rpartition("</think>")[0].strip()
            if reasoning and reasoning not in through[len(before) :]:
                raise Refusal("the chat template drops the reasoning of answers, all up to </think>, so the model would unlearn it; "
                              "use a variant of the template that keeps it")  # fmt: skip
            spans.append((len(before), len(through.rstrip())))
    return text, spans


def encode(tokenizer, messages, max_length):
    """`Encoded` with at most `max_length` tokens; the oldest turns go first, then the middle of the longest user turn.

    Raises `BadRow` where the answer leaves no room for its prompt, or where content holds a control token as text.
    """
    control = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special or str(t).startswith(("<|", "<｜"))]
    for place, message in enumerate(messages, 1):
        for token in control:
            if token in message["content"]:
                raise BadRow(f"message {place} holds the control token {token} as text, which the model would obey")
    ids, labels = _tokenise(tokenizer, messages)
    shortened = []
    if len(ids) > max_length and len(tails := _tails(messages)) > 1:
        fits = bisect_left(tails, True, lo=1, hi=len(tails) - 1, key=lambda tail: _length(tokenizer, tail) <= max_length)
        messages = tails[fits]
        shortened = ["oldest turns"]
        ids, labels = _tokenise(tokenizer, messages)
    if len(ids) > max_length:
        ids, labels = _with_shorter_user(tokenizer, messages, max_length, len(ids))
        shortened.append("middle of the document")
    return Encoded(ids, labels, " and ".join(shortened))


def end_of_turn(tokenizer, encoded):
    """The token that ends the answer; `Refusal` unless it is a label and a control token at which generation can stop."""
    places = [i for i, label in enumerate(encoded.labels) if label != IGNORED]
    if not places:
        raise Refusal("no token of the first row is a label, so nothing would be learned; check the chat template")
    last = encoded.input_ids[places[-1]]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | {tokenizer.eos_token_id}
    if last not in special:
        raise Refusal(
            f"the last label is {tokenizer.decode([last])!r}, no end-of-turn token, so the model would never learn to stop; "
            "use a chat template that closes the assistant's turn"
        )
    return tokenizer.convert_ids_to_tokens(last)


def marked(tokenizer, encoded):
    """[{"text", "label"}, …]: the example decoded in runs of label and no label."""
    runs = []
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        if not runs or runs[-1][1] != (label != IGNORED):
            runs.append(([], label != IGNORED))
        runs[-1][0].append(token)
    return [{"text": tokenizer.decode(tokens), "label": label} for tokens, label in runs]


def _tokenise(tokenizer, messages):
    text, spans = answer_spans(tokenizer, messages)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)  # the template writes BOS itself
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    bos = tokenizer.bos_token_id
    if bos is not None and bos != tokenizer.eos_token_id and ids.count(bos) > 1:
        raise Refusal(f"the chat template writes {ids.count(bos)} {tokenizer.bos_token} tokens; a conversation starts with one")
    labels, span = [IGNORED] * len(ids), 0
    for place, (start, end) in enumerate(offsets):
        while span < len(spans) and start >= spans[span][1]:
            span += 1
        if span < len(spans) and start >= spans[span][0] and end <= spans[span][1]:
            labels[place] = ids[place]
    return ids, labels


def _length(tokenizer, messages):
    return len(tokenizer(render(tokenizer, messages), add_special_tokens=False, verbose=False)["input_ids"])


def _tails(messages):
    """The conversation, then without its oldest exchange, and so on to the last one alone."""
    tails = [messages]
    while fewer := _without_oldest(tails[-1]):
        tails.append(fewer)
    return tails


def _without_oldest(messages):
    """Without the first exchange after the system message; None when only one is left."""
    head = 1 if messages[0]["role"] == "system" else 0
    answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    users = [i for i, m in enumerate(messages) if m["role"] == "user" and i > answers[0]]
    return messages[:head] + messages[users[0] :] if len(answers) > 1 and users else None


def _with_shorter_user(tokenizer, messages, max_length, length):
    place = max((i for i, m in enumerate(messages) if m["role"] == "user"), key=lambda i: len(messages[i]["content"]))
    content = messages[place]["content"]
    offsets = tokenizer(content, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    keep = len(offsets) - (length - max_length) - 8  # tokens; a few for the omission mark
    while keep >= 2:
        head, tail = offsets[(keep + 1) // 2 - 1][1], offsets[len(offsets) - keep // 2][0]
        cut = {**messages[place], "content": content[:head] + OMISSION + content[tail:]}
        ids, labels = _tokenise(tokenizer, [*messages[:place], cut, *messages[place + 1 :]])
        if len(ids) <= max_length:
            return ids, labels
        keep -= max(len(ids) - max_length, 1)
    answer = len(tokenizer(messages[-1]["content"], add_special_tokens=False)["input_ids"])
    raise BadRow(f"its answer has {answer} tokens and leaves no room for a prompt in MAX_SEQ_LENGTH = {max_length}; answers are never cut")


def template_path(name):
    """A real chat template shipped with TRL, for the embedded models: its .jinja file."""
    import importlib.util

    return Path(importlib.util.find_spec("trl").origin).parent / "chat_templates" / f"{name}.jinja"

"""From messages to token ids and labels through the model's own chat template.

Labels are the assistant's turns and the end-of-turn token after each; everything else is -100.
"""

import json
import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from pathlib import Path

from common import long_documents as documents
from common.chat_rows import BadRow
from common.long_documents import OMISSION
from common.refusal import Refusal

IGNORED = -100
DATE = "26 Jul 2024"  # Llama 3.1+ templates print today's date: fixed here, or every day would train on another prompt
SPARE = 8  # tokens kept free for the omission mark
# What DeepSeek-R1's distilled models have in their templates: answers lose their reasoning, and every answer has to begin with some.
DROPS_REASONING = "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
BEGINS_REASONING = "<｜Assistant｜><think>\\n"


@dataclass(slots=True)
class Encoded:
    """input_ids and labels, list[int] of one length; shortened says what was taken away, "" for nothing, taken how many tokens."""

    input_ids: list
    labels: list
    shortened: str
    taken: int = 0


class TooLong(BadRow):
    """A row without fault that has more tokens than may be, where such rows are dropped. tokens: of the whole row."""

    def __init__(self, reason, tokens):
        super().__init__(reason)
        self.tokens = tokens


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
            reasoning, _, answer = (part.strip() for part in message["content"].rpartition("</think>"))
            if answer not in through[len(before) :]:
                raise Refusal("the chat template does not write answers as they are (it may be one for messages in parts, with images), so "
                              "they would not be learned; use the template of a text model")  # fmt: skip
            if reasoning and reasoning not in through[len(before) :]:
                raise Refusal("the chat template drops the reasoning of answers, all up to </think>, so the model would unlearn it; "
                              "use a variant of the template that keeps it")  # fmt: skip
            spans.append((len(before), len(through.rstrip())))
    return text, spans


def encode(tokenizer, messages, max_length, long_documents="shorten"):
    """`Encoded` with at most `max_length` tokens; the oldest turns go first, then the middle of the longest user turn.

    long_documents: "drop" raises `TooLong` in place of taking anything out of the last exchange.
    Raises `BadRow` where the answer leaves no room for its prompt, or where content holds a control token as text.
    """
    [found] = fit(tokenizer, [messages], max_length, long_documents)
    if isinstance(found, BadRow):
        raise found
    return found[1]


def fit(tokenizer, conversations, max_length, long_documents="shorten"):
    """[(messages as they fit, their `Encoded`), or the `BadRow` that `encode` would raise], of each conversation.

    Tokenised side by side on all cores, each document once, and what is left of a shortened one once more.
    """
    control = _control(tokenizer)
    work = [_fitting(tokenizer, messages, max_length, long_documents, control) for messages in conversations]
    results, answers = [None] * len(work), dict.fromkeys(range(len(work)))  # None starts a generator
    while answers:
        asked = {}
        for n, answer in answers.items():
            try:
                asked[n] = work[n].send(answer)
            except StopIteration as done:
                results[n] = done.value
            except BadRow as reason:
                results[n] = reason
        answers = dict(zip(asked, _encodings(tokenizer, list(asked.values())), strict=True)) if asked else {}
    return results


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


def _encodings(tokenizer, texts):
    """What the tokenizers library says of each text; the template writes BOS itself."""
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False).encodings


def _control(tokenizer):
    """What finds a control token in a text, special or not; None where the tokenizer has none."""
    tokens = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special or str(t).startswith(("<|", "<｜"))]
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))) if tokens else None


def _fitting(tokenizer, messages, max_length, long_documents, control):
    """A generator: yields texts to tokenise, is sent their encodings, and returns (messages, `Encoded`)."""
    for place, message in enumerate(messages, 1):
        if found := control and control.search(message["content"]):
            raise BadRow(f"message {place} holds the control token {found[0]} as text, which the model would obey")
    text, spans = answer_spans(tokenizer, messages)
    encoding = yield text
    whole, shortened = len(encoding), []
    if whole > max_length and len(tails := _tails(messages)) > 1:
        first, last = 1, len(tails) - 1
        while first < last:
            middle = (first + last) // 2
            fits = len((yield render(tokenizer, tails[middle]))) <= max_length
            first, last = (first, middle) if fits else (middle + 1, last)
        messages, shortened = tails[first], ["oldest turns"]
        text, spans = answer_spans(tokenizer, messages)
        encoding = yield text
    if len(encoding) > max_length:
        shorter = yield from _with_shorter_user(tokenizer, messages, max_length, text, encoding, long_documents == "drop", whole)
        messages, encoding, spans = shorter
        shortened.append("middle of the document")
    ids, labels = _labelled(tokenizer, encoding, spans)
    return messages, Encoded(ids, labels, " and ".join(shortened), whole - len(ids))


def _labelled(tokenizer, encoding, spans):
    """(ids, labels): the tokens that lie in a span of characters are labels."""
    ids, bos = encoding.ids, tokenizer.bos_token_id
    if bos is not None and bos != tokenizer.eos_token_id and ids.count(bos) > 1:
        raise Refusal(f"the chat template writes {ids.count(bos)} {tokenizer.bos_token} tokens; a conversation starts with one")
    labels = [IGNORED] * len(ids)
    for start, end in spans:  # characters only grow with tokens: found in a few steps, however long the row is
        first = bisect_left(range(len(ids)), start, key=lambda n: encoding.token_to_chars(n)[0])
        stop = bisect_right(range(len(ids)), end, key=lambda n: encoding.token_to_chars(n)[1])
        labels[first:stop] = ids[first:stop]
    return ids, labels


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


def _with_shorter_user(tokenizer, messages, max_length, text, encoding, drop, whole):
    """A generator as `_fitting`; returns (messages, their encoding, their answers' spans)."""
    users = [place for place, message in enumerate(messages) if message["role"] == "user"]
    length, place = len(encoding), max(users, key=lambda place: len(messages[place]["content"]))
    content = messages[place]["content"]
    start = text.find(content)
    if start < 0:  # most templates write it as it is, some without the white space around it
        content = content.strip()
        start = text.find(content)
    if start < 0:
        text, start = content, 0
        encoding = yield content
    ends = bisect_right(range(len(encoding)), start + len(content), key=lambda n: encoding.token_to_chars(n)[1])
    document = ends - bisect_left(range(len(encoding)), start, key=lambda n: encoding.token_to_chars(n)[0])
    room = document - (length - max_length) - SPARE
    if drop and room >= 2:
        raise TooLong(
            f'it has {whole:,} tokens, more than MAX_SEQ_LENGTH = {max_length}, and LONG_DOCUMENTS = "drop" leaves such rows out', whole
        )
    while room >= 2:
        head, tail = (edge - start for edge in documents.cut(text, encoding, start, start + len(content), room))
        fewer = {**messages[place], "content": content[:head] + OMISSION + content[tail:]}
        fewer = [*messages[:place], fewer, *messages[place + 1 :]]
        shorter, spans = answer_spans(tokenizer, fewer)
        found = yield shorter
        if len(found) <= max_length:
            return fewer, found, spans
        room -= len(found) - max_length
    answer = len((yield messages[-1]["content"]))
    raise BadRow(
        f"its answer has {answer} tokens and leaves no room for a prompt in MAX_SEQ_LENGTH = {max_length}; answers are never cut: raise "
        f"MAX_SEQ_LENGTH to {max(length - document + SPARE + 2, max_length + 1)} or more, or leave the row out"
    )


def template_path(name):
    """A real chat template shipped with TRL, for the embedded models: its .jinja file."""
    import importlib.util

    return Path(importlib.util.find_spec("trl").origin).parent / "chat_templates" / f"{name}.jinja"

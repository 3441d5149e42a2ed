"""Conversations as columns of token ids and labels, tokenised on all cores, in files and never all in memory."""

import json

from common import chat_rows, chat_text

OF_A_PROCESS = 2000, 20_000_000  # rows or characters that are worth a further process
AT_ONCE = 256, 2_000_000  # rows and characters that are tokenised together


def encode(tokenizer, rows, max_length, long_documents, name, here):
    """A `Dataset` of one row for each of `rows`, in files below `here`.

    whole: tokens before anything was taken away, 0 where they were not counted. problem: why it cannot be used; "" where it can.
    """
    import numpy as np
    from datasets import Features, Sequence, Value, disable_progress_bars

    from common.hardware import cpu_cores

    def batch(texts):
        out = {name: [] for name in features}
        for conversations in _groups(texts["messages"]):
            for found in chat_text.fit(tokenizer, conversations, max_length, long_documents):
                bad = isinstance(found, chat_rows.BadRow)
                encoded = chat_text.Encoded([], [], "") if bad else found[1]
                ids, labels = np.asarray(encoded.input_ids, np.int32), np.asarray(encoded.labels, np.int32)
                whole = getattr(found, "tokens", 0) if bad else len(ids) + encoded.taken
                learned, problem = int((labels != chat_text.IGNORED).sum()), str(found) if bad else ""
                for key, value in zip(out, (ids, labels, len(ids), learned, whole, encoded.shortened, problem), strict=True):
                    out[key].append(value)
        return out

    features = Features({"input_ids": Sequence(Value("int32")), "labels": Sequence(Value("int32")), "length": Value("int32"),
                         "label_tokens": Value("int32"), "whole": Value("int32"), "shortened": Value("string"),
                         "problem": Value("string")})  # fmt: skip
    characters = sum(len(message["content"]) for row in rows for message in row.messages)
    at_once = max(1, min(AT_ONCE[0], AT_ONCE[1] * len(rows) // characters))
    processes = min(cpu_cores(), len(rows), max(1, len(rows) // OF_A_PROCESS[0], characters // OF_A_PROCESS[1]))
    if processes == 1:
        disable_progress_bars()  # done before a bar could be read
    texts = _stored(rows, here / "texts.arrow", at_once)
    return texts.map(batch, batched=True, batch_size=at_once, num_proc=processes if processes > 1 else None, features=features,
                     remove_columns=["messages"], desc=f"Tokenising {name}", keep_in_memory=False, load_from_cache_file=False)  # fmt: skip


def _groups(texts):
    """The conversations of a batch in lists, in order, none of more characters than `AT_ONCE` says but for a single longer one.

    A batch is as many rows as have that many on average; the long ones of them may stand together.
    """
    group, characters = [], 0
    for text in texts:
        messages = json.loads(text)
        more = sum(len(message["content"]) for message in messages)
        if group and characters + more > AT_ONCE[1]:
            yield group
            group, characters = [], 0
        group.append(messages)
        characters += more
    if group:
        yield group


def _stored(rows, path, at_once):
    """The messages of `rows` as a `Dataset` in a file, from which each process reads its part: none is handed texts, or holds all."""
    import pyarrow
    from datasets import Dataset

    schema = pyarrow.schema({"messages": pyarrow.large_string()})
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, schema) as out:
        for start in range(0, len(rows), at_once):
            texts = [json.dumps(row.messages) for row in rows[start : start + at_once]]
            out.write_batch(pyarrow.record_batch([pyarrow.array(texts, pyarrow.large_string())], schema=schema))
    return Dataset.from_file(str(path))

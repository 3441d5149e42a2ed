"""Files of tokens for tests, written as their own programs write them: ours, nanoGPT's, llm.c's, datatrove's, the .npz of seed windows."""

import struct

import numpy as np

from common import encoding, shards

TEXT = b"the cat sat on the mat, and the dog sat on the log; 1 + 2 = 3.\nna\xc3\xafve caf\xc3\xa9s, \xe4\xb8\xad\xe6\x96\x87\n" * 40


def drawn(count, vocab_size=1000, seed=0):
    """uint16 [count] random tokens."""
    return np.random.default_rng([seed, count]).integers(0, vocab_size, count).astype(np.uint16)


def own(directory, name, tokens, vocab_size=1000, tokenizer="0123456789abcdef", ends=None):
    """One of our shards; returns the path of its .bin."""
    directory.mkdir(parents=True, exist_ok=True)
    ends = [len(tokens)] if ends is None else ends
    shards.write(directory, name, tokens, np.asarray(ends), text_bytes=4 * len(tokens), tokenizer=tokenizer, vocab_size=vocab_size,
                 end_of_text=vocab_size - 1, sources=["a.txt"])  # fmt: skip
    return directory / f"{name}.bin"


def own_directory(directory, sizes, vocab_size=1000, seed=0, **more):
    """A directory of our shards of these sizes; returns their tokens, by file name."""
    written = {}
    for number, size in enumerate(sizes):
        tokens = drawn(size, vocab_size, seed + number)
        written[own(directory, f"shard-{number:05d}-000", tokens, vocab_size, **more).name] = tokens
    return written


def nanogpt(path, tokens):
    np.array(tokens, dtype=np.uint16).tofile(path)  # data/openwebtext/prepare.py
    return path


def llm_c(path, tokens, magic=20240520, version=1, dtype=np.uint16, count=None):
    """dev/data/data_common.py's write_datafile."""
    header = np.zeros(256, dtype=np.int32)
    header[:3] = magic, version, len(tokens) if count is None else count
    with open(path, "wb") as file:
        file.write(header.tobytes())
        file.write(np.asarray(tokens, dtype=dtype).tobytes())
    return path


def datatrove(directory, name, documents, width=2, index=True, metadata=True):
    """A .ds by datatrove's own writer."""
    from datatrove.pipeline.tokens.tokenizer import TokenizedFile

    more = {"save_index": index, "save_final_metadata": metadata, "token_size": width, "tokenizer_name_or_path": "gpt2"}
    file = TokenizedFile(str(directory), name, **more)
    for document in documents:
        file.write(list(map(int, document)), None)
    file.close()
    return directory / name


def datatrove_by_hand(directory, name, documents, width=2):
    """The same without datatrove."""
    ends = np.cumsum([len(document) for document in documents])
    (directory / name).write_bytes(b"".join(np.asarray(d, dtype=f"<u{width}").tobytes() for d in documents))
    (directory / f"{name}.index").write_bytes(struct.pack(f"<{len(ends)}Q", *ends.tolist()))
    return directory / name


def windowed(documents, stop_early=False, length=1024, stride=512):
    """{"input_ids", "attention_mask", "sequence_lengths"} of windows that overlap.

    stop_early: the variant whose last window is the first to reach a document's end.
    """
    windows = []
    for document in documents:
        for start in range(0, len(document), stride):
            windows.append(document[start : start + length])
            if stop_early and start + length >= len(document):
                break
    ids = np.zeros((len(windows), length), dtype=np.int32)
    for row, window in enumerate(windows):
        ids[row, : len(window)] = window
    lengths = np.array([len(window) for window in windows], dtype=np.int32)
    return {"input_ids": ids, "attention_mask": (np.arange(length) < lengths[:, None]).astype(np.int8), "sequence_lengths": lengths}


def trained_tokenizer(directory, vocab_size=300):
    """A byte-level BPE in `directory`; its `Facts`."""
    encoding.train([TEXT], vocab_size, directory)
    return encoding.facts(directory)

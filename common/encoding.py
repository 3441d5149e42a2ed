"""Tokenising text fast: documents as bytes in, one array of token ids out, every document followed by end-of-text.

    encoder = encoding.Encoder("data/tokens/tokenizer")
    tokens, ends = encoder.encode([b"first document", b"second"])     # ends: one past each document's end-of-text

gigatoken gives the ids of Hugging Face's tokenizers, tens of times faster. It is used only as `encode_batch` of bytes that we have
read: its JSONL source drops rows without a word, and its text source cannot say what it skipped. Each encoder first compares it
with Hugging Face's on varied text and goes without it where it differs. Text that spells a special token stays text.
"""

import hashlib
import json
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import log
from common.refusal import Refusal

END_OF_TEXT = "<|endoftext|>"
ENDS = (END_OF_TEXT, "<|end_of_text|>")  # what ends a document, in this order; a chat model's eos_token ends turns
SMALLEST = 257  # the bytes and end-of-text
NARROW = 1 << 16  # ids below fit uint16

_threads_of = None  # the process in which gigatoken has begun its threads

# Where tokenisers go different ways: kinds of white space and line ends, digits, contractions, code, accents composed and not, scripts
# without spaces, joined emoji, control characters, long runs. Special tokens are appended as text.
VARIED = "".join(
    [
        "The quick brown fox can't; we'll've, I'M, 'tis the DOG'S   \t\t  day.\r\n\r\n\n   Leading, trailing   \n",
        "0 1 12 123 1234 12345 3.14159 1,000,000 1e-5 0xFF ½ ² Ⅷ ٣٤ 2026-11-21T13:28:38Z\n",
        "def f(x: int = 0, *args, **kw) -> None:\n    if x == 1 and y != 2:\n\t\treturn {'a': [1, 2], \"b\": f\"{x!r:>10}\"}  # why?\n",
        "<html><a href='http://example.org/?q=a%20b&c=d#e'>&amp;</a></html>\\n\\u00e9 $x^2_{i}$ C:\\Temp\n",
        "Zürich façade naïve Ångström e\u0301 n\u0303 ﬁ ﬀ ß ẞ İi ı Straße ΑΒΓ αβγ Привет мир שלום עולם مرحبا हिन्दी ไทย\n",
        "日本語のテキスト、中文文本。한국어 텍스트 👩‍👩‍👧‍👦 🇨🇭 👍🏽 ☃ ∑∫√∞ ← → “quotes” ‘single’ – — …\n",
        "a\u00a0b\u2003c\u3000d\u200be\ufefff\u2028g\u0085h\x0bi\x0cj\x00k\x07l\x7fm\u00adn\ufffdo\U0001f9ff\U00010348\n",
        "_" * 70 + "=" * 33 + " " * 45 + "\n" * 7 + "a" * 90 + "!?" * 20 + " \n" * 9 + "\t" * 17 + "aB" * 25,
    ]
)


class Encoder:
    """The tokenizer of a directory, for documents.

    digest, vocab_size (the largest id and one) and end_of_text (an id) are facts of it; dtype is uint16 where ids fit, else uint32;
    engine says what encodes: "gigatoken" or "tokenizers". warn: told, once, why it is the slow one. `Refusal` for no tokenizer.
    """

    def __init__(self, tokenizer_dir, warn=log.warn):
        from tokenizers import Tokenizer

        content = _content(tokenizer_dir)
        self.digest = _digest(content)
        self._slow = Tokenizer.from_str(json.dumps(content))
        self._slow.encode_special_tokens = True  # their text stays text
        self._slow.no_truncation()
        self._slow.no_padding()
        ids = self._slow.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values()) + 1
        self.end_of_text = ids[_end_of_text(tokenizer_dir, ids)]
        self.dtype = np.dtype("<u2" if self.vocab_size <= NARROW else "<u4")
        self._fast = self._gigatoken(content, warn)
        self.engine = "gigatoken" if self._fast else "tokenizers"

    def encode(self, documents):
        """(tokens, ends) of a list of documents, UTF-8 as bytes: end-of-text follows each, ends (int64) is one past each of these."""
        found, lengths = (self._fast or self._slowly)(documents)
        ends = np.cumsum(lengths + 1)
        tokens = np.full(len(found) + len(ends), self.end_of_text, dtype=self.dtype)
        text = np.ones(len(tokens), dtype=bool)
        text[ends - 1] = False
        tokens[text] = found
        return tokens, ends

    def _slowly(self, documents):
        texts = [document.decode() for document in documents]
        found = [np.array(e.ids, dtype=np.uint32) for e in self._slow.encode_batch_fast(texts, add_special_tokens=False)]
        return np.concatenate([np.empty(0, np.uint32), *found]), np.array([len(ids) for ids in found], dtype=np.int64)

    def _gigatoken(self, content, warn):
        """What encodes as `_slowly` does through gigatoken, None (and `warn` says why) where that cannot be trusted."""
        kept = [token for token in content["added_tokens"] if not token["special"]]
        plain = {**content, "added_tokens": kept, "post_processor": None, "truncation": None, "padding": None}
        added = "".join(token["content"] + " x" for token in content["added_tokens"][:50])
        sample = [text.encode() for text in (VARIED, added, END_OF_TEXT, "", " ", *VARIED.splitlines())]
        try:
            import gigatoken
            from awkward.contents import ListOffsetArray

            tokenizer = gigatoken.Tokenizer.from_json(json.dumps(plain))

            def encode(documents):
                _forked_since_threads()
                array = tokenizer.encode_batch(documents)
                if not documents:
                    return np.empty(0, np.uint32), np.empty(0, np.int64)
                if not isinstance(array.layout, ListOffsetArray):
                    raise TypeError(f"it gives {type(array.layout).__name__}")
                offsets = np.asarray(array.layout.offsets.data)
                return np.asarray(array.layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets)

            same = all(np.array_equal(a, b) for a, b in zip(encode(sample), self._slowly(sample), strict=True))
            why = None if same else "gives other ids than Hugging Face's tokenizers for this tokenizer"
        except (KeyboardInterrupt, SystemExit):
            raise
        except ImportError as error:
            why = f"cannot be imported ({error})"
        except BaseException as error:  # a panic in Rust is no Exception
            why = f"cannot do this tokenizer ({type(error).__name__}: {str(error)[:200]})"
        if why is None:
            return encode
        warn(f"gigatoken {why}; Hugging Face's tokenizers encode instead, tens of times slower, with the same result")
        return None


@dataclass(frozen=True)
class Facts:
    """Of a tokenizer: digest; vocab_size, the largest id and one; end_of_text, an id."""

    digest: str
    vocab_size: int
    end_of_text: int


def facts(tokenizer_dir):
    """The `Facts` of a tokenizer that is not to encode; `Refusal` without one."""
    from tokenizers import Tokenizer

    content = _content(tokenizer_dir)
    ids = Tokenizer.from_str(json.dumps(content)).get_vocab(with_added_tokens=True)
    return Facts(_digest(content), max(ids.values()) + 1, ids[_end_of_text(tokenizer_dir, ids)])


def digest(tokenizer_dir):
    """16 hexadecimal digits that tell tokenizers apart: of what in tokenizer.json decides about ids, however it is laid out.

    So a tokenizer that was loaded and saved again, with another post-processor or truncation, is still the same. `Refusal` without one.
    """
    return _digest(_content(tokenizer_dir))


def train(documents, vocab_size, directory):
    """Learn a byte-level BPE of `vocab_size` tokens with GPT-2's rules from `documents` (bytes), into `directory`; the size it has.

    Ids are as GPT-2's: 256 bytes, merges in their order, end-of-text last. A little text may have fewer merges than were asked for.
    gigatoken and, without it, Hugging Face's trainer find the same merges.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    if vocab_size < SMALLEST:
        raise Refusal(f"a vocabulary of {vocab_size} is too small for byte-level BPE, which has 256 bytes and end-of-text; ask for more")
    documents = list(documents)
    if not any(documents):
        raise Refusal("there is no text to train a tokenizer on: every document is empty or was skipped; look at SOURCES")
    letters = _letters()
    merges = _merges(documents, vocab_size)
    pieces = list(dict.fromkeys([*letters.values(), *(first + second for first, second in merges), END_OF_TEXT]))
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    ends = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **ends, "clean_up_tokenization_spaces": False, "model_max_length": int(1e30)}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return len(pieces)


def _merges(documents, vocab_size):
    """The merges in order, as pairs of texts in the letters of byte-level BPE."""
    letters = _letters()
    try:
        import gigatoken

        if not _forked_since_threads():
            with _hushed():
                _, merges = gigatoken.train_bpe(b"\0".join(documents), vocab_size, [END_OF_TEXT], separator=b"\0")
            return [tuple("".join(letters[byte] for byte in part) for part in pair) for pair in merges]
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        log.warn(f"gigatoken cannot train ({type(error).__name__}: {str(error)[:200]}); Hugging Face's trainer does, ten times slower")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False)
    pieces = (piece.decode() for document in documents for piece in document.split(b"\0"))
    tokenizer.train_from_iterator(pieces, trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _forked_since_threads():
    """Whether gigatoken began its threads before this process was forked: its training would wait for them for ever. They begin now."""
    global _threads_of
    _threads_of = _threads_of or os.getpid()
    return _threads_of != os.getpid()


def _letters():
    """{byte: the letter that stands for it in tokenizer.json}, in GPT-2's order: what can be seen stands for itself."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


@contextmanager
def _hushed():
    """Without what a library prints past Python, on the descriptors of stdout and stderr."""
    sys.stdout.flush()
    sys.stderr.flush()
    nowhere, kept = os.open(os.devnull, os.O_WRONLY), [os.dup(1), os.dup(2)]
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for descriptor in (nowhere, *kept):
            os.close(descriptor)


def _content(tokenizer_dir):
    path = Path(tokenizer_dir) / "tokenizer.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if {"model", "added_tokens"} <= content.keys():
            return content
        why = "is not that of a tokenizer"
    except FileNotFoundError:
        why = "does not exist"
    except (OSError, ValueError, AttributeError) as error:
        why = f"cannot be read ({type(error).__name__})"
    raise Refusal(f"{path} {why}; name a directory with a fast tokenizer's tokenizer.json, or train one with --train-tokenizer 50257")


def _digest(content):
    decides = {key: content.get(key) for key in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _end_of_text(tokenizer_dir, ids):
    """The token that ends documents: one of `ENDS`, else the eos_token of tokenizer_config.json."""
    path = Path(tokenizer_dir) / "tokenizer_config.json"
    try:
        eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token")
    except (OSError, ValueError, AttributeError):
        eos = None
    eos = eos.get("content") if isinstance(eos, dict) else eos
    if token := next((token for token in (*ENDS, eos) if token in ids), None):
        return token
    raise Refusal(f"the tokenizer in {tokenizer_dir} has no token that ends a document: neither {' nor '.join(ENDS)}, nor an eos_token in "
                  "tokenizer_config.json; name one there")  # fmt: skip

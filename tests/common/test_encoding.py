"""Ids are those of Hugging Face's tokenizers, whichever engine finds them; documents end where end-of-text says; training is repeatable."""

import builtins
import json
import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from common import encoding, log
from common.refusal import Refusal

LIBRARY = [path.read_bytes() for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
VOCABULARY = 1024


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    assert encoding.train(LIBRARY, VOCABULARY, directory) == VOCABULARY
    return directory


@pytest.fixture(autouse=True)
def no_warnings_before():
    log.close()
    yield
    log.close()


def reference(tokenizer, documents, encode_special_tokens=True):
    """Token ids as Hugging Face's own library gives them, end-of-text after each document."""
    slow = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    slow.encode_special_tokens = encode_special_tokens
    end = slow.token_to_id("<|endoftext|>")
    return [[*slow.encode(document.decode(), add_special_tokens=False).ids, end] for document in documents]


@pytest.fixture
def without_gigatoken(monkeypatch):
    import_ = builtins.__import__

    def refuse(name, *arguments, **options):
        if name == "gigatoken":
            raise ImportError("No module named 'gigatoken'", name=name)
        return import_(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)


HARD = [b"", b" ", b"a\r\n\r\nb  \t c", "Zürich, 日本語 👩‍👩‍👧 e\u0301".encode(), b"x<|endoftext|>y"]
HARD += [b"\x00\x01", b"1234567 don't", b"a" * 5000]


def test_ids_and_ends_are_hugging_faces(tokenizer):
    documents = [*HARD, *LIBRARY[:60]]
    encoder = encoding.Encoder(tokenizer)
    assert (encoder.engine, encoder.vocab_size, encoder.end_of_text, encoder.dtype) == ("gigatoken", VOCABULARY, VOCABULARY - 1, np.uint16)
    tokens, ends = encoder.encode(documents)
    expected = reference(tokenizer, documents)
    assert tokens.dtype == np.uint16
    assert ends.dtype == np.int64
    assert tokens.tolist() == sum(expected, [])
    assert ends.tolist() == np.cumsum([len(ids) for ids in expected]).tolist()
    assert not log.warnings


def test_what_spells_end_of_text_is_text(tokenizer):
    """Else a document could end another one; Hugging Face's own default is that it does."""
    tokens, _ = encoding.Encoder(tokenizer).encode([b"x<|endoftext|>y"])
    assert (tokens == VOCABULARY - 1).sum() == 1
    assert reference(tokenizer, [b"x<|endoftext|>y"], encode_special_tokens=False)[0].count(VOCABULARY - 1) == 2


def test_nothing_is_no_tokens(tokenizer):
    tokens, ends = encoding.Encoder(tokenizer).encode([])
    assert (len(tokens), len(ends), tokens.dtype, ends.dtype) == (0, 0, np.uint16, np.int64)


def test_without_gigatoken_the_same_with_one_warning(tokenizer, without_gigatoken, capsys):
    documents = [*HARD, *LIBRARY[:5]]
    for _ in range(2):
        encoder = encoding.Encoder(tokenizer)
    assert encoder.engine == "tokenizers"
    tokens, ends = encoder.encode(documents)
    assert tokens.tolist() == sum(reference(tokenizer, documents), [])
    assert len(ends) == len(documents)
    assert encoder.encode([])[0].dtype == np.uint16
    assert capsys.readouterr().out.count("gigatoken cannot be imported") == 1


@pytest.mark.parametrize("how", ["other ids", "it panics"])
def test_a_gigatoken_that_cannot_be_trusted_is_not_used(tokenizer, monkeypatch, capsys, how):
    import gigatoken

    class Panic(BaseException):
        pass

    class Wrong:
        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def encode_batch(self, documents):
            if how == "it panics":
                raise Panic("index out of bounds")
            return self.tokenizer.encode_batch([document.replace(b"\xc2\xa0", b" ") for document in documents])

    made = gigatoken.Tokenizer.from_json
    monkeypatch.setattr(gigatoken.Tokenizer, "from_json", lambda data: Wrong(made(data)))
    encoder = encoding.Encoder(tokenizer)
    assert encoder.engine == "tokenizers"
    assert {"other ids": "gives other ids", "it panics": "Panic: index out of bounds"}[how] in capsys.readouterr().out
    assert encoder.encode(HARD)[0].tolist() == sum(reference(tokenizer, HARD), [])


def test_a_large_vocabulary_has_four_bytes(tokenizer, tmp_path):
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {f"never{i}": i for i in range(VOCABULARY, 65_537)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    encoder = encoding.Encoder(tmp_path)
    assert (encoder.vocab_size, encoder.dtype) == (65_537, np.uint32)
    assert encoder.encode(LIBRARY[:3])[0].tolist() == encoding.Encoder(tokenizer).encode(LIBRARY[:3])[0].tolist()


def test_training_finds_the_same_with_and_without_gigatoken(tokenizer, tmp_path, request, capfd):
    encoding.train(LIBRARY, VOCABULARY, tmp_path / "again")
    request.getfixturevalue("without_gigatoken")
    encoding.train(LIBRARY, VOCABULARY, tmp_path / "slow")
    for other in ("again", "slow"):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / other / name).read_bytes() == (tokenizer / name).read_bytes()
    said = capfd.readouterr()
    assert "unique words" not in said.out + said.err, "what gigatoken prints by itself"


def test_transformers_loads_what_was_trained_and_saves_the_same_tokenizer(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    assert (len(loaded), loaded.eos_token_id, loaded.eos_token) == (VOCABULARY, VOCABULARY - 1, "<|endoftext|>")
    text = HARD[3].decode()
    assert loaded(text).input_ids == reference(tokenizer, [HARD[3]])[0][:-1]
    assert loaded.decode(loaded(text).input_ids) == text
    loaded.save_pretrained(tmp_path)
    assert encoding.digest(tmp_path) == encoding.digest(tokenizer)


def test_another_tokenizer_has_another_digest(tokenizer, tmp_path):
    encoding.train(LIBRARY, VOCABULARY - 1, tmp_path)
    assert encoding.digest(tmp_path) != encoding.digest(tokenizer)
    assert len(encoding.digest(tokenizer)) == 16


def test_a_chat_models_tokenizer_ends_documents_not_turns(tokenizer, tmp_path):
    shutil.copytree(tokenizer, tmp_path, dirs_exist_ok=True)
    config = {"eos_token": {"content": "!"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert encoding.Encoder(tmp_path).end_of_text == VOCABULARY - 1
    text = (tokenizer / "tokenizer.json").read_text().replace("<|endoftext|>", "<|other|>")
    (tmp_path / "tokenizer.json").write_text(text)
    assert encoding.Encoder(tmp_path).end_of_text == 0, "without a token made for it, the eos_token"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", None, "does not exist; name a directory with a fast tokenizer"),
        ("tokenizer.json", "{", "cannot be read"),
        ("tokenizer.json", "[]", "cannot be read"),
        ("tokenizer.json", "{}", "is not that of a tokenizer"),
        ("tokenizer_config.json", "{}", "has no token that ends a document"),
    ],
)
def test_no_tokenizer_is_a_sentence(tokenizer, tmp_path, name, content, said):
    shutil.copytree(tokenizer, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    if content:
        (tmp_path / name).write_text(content)
    if name == "tokenizer_config.json":
        path = tmp_path / "tokenizer.json"
        path.write_text(path.read_text().replace("<|endoftext|>", "<|other|>"))
    with pytest.raises(Refusal, match=said):
        encoding.Encoder(tmp_path)


@pytest.mark.parametrize(("documents", "size", "said"), [([b"a"], 256, "too small for byte-level BPE"), ([b""], 300, "no text to train")])
def test_what_cannot_be_trained_is_a_sentence(tmp_path, documents, size, said):
    with pytest.raises(Refusal, match=said):
        encoding.train(documents, size, tmp_path)
    assert not list(tmp_path.iterdir())


def test_little_text_gives_a_smaller_vocabulary(tmp_path):
    assert encoding.train([b"abab abab"], 5000, tmp_path) < 300
    tokens, _ = encoding.Encoder(tmp_path).encode(["Zürich".encode()])
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).decode(tokens.tolist(), skip_special_tokens=True) == "Zürich"

"""Documents of every kind of file, from disks, stores and servers; what is left out is counted; what cannot be read is a sentence."""

import bz2
import gzip
import http.server
import json
import lzma
import threading
import tracemalloc
from contextlib import contextmanager

import pyarrow
import pyarrow.parquet
import pytest
from object_store import BUCKET, ObjectStore, environment

from common import raw_text, text_sources
from common.refusal import Refusal

TEXTS = ["one", "zwei  \n\n", "Zürich 日本語 👩‍👩‍👧", "x<|endoftext|>y", "\u2028 line \x85 ends", "tabs\tand \\ and \"quotes\""]


def read(*paths, column="text", max_files=None):
    """(documents, Skipped) of all files."""
    skipped = raw_text.Skipped()
    sources = text_sources.find(list(map(str, paths)), max_files)
    return [document for source in sources for batch in raw_text.batches(source, column, skipped) for document in batch], skipped


def lines(texts=TEXTS, column="text", **more):
    return "".join(json.dumps({column: text, **more}, ensure_ascii=False) + "\n" for text in texts).encode()


def parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


WANTED = [text.encode() for text in TEXTS]


# kinds of files


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", bytes),
        ("a.ndjson", bytes),
        ("a.jsonl.gz", gzip.compress),
        ("a.JSONL.bz2", bz2.compress),
        ("a.jsonl.xz", lzma.compress),
        ("a.jsonl", lambda data: data.replace(b"\n", b"\r\n")),
        ("a.jsonl", lambda data: data.removesuffix(b"\n")),
    ],
)
def test_json_lines(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(lines(id=3)))
    documents, skipped = read(tmp_path / name)
    assert documents == WANTED
    assert not skipped.counts


KINDS = [pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]


@pytest.mark.parametrize("kind", KINDS)
def test_parquet_as_fineweb_edu_has_it(tmp_path, kind):
    count = 3000  # several batches
    texts = pyarrow.array([f"{TEXTS[i % 6]} {i}" for i in range(count)]).cast(pyarrow.string() if kind != pyarrow.binary() else kind)
    path = parquet(tmp_path / "a.parquet", text=texts.dictionary_encode() if "dict" in str(kind) else texts.cast(kind), id=range(count))
    documents, skipped = read(path)
    assert documents == [f"{TEXTS[i % 6]} {i}".encode() for i in range(count)]
    assert not skipped.counts


def test_any_other_file_is_one_document(tmp_path):
    for name, content in {"a.txt": b"one\n\ntwo\n", "b.py": b"x = 1\n", "c": b"no suffix", "d.md.gz": gzip.compress(b"# packed")}.items():
        (tmp_path / name).write_bytes(content)
    assert read(tmp_path)[0] == [b"one\n\ntwo\n", b"x = 1\n", b"no suffix", b"# packed"]


def test_a_long_text_is_cut_at_ends_of_lines_or_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_text, "PIECE", 100)
    text = "".join(f"line {i} é\n" for i in range(200))
    (tmp_path / "a.txt").write_text(text)
    documents, _ = read(tmp_path / "a.txt")
    assert b"".join(documents).decode() == text
    assert len(documents) > 20
    assert all(document.endswith(b"\n") for document in documents)
    (tmp_path / "a.txt").write_text("é" * 1001)
    documents, skipped = read(tmp_path / "a.txt")
    assert b"".join(documents).decode() == "é" * 1001
    assert len(documents) > 4
    assert not skipped.counts
    (tmp_path / "a.txt").write_text("x" + "日" * 1000)
    assert b"".join(read(tmp_path / "a.txt")[0]).decode() == "x" + "日" * 1000


def test_another_column(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(column="content"))
    parquet(tmp_path / "b.parquet", content=["p"], text=[1])
    assert read(tmp_path, column="content")[0] == [*WANTED, b"p"]


# what is left out


def test_what_is_left_out_is_counted_and_named(tmp_path):
    bad = [b'{"text": "good"}', b"", b"{broken", b'{"text": ""}', b'{"text": " \\n"}', b'{"text": 3}', b'{"text": null}', b'{"id": 1}',
           b"[1]", b'"text"', b'{"text": "\\ud800"}', b'{"text": "\xff"}', b"[" * 100_000, b'{"text": "last"}']  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(bad))
    (tmp_path / "b.txt").write_bytes(b"")
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe\x00")
    parquet(tmp_path / "d.parquet", text=pyarrow.array([b"fine", None, b"", b"\xff"], pyarrow.binary()))
    documents, skipped = read(tmp_path)
    assert documents == [b"good", b"last", b"fine"]
    counts = {"empty line": 1, "not JSON": 2, "empty": 4, "no text": 3, "no field 'text'": 1, "not an object": 2, "not UTF-8": 4}
    assert skipped.counts == counts
    named = {(entry["file"].rpartition("/")[2], entry["line"]): entry["reason"] for entry in skipped.first}
    assert len(named) == 17
    assert named["a.jsonl", 3] == named["a.jsonl", 13] == "not JSON"
    assert named["a.jsonl", 12] == named["c.bin", 1] == named["d.parquet", 4] == "not UTF-8"
    assert named["d.parquet", 2] == "no text"


def test_a_million_bad_lines_do_not_fill_the_memory(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + b"x\n" * 5000)
    _, skipped = read(tmp_path / "a.jsonl")
    assert skipped.counts == {"not JSON": 5000}
    assert len(skipped.first) == raw_text.NAMED


def test_memory_is_flat(tmp_path):
    """64 MB of JSON lines, packed, through a few batches."""
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as out:
        for _ in range(64):
            out.write(lines(["x" * 999_000]))
    (source,) = text_sources.find([str(tmp_path / "a.jsonl.gz")])
    tracemalloc.start()
    size = 0
    for batch in raw_text.batches(source, "text", raw_text.Skipped()):
        size += sum(map(len, batch))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 64 * 999_000
    assert peak < 45e6


# where they lie


def test_directories_globs_and_the_first_files(tmp_path):
    for name in ("b/2.txt", "a/1.txt", "a/deep/0.txt", ".hidden/x.txt", "a/.x.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read(tmp_path)[0] == [b"a/1.txt", b"a/deep/0.txt", b"b/2.txt", b"c.txt"]
    assert read(tmp_path, tmp_path / "c.txt", f"{tmp_path}/*.txt")[0] == read(tmp_path)[0], "named twice, read once"
    assert read(f"{tmp_path}/**/[02].txt")[0] == [b"a/deep/0.txt", b"b/2.txt"]
    assert read(tmp_path, max_files=2)[0] == [b"a/1.txt", b"a/deep/0.txt"]
    (tmp_path / "[odd]*.txt").write_text("odd")
    assert read(tmp_path / "[odd]*.txt")[0] == [b"odd"], "a name that looks like a glob"


def test_a_source_tells_when_its_file_changed(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (before,) = text_sources.find([str(tmp_path / "a.txt")])
    assert text_sources.is_same(before)
    (tmp_path / "a.txt").write_text("two more")
    assert not text_sources.is_same(before)


@contextmanager
def served(files):
    """An HTTP server with {path: bytes or status}."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self, body=True):
            found = files.get(self.path, 404)
            status, data = (found, b"") if isinstance(found, int) else (200, found)
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def do_HEAD(self):
            self.do_GET(body=False)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_addresses_of_files_and_servers(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines()))
    parquet(tmp_path / "b.parquet", text=["p"])
    assert read(f"file://{tmp_path}")[0] == [*WANTED, b"p"]
    files = {f"/{path.name}": path.read_bytes() for path in tmp_path.iterdir()}
    sentences = {"none.txt": "is not there", "secret.txt": "may not be read by this account", "broken.txt": "cannot be reached"}
    with served({**files, "/secret.txt": 403, "/broken.txt": 500}) as address:
        assert read(f"{address}/a.jsonl.gz", f"{address}/b.parquet")[0] == [*WANTED, b"p"]
        for name, said in sentences.items():
            with pytest.raises(Refusal, match=said):
                read(f"{address}/{name}")


def test_objects_of_a_store_without_credentials(tmp_path):
    with ObjectStore() as store, environment(**store.environment, GOOGLE_APPLICATION_CREDENTIALS=None):
        store.put("raw/a.jsonl.gz", gzip.compress(lines()))
        store.put("raw/deep/b.parquet", parquet(tmp_path / "b.parquet", text=["p"]).read_bytes())
        store.put("other/c.txt", b"no")
        assert read(f"gs://{BUCKET}/raw")[0] == [*WANTED, b"p"]
        assert read(f"gs://{BUCKET}/raw/")[0] == [*WANTED, b"p"]
        assert read(f"gs://{BUCKET}/raw/*.gz")[0] == WANTED
        assert read(f"gs://{BUCKET}/raw/deep/b.parquet")[0] == [b"p"]
        (source,) = text_sources.find([f"gs://{BUCKET}/other/c.txt"])
        store.put("other/c.txt", b"on")
        assert text_sources.find([f"gs://{BUCKET}/other/c.txt"]) != [source], "the same size, another checksum"
        with pytest.raises(Refusal, match=f"gs://{BUCKET}/none is not there; correct SOURCES"):
            read(f"gs://{BUCKET}/none")


# sentences


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.parquet", b"PAR1 not really PAR1", "is no parquet file, or cut short or damaged"),
        ("a.parquet", b"", "is no parquet file, or cut short or damaged"),
        ("a.jsonl.gz", gzip.compress(lines() * 100)[:-30], r"is cut short or damaged \(EOFError\)"),
        ("a.jsonl.gz", lines(), r"is cut short or damaged \(BadGzipFile\)"),
        ("a.txt.bz2", lines(), "is cut short or damaged"),
        ("a.txt.xz", lines(), r"is cut short or damaged \(LZMAError\)"),
        ("a.jsonl", lines(column="content", id=1), "has no field 'text' in its first line; it has content, id: set TEXT_FIELD"),
        ("a.txt", None, "is not there; correct SOURCES"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(Refusal, match=said) as refused:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(refused.value)


def test_a_column_that_is_missing_or_no_text_is_a_sentence(tmp_path):
    path = parquet(tmp_path / "a.parquet", content=["a"], id=[1])
    with pytest.raises(Refusal, match="has no column 'text'; it has content, id: set TEXT_FIELD to one of these"):
        read(path)
    with pytest.raises(Refusal, match="the column 'id' of .*a.parquet is of int64, not text; set TEXT_FIELD"):
        read(path, column="id")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("http://127.0.0.1:9/a.txt", r"http://127.0.0.1:9/a.txt cannot be reached \(ClientConnectorError\)"),
        ("foo://a/b.txt", "is an address of a kind that is not known here"),
        ("gs://Not A Bucket/x", "is no address of a store"),
        ("/nowhere/*.txt", r"no file is called /nowhere/\*.txt"),
    ],
)
def test_an_address_that_leads_nowhere_is_a_sentence(path, said):
    with pytest.raises(Refusal, match=said):
        read(path)


def test_a_missing_key_file_is_a_sentence():
    missing = environment(STORAGE_EMULATOR_HOST=None, GOOGLE_APPLICATION_CREDENTIALS="/no/key.json")
    with missing, pytest.raises(Refusal, match="GOOGLE_APPLICATION_CREDENTIALS is /no/key.json, which does not exist"):
        read("gs://bucket/a.txt")


def test_no_sources_are_a_sentence(tmp_path):
    with pytest.raises(Refusal, match="SOURCES is empty"):
        text_sources.find([])
    with pytest.raises(Refusal, match=f"there are no files in {tmp_path}"):
        read(tmp_path)


def test_what_is_secret_in_an_address_is_not_written_down():
    source = text_sources.Source("https://me:key@example.org/a/b.jsonl?X-Amz-Signature=abc", 10, "1")
    assert "key" not in source.shown and "abc" not in source.shown and source.shown.endswith("example.org/a/b.jsonl")
    assert source.facts() == {"name": source.shown, "size": 10, "stamp": "1"}
    assert text_sources.Source("data/what?.txt", 10, "1").shown == "data/what?.txt"

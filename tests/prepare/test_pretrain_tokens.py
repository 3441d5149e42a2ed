"""Token shards by the user's own commands: their content, the same after anything, datatrove's step, downloads, and bad input."""

import gzip
import importlib.util
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow
import pyarrow.parquet
import pytest
from object_store import BUCKET, ObjectStore, environment, wait_until
from tokenizers import Tokenizer
from user_commands import ROOT, call, user_environment

from common import encoding, hardware, manifest, token_tasks
from common.refusal import Refusal

LIBRARY = Path(os.__file__).parent
SCRIPT, CLUSTER = "prepare/pretrain_tokens.py", "prepare/pretrain_tokens_cluster.py"
SHARD = re.compile(r"shard-\d{5}-\d{3}\.(bin|docs\.npy|json)")


def module(script):
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def prepare():
    return module(SCRIPT).main


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    encoding.train([path.read_bytes() for path in sorted(LIBRARY.glob("*.py"))[:60]], 800, directory)
    return directory


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Raw text of every kind in several tasks, some of it bad. (A task is then 100 kB of it: see `small_tasks`.)"""
    directory = tmp_path_factory.mktemp("raw")
    texts = [path.read_text(encoding="utf-8") for path in sorted(LIBRARY.glob("*.py"))[:40]]
    rows = [json.dumps({"text": text, "id": i}) for i, text in enumerate(texts[:10])]
    (directory / "a.jsonl").write_text("\n".join([*rows[:5], "broken", *rows[5:], '{"text": ""}']) + "\n")
    (directory / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(json.dumps({"text": text}) for text in texts[10:20]).encode()))
    pyarrow.parquet.write_table(pyarrow.table({"text": [*texts[20:30], None], "score": range(11)}), directory / "c.parquet")
    for i, text in enumerate(texts[30:]):
        (directory / f"d{i}.txt").write_text(text)
    (directory / "e.bin").write_bytes(b"\xff\xfe\x00")
    return directory


@pytest.fixture
def small_tasks(monkeypatch):
    monkeypatch.setattr(token_tasks, "GROUP", 100_000)


def texts_of(output):
    """Every document of the shards, as Hugging Face's library reads the tokens back; the shards are compared with what they say."""
    slow = Tokenizer.from_file(str(output / "tokenizer" / "tokenizer.json"))
    found, begun = [], []
    for path in sorted(output.glob("shard-*.json")):
        facts = json.loads(path.read_text())
        tokens, ends = np.fromfile(path.with_suffix(".bin"), facts["dtype"]), np.load(path.with_suffix(".docs.npy"), allow_pickle=False)
        assert (facts["tokens"], facts["documents"]) == (len(tokens), len(ends))
        assert facts["tokenizer"] == encoding.digest(output / "tokenizer")
        assert (np.flatnonzero(tokens == facts["end_of_text"]) + 1).tolist() == ends.tolist()
        assert facts["largest_token"] == tokens.max()
        for part in np.split(tokens, ends):
            begun += part.tolist()
            if begun and begun[-1] == facts["end_of_text"]:
                found.append(slow.decode(begun[:-1], skip_special_tokens=False))
                begun = []
    assert not begun, "the last document has its end"
    return found


def bytes_of(output):
    """{name: content} of all that training reads."""
    names = [path for path in sorted(output.rglob("*")) if SHARD.fullmatch(path.name) or path.parent.name == "tokenizer"]
    return {str(path.relative_to(output)): path.read_bytes() for path in names}


def wanted_texts(raw):
    texts = [json.loads(line)["text"] for line in (raw / "a.jsonl").read_text().splitlines() if line != "broken"]
    texts += [json.loads(line)["text"] for line in gzip.decompress((raw / "b.jsonl.gz").read_bytes()).splitlines()]
    texts += pyarrow.parquet.read_table(raw / "c.parquet")["text"].to_pylist()
    return [text for text in texts if text] + [path.read_text() for path in sorted(raw.glob("d*.txt"))]


# what it writes


def test_all_documents_come_back_in_order_and_what_is_left_out_is_told(prepare, small_tasks, raw, tmp_path, capsys):
    output = tmp_path / "new" / "tokens"
    found = prepare(sources=[str(raw)], output=str(output), train_tokenizer=900, shard_tokens=60_000)
    assert texts_of(output) == wanted_texts(raw)
    assert len(list(output.glob("task-*.json"))) > 3
    assert {json.loads(path.read_text())["tokens"] for path in output.glob("shard-*-000.json")} <= set(range(60_001))
    size = sum(len(text.encode()) for text in wanted_texts(raw))
    left_out = {"empty": 1, "no text": 1, "not JSON": 1, "not UTF-8": 1}
    index = json.loads((output / "index.json").read_text())
    assert found == {"output": str(output), "skipped": left_out, "documents": 40, "text_bytes": size, "shards": index["shards"],
                     "tokens": index["tokens"]}  # fmt: skip
    assert index["skipped"] == left_out
    assert index["tokenizer"] == encoding.digest(output / "tokenizer")
    assert sum(json.loads(path.read_text())["text_bytes"] for path in output.glob("shard-*.json")) == size
    named = [json.loads(line) for line in (output / "skipped.jsonl").read_text().splitlines()]
    assert [(Path(entry["file"]).name, entry["line"], entry["reason"]) for entry in named] == [
        ("a.jsonl", 6, "not JSON"), ("a.jsonl", 12, "empty"), ("c.parquet", 11, "no text"), ("e.bin", 1, "not UTF-8"),
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "left out: 1 x not UTF-8" in said
    assert "a tokenizer of 900 tokens learns from" in said
    assert re.search(rf"[\d,]+ tokens of 40 documents \(1.0 MB\) in {found['shards']} shards: {output}", said)


def test_the_bytes_do_not_depend_on_the_number_of_processes(prepare, small_tasks, raw, tmp_path, tokenizer, monkeypatch):
    for cores in (1, 3):
        monkeypatch.setattr(hardware, "cpu_cores", lambda cores=cores: cores)
        prepare(sources=[str(raw)], output=str(tmp_path / str(cores)), tokenizer=str(tokenizer), shard_tokens=100_000)
    assert bytes_of(tmp_path / "1") == bytes_of(tmp_path / "3")
    assert len(bytes_of(tmp_path / "1")) > 12


def test_shards_are_cut_at_their_size_within_documents(prepare, raw, tmp_path, tokenizer):
    prepare(sources=[str(raw / "a.jsonl")], output=str(tmp_path), tokenizer=str(tokenizer), shard_tokens=1000)
    sizes = [json.loads(path.read_text())["tokens"] for path in sorted(tmp_path.glob("shard-*.json"))]
    assert set(sizes[:-1]) == {1000}
    assert 0 < sizes[-1] <= 1000
    assert texts_of(tmp_path) == wanted_texts(raw)[:10]


def test_tiny_is_the_standard_library(tmp_path):
    code, output = call([sys.executable, SCRIPT, "--tiny", "--output", str(tmp_path / "tiny")], tmp_path)
    assert code == 0, output
    assert len(texts_of(tmp_path / "tiny")) == len([path for path in LIBRARY.glob("*.py") if path.read_bytes().strip()])


# again


def test_what_is_done_is_not_done_again_and_what_changed_is(prepare, small_tasks, raw, tmp_path, tokenizer, capsys):
    sources, output = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(raw, sources)
    same = {"sources": [str(sources)], "output": str(output), "tokenizer": str(tokenizer), "shard_tokens": 100_000}
    prepare(**same)
    before, times = bytes_of(output), {path: path.stat().st_mtime_ns for path in output.glob("shard-*")}
    tasks = len(list(output.glob("task-*")))
    prepare(**same)
    assert {path: path.stat().st_mtime_ns for path in output.glob("shard-*")} == times
    assert f"{tasks} of them are done already" in capsys.readouterr().out

    (output / "shard-00001-000.json").unlink()
    prepare(**same)
    assert f"{tasks - 1} of them are done already" in capsys.readouterr().out
    assert bytes_of(output) == before

    (sources / "a.jsonl").write_text(json.dumps({"text": "short"}) + "\n")
    prepare(**same)
    assert texts_of(output) == ["short", *wanted_texts(sources)[1:]]
    whole = bytes_of(output)
    with pytest.raises(Refusal, match="was written with shard_tokens = 100000, now 20000, and all of it would be written again"):
        prepare(**{**same, "shard_tokens": 20_000})
    for path in sources.glob("d*"):
        path.unlink()
    with pytest.raises(Refusal, match=r"holds tokens of .*/d.*, which is not among these sources, and they would be removed"):
        prepare(**same)
    assert bytes_of(output) == whole


def test_a_download_does_not_write_over_what_was_tokenised(prepare, small_tasks, raw, tmp_path, tokenizer):
    output = tmp_path / "out"
    prepare(sources=[str(raw)], output=str(output), tokenizer=str(tokenizer))
    before = bytes_of(output)
    with pytest.raises(Refusal, match="holds shards that were tokenised here"):
        prepare(download=f"file://{tmp_path}/elsewhere", output=str(output))
    assert bytes_of(output) == before


def test_sources_without_a_document_are_refused(prepare, tmp_path, tokenizer):
    (tmp_path / "noise.txt").write_bytes(b"\xff\xfe\x00\x9d" * 100)
    with pytest.raises(Refusal, match=r"there is not one document in 1 source\(s\): 1 x not UTF-8"):
        prepare(sources=[str(tmp_path / "noise.txt")], output=str(tmp_path / "out"), tokenizer=str(tokenizer))


# The script as the user runs it, but for tasks of 100 kB, so that there are many.
MANY_TASKS = """
import runpy, sys
from common import token_tasks
token_tasks.GROUP = 100_000
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Files for twelve tasks of some tenths of a second."""
    directory = tmp_path_factory.mktemp("long")
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(LIBRARY.glob("*.py"))[:60])
    for i in range(12):
        rows = [json.dumps({"text": f"{i} {j} {text[j * 1000 : j * 1000 + 30_000]}"}) for j in range(150)]
        (directory / f"{i:02d}.jsonl").write_text("\n".join(rows))
    return directory


def test_killed_anywhere_it_goes_on_to_the_same_bytes(long, tmp_path, tokenizer):
    def command(output):
        flags = {"sources": long, "output": output, "tokenizer": tokenizer, "shard-tokens": 2_000_000}
        return [sys.executable, "-c", MANY_TASKS, SCRIPT, *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]

    code, said = call(command(tmp_path / "whole"), tmp_path)
    assert code == 0, said
    output, moments = tmp_path / "killed", []
    for wanted in (1, 5):
        process = subprocess.Popen(command(output), cwd=ROOT, env=user_environment(tmp_path), stdout=subprocess.DEVNULL)
        wait_until(lambda p=process, n=wanted: p.poll() is not None or len(list(output.glob("task-*.json"))) >= n, 60)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        psutil.wait_procs(children, 10)
        assert not [child for child in children if child.is_running()], "no process is left that could write"
        moments.append(len(list(output.glob("task-*.json"))))
    assert 1 <= moments[0] < moments[1] < 12, "killed in the middle"
    assert not (output / "index.json").exists()
    code, said = call(command(output), tmp_path)
    assert code == 0, said
    assert f"{moments[1]} of them are done already" in said
    assert bytes_of(output) == bytes_of(tmp_path / "whole")
    assert {path.name for path in output.iterdir() if path.name.startswith(".")} <= {".lock"}


def test_two_at_once_are_refused(prepare, raw, tmp_path, tokenizer):
    with token_tasks.alone(tmp_path), pytest.raises(Refusal, match=f"another process is writing to {tmp_path}; wait"):
        prepare(sources=[str(raw)], output=str(tmp_path), tokenizer=str(tokenizer))


@pytest.mark.skipif(hardware.cpu_cores() < 2, reason="one core, one process")
def test_a_process_that_is_killed_is_a_sentence(long, tmp_path, tokenizer):
    flags = ["--sources", str(long), "--output", str(tmp_path), "--tokenizer", str(tokenizer)]
    command = [sys.executable, "-c", MANY_TASKS, SCRIPT, *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: len(workers(process)) > 1, 30)
        time.sleep(0.3)
        workers(process)[0].kill()
        said = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert process.returncode == 2, said
    assert "error: a process ended without a word, most likely because memory ran out" in said
    assert "Traceback" not in said


def workers(process):
    return [child for child in psutil.Process(process.pid).children() if any("spawn_main" in part for part in child.cmdline())]


# on a cluster


def test_datatroves_step_writes_the_same_bytes(raw, tmp_path, tokenizer):
    same = ["--sources", str(raw), "--tokenizer", str(tokenizer), "--shard-tokens", "100000"]
    run = [sys.executable, "-c", MANY_TASKS]
    code, said = call([*run, SCRIPT, *same, "--output", str(tmp_path / "one")], tmp_path)
    assert code == 0, said
    code, said = call([*run, CLUSTER, "--local", "--workers", "2", *same, "--output", str(tmp_path / "two")], tmp_path)
    assert code == 0, said
    assert len(list((tmp_path / "two").glob("task-*.json"))) > 3
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    for name in ("index.json", "skipped.jsonl", "task-00001.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert "documents: 40" in said
    (tmp_path / "two" / "task-00002.json").unlink()
    code, said = call([*run, CLUSTER, "--local", *same, "--output", str(tmp_path / "two")], tmp_path)
    assert code == 0, said
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two"), "datatrove's own marks do not decide what is done"


SBATCH = """#!/bin/bash
echo "$@" >> {home}/sbatch.log
for script; do :; done
export SLURM_NODELIST=node SLURM_ARRAY_JOB_ID=1 SLURM_JOB_ID=1 SLURM_PROCID=0 SLURM_NODEID=0
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' $script)
for n in $(seq 0 ${{last:-0}}); do SLURM_ARRAY_TASK_ID=$n bash $script >> {home}/jobs.log 2>&1; done
echo Submitted batch job $(wc -l < {home}/sbatch.log)
"""


def test_slurm_gets_an_array_and_the_totals_after_it(raw, tmp_path, tokenizer):
    """A Slurm that runs at once what it is given; its queue is not what is tested."""
    programs = {"sbatch": SBATCH.format(home=tmp_path), "srun": '#!/bin/bash\nshift 3\nexec "$@"\n', "scontrol": "#!/bin/bash\necho node\n"}
    for name, text in programs.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    flags = ["--sources", str(raw), "--output", str(tmp_path / "out"), "--tokenizer", str(tokenizer), "--partition", "cpu7"]
    code, said = call([sys.executable, CLUSTER, *flags], tmp_path, PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert code == 0, said
    assert texts_of(tmp_path / "out") == wanted_texts(raw), (tmp_path / "jobs.log").read_text()
    assert json.loads((tmp_path / "out" / "index.json").read_text())["documents"] == 40
    assert "--dependency=afterok:1" in (tmp_path / "sbatch.log").read_text()
    assert "#SBATCH --partition=cpu7" in (tmp_path / "out" / "logs" / "shards" / "launch_script.slurm").read_text()


def test_no_slurm_is_a_sentence(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refusal, match="there is no sbatch here: run this on a login node .*, or on this machine with --local"):
        module(CLUSTER).main(sources=[str(raw)], output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# downloads


@pytest.fixture(scope="module")
def made(prepare, raw, tokenizer, tmp_path_factory):
    """Shards to download."""
    output = tmp_path_factory.mktemp("made")
    prepare(sources=[str(raw)], output=str(output), tokenizer=str(tokenizer), shard_tokens=100_000)
    return output


def names_in(directory):
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file() and path.name != ".lock"}


def test_shards_of_a_directory(made, tmp_path):
    code, said = call([sys.executable, SCRIPT, "--download", f"file://{made}", "--output", str(tmp_path / "all")], tmp_path)
    assert code == 0, said
    ours = {name for name in names_in(made) if not name.startswith("task-")}
    assert names_in(tmp_path / "all") - {manifest.NAME} == ours
    assert bytes_of(tmp_path / "all") == bytes_of(made)
    assert manifest.read(tmp_path / "all")["files"]["shard-00000-000.bin"] == manifest.describe(made / "shard-00000-000.bin")
    assert f"{len(list(made.glob('*.bin')))} shards, " in said


def test_the_first_shards_of_a_bucket_with_what_belongs_to_them(prepare, made, tmp_path):
    with ObjectStore() as store, environment(**store.environment, GOOGLE_APPLICATION_CREDENTIALS=None):
        for name in names_in(made):
            store.put(f"deep/tokens/{name}", (made / name).read_bytes())
        found = prepare(download=f"gs://{BUCKET}/deep/tokens", output=str(tmp_path / "two"), max_files=2)
        brought = names_in(tmp_path / "two")
        assert {name for name in brought if name.startswith("shard-")} == {
            f"shard-00000-00{n}.{end}" for n in range(2) for end in ("bin", "docs.npy", "json")
        }
        assert brought - {name for name in brought if name.startswith("shard-")} == {
            "manifest.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "tokenizer_origin.json",
        }  # fmt: skip
        size = sum((made / name).stat().st_size for name in brought - {"manifest.json"})
        assert found == {"output": str(tmp_path / "two"), "shards": 2, "bytes": size}
        for name in brought - {"manifest.json"}:
            assert (tmp_path / "two" / name).read_bytes() == (made / name).read_bytes()
        assert manifest.verify(tmp_path / "two") == []

        store.put("npz/notes.txt", b"x")
        for n in range(3):
            store.put(f"npz/tokenized_{n}.npz", b"%d" % n)
        prepare(download=f"gs://{BUCKET}/npz", output=str(tmp_path / "npz"), max_files=1)
        assert names_in(tmp_path / "npz") == {"notes.txt", "tokenized_0.npz", "manifest.json"}
        store.put("text/notes.txt", b"x")
        with pytest.raises(Refusal, match=r"there are 1 files and no shards \(.bin, .npz, .ds\) among them"):
            prepare(download=f"gs://{BUCKET}/text", output=str(tmp_path / "none"))
        with pytest.raises(Refusal, match=f"there is nothing below gs://{BUCKET}/nothing"):
            prepare(download=f"gs://{BUCKET}/nothing", output=str(tmp_path / "none"))


def test_a_disk_that_is_too_small_is_known_before_a_download(prepare, made, tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "free_disk_gb", lambda path: 1e-5)
    with pytest.raises(Refusal, match=r"the download of file://.* needs \d+.\d MB and the disk of .* has 0.0 MB free"):
        prepare(download=f"file://{made}", output=str(tmp_path / "out"))
    assert not list((tmp_path / "out").glob("shard-*"))


# sentences


def refused(command, home, **environment):
    """What the user's command says, after exit code 2 and without a traceback."""
    code, said = call([sys.executable, *command], home, **environment)
    assert code == 2, said
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


def test_an_unreachable_address_by_the_users_command(tmp_path):
    said = refused([SCRIPT, "--sources", "http://127.0.0.1:9/a.jsonl", "--output", str(tmp_path / "out")], tmp_path)
    assert said.startswith("error: http://127.0.0.1:9/a.jsonl cannot be reached (ClientConnectorError); check the address")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sources": ["{tmp}/nothing"]}, "nothing is not there; correct SOURCES"),
        ({"sources": []}, "SOURCES is empty"),
        ({"text_field": "body"}, "has no field 'body' in its first line; it has text, id: set TEXT_FIELD"),
        ({"output": "{tmp}/file"}, "OUTPUT is .*file, which cannot be a directory"),
        ({"tokenizer": None}, "there is no tokenizer in .*/tokenizer; train one"),
        ({"tokenizer": "{tmp}"}, "tokenizer.json does not exist; name a directory with a fast tokenizer's"),
        ({"tokenizer": "./no/such/place"}, "TOKENIZER is ./no/such/place, neither a directory here nor a tokenizer that the hub gives"),
        ({"train_tokenizer": 1000}, "TOKENIZER is .* and TRAIN_TOKENIZER 1000: leave one out"),
        ({"tokenizer": None, "train_tokenizer": 100}, "a vocabulary of 100 is too small for byte-level BPE"),
        ({"shard_tokens": 0}, "SHARD_TOKENS is 0, an int; it must be a whole number above 0"),
        ({"download": "ftp://x/y"}, "ftp://x/y is no address of a store"),
        ({"download": "file://{tmp}/nowhere"}, "nowhere"),
    ],
)
def test_bad_input_is_a_sentence(prepare, raw, tokenizer, tmp_path, given, said):
    (tmp_path / "file").write_text("x")
    filled = json.loads(json.dumps(given).replace("{tmp}", str(tmp_path)))
    with environment(HF_HUB_OFFLINE="1"), pytest.raises(Refusal, match=said):
        prepare(**{"sources": [str(raw)], "output": str(tmp_path / "out"), "tokenizer": str(tokenizer), **filled})
    assert not list((tmp_path / "out").glob("index.json"))


def test_too_many_shards_for_their_names_are_refused(prepare, raw, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(token_tasks, "PIECES", 5)
    with pytest.raises(Refusal, match="SHARD_TOKENS is 1,000: .*a.jsonl becomes more than 5 shards; set it higher"):
        prepare(sources=[str(raw)], output=str(tmp_path), tokenizer=str(tokenizer), shard_tokens=1000)


def test_another_tokenizer_than_was_begun_with_is_refused(prepare, raw, tokenizer, tmp_path):
    same = {"sources": [str(raw / "a.jsonl")], "output": str(tmp_path)}
    prepare(**same, train_tokenizer=600)
    prepare(**same)
    prepare(**same, train_tokenizer=600)
    with pytest.raises(Refusal, match="is there already, of {'train_tokenizer': 600}, and {'train_tokenizer': 700} was asked for"):
        prepare(**same, train_tokenizer=700)
    with pytest.raises(Refusal, match="is there already, of {'train_tokenizer': 600}"):
        prepare(**same, tokenizer=str(tokenizer))


def test_a_source_that_changes_while_it_is_read_is_refused(prepare, raw, tokenizer, tmp_path, monkeypatch):
    source = tmp_path / "a.jsonl"
    shutil.copy(raw / "a.jsonl", source)
    encode = encoding.Encoder.encode

    def meanwhile(self, documents):
        if documents:
            source.write_text("something else")
        return encode(self, documents)

    monkeypatch.setattr(encoding.Encoder, "encode", meanwhile)
    with pytest.raises(Refusal, match="a.jsonl was changed while it was read; start again when nobody writes to it"):
        prepare(sources=[str(source)], output=str(tmp_path / "out"), tokenizer=str(tokenizer))
    assert not list((tmp_path / "out").glob("task-*"))


def test_a_full_disk_is_a_sentence_and_what_is_done_stays(long, tokenizer, tmp_path, full_disk):
    disk = full_disk(8)
    command = [sys.executable, SCRIPT, "--sources", str(long), "--output", str(disk.path / "out"), "--tokenizer", str(tokenizer)]
    done = disk.run([*command, "--shard-tokens", "1000000"], cwd=ROOT, env=user_environment(tmp_path))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"error: .*(disk|free)", done.stderr), done.stderr


BLIND = """
import runpy, sys
from common import hardware
hardware.free_disk_gb = lambda path: 1e6
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_disk_that_fills_up_in_the_middle(raw, tokenizer, tmp_path, full_disk):
    """The check before a shard does not see what others write meanwhile."""
    disk = full_disk(1)
    pad = (disk.seen / "others").open("wb")
    pad.write(b"x" * 700_000)
    pad.close()
    flags = ["--sources", str(raw), "--output", str(disk.path / "out"), "--tokenizer", str(tokenizer), "--shard-tokens", "20000"]
    done = disk.run([sys.executable, "-c", BLIND, SCRIPT, *flags], cwd=ROOT, env=user_environment(tmp_path))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert f"error: the disk of OUTPUT, {disk.path / 'out'}, is full; free some there and start again" in done.stderr


def test_of_names_with_dots_the_first_are_taken_too():
    names = [f"train.{n:05d}{ending}" for n in range(3) for ending in (".bin", ".docs.npy", ".json")] + ["tokenizer/tokenizer.json"]
    assert token_tasks.first_shards(names, 2) == [*names[:6], names[-1]]
    assert token_tasks.first_shards(["a.b.ds", "a.b.ds.index", "c.d.ds", "c.d.ds.index"], 1) == ["a.b.ds", "a.b.ds.index"]

"""The commands that serve a model that was trained, as plain strings; nothing is imported and nothing is run.

Flags are those of transformers 5.17's own command line, of vLLM's vllm/entrypoints/openai/cli_args.py and vllm/config/lora.py, and of
llama.cpp's tools/server/README.md.
"""

import json
import re
import shlex
from pathlib import PurePath

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes
QUANTISATION = "q4_k_m"
LLAMA_SERVER = "~/.unsloth/llama.cpp/llama-server"  # where Unsloth's conversion puts llama.cpp
HERE = "--host 127.0.0.1"  # vLLM's default is every interface of the machine


def served_name(name):
    """What requests call the model: letters, digits, ".", "_" and "-" of the run's name, which needs no quotes anywhere."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def vllm(path, name, max_length):
    """The command for a full or merged model in the directory `path`. max_length: tokens of prompt and answer together."""
    return f"vllm serve {shlex.quote(str(path))} --max-model-len {max_length} --served-model-name {served_name(name)} {HERE}"


def vllm_adapter(base, path, name, rank, max_length, revision=None):
    """The command for the adapter in the directory `path` on its 16-bit base; None for a rank above those that vLLM takes.

    base: a hub name or directory, of which `revision` is served.
    """
    if rank > VLLM_RANKS[-1]:
        return None
    name, path = served_name(name), str(path)
    module = json.dumps({"name": name, "path": path}) if {"=", ","} & set(path) else f"{name}={path}"
    pinned = f" --revision {shlex.quote(revision)}" if revision else ""
    most = next(one for one in VLLM_RANKS if rank <= one)
    lora = f"--enable-lora --lora-modules {shlex.quote(module)} --max-lora-rank {most}"
    return f"vllm serve {shlex.quote(str(base))}{pinned} {lora} --max-model-len {max_length} {HERE}"


def transformers(path):
    """The command for a full or merged model; it needs transformers[serving], and loads no adapter."""
    return f"transformers serve {shlex.quote(str(path))}"


def curl(name, question, date=None, port=8000):
    """A request to either, in OpenAI's form. date: the one that training wrote into prompts, where the chat template has one."""
    messages = [{"role": "user", "content": question}]
    body = {"model": served_name(name), "messages": messages, "temperature": 0, "max_tokens": 256}
    body |= {"chat_template_kwargs": {"date_string": date}} if date else {}
    told = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f"curl http://localhost:{port}/v1/chat/completions -H 'Content-Type: application/json' -d {told}"


def gguf(path):
    """(the lines of Python with which Unsloth converts a full or merged model in `path`, the file they write).

    The converter gets the 16-bit files as they are, for which load_in_4bit must be False.
    """
    path = PurePath(path)
    target = str(path) if path.name else "model"  # the files go into its sibling …_gguf
    lines = [
        "from unsloth import FastLanguageModel",
        f"model, tokenizer = FastLanguageModel.from_pretrained({json.dumps(str(path))}, load_in_4bit=False)",
        f"model.save_pretrained_gguf({json.dumps(target)}, tokenizer, quantization_method={json.dumps(QUANTISATION)})",
    ]
    return lines, f"{target}_gguf/{path.name or 'model'}.{QUANTISATION.upper()}.gguf"


def llama_server(file, max_length):
    return f"{LLAMA_SERVER} -m {shlex.quote(file)} -c {max_length}"


def lines(path, name, max_length, base=None, rank=0, revision=None):
    """What a recipe says at its end. path: of the full or merged model, or, with `base`, of an adapter of this rank that was not merged,
    on this revision of its base."""
    first = "serve it with vLLM, in an environment of its own (it brings its own torch):"
    if base:
        command = vllm_adapter(base, path, name, rank, max_length, revision)
        return [*([first, f"    {command}"] if command else []), "transformers serve and GGUF take a merged model: MERGE = True writes one"]
    code, file = gguf(path)
    return [
        first, f"    {vllm(path, name, max_length)}",
        'or here, after pip install "transformers[serving]":', f"    {transformers(path)}",
        f"or as {file} for llama.cpp and Ollama, after fetching llama.cpp:", f"    python -c {shlex.quote('; '.join(code))}",
    ]  # fmt: skip

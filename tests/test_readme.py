"""Every command of the README is run: here, by the tests named below, or by .ci/run."""

import ast
import json
import re
import subprocess
import sys

import pytest
import yaml
from user_commands import ROOT, call, imported

from common.run_directory import read_json

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:^    .*\n|^\n)+", README, re.M)
COMMANDS = {
    re.split(r"\s{2,}#", line.strip())[0].strip()
    for block in BLOCKS
    for line in re.sub(r" *\\\n *", " ", block).splitlines()
    if re.match(r"    (python|make|bash|deepspeed|accelerate|conda|from|figures) ?", line)
}
# Where the rest is run; on this machine with --tiny, on other directories, or with fewer steps.
ELSEWHERE = {
    "make demo": ".ci/run",
    "make test": ".ci/run",
    "python recipes/llama32_qlora.py --tiny": "tests/conftest.py",
    "deepspeed --num_gpus=2 recipes/llama32_qlora.py": "tests/recipes: two ranks",
    "from recipes import llama32_qlora": "tests/recipes: main is the API",
    "figures = llama32_qlora.main(tiny=True, num_train_epochs=1)": "tests/recipes: main is the API",
    "python recipes/llama32_qlora.py --resume-from-checkpoint auto": "tests/recipes: killed and resumed",
    "python recipes/llama32_qlora.py --resume-from-checkpoint outputs/llama32_qlora/checkpoint-500": "tests/recipes: killed and resumed",
    "python recipes/llama32_qlora.py --resume-from-checkpoint gs://bucket/runs/llama32_qlora": "tests/recipes: from a store",
    "bash eval/eval_all_checkpoints.sh": "tests/eval: the newest run",
    "bash eval/eval_all_checkpoints.sh outputs/llama32_qlora": "tests/conftest.py",
    **{
        f"python prepare/chat_files.py --files data/faq.csv{dry}": "tests/recipes/test_qwen25_7b_lora.py: from raw rows"
        for dry in ("", " --dry-run")
    },
    **{
        f"python recipes/qwen25_7b_lora.py {flags}": "tests/recipes/test_qwen25_7b_lora.py, with --tiny"
        for flags in (
            "--output-dir outputs/faq", "--config my_config.yaml", "--config my_config.yaml --learning-rate 3e-4 --num-epochs 5",
            "--config my_config.yaml --resume-from-checkpoint outputs/my_run/checkpoint-100",
        )
    },
    "python recipes/qwen25_7b_lora.py --plan": "tests/common/test_sizing.py",
    "python recipes/qwen25_7b_lora.py --model-name Qwen/Qwen2.5-14B-Instruct": "tests/common/test_sizing.py: every row fits both",
    "bash eval/eval_all_checkpoints.sh outputs/faq": "tests/recipes/test_qwen25_7b_lora.py",
    "from unsloth import FastLanguageModel": "needs a GPU and the network",
    "python recipes/mtg_full_32b.py": "tests/recipes/test_mtg_full_32b.py, with --tiny",
    "python recipes/mtg_full_32b.py --tiny": "tests/recipes/test_mtg_full_32b.py, in other numbers of steps",
    "python recipes/mtg_full_32b.py --plan --tokens 1.41e9": "tests/recipes/test_mtg_full_32b.py: the docstring's figures",
    "deepspeed --num_gpus=2 recipes/mtg_full_32b.py --tiny": "tests/recipes/test_mtg_full_32b.py",
    "deepspeed --num_gpus=8 recipes/mtg_full_32b.py": "tests/recipes/test_mtg_full_32b.py, with two",
    "deepspeed --hostfile=hosts recipes/mtg_full_32b.py": "needs ssh to itself; tried by hand",
    "python prepare/mtg_cards.py --cards oracle-cards.json --rulings rulings.json": "tests/prepare/test_mtg_cards.py",
    "python prepare/mtg_drafts.py --drafts draft_data_public.XYZ.PremierDraft.csv.gz": "tests/prepare/test_mtg_drafts.py",
    **{
        f"python recipes/mtg_full_32b.py --run-name {name} {model}--train-files data/mtg_{name}/train.jsonl=1 --validation-file "
        f"data/mtg_{name}/valid.jsonl --test-file data/mtg_{name}/test.jsonl": "tests/recipes/test_mtg_full_32b.py: raw cards and drafts"
        for name, model in (("cards", ""), ("drafts", "--model-name outputs/cards/final_model "))
    },
    "python prepare/legal_summaries.py --train data/lexsumm/train.jsonl": "tests/prepare/test_legal_summaries.py",
    "python recipes/qwen3_4b_longctx.py --tiny": "tests/recipes/test_qwen3_4b_longctx.py",
    "python recipes/qwen3_4b_longctx.py --plan --tokens 1.5e8": "tests/recipes/test_qwen3_4b_longctx.py: the docstring's figures",
    "deepspeed --num_gpus=4 recipes/qwen3_4b_longctx.py": "tests/recipes/test_qwen3_4b_longctx.py, with two and --tiny",
    "accelerate launch --num_processes=4 recipes/qwen3_4b_longctx.py": "tried by hand, on a CPU: --multi_gpu, two ranks and --tiny",
    "bash eval/eval_all_checkpoints.sh outputs/qwen3_4b_longctx": "tests/recipes/test_qwen3_4b_longctx.py",
    "python recipes/gpt_pretrain.py --tiny": "tests/recipes/test_gpt_pretrain.py, on other tokens; whole in make soak",
    "deepspeed --num_gpus=2 recipes/gpt_pretrain.py --tiny": "tests/recipes/test_gpt_pretrain.py",
    "python recipes/llama32_qlora.py --model-name outputs/gpt_pretrain/final_model --target-modules c_attn,c_proj,c_fc": (
        "tests/recipes/test_gpt_pretrain.py: another recipe fine-tunes it"
    ),
    "python recipes/gpt_pretrain.py": "tests/recipes/test_gpt_pretrain.py: without tokens",
    "python recipes/gpt_pretrain.py --max-files 25": "tests/common/test_token_data.py: so many files",
    "python prepare/pretrain_tokens.py --sources data/text --train-tokenizer 50257": "tests/prepare/test_pretrain_tokens.py",
    "python prepare/pretrain_tokens.py --download gs://bucket/tokens --max-files 25": "tests/prepare/test_pretrain_tokens.py",
    "python prepare/pretrain_tokens_cluster.py --sources gs://bucket/text --tokenizer openai-community/gpt2 --partition cpu": (
        "tests/prepare/test_pretrain_tokens.py, with an sbatch of its own"
    ),
    "python prepare/pretrain_tokens_cluster.py --sources data/text --tokenizer openai-community/gpt2 --local": (
        "tests/prepare/test_pretrain_tokens.py"
    ),
    "conda env create -f environment.yml && conda activate recipes && make install": "needs conda; tests/test_setup.py reads the file",
    "make install TORCH_BUILD=cu126": "needs a network; tests/test_setup.py reads the plan",
    "make install TORCH_BUILD=cpu": "needs a network; tests/test_setup.py reads the plan",
}
HERE = {
    "python recipes/llama32_qlora.py",
    "python recipes/llama32_qlora.py --plan",
    "python recipes/llama32_qlora.py --plan --gpus 4xH100 --usd-per-gpu-hour 3.5 --tokens 2e8",
    "python recipes/llama32_qlora.py --plan --gpus 1x12GB --json",
    'make train RECIPE=llama32_qlora ARGS="--tiny"',
    "python recipes/llama32_qlora.py --learning-rate 1e-4 --num-train-epochs 5",
    "python recipes/llama32_qlora.py --config my_run.yaml",
    "python eval/eval_checkpoint.py --checkpoint outputs/llama32_qlora/checkpoint-500",
    "make evaluate RUN=outputs/llama32_qlora",
}


def test_every_command_is_run_somewhere():
    assert set(ELSEWHERE) | HERE == COMMANDS


def test_without_data_the_recipe_says_which_file_is_missing(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "recipes" / "llama32_qlora.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "data/cross_validated.jsonl does not exist" in done.stderr and "Traceback" not in done.stderr


def test_the_plans_of_the_readme(tmp_path):
    plans = sorted(command for command in HERE if "--plan" in command)
    said = [call(command.split(), tmp_path, CUDA_VISIBLE_DEVICES="") for command in plans]
    assert [code for code, _ in said] == [0, 0, 0], said
    by_memory, priced, plain = json.loads(said[1][1]), said[2][1], said[0][1]
    assert by_memory["accelerator"]["memory_gib"] == 12 and by_memory["time"] is None
    assert re.search(r"^cost      [\d,.]+ dollars; [\d.]+ dollars per million tokens", priced, re.MULTILINE)
    assert "the recipe's own hardware; no GPU was found here" in plain
    shown = next(block for block in BLOCKS if "[WWW" in block)
    assert all(line.strip() in plain for line in shown.strip().splitlines())  # the README's excerpt is what is printed


def test_what_262144_tokens_take_is_what_the_plan_says():
    """In this process; as a command in tests/recipes/test_qwen3_4b_longctx.py."""

    def planned(**constants):
        with imported("qwen3_4b_longctx") as main:
            found = main(plan=True, json=True, gpus="4xH100", **constants)
        memory = found["memory_bytes_per_gpu"]
        return f"{memory['total'] / 2**30:.1f}", f"{memory['capacity'] / 2**30:.1f}", f"{found['host_bytes'] / 2**30:.0f}", found

    text = " ".join(README[README.index("## Read whole documents") : README.index("## Pretrain")].split())
    whole, has, host, found = planned()
    lengths = [planned(max_seq_length=length)[0] for length in (131_072, 65_536)]
    assert f"needs {whole} of its {has} GiB at 262,144 tokens, {lengths[0]} at 131,072 and {lengths[1]} at 65,536." in text
    rows = re.findall(r"\| `([A-Z_]+) = ([^`]+)` \|", text)
    assert len(rows) == 4
    for constant, value in rows:
        gpu, _, machine, _ = planned(**{constant.lower(): ast.literal_eval(value)})
        others = f", and {machine} of the machine" if constant == "PER_DEVICE_TRAIN_BATCH_SIZE" else ""
        assert re.search(rf"`{constant} = {value}` \| {gpu}{others} \|", text), (constant, value, gpu, machine)
    model, parameters = found["dimensions"], found["parameters"]["trainable"]
    assert f"would be {12 * 262_144 * model['vocab_size'] / 2**30:.0f} GiB: Unsloth's loss" in text
    assert f"{2 * 262_144**2 / 2**30:.0f} GiB: FlashAttention" in text
    assert f"the adapter's {parameters / 1e6:.0f} million parameters" in text
    assert 2 < parameters / 5e7 < 3 and "Three cover the adapter" in text
    assert f"whole on each, {found['memory_bytes_per_gpu']['parts']['weights'] / 2**30:.1f} GiB" in text
    inputs = model["num_hidden_layers"] * 2 * model["hidden_size"]
    assert f"are {inputs * 262_144 / 2**30:.0f} GiB for each GPU" in text and f"72 GiB, and {host} for four GPUs" in text
    assert 209_715 * 2 * model["hidden_size"] <= 2**30 < 209_716 * 2 * model["hidden_size"] and "Up to 209,715 tokens it is half" in text
    cache = 2 * model["num_hidden_layers"] * model["num_key_value_heads"] * model["head_dim"] * 2
    assert f"take {cache / 1024:.0f} KiB a token" in text and f"{cache * 262_144 / 2**30:.0f} GiB at 262,144" in text
    one = re.search(r"`qwen3_4b_longctx`, four GPUs \| ([\d.]+) GB .*? \| 4 x \1 = ([\d.]+) GB", README)
    assert float(one[2]) == pytest.approx(found["disk_bytes"]["checkpoints"] / 1e9, abs=0.05) == pytest.approx(4 * float(one[1]), abs=0.05)


def test_train_through_make_with_the_readmes_config_and_flags(tmp_path):
    config = next(block for block in BLOCKS if "lora_alpha:" in block)
    (tmp_path / "my_run.yaml").write_text(re.sub(r"^    ", "", config, flags=re.M))
    assert yaml.safe_load((tmp_path / "my_run.yaml").read_text())["lora"] == {"r": 32, "lora_alpha": 64}
    flags = f"--tiny --config {tmp_path}/my_run.yaml --output-dir {tmp_path} --report-to [] --no-merge"
    flags += " --learning-rate 3e-4 --num-train-epochs 0.04"
    code, output = call(["make", "-s", "train", "RECIPE=llama32_qlora", f"ARGS={flags}"], tmp_path)
    assert code == 0, output
    constants = read_json(tmp_path / "llama32_qlora_tiny" / "constants.json")
    assert (constants["LORA_R"], constants["LORA_ALPHA"], constants["LEARNING_RATE"], constants["NUM_TRAIN_EPOCHS"]) == (32, 64, 3e-4, 0.04)
    assert read_json(tmp_path / "llama32_qlora_tiny" / "run.json")["steps"] == 3


def test_evaluate_through_make_judges_nothing_twice(judged_run):
    code, output = call(["make", "-s", "evaluate", f"RUN={judged_run.run.path}"], judged_run.run.path.parent)
    assert code == 0 and "best: checkpoint-" in output, output
    assert re.search(r"judged before", output), output


def test_one_checkpoint_by_itself(judged_run):
    checkpoint = judged_run.run.path / "checkpoint-96"
    code, output = call(["python", "eval/eval_checkpoint.py", "--checkpoint", str(checkpoint)], judged_run.run.path)
    assert code == 0 and "ROUGE-L" in output, output


def test_combine_through_make(tmp_path):
    output_file = tmp_path / "combined.jsonl"
    code, output = call(["make", "-s", "combine", f"ARGS=--tiny --output {output_file}"], tmp_path)
    assert code == 0 and "640 rows written" in output, output
    assert len(output_file.read_text().splitlines()) == 640

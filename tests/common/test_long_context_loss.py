"""The loss of long rows, computed in chunks, is that of all logits at once, learned from or held out; so is the MLP in tiles.

Unsloth patches other packages when it is imported: what it computes and what plain transformers compute are each of a process of its own.
"""

import json
import math
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

VOCABULARY, LENGTH = 3000, 400
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LABELS = {  # of the two micro-batches of a step: so many at the end of each row
    "at the end": (90, 35),
    "in one micro-batch only": (0, 70),
    "everywhere": (LENGTH, LENGTH),
}
CHUNK = 16  # tokens, the fewest that Unsloth takes on a CPU


def batches(labels):
    """A row of random tokens for each of `labels`, of which that many at the end are learned: [{input_ids, labels, length}, …]."""
    draw, found = torch.Generator().manual_seed(0), []
    for count in labels:
        ids = torch.randint(10, VOCABULARY, (LENGTH,), generator=draw)
        labels = torch.where(torch.arange(LENGTH) < LENGTH - count, -100, ids)
        found.append({"input_ids": ids.tolist(), "labels": labels.tolist(), "length": LENGTH})
    return found


def build(directory, hidden=64):
    """A Qwen3 of random weights, fp32, with a tokenizer that only lends its padding token."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from common import hub

    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=2048, initializer_range=0.1,
                         rope_theta=5e6, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=2)  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(hub.find("tiny-llama")).save_pretrained(directory)


def set_adapter(model):
    """Random numbers in A and B, the same for the same names: from a B of zeros A would learn nothing."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            parameter.data = (torch.randn(parameter.shape, generator=draw) * 0.05).to(parameter.device)


def gradients(model):
    return {name: p.grad.detach().float().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that an operation inside returned."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = (tensor.numel() for tensor in tree_iter(result) if isinstance(tensor, torch.Tensor))
        self.numbers = max(self.numbers, *sizes, 0)
        return result


def plain(directory, home):
    """{case: {loss, largest}} of transformers' logits and PyTorch's cross-entropy, the sum divided by the labels of both micro-batches."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=MODULES, task_type="CAUSAL_LM")).train()
    set_adapter(model)
    found = {}
    for case, counts in LABELS.items():
        rows, total = batches(counts), 0.0
        items = sum(sum(label != -100 for label in row["labels"][1:]) for row in rows)
        model.zero_grad(set_to_none=True)
        with Largest() as largest:
            for row in rows:
                logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
                nats = torch.nn.functional.cross_entropy(logits, torch.tensor(row["labels"][1:]), ignore_index=-100, reduction="sum")
                (nats / items).backward()
                total += nats.item() / items
        save_file(gradients(model), home / f"plain {case}.safetensors")
        found[case] = {"loss": total, "largest": largest.numbers}
    return found


def recipe(directory, home):
    """{case: {loss, largest, chunks, held_out}} of one step of the recipe's trainer, two micro-batches through Unsloth's loss, and of an
    evaluation of the same rows: the step leaves the weights as they were."""
    import unsloth  # noqa: F401, I001 - first, as in the recipe
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig
    from unsloth import FastLanguageModel
    from unsloth_zoo.cpu import ops

    from common.held_out_loss import HeldOutLoss

    chunks, softmax, found = [], ops._softmax_without_collapse, {}
    ops._softmax_without_collapse = lambda logits, *rest, **more: chunks.append(len(logits)) or softmax(logits, *rest, **more)
    # models.load in fp32: bf16 would round by more than a wrong divisor changes
    model, tokenizer = FastLanguageModel.from_pretrained(str(directory), max_seq_length=LENGTH, dtype=torch.float32, load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(model, r=8, lora_alpha=16, target_modules=MODULES)
    set_adapter(model)

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            self.gradients = gradients(model)

    for case, counts in LABELS.items():
        args = SFTConfig(output_dir=str(home), max_steps=1, per_device_train_batch_size=1, per_device_eval_batch_size=1,
                         gradient_accumulation_steps=2, max_grad_norm=0, bf16=False, learning_rate=0.0, gradient_checkpointing=True,
                         max_length=LENGTH, packing=False, loss_type="nll", dataset_kwargs={"skip_prepare_dataset": True},
                         save_strategy="no", logging_steps=1, report_to="none", prediction_loss_only=True, disable_tqdm=True)  # fmt: skip
        rows = Dataset.from_list(batches(counts))
        trainer = HeldOutLoss(model=model, args=args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
        keep, _ = Keep(), chunks.clear()
        trainer.add_callback(keep)
        with Largest() as largest:
            trainer.train()
        save_file(keep.gradients, home / f"recipe {case}.safetensors")
        found[case] = {"loss": trainer.state.log_history[0]["loss"], "largest": largest.numbers, "chunks": list(chunks)}
        with Largest() as largest:
            judged = trainer.evaluate()
        found[case]["held_out"] = {"loss": judged["eval_loss"], "perplexity": judged["eval_perplexity"], "largest": largest.numbers}
    return found


def tiles(directory, home):
    """Largest relative error of loss and gradients of the MLP in tiles, for Unsloth's two ways of going back through them."""
    import importlib.util

    import unsloth  # noqa: F401, I001 - first, as in the recipe
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from unsloth_zoo import tiled_mlp

    def step(tiled):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        if tiled:
            tiled_mlp.patch_tiled_mlp(model, "arctic")  # tiles of hidden_size tokens
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=MODULES, task_type="CAUSAL_LM")).train()
        set_adapter(model)
        ids = torch.tensor([batches((LENGTH,))[0]["input_ids"]])
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return loss.item(), gradients(model)

    stock, wanted, found, calls = tiled_mlp.TiledMLP.apply, step(False), {}, []
    tiled_mlp.TiledMLP.apply = lambda *args: calls.append(args[4]) or stock(*args)
    found["one process"] = errors(step(True), wanted)
    # the file alone: its package is Unsloth's for GPUs
    place = Path(importlib.util.find_spec("unsloth").submodule_search_locations[0]) / "models" / "_tiled_mlp_ddp.py"
    spec = importlib.util.spec_from_file_location("tiles_of_several_ranks", place)
    several = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(several)
    several.patch_tiled_mlp_for_ddp()
    found["several ranks"] = errors(step(True), wanted)
    return {**found, "tiles": calls}


def tiles_on_gpu(directory, home):
    """The same of Unsloth's own loader and kernels, as the recipe loads the model."""
    import unsloth  # noqa: F401, I001 - first, as in the recipe
    from unsloth import FastLanguageModel

    def step(tiled):
        model, _ = FastLanguageModel.from_pretrained(str(directory), max_seq_length=2048, dtype=torch.bfloat16, load_in_4bit=False,
                                                     use_gradient_checkpointing="unsloth", unsloth_tiled_mlp=tiled)  # fmt: skip
        model = FastLanguageModel.get_peft_model(model, r=8, lora_alpha=16, target_modules=MODULES, use_gradient_checkpointing="unsloth")
        set_adapter(model)
        mlps = [module for name, module in model.named_modules() if name.endswith(".mlp")]
        assert all(hasattr(mlp, "_unsloth_forward") == tiled for mlp in mlps)
        model.train()
        ids = torch.randint(10, VOCABULARY, (1, 2000), generator=torch.Generator().manual_seed(0)).cuda()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return loss.item(), gradients(model)

    wanted = step(False)
    return {"gpu": errors(step(True), wanted)}


def errors(found, wanted):
    """(relative error of the loss, largest relative error of a tensor of gradients, by its norm)."""
    apart = [float((found[1][name] - grad).norm() / grad.norm()) for name, grad in wanted[1].items()]
    return abs(found[0] - wanted[0]) / wanted[0], max(apart)


def run(name, directory, home, warm=None):
    """One of the functions above in a process of its own, a fresh one or a fork of `warm`; what it returns."""
    own = {"UNSLOTH_CPU_CE_CHUNK_ELEMENTS": str(CHUNK * VOCABULARY), "UNSLOTH_COMPILE_LOCATION": str(home / "compiled"),
           "OMP_NUM_THREADS": "1"}  # fmt: skip
    code = f"import json, pathlib, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_long_context_loss as t; "
    code += "print('FOUND', json.dumps(getattr(t, sys.argv[1])(*map(pathlib.Path, sys.argv[2:]))))"
    (home / "program.py").write_text(code)
    command, output = [str(home / "program.py"), name, str(directory), str(home)], home / f"{name}.log"
    if warm:
        ended = warm.start(command, {**os.environ, **own}, output).wait(300)
    else:
        with output.open("w") as out:
            ended = subprocess.run([sys.executable, *command], cwd=home, env={**os.environ, **own}, stdout=out, stderr=out).returncode
    said = output.read_text()
    assert ended == 0, said[-4000:]
    return json.loads(said.rsplit("FOUND ", 1)[1].splitlines()[0])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("losses")
    build(home / "model")
    return home


@pytest.fixture(scope="module")
def both(home, warm):
    """({case: figures} of plain transformers, of the recipe's trainer)."""
    return run("plain", home / "model", home), run("recipe", home / "model", home, warm)


@pytest.mark.parametrize("case", LABELS)
def test_a_step_of_two_micro_batches_learns_what_all_logits_teach(both, home, case):
    plainly, ours = (side[case] for side in both)
    assert ours["loss"] == pytest.approx(plainly["loss"], rel=2e-6)
    assert plainly["loss"] > math.log(VOCABULARY) / 2, "random weights cannot know the row"
    wanted, found = (load_file(home / f"{side} {case}.safetensors") for side in ("plain", "recipe"))
    assert found.keys() == wanted.keys() and len(wanted) == 2 * 2 * len(MODULES)
    for name, gradient in wanted.items():
        assert gradient.norm() > 1e-4
        assert (found[name] - gradient).norm() < 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("case", LABELS)
def test_the_loss_is_made_in_chunks_and_no_logits_of_a_row_exist(both, case):
    plainly, ours = (side[case] for side in both)
    learned = [min(count, LENGTH - 1) for count in LABELS[case]]
    assert sorted(ours["chunks"]) == sorted(size for count in learned for size in in_chunks(count or LENGTH))
    logits = LENGTH * VOCABULARY
    assert plainly["largest"] >= logits - VOCABULARY
    assert ours["largest"] < logits / 4


@pytest.mark.parametrize("case", [case for case, counts in LABELS.items() if all(counts)])  # a row without a label is refused when read
def test_a_held_out_loss_is_that_of_every_label_token_and_makes_no_logits_of_a_row(both, case):
    plainly, ours = both[0][case], both[1][case]["held_out"]
    assert ours["loss"] == pytest.approx(plainly["loss"], rel=2e-6)
    assert ours["perplexity"] == pytest.approx(math.exp(plainly["loss"]), rel=1e-4)
    assert ours["largest"] < LENGTH * VOCABULARY / 4


def in_chunks(count):
    """Of a row without labels every position is computed, for nothing."""
    return [min(CHUNK, count - start) for start in range(0, count, CHUNK)]


def test_an_mlp_in_tiles_is_the_mlp(home, warm):
    found = run("tiles", home / "model", home, warm)
    assert found.pop("tiles") == [LENGTH // 64] * 2, "two layers, tiles of 64 tokens and a rest"
    for loss, gradient in found.values():
        assert loss < 1e-6 and gradient < 1e-5


@pytest.mark.gpu
def test_an_mlp_in_tiles_is_the_mlp_on_a_gpu(tmp_path):
    build(tmp_path / "model", hidden=256)  # 2,000 tokens: seven tiles and a rest
    loss, gradient = run("tiles_on_gpu", tmp_path / "model", tmp_path)["gpu"]
    assert loss < 1e-3 and gradient < 0.02  # bf16; sums over tokens are made tile by tile

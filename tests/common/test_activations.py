"""The formulas of activations against what PyTorch keeps: on a CPU every byte is counted, on a GPU the allocator's peak is read.

Nothing in the formulas was fitted, so each shape here is one that no constant has seen. Widths are tiny; vocabularies are chosen so
that now a layer and now the loss is the peak.
"""

import gc
import json
import subprocess
import sys

import pytest
import torch
from live_tensors import Live, saved_bytes

from common import activations, dimensions
from common.activations import Training

ALL = (*dimensions.ATTENTION, *dimensions.MLP)
# family: hidden_size, intermediate_size, heads, key-value heads, head_dim, layers; then rows and their length
SHAPES = [
    ("llama", (64, 160, 4, 2, 16, 3), (2, 96)),
    ("llama", (96, 416, 6, 6, 16, 2), (3, 70)),
    ("llama", (64, 96, 8, 1, 32, 4), (1, 200)),  # queries wider than the stream, one head of keys
    ("qwen2", (128, 320, 8, 2, 16, 2), (2, 64)),
    ("qwen2", (80, 560, 5, 1, 16, 3), (4, 33)),
    ("qwen3", (64, 192, 4, 2, 32, 3), (2, 96)),
    ("qwen3", (96, 256, 8, 4, 24, 2), (1, 128)),
    ("gpt2", (64, 256, 4, 4, 16, 3), (2, 96)),
    ("gpt2", (96, 384, 3, 3, 32, 2), (3, 50)),
]
METHODS = {  # what is trained and how, counted as a CPU does it
    "full": Training(cpu=True),
    "full, dropout": Training(dropout=0.1, cpu=True),
    "lora": Training(lora_r=8, target_modules=ALL, cpu=True),
    "lora of attention": Training(lora_r=4, target_modules=("q_proj", "v_proj", "o_proj"), cpu=True),
    "lora in bf16": Training(lora_r=8, target_modules=ALL, autocast=False, cpu=True),
    "lora, dropout": Training(lora_r=8, target_modules=ALL, dropout=0.1, cpu=True),
}
GPT2, OTHERS = ("full", "full, dropout"), ("full", "lora", "lora of attention", "lora in bf16", "lora, dropout")
CASES = [(*shape, method) for shape in SHAPES for method in (GPT2 if shape[0] == "gpt2" else OTHERS)]
LAYER, LOSS = 64, 1024  # vocabularies: the peak is one layer's, the peak is the loss's
PEAKS = [(checkpointing, CASES[i], LAYER) for checkpointing in ("none", "reentrant") for i in (1, 5, 3, 10, 26, 31, 36, 38)]
PEAKS += [("not reentrant", CASES[i], LAYER) for i in (0, 6, 37)]
PEAKS += [(checkpointing, CASES[i], LOSS) for checkpointing in ("none", "reentrant") for i in (2, 15, 35)]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors this small are not worth two threads, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(family, widths, method, vocab_size=64, attention="sdpa", device=CPU):
    """A model of transformers with random weights in bf16, with PEFT's adapter if the method has one, and its `Dimensions`."""
    import transformers

    hidden, wide, heads, kv_heads, head_dim, layers = widths
    training = METHODS[method]
    if family == "gpt2":
        rate = training.dropout  # not inside attention: there a CPU has no flash-like kernel with dropout
        config = transformers.GPT2Config(n_embd=hidden, n_inner=wide, n_layer=layers, n_head=heads, vocab_size=vocab_size, n_positions=4096,
                                         resid_pdrop=rate, embd_pdrop=rate, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)  # fmt: skip
    else:
        config = transformers.AutoConfig.for_model(family, hidden_size=hidden, intermediate_size=wide, num_hidden_layers=layers,
                                                   num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
                                                   vocab_size=vocab_size, max_position_embeddings=8192, tie_word_embeddings=True,
                                                   bos_token_id=0, eos_token_id=0, pad_token_id=None)  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.bfloat16).to(device).train()
    if training.lora_r:
        import peft

        lora = peft.LoraConfig(r=training.lora_r, target_modules=list(training.target_modules), lora_dropout=training.dropout)
        model = peft.get_peft_model(model, lora, autocast_adapter_dtype=training.autocast)
        model.enable_input_require_grads()  # as the Trainer does where layers are checkpointed
    return model, dimensions.from_config(config.to_dict())


def step(model, batch, training, between=None):
    """One micro-batch, forward and backward, at the Trainer's precision; `between` is called between the two."""
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=training.lora_r > 0 and training.autocast):
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
    if between:
        between()
    loss.backward()


def known(model, *batches):
    """Tensors that are no activations: weights, their gradients, buffers, inputs."""
    parameters = list(model.parameters())
    return [*parameters, *(p.grad for p in parameters if p.grad is not None), *model.buffers(), *batches]


def live_step(model, batch, training):
    """(bytes at the end of the forward pass, most bytes of the step) of a second micro-batch: gradients are there already."""
    step(model, batch, training)
    gc.collect()
    ends, live = [], Live(known(model, batch))
    with live:
        step(model, batch, training, lambda: ends.append(live.now))
    return ends[0], live.peak


@pytest.mark.parametrize(("family", "widths", "rows", "method"), CASES)
def test_layers_keep_what_autograd_saves(family, widths, rows, method):
    training, tokens = METHODS[method], rows[0] * rows[1]
    counted, formula = [], []
    for layers in (1, widths[-1]):
        model, shape = build(family, (*widths[:-1], layers), method)
        batch = torch.randint(0, 64, rows)
        with torch.autocast("cpu", torch.bfloat16, enabled=training.lora_r > 0 and training.autocast):
            counted.append(saved_bytes(lambda: model(input_ids=batch, use_cache=False), known(model, batch)))  # noqa: B023
        formula.append(activations.kept_bytes(shape, tokens, "none", training))
    assert formula[1] - formula[0] == pytest.approx(counted[1] - counted[0], rel=0.01), "without what all layers share"
    assert formula[1] + activations.last_norm_bytes(shape, tokens, training) == pytest.approx(counted[1], rel=0.05)


def test_eager_attention_keeps_its_scores():
    rows, widths = (2, 96), (64, 160, 4, 2, 16, 3)
    model, shape = build("llama", widths, "full", attention="eager")
    batch = torch.randint(0, 64, rows)
    saved = saved_bytes(lambda: model(input_ids=batch, use_cache=False), known(model, batch))
    training = Training(eager_length=96, cpu=True)
    assert activations.kept_bytes(shape, 192, "none", training) + activations.last_norm_bytes(shape, 192) == pytest.approx(saved, rel=0.05)


@pytest.mark.parametrize(("checkpointing", "case", "vocab_size"), PEAKS)
def test_the_peak_of_a_step(checkpointing, case, vocab_size):
    family, widths, rows, method = case
    training, tokens = METHODS[method], rows[0] * rows[1]
    model, shape = build(family, widths, method, vocab_size)
    if checkpointing != "none":
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
    end, most = live_step(model, torch.randint(0, vocab_size, rows), training)
    parts = activations.peak(shape, tokens, "none" if checkpointing == "none" else "true", "whole", training)
    assert parts["total"] == pytest.approx(most, rel=0.06)
    log_softmax = 4 * vocab_size * tokens  # the one tensor of the loss that is left when the forward pass has returned
    at_end = parts["activations kept"] + activations.last_norm_bytes(shape, tokens, training) + log_softmax
    at_end -= 2 * shape.hidden_size * tokens * (training.lora_r > 0)  # a frozen head keeps no input: the last norm's output is gone
    at_end -= 4 * shape.head_dim * (tokens - rows[1]) * (family != "gpt2")  # rotary's table serves all rows; packed, it is as counted
    assert at_end == pytest.approx(end, rel=0.05)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_trls_chunked_loss(method):
    from trl.trainer import sft_trainer

    rows, vocab_size = (2, 450), 3000
    model, shape = build("llama", (64, 160, 4, 2, 16, 2), method, vocab_size)
    causal = model.get_base_model() if METHODS[method].lora_r else model
    sft_trainer._patch_chunked_ce_lm_head(causal, chunk_size=sft_trainer._CHUNKED_LM_HEAD_CHUNK_SIZE)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    _, most = live_step(model, torch.randint(0, vocab_size, rows), METHODS[method])
    assert activations.peak(shape, 900, "true", "chunked", METHODS[method])["total"] == pytest.approx(most, rel=0.06)


def test_unsloths_rows_are_its_own():
    """Its file is loaded alone, in a process of its own: it needs torch only, the whole package takes seconds and patches others."""
    grid = [(tokens, vocab, hidden) for tokens in (100, 3000, 16384, 262144) for vocab in (1024, 50304, 128256, 152064)
            for hidden in (768, 3072, 5120)]  # fmt: skip
    code = f"""
import importlib.util, json, os, torch
package = importlib.util.find_spec("unsloth_zoo").submodule_search_locations[0]
spec = importlib.util.spec_from_file_location("fused_linear", os.path.join(package, "fused_losses", "fused_linear.py"))
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
print(json.dumps([module.fused_linear_rows(tokens, hidden, vocab, 4) for tokens, vocab, hidden in {grid}]))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == [activations.unsloth_rows(*shape) for shape in grid]

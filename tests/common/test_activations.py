"""The formulas of activations against what PyTorch keeps: on a CPU every byte is counted, on a GPU the allocator's peak is read.

Nothing in the formulas was fitted, so each shape here is one that no constant has seen. Widths are tiny; vocabularies are chosen so
that now a layer and now the loss is the peak.
"""

import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from live_tensors import Live, saved_bytes

from common import activations, dimensions, gpt
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
    ("gpt", (64, 256, 4, 4, 16, 3), (2, 96)),
]
METHODS = {  # what is trained and how, counted as a CPU does it
    "full": Training(cpu=True),
    "full, dropout": Training(dropout=0.1, cpu=True),
    "lora": Training(lora_r=8, target_modules=ALL, cpu=True),
    "lora of attention": Training(lora_r=4, target_modules=("q_proj", "v_proj", "o_proj"), cpu=True),
    "lora in bf16": Training(lora_r=8, target_modules=ALL, autocast=False, cpu=True),
    "lora, dropout": Training(lora_r=8, target_modules=ALL, dropout=0.1, cpu=True),
}
OF_FAMILY = dict.fromkeys(("gpt2", "gpt"), ("full", "full, dropout")) | {"llama": tuple(m for m in METHODS if m != "full, dropout")}
CASES = [(*shape, method) for shape in SHAPES for method in OF_FAMILY.get(shape[0], ("full", "lora", "lora, dropout"))]
LAYER, LOSS = 64, 1024  # vocabularies: the peak is one layer's, the peak is the loss's
REENTRANT = [(0, "lora"), (1, "full"), (1, "lora, dropout"), (2, "lora of attention"), (3, "lora"), (6, "full"), (8, "full, dropout")]
PEAKS = [("none", *SHAPES[i], method, LAYER) for i, method in ((1, "full"), (2, "lora"), (5, "lora"), (8, "full, dropout"))]
PEAKS += [("reentrant", *SHAPES[i], method, LAYER) for i, method in REENTRANT]
PEAKS += [("not reentrant", *SHAPES[i], method, LAYER) for i, method in ((0, "full"), (7, "full"))]
PEAKS += [(how, *SHAPES[i], method, LOSS) for how, i, method in (("none", 0, "full"), ("reentrant", 4, "lora"), ("reentrant", 7, "full"))]
PEAKS += [("none", *SHAPES[9], "full", LAYER), ("reentrant", *SHAPES[9], "full, dropout", LAYER)]
PEAKS += [("reentrant", "gpt2", (64, 172, 4, 4, 16, 4), (1, 50), "full", LAYER)]  # 50 tokens: the peak is the embeddings' gradient
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
    if family in ("gpt2", "gpt"):
        rate = training.dropout  # not inside attention: there a CPU has no flash-like kernel with dropout
        gelu = {"gpt2": "gelu_new", "gpt": "gelu_pytorch_tanh"}[family]
        config = transformers.GPT2Config(n_embd=hidden, n_inner=wide, n_layer=layers, n_head=heads, vocab_size=vocab_size, n_positions=4096,
                                         activation_function=gelu, resid_pdrop=rate, embd_pdrop=rate, attn_pdrop=0.0, bos_token_id=0,
                                         eos_token_id=0)  # fmt: skip
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


@pytest.mark.parametrize(("checkpointing", "family", "widths", "rows", "method", "vocab_size"), PEAKS)
def test_the_peak_of_a_step(checkpointing, family, widths, rows, method, vocab_size):
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
    if not shape.learned_positions:  # rotary's table serves all rows; packed, it is as counted
        at_end -= 4 * shape.head_dim * (tokens - rows[1])
    assert at_end == pytest.approx(end, rel=0.05)


@pytest.mark.parametrize(
    ("case", "method", "vocab_size"),
    [(0, "full", LAYER), (1, "lora", LAYER), (0, "full", 3000), (1, "lora", 3000), (6, "full", 3000), (8, "full", 3000)],
)
def test_an_evaluation_keeps_nothing(case, method, vocab_size):
    family, widths, rows = SHAPES[case]
    model, shape = build(family, widths, method, vocab_size)
    model.eval()
    batch, training = torch.randint(0, LAYER, rows), METHODS[method]
    live = Live(known(model, batch))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=training.lora_r > 0), live:
        model(input_ids=batch, labels=batch, use_cache=False)
    assert activations.evaluation_bytes(shape, rows[0] * rows[1], "whole", training) == pytest.approx(live.peak, rel=0.1)


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


@pytest.mark.parametrize("checkpointing", ["true", "none"])
@pytest.mark.parametrize(("width", "heads", "layers", "vocab_size", "rows"),
                         [(128, 4, 3, 5000, (4, 700)), (256, 8, 4, 1000, (2, 256)), (64, 2, 2, 20_000, (3, 900))])  # fmt: skip
def test_our_own_gpt_with_its_own_loss(width, heads, layers, vocab_size, rows, checkpointing):
    shape = gpt.Shape(vocab_size, 1024, width, layers, heads, gradient_checkpointing=checkpointing == "true")
    model = gpt.GPT(shape).to(torch.bfloat16)
    batch = torch.randint(0, vocab_size, rows)

    def step():
        model(batch, batch)["loss"].backward()

    step()
    live = Live(known(model, batch))
    with live:
        step()
    size = dimensions.gpt("gpt-125M", layers, heads, width, vocab_size, 1024)
    said = activations.peak(size, rows[0] * rows[1], checkpointing, "gpt", METHODS["full"])
    assert said["total"] == pytest.approx(live.peak, rel=0.07)


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


@pytest.mark.soak
def test_unsloths_tiles():
    """In a process of its own: importing Unsloth patches other packages, and takes longer than all the tests above."""
    ran = subprocess.run([sys.executable, "-c", "import test_activations; test_activations.print_tiled_peaks()"], capture_output=True,
                         text=True, cwd=Path(__file__).parent,
                         env={**os.environ, "UNSLOTH_IS_PRESENT": "1"})  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    counted = json.loads(ran.stdout.splitlines()[-1])
    assert len(counted) == 3
    for most, formula in counted:
        assert formula == pytest.approx(most, rel=0.06)


def print_tiled_peaks():
    from unsloth_zoo.tiled_mlp import patch_tiled_mlp

    torch.set_num_threads(1)
    found, rows = [], (2, 200)
    for widths, method, checkpointed in (((64, 400, 4, 2, 16, 3), "full", True), ((96, 416, 6, 6, 16, 2), "lora", True),
                                         ((96, 416, 6, 6, 16, 2), "lora", False)):  # fmt: skip
        model, shape = build("llama", widths, method)
        patch_tiled_mlp(model, "arctic")
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": True})
        _, most = live_step(model, torch.randint(0, LAYER, rows), METHODS[method])
        parts = activations.peak(shape, 400, "true" if checkpointed else "none", "whole", METHODS[method], tiled_mlp=True)
        found.append((most, parts["total"]))
    print(json.dumps(found))


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [128, 32000])
@pytest.mark.parametrize("checkpointing", ["none", "true"])
@pytest.mark.parametrize(("family", "method"), [("llama", m) for m in ("full", "lora", "lora, dropout")] + [("gpt2", "full, dropout")])
def test_the_peak_on_a_gpu(family, method, checkpointing, vocab_size):
    widths, rows = (1024, 4096, 16, 16 if family == "gpt2" else 4, 64, 4), (4, 2048)
    training, device = replace(METHODS[method], cpu=False), torch.device("cuda")
    model, shape = build(family, widths, method, vocab_size, device=device)
    if checkpointing == "true":
        model.gradient_checkpointing_enable({"use_reentrant": True})
    batch = torch.randint(0, vocab_size, rows, device=device)
    step(model, batch, training)
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(model, batch, training)
    most = torch.cuda.max_memory_allocated() - before
    assert activations.peak(shape, rows[0] * rows[1], checkpointing, "whole", training)["total"] == pytest.approx(most, rel=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_unsloths_kernels_keep_what_is_counted(family, dropout):
    assert_unsloths_layer(family, dropout, torch.device("cuda"))


def assert_unsloths_layer(family, dropout, device):
    """One layer run by Unsloth's own functions, put together as its loader does. On a CPU it needs Triton's interpreter."""
    import unsloth  # noqa: F401, I001 - before what it patches
    from unsloth.kernels import fast_lora
    from unsloth.models import llama, qwen3

    widths, rows = (64, 192, 4, 2, 32, 1), (2, 32)
    method = "lora, dropout" if dropout else "lora"
    model, shape = build(family, widths, method, device=device)
    backbone = model.get_base_model().model
    layer = backbone.layers[0]
    layer.self_attn.apply_qkv, layer.self_attn.apply_o = fast_lora.apply_lora_qkv, fast_lora.apply_lora_o
    layer.mlp.forward = fast_lora.apply_lora_mlp_swiglu.__get__(layer.mlp)
    attention = qwen3.Qwen3Attention_fast_forward if family == "qwen3" else llama.LlamaAttention_fast_forward
    layer.self_attn.forward = attention.__get__(layer.self_attn)
    states = torch.randn(*rows, widths[0], dtype=torch.bfloat16, device=device, requires_grad=True)
    table = [half[0] for half in backbone.rotary_emb(states, torch.arange(rows[1], device=device)[None])]

    def forward():
        with torch.autocast(device.type, torch.bfloat16):
            return llama.LlamaDecoderLayer_fast_forward(layer, states, position_embeddings=table)

    training = replace(METHODS[method], kernels="unsloth", cpu=False)
    counted = saved_bytes(forward, [*known(model), *table])
    assert activations.layer_bytes_per_token(shape, training) * rows[0] * rows[1] == pytest.approx(counted, rel=0.01)

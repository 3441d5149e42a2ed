"""Model states against DeepSpeed's own estimators, what DeepSpeed really allocates on two ranks, and what bitsandbytes does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import allocated_states as real
import pytest
from interrupted_runs import free_port

from common import disk_needs, model_states
from common.dimensions import ATTENTION, KNOWN, MLP, Dimensions, from_config
from common.job import Zero

EVERYTHING = {"lora_r": 0, "target_modules": (), "load_in_4bit": False}
SMALL = from_config({"model_type": "llama", **real.SHAPE})
GPUS = (1, 2, 8, 64)


# Against DeepSpeed's estimators, which count the fp32 gradients of the step among the states


def largest_module(model):
    """Parameters of what ZeRO-3 gathers at once: a whole layer, or the table of embeddings."""
    return max(model.layer_parameters(), model.vocab_size * model.hidden_size)


def estimated(model, stage, gpus, offload, offload_param):
    """(host bytes of one node of up to 8 GPUs without its margin, bytes of one GPU) that DeepSpeed names."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    node = {"num_gpus_per_node": min(gpus, 8), "num_nodes": gpus // min(gpus, 8), "additional_buffer_factor": 1}
    if stage == 2:
        return estimate_zero2_model_states_mem_needs(model.parameters(), cpu_offload=offload, **node)
    return estimate_zero3_model_states_mem_needs(
        model.parameters(), largest_module(model), cpu_offload=offload, cpu_offload_params=offload_param, **node
    )[:2]


@pytest.mark.parametrize("gpus", GPUS)
@pytest.mark.parametrize("name", KNOWN)
def test_zero_2_equals_deepspeeds_estimator(name, gpus):
    model, count = KNOWN[name], KNOWN[name].parameters()
    for offload in (False, True):
        parts = (
            model_states.weights_bytes(model, **EVERYTHING, zero_stage=2, gpus=gpus)["trained"],
            model_states.gradient_bytes(count, 2, gpus, offload),
            model_states.fp32_gradient_bytes(count, 2, gpus, offload),
            model_states.optimizer_bytes(count, "adamw_torch_fused", 2, gpus, offload),
        )
        assert int(sum(parts)) == estimated(model, 2, gpus, offload, False)[1]


@pytest.mark.parametrize("gpus", GPUS)
@pytest.mark.parametrize("name", KNOWN)
def test_zero_3_equals_deepspeeds_estimator(name, gpus):
    """Which leaves out the bf16 gradients (2 bytes) that the test below finds beside the fp32 ones, and counts one module, gathered, with
    its gradient (4 bytes), whatever DeepSpeed prefetches."""
    model, count = KNOWN[name], KNOWN[name].parameters()
    for offload, offload_param in ((False, False), (True, False), (True, True)):
        parts = (
            model_states.weights_bytes(model, **EVERYTHING, zero_stage=3, gpus=gpus, offload_param=offload_param)["trained"],
            model_states.fp32_gradient_bytes(count, 3, gpus, offload, sub_group_size=count),
            model_states.optimizer_bytes(count, "adamw_torch_fused", 3, gpus, offload),
        )
        assert int(sum(parts)) + 4 * largest_module(model) == estimated(model, 3, gpus, offload, offload_param)[1]


@pytest.mark.parametrize("gpus", GPUS)
@pytest.mark.parametrize("name", KNOWN)
def test_what_is_offloaded_equals_deepspeeds_estimator(name, gpus):
    """Its 16 bytes, 18 with the weights, of a whole node, without the bf16 gradients that are there too."""
    model, count = KNOWN[name], KNOWN[name].parameters()
    for stage, offload_param in ((2, False), (3, False), (3, True)):
        parts = model_states.offloaded_bytes(count, "adamw_torch_fused", stage, gpus, model, offload_param)
        counted = sum(parts.get(part, 0) for part in ("master weights", "moments", "gradients in fp32", "weights")) * min(gpus, 8)
        host = estimated(model, stage, gpus, True, offload_param)[0]
        if stage == 2 and gpus > 4:  # where every rank loading the whole model in fp32 is what it names
            assert host == 4 * count * gpus
        else:
            assert host == pytest.approx(counted, abs=1)


# Against what DeepSpeed allocates


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """{run: [of rank 0, of rank 1]} of allocated_states.py, and the directory of its checkpoints."""
    home, port = tmp_path_factory.mktemp("states"), str(free_port())
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    place["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # of ninja
    processes = []
    for rank in ("0", "1"):
        environment = {**os.environ, **place, "RANK": rank, "LOCAL_RANK": rank}
        with (home / f"{rank}.log").open("w") as log:
            command = [sys.executable, real.__file__, str(home)]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join((home / f"{rank}.log").read_text()[-2000:] for rank in (0, 1))
    found = [json.loads((home / f"{rank}.json").read_text()) for rank in (0, 1)]
    return {run: [rank[run] for rank in found] for run in real.RUNS}, home


def predicted(stage, offload=False):
    """(standing, gradients, buffers) in bytes of one of the two ranks, host and GPU together: here they are one memory."""
    count = SMALL.parameters()
    weights = model_states.weights_bytes(SMALL, **EVERYTHING, zero_stage=stage, gpus=2)["trained"]
    standing = weights + model_states.optimizer_bytes(count, "adamw_torch_fused", stage, 2, offload)
    zero = Zero(
        stage, alone=True, offload_optimizer=offload, overlap_comm=real.OVERLAP, reduce_bucket_size=real.REDUCE,
        prefetch_bucket_size=real.PREFETCH, max_live_parameters=real.LIVE, max_reuse_distance=real.REUSE,
        param_persistence_threshold=real.PERSISTENT,
    )  # fmt: skip
    buffers = model_states.buffer_bytes(stage, 2, count, SMALL, zero, real.ACCUMULATION)
    if offload:
        host = model_states.offloaded_bytes(count, "adamw_torch_fused", stage, 2, SMALL, gradient_accumulation_steps=real.ACCUMULATION)
        standing += sum(host.values())
    return standing, model_states.gradient_bytes(count, stage, 2, offload), buffers


def ranks(seen, run, moment):
    return [sum(rank[moment].values()) for rank in seen[0][run]]


ROUNDING = 1024  # bytes: a norm whose gradient is in the part of both ranks, and one that lives a little longer
NORMS = 4 * (2 * SMALL.num_hidden_layers + 1) * SMALL.hidden_size / 2  # a group of its own, whose fp32 gradients come second


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_moment_of_a_step_under_zero(seen, stage):
    """Of the bytes of each rank none is unexplained: weights, optimiser states, gradients, buckets, gathered weights."""
    standing, gradients, buffers = predicted(stage)
    run, table = f"zero-{stage}", 2 * SMALL.vocab_size * SMALL.hidden_size
    for_good = standing + (gradients + buffers["reduce bucket"] + buffers["persistent"] if stage == 3 else 0)
    assert ranks(seen, run, "after") == pytest.approx([for_good] * 2, abs=ROUNDING)

    held = for_good if stage == 3 else standing + gradients
    bucket = buffers["reduce bucket"] if stage == 1 else 0  # which ZeRO-1 keeps until it has reduced
    assert ranks(seen, run, "between") == pytest.approx([held + bucket] * 2, abs=ROUNDING)

    first = held + buffers["whole gradient"] + buffers.get("next gradients", 0)
    first += table if stage == 3 else buffers["reduce bucket"]  # at the table of embeddings no other weight is gathered any more
    if stage > 1:  # ZeRO-1 has sent most of its gradients then; the test below has its bound
        assert ranks(seen, run, "backward") == pytest.approx([first] * 2, abs=ROUNDING)

    own = model_states.gradient_bytes(SMALL.parameters(), max(stage, 2), 2)
    step = for_good + model_states.fp32_gradient_bytes(SMALL.parameters(), stage, 2) + (own if stage < 3 else -buffers["persistent"])
    assert ranks(seen, run, "step") == pytest.approx([step - NORMS] * 2, abs=ROUNDING)


@pytest.mark.parametrize("run", real.RUNS)
def test_at_no_moment_is_there_more_than_predicted(seen, run):
    """Gradients are sent in the middle of the backward pass, when most is there; the bound is near for what is not offloaded."""
    stage, offload = real.RUNS[run]
    standing, gradients, buffers = predicted(stage, offload)
    most = standing + gradients + sum(buffers.values())
    for rank in seen[0][run]:
        found = max(sum(rank[moment].values()) for moment in ("backward", "reduction", "between"))
        assert found <= most
        assert found > (0.85 if offload else 0.94) * most
    if offload:
        assert max(ranks(seen, run, "step")) <= min(ranks(seen, run, "after")) + ROUNDING
        assert model_states.step_bytes(SMALL.parameters(), stage, 2, True) == 0
    else:
        step = standing + gradients + model_states.step_bytes(SMALL.parameters(), stage, 2)
        assert max(ranks(seen, run, "step")) <= step + sum(buffers[part] for part in ("reduce bucket", "persistent") if part in buffers)


@pytest.mark.parametrize("run", ["zero-3", "zero-3 offload"])
def test_weights_gathered_at_once_under_zero_3(seen, run):
    gathered = predicted(3)[2]["gathered"] / 2
    for rank in seen[0][run]:
        assert 0.95 * gathered < rank["gathered"] <= gathered


@pytest.mark.parametrize("stage", [2, 3])
def test_offloaded_states_are_all_there(seen, stage):
    """Both memories together; on the GPU the weights stay, under ZeRO-2 with a tensor through which gradients go."""
    standing, gradients, buffers = predicted(stage, offload=True)
    table = 2 * SMALL.vocab_size * SMALL.hidden_size
    more = table if stage == 2 else buffers["reduce bucket"] + buffers["persistent"]
    assert gradients == 0
    assert ranks(seen, f"zero-{stage} offload", "after") == pytest.approx([standing + more] * 2, abs=ROUNDING)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeeds_part_of_a_checkpoint(seen, stage):
    files = [file for file in (seen[1] / f"zero-{stage}").rglob("*.pt") if file.is_file()]
    found = sum(file.stat().st_size for file in files)
    assert found == pytest.approx(disk_needs.zero_bytes(SMALL.parameters(), "adamw_torch_fused", stage, 2), rel=0.01)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_tied_output_layer_is_saved_though_it_is_frozen(seen, stage):
    found = [rank["frozen"] for rank in seen[0][f"zero-{stage}"]]
    assert found == [disk_needs.frozen_in_checkpoint_bytes(SMALL, load_in_4bit=False)] * 2 == [2 * 2048 * 256] * 2


# Against bitsandbytes


@pytest.mark.parametrize("widths", [(256, 512), (192, 520)], ids=str)
def test_weights_in_nf4_are_as_many_bytes_as_bitsandbytes_allocates(tmp_path, widths):
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    shape = real.SHAPE | {"hidden_size": widths[0], "intermediate_size": widths[1], "tie_word_embeddings": widths[0] == 192}
    LlamaForCausalLM(LlamaConfig(**shape)).bfloat16().save_pretrained(tmp_path)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                             bnb_4bit_compute_dtype=torch.bfloat16)  # fmt: skip
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, quantization_config=nf4)
    storages = {}
    for parameter in loaded.parameters():
        state = getattr(parameter, "quant_state", None)
        scales = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code) if state else ()
        for tensor in (parameter, *scales):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    model = from_config({"model_type": "llama", **shape})
    names = dict(loaded.named_parameters())
    saved = sum(tensor.nbytes for name, tensor in loaded.state_dict().items() if name not in names)  # with 180 bytes of JSON each
    assert saved == pytest.approx(disk_needs.frozen_in_checkpoint_bytes(model, True), abs=200 * 7 * model.num_hidden_layers)
    assert sum(storages.values()) == model_states.weights_bytes(model, 8, ATTENTION, True, 0, 1)["base"]
    per_parameter = 8 * (model_states.nf4_bytes(KNOWN["Qwen/Qwen2.5-7B-Instruct"]) / KNOWN["Qwen/Qwen2.5-7B-Instruct"].linear_parameters())
    assert per_parameter == pytest.approx(4.127, abs=0.001)


@pytest.mark.parametrize(("lora_r", "small"), [(16, True), (64, False)])
def test_moments_in_8_bit_are_as_many_bytes_as_bitsandbytes_allocates(lora_r, small):
    import bitsandbytes
    import torch

    model = Dimensions("llama", 128, 384, 2, 4, 2, 32, 1024, 2048, True)
    names = (*ATTENTION, *MLP)
    shapes = [shape for name in names for rows, columns in (model.matrices()[name],) for shape in ((lora_r, columns), (rows, lora_r))]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes * model.num_hidden_layers]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = bitsandbytes.optim.AdamW8bit(parameters)
    optimizer.step()
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    found = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
    few = model_states.small_trained(model, lora_r, names)
    assert (few > 0) == small
    assert found == model_states.optimizer_bytes(model.lora_parameters(lora_r, names), "adamw_8bit", 0, 1, small=few)


def test_an_adapter_is_kept_whole_beside_a_divided_base():
    """The example of the README: 24.3 million of 3.2 billion parameters, 2.2 GB of weights in 4 bit instead of 6.4."""
    model, targets = KNOWN["meta-llama/Llama-3.2-3B-Instruct"], (*ATTENTION, *MLP)
    quantised = model_states.weights_bytes(model, 16, targets, True, 0, 1)
    assert quantised["base"] == pytest.approx(2.24e9, rel=0.005) and quantised["trained"] == 4 * 24_313_856
    plain = model_states.weights_bytes(model, 16, targets, False, 2, 8)
    assert plain == {"base": 2 * model.parameters(), "trained": 2 * 24_313_856}
    assert model_states.weights_bytes(model, 16, targets, False, 3, 8)["base"] == plain["base"] / 8
    assert model_states.weights_bytes(model, 16, targets, False, 3, 8, offload_param=True) == {"base": 0, "trained": 0}

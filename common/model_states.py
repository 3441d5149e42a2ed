"""Bytes per GPU of what a run keeps of its model: weights, gradients, optimiser states, and the buffers around them.

"DeepSpeed" is 0.19.8 and its files those of deepspeed/runtime/zero/. It pads a group of tensors by at most two numbers a GPU under
ZeRO-1 and 2, and every tensor by at most one a GPU under ZeRO-3; that is left out.
"""

from math import ceil

NF4_BLOCK, SCALE_BLOCK = 64, 256  # numbers that share a scale; scales that share a scale
NF4_TABLES = 16 * 4 + 256 * 4 + 4  # of each matrix: the 16 values of NF4, the 256 of its scales' 8-bit code, the scales' mean
SMALL, STATE_BLOCK = 4096, 256  # bitsandbytes: smaller tensors keep fp32 moments; numbers that share a scale in 8 bit


def trained_parameters(model, lora_r, target_modules):
    """How many numbers are trained: those of the adapter, or all where `lora_r` is 0."""
    return model.lora_parameters(lora_r, target_modules) if lora_r else model.parameters()


def largest_trained(model, trained_parameters):
    """Numbers in the largest trained tensor: the table of embeddings or a matrix; of an adapter, at most one layer's part."""
    if trained_parameters < model.parameters():
        return ceil(trained_parameters / model.num_hidden_layers)
    return max(model.vocab_size * model.hidden_size, *(rows * columns for rows, columns in model.matrices().values()))


def small_trained(model, lora_r, target_modules):
    """How many of the trained numbers are in tensors of fewer than 4096, whose moments an 8-bit optimiser keeps in fp32."""
    shapes = model.matrices()
    if lora_r:
        sizes = [lora_r * width for name in target_modules for width in shapes[name]]
        return model.num_hidden_layers * sum(size for size in sizes if size < SMALL)
    others = model.parameters() - model.linear_parameters() - model.embedding_parameters()  # norms and biases
    return others if model.hidden_size < SMALL else 0


def nf4_bytes(model):
    """Of all linear layers in NF4 with double quantisation, as bitsandbytes 0.50.2 allocates them (functional.quantize_4bit).

    For a matrix of n numbers: n / 2 of packed weights, n / 64 of 8-bit scales, 4 bytes for each 256 of these, and 1,092 of tables:
    4.127 bits a parameter and the tables.
    """
    total = 0
    for rows, columns in model.matrices().values():
        scales = ceil(rows * columns / NF4_BLOCK)
        total += ceil(rows * columns / 2) + scales + 4 * ceil(scales / SCALE_BLOCK) + NF4_TABLES
    return model.num_hidden_layers * total


def weights_bytes(model, lora_r, target_modules, load_in_4bit, zero_stage, gpus, offload_param=False):
    """{"base": bytes of frozen weights, "trained": bytes of trained ones} on one GPU.

    The base is bf16, 2 bytes a parameter, or NF4 in its linear layers; embeddings, norms, biases and the output layer stay bf16.
    What is trained is fp32 in processes without DeepSpeed (`models.train_in_fp32`) and bf16 under it, which keeps the fp32 copy among
    the optimiser's states; a whole model in fp32 has autocast's bf16 copies beside it. ZeRO-3 divides all of it, frozen or not;
    offload_param moves its part to the host.
    """
    each = 2 if zero_stage else 4 if lora_r else 6
    trained = trained_parameters(model, lora_r, target_modules) * each
    base = 0
    if lora_r:
        linear = model.linear_parameters()
        base = (model.parameters() - linear) * 2 + (nf4_bytes(model) if load_in_4bit else linear * 2)
    share = 0 if offload_param and zero_stage == 3 else 1 / gpus if zero_stage == 3 else 1
    return {"base": base * share, "trained": trained * share}


def gradient_bytes(trained_parameters, zero_stage, gpus, offload=False, largest=0):
    """Bytes of the gradients from the backward pass to the step, on one GPU.

    Without DeepSpeed fp32, as the weights. Under it bf16 (engine.get_data_types: accumulated in the dtype of the model).
    ZeRO-1: all; the own part's copy takes the place of what has been reduced. ZeRO-2: the own part; a tensor that reaches into it is
    kept whole (copy_grads_in_partition), so `largest`, the numbers in the largest one, is a lower bound. ZeRO-3: the own part, from
    the start of training to its end (stage3.grad_partitions_flat_buffer). offload: ZeRO-2 and 3 keep them on the host.
    """
    if not zero_stage:
        return 4 * trained_parameters
    if zero_stage == 1:
        return 2 * trained_parameters
    return 0 if offload else 2 * max(trained_parameters / gpus, largest if zero_stage == 2 else 0)


def moment_bytes(trained_parameters, optim, small=0):
    """Of Adam's two moments: 4 bytes each in fp32; 1 in 8 bit with an fp32 scale for 256 (bitsandbytes' Optimizer2State.init_state).

    small: how many of the numbers are in tensors of fewer than 4096, whose moments stay fp32. The two tables of an 8-bit code take
    2,048 bytes in all. Paged moments are as large; they move to the host one tensor at a time when a GPU is full.
    """
    if "8bit" not in optim:
        return 8 * trained_parameters
    return 2 * (trained_parameters - small) * (1 + 4 / STATE_BLOCK) + 8 * small + 2 * 256 * 4


def optimizer_bytes(trained_parameters, optim, zero_stage, gpus, offload=False, small=0):
    """Bytes of the optimiser's states on one GPU: the moments, and under DeepSpeed the fp32 master weights (4 bytes).

    ZeRO-1 to 3 divide both. DeepSpeed gives the optimiser one long tensor, so that none is small then; small: see `moment_bytes`.
    """
    if offload and zero_stage:
        return 0
    if not zero_stage:
        return moment_bytes(trained_parameters, optim, small)
    return 4 * trained_parameters / gpus + moment_bytes(trained_parameters / gpus, optim)


def fp32_gradient_bytes(trained_parameters, zero_stage, gpus, offload=False, sub_group_size=1e9):
    """Bytes of the gradients' fp32 copy that DeepSpeed makes for the optimiser and frees after it, on one GPU.

    Of the own part; ZeRO-3 makes it for `sub_group_size` numbers at a time (stage3._prepare_fp32_grad_for_sub_group).
    """
    if not zero_stage or offload:
        return 0
    own = trained_parameters / gpus
    return 4 * (min(own, sub_group_size) if zero_stage == 3 else own)


def step_bytes(trained_parameters, zero_stage, gpus, offload=False, largest=0, sub_group_size=1e9):
    """Bytes that exist only during the optimiser's step, when the activations are gone, on one GPU.

    First the norm of the gradients, one tensor of the own part at a time in fp64 (get_grad_norm_direct); then the fp32 copy, made from
    a bf16 one in a single tensor, half as large (`step` of stage_1_and_2.py, stage3._prepare_fp32_grad_for_sub_group).
    """
    if not zero_stage or offload:
        return 0
    norm = 8 * (largest / gpus if zero_stage == 3 else min(largest, trained_parameters / gpus))
    return max(norm, 1.5 * fp32_gradient_bytes(trained_parameters, zero_stage, gpus, offload, sub_group_size))


def dequantised_bytes(model, kernels="unsloth"):
    """Bytes of the matrices that are bf16 again while they are multiplied with.

    Unsloth decodes the forward pass into one buffer that grows to the largest matrix and stays (`_SCRATCH` of unsloth/kernels/utils.py;
    WEIGHT_BUFFERS beside it serve Intel GPUs alone), and the backward pass into a fresh tensor. bitsandbytes' own layer has the latter.
    """
    return 2 * max(rows * columns for rows, columns in model.matrices().values()) * (2 if kernels == "unsloth" else 1)


def buffer_bytes(zero_stage, gpus, trained_parameters, model, zero, gradient_accumulation_steps=1, load_in_4bit=False, kernels="unsloth"):
    """{part: bytes} of working buffers on one GPU during forward and backward. zero: the JSON's buckets and offloading, a `job.Zero`.

    "reduce bucket" (with contiguous_gradients) is allocated whole, however little is trained: by ZeRO-1 and 2 for each backward pass,
    twice under overlap_comm (setup_buckets), by ZeRO-3 once and for good (_setup_for_real_optimizer). "reduction" is the copy of a
    bucket, or of a larger tensor, that is sent (allreduce_bucket, reduce_scatter_coalesced). "whole gradient" is that of the largest
    tensor, before it is cut. "next gradients" are ZeRO-2's of a micro-batch after the first, before they are added to the sum.
    The JSON's allgather_bucket_size costs nothing: the parts are gathered in place (all_gather_into_tensor_dp_groups).

    ZeRO-3: "gathered" are whole weights: prefetching runs ahead until `max_live_parameters` are there, and one tensor more
    (partitioned_param_coordinator.fetch_sub_module); what comes again within `max_reuse_distance`, forward and backward, stays.
    "prefetch" are those being copied out of the tensor in which they arrived, "persistent" those too small to be divided.
    """
    parts = {"dequantised": dequantised_bytes(model, kernels)} if load_in_4bit else {}
    if not zero_stage:  # torch's DistributedDataParallel reduces a copy of all gradients
        return parts | ({"reduce bucket": 4 * trained_parameters} if gpus > 1 else {})
    largest = largest_trained(model, trained_parameters)
    parts["reduce bucket"] = 2 * zero.reduce_bucket_size * (2 if zero.overlap_comm and zero_stage < 3 else 1)
    parts["reduction"] = 2 * min(trained_parameters, max(zero.reduce_bucket_size, largest))
    parts["whole gradient"] = 2 * largest
    if zero_stage == 2 and gradient_accumulation_steps > 1:
        parts["next gradients"] = gradient_bytes(trained_parameters, 2, gpus, zero.offload_optimizer, largest)
    if zero.offload_optimizer and zero_stage < 3:  # temp_grad_buffer_for_gpu_offload, and the norm in fp64
        parts["offload"] = 2 * largest + 8 * min(largest, trained_parameters / gpus)
    if zero_stage == 3 and (gpus > 1 or zero.offload_param):
        table = model.vocab_size * model.hidden_size
        live = max(zero.max_live_parameters if zero.prefetch_bucket_size else 0, zero.max_reuse_distance / 2) + max(table, largest)
        parts["gathered"] = 2 * min(live, model.parameters())
        parts["prefetch"] = 2 * min(zero.prefetch_bucket_size, model.parameters())
        parts["persistent"] = 2 * persistent_parameters(model, zero.param_persistence_threshold)
    return parts


def persistent_parameters(model, threshold):
    """How many numbers are in tensors of at most `threshold`, which ZeRO-3 keeps whole on every GPU beside its part of them."""
    small = sum(rows * columns for rows, columns in model.matrices().values() if rows * columns <= threshold)
    others = model.parameters() - model.linear_parameters() - model.embedding_parameters()  # norms and biases
    return model.num_hidden_layers * small + (others if model.hidden_size <= threshold else 0)


def offloaded_bytes(trained_parameters, optim, zero_stage, gpus, model, offload_param=False, gradient_accumulation_steps=1):
    """{part: bytes} in the host's memory of one GPU's process under offload_optimizer, and under ZeRO-3 offload_param.

    Master weights, moments, the fp32 gradients, which stay allocated there, and the bf16 ones (ZeRO-2: where they are accumulated).
    ZeRO-1 and 2 also copy the new weights through a bf16 buffer of the own part, and gradients through one of the largest tensor.
    Pinned buffers may take up to twice that: torch rounds them up to a power of two.
    """
    own = trained_parameters / gpus
    parts = {"master weights": 4 * own, "moments": moment_bytes(own, optim), "gradients in fp32": 4 * own}
    if zero_stage == 3 or gradient_accumulation_steps > 1:
        parts["gradients"] = 2 * own
    if zero_stage < 3:
        parts |= {"new weights": 2 * own, "staging": 2 * largest_trained(model, trained_parameters)}
    elif offload_param:
        parts["weights"] = 2 * model.parameters() / gpus
    return parts

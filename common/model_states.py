"""Bytes per GPU of what a run keeps of its model: weights, gradients, optimiser states, and the buffers around them."""


def trained_parameters(model, lora_r, target_modules):
    """How many numbers are trained: those of the adapter, or all where `lora_r` is 0."""
    return model.lora_parameters(lora_r, target_modules) if lora_r else model.parameters()


def weights_bytes(model, lora_r, target_modules, load_in_4bit, zero_stage, gpus, offload_param=False):
    """{"base": bytes of frozen weights, "trained": bytes of trained ones} on one GPU."""
    shards = gpus if zero_stage == 3 else 1
    trained = trained_parameters(model, lora_r, target_modules) * (2 if zero_stage else 4)
    linear = model.linear_parameters()
    base = 0
    if lora_r:
        base = (model.parameters() - linear) * 2 + linear * (4 / 8 + 1 / 64 + 4 / 64 / 256 if load_in_4bit else 2)
    on_gpu = 0 if offload_param and zero_stage == 3 else 1 / shards
    return {"base": base * on_gpu, "trained": trained * on_gpu}


def gradient_bytes(trained_parameters, zero_stage, gpus, offload=False):
    """Bytes of the gradients kept from the backward pass to the step, on one GPU."""
    if offload and zero_stage >= 2:
        return 0
    return trained_parameters * (2 if zero_stage else 4) / (gpus if zero_stage >= 2 else 1)


def optimizer_bytes(trained_parameters, optim, zero_stage, gpus, offload=False):
    """Bytes of the optimiser's moments, and under DeepSpeed of the fp32 master weights, on one GPU."""
    if offload and zero_stage:
        return 0
    moments = 2 * (1 + 4 / 256) if "8bit" in optim else 8
    return trained_parameters * (moments + (4 if zero_stage else 0)) / (gpus if zero_stage else 1)


def step_bytes(trained_parameters, zero_stage, gpus, offload=False):
    """Bytes that exist only during the optimiser's step, when the activations are gone: the gradients in fp32."""
    return trained_parameters * 4 / gpus if zero_stage and not offload else 0


def buffer_bytes(zero_stage, gpus, trained_parameters, model, reduce_bucket_size=5e8, allgather_bucket_size=5e8, overlap_comm=True,
                 prefetch_bucket_size=5e7, max_live_parameters=1e9, offload=False, load_in_4bit=False):  # fmt: skip
    """{part: bytes} of working buffers on one GPU during forward and backward."""
    parts = {}
    if load_in_4bit:
        rows_columns = max(rows * columns for rows, columns in model.matrices().values())
        parts["dequantised"] = rows_columns * (2 + 4 / 64)
    if zero_stage:
        parts["reduce bucket"] = min(reduce_bucket_size, trained_parameters) * 2 * (2 if overlap_comm else 1)
    if zero_stage == 3:
        parts["gathered"] = min(max_live_parameters, model.largest_module_parameters() + prefetch_bucket_size) * 2
    return parts

"""Runs that others published, with their settings: what the predictions of --plan are held against. Facts only; nothing is computed here
but tokens/s from the seconds that a source states.

Each of RUNS has "source", "what" ("memory GiB" of one GPU at its peak, "tokens/s/GPU", or "length", the longest row that fits),
"published", "accelerator" (as common.accelerators.parse reads it), "gpus", "model", the fields of a Job, and "assumed": what the source
does not state, or states in a way a Job cannot say. "too_long" is a length that the source saw run out of memory, "parameters" a count
that the source states, "attended_length" the mean length of the row that a token attends in, where rows are packed. "counted" says whose
count a memory is: "torch" (the tensors) or "driver" (the process). "adapter_bytes" are those of an adapter's parameter, its gradient and
its moments, where they are not 16 (all fp32); "reduce_bucket_size" and "overlap_comm" are those of the ZeRO JSON.

Left out, because a Job cannot say them: torchtune's rows whose optimiser steps inside the backward pass (no gradient is ever whole) or
whose states are in bf16, its 70B and 405B (FSDP with other offload), MosaicML's fp8 and pure-bf16 rows, NeMo's rows with tensor or
pipeline parallelism, Qwen's Q-LoRA (GPTQ, not NF4), nanochat (values from embeddings, ReLU squared, sliding windows, fp8). Left out as
hardly possible: torchtune's tokens/s of Llama-3.1-8B with LoRA, which would be 86 % of a 4090's peak and 96 % of an A6000's.
"""

from common.dimensions import ATTENTION, KNOWN, MLP, Dimensions

LLAMA_2_7B = Dimensions("llama", 4096, 11008, 32, 32, 32, 128, 32000, 4096, False)
LLAMA_3_8B = Dimensions("llama", 4096, 14336, 32, 32, 8, 128, 128256, 131072, False)
LLAMA_3_3B = KNOWN["meta-llama/Llama-3.2-3B-Instruct"]
QWEN_25_7B = KNOWN["Qwen/Qwen2.5-7B-Instruct"]
QWEN_3_4B = KNOWN["Qwen/Qwen3-4B-Instruct-2507"]
QWEN_1 = {  # the first generation: no grouped queries, biases in q, k, v
    "1.8B": Dimensions("qwen2", 2048, 5504, 24, 16, 16, 128, 151936, 8192, False, qkv_bias=True),
    "7B": Dimensions("qwen2", 4096, 11008, 32, 32, 32, 128, 151936, 8192, False, qkv_bias=True),
    "14B": Dimensions("qwen2", 5120, 13696, 40, 40, 40, 128, 152064, 8192, False, qkv_bias=True),
}

JOB = {
    "load_in_4bit": False, "lora_r": 0, "target_modules": (), "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1,
    "gradient_checkpointing": "none", "optim": "adamw_torch_fused", "kernels": "torch", "loss": "whole", "tiled_mlp": False,
    "dropout": 0.0, "zero_stage": 0, "offload_optimizer": False, "offload_param": False, "sequence_parallel_size": 1,
}  # fmt: skip


def _runs(source, measured, accelerator, gpus, model, max_seq_length, assumed, **job):
    """One run for each {what: number} of `measured`; fields of the Job that are not given are those of JOB."""
    given = {"accelerator": accelerator, "gpus": gpus, "model": model, "max_seq_length": max_seq_length, "assumed": assumed}
    return [{"source": source, "what": what, "published": number} | given | JOB | job for what, number in measured.items()]


def _gpt2(layers, heads, width, vocab_size, positions):
    return Dimensions("gpt2", width, 4 * width, layers, heads, heads, width // heads, vocab_size, positions, True, True, True, True, True)


def _torchtune():
    """README of pytorch/torchtune, "Optimization flags" (November 2024) and "Memory and training speed" (September 2024), with the
    recipes' configs of those commits. Everything is in bf16, adapters and their Adam moments too."""
    source = "torchtune README, Optimization flags; recipes/configs/llama3_2/3B_{method}_single_device.yaml; command below the table"
    assumed = (
        "an A100 of 80 GB (another row of the table takes 60 GiB); adapter in bf16, its Adam states too; torch.compile; LoRA as QLoRA's "
        "command, with activation offloading, which with checkpointing keeps the layers' inputs in host memory, as 'unsloth' does here; "
        "the rows of the config's Alpaca, packed, taken to be of 400 tokens (mean weighted by length)"
    )
    job = {
        "lora_r": 64, "target_modules": ("q_proj", "v_proj", "o_proj", *MLP), "per_device_train_batch_size": 2,
        "gradient_checkpointing": "unsloth", "loss": "chunked", "attended_length": 400, "adapter_bytes": 8, "counted": "torch",
    }  # fmt: skip
    for method, memory, speed in (("lora", 8.5, 8210), ("qlora", 4.6, 8035)):
        measured = {"memory GiB": memory, "tokens/s/GPU": speed}
        yield from _runs(source.format(method=method), measured, "A100", 1, LLAMA_3_3B, 4096, assumed,
                         load_in_4bit=method == "qlora", **job)  # fmt: skip

    source = "torchtune README, Memory and training speed; recipes/configs/llama3_1/8B_{method}_single_device.yaml"
    assumed = "the config's adapter (rank 8); adapter in bf16, its Adam states too; torch.compile; "
    job = {"lora_r": 8, "per_device_train_batch_size": 2, "loss": "chunked", "adapter_bytes": 8, "counted": "torch"}
    checkpointed, not_checkpointed = "checkpointing as in the config", "no checkpointing: the same run with it takes 16.2 GiB on a 4090"
    yield from _runs(source.format(method="lora"), {"memory GiB": 16.2}, "4090", 1, LLAMA_3_8B, 2048,
                     assumed + checkpointed, target_modules=("q_proj", "v_proj"), gradient_checkpointing="true", **job)  # fmt: skip
    yield from _runs(source.format(method="lora"), {"memory GiB": 30.3}, "A6000", 1, LLAMA_3_8B, 2048,
                     assumed + not_checkpointed, target_modules=("q_proj", "v_proj"), **job)  # fmt: skip
    yield from _runs(source.format(method="qlora"), {"memory GiB": 7.4}, "4090", 1, LLAMA_3_8B, 2048,
                     assumed + checkpointed, load_in_4bit=True, target_modules=ATTENTION + MLP, gradient_checkpointing="true",
                     **job)  # fmt: skip


def _mosaicml():
    """scripts/train/benchmarking/README.md of mosaicml/llm-foundry: amp_bf16, FSDP FULL_SHARD, decoupled AdamW.

    The parameters it states are those of a GPT-2 with learned positions and all biases, a vocabulary of 50,368 and as many positions as
    the row is long. Its MFU counts attention over the whole square, not the causal half, and no recomputation.
    """
    source = "MosaicML llm-foundry, scripts/train/benchmarking/README.md"
    assumed = "FSDP FULL_SHARD with fp32 weights and bf16 computation, as ZeRO-3 has with fp32 masters; no torch.compile; NVLink"
    sizes = {  # layers, heads, width: scripts/train/yamls/pretrain/mpt-*.yaml
        "125m": (12, 12, 768), "350m": (24, 16, 1024), "760m": (24, 12, 1536), "1b": (24, 16, 2048), "3b": (32, 20, 2560),
        "7b": (32, 32, 4096), "13b": (40, 40, 5120), "30b": (48, 56, 7168),
    }  # fmt: skip
    rows = (  # accelerator, size, length, micro-batch, accumulation, checkpointing, tokens/s/GPU, parameters; all on 8 GPUs
        ("H100", "760m", 2048, 24, 2, "none", 63147, 760470528),
        ("H100", "1b", 2048, 14, 1, "none", 45455, 1315950592),
        ("H100", "1b", 8192, 3, 4, "none", 29157, 1328533504),
        ("H100", "1b", 65536, 1, 2, "true", 5506, 1445974016),
        ("H100", "3b", 4096, 5, 6, "none", 20964, 2657080320),
        ("H100", "7b", 2048, 6, 1, "none", 10643, 6658859008),
        ("H100", "7b", 8192, 8, 2, "true", 6935, 6684024832),
        ("H100", "7b", 65536, 1, 2, "true", 1956, 6918905856),
        ("H100", "13b", 2048, 2, 1, "none", 4792, 12853954560),
        ("H100", "13b", 32768, 1, 3, "true", 1976, 13011240960),
        ("H100", "30b", 2048, 3, 21, "true", 2002, 29975214080),
        ("A100", "125m", 2048, 40, 2, "none", 142830, 125311488),
        ("A100", "350m", 2048, 32, 2, "none", 58782, 355985408),
        ("A100", "760m", 2048, 24, 2, "none", 32434, 760470528),
        ("A100", "1b", 2048, 14, 4, "none", 20513, 1315950592),
        ("A100", "3b", 2048, 10, 2, "none", 10811, 2651837440),
        ("A100", "7b", 2048, 6, 2, "none", 4641, 6658859008),
        ("A100", "13b", 2048, 2, 3, "none", 2262, 12853954560),
        ("A100", "30b", 2048, 3, 21, "true", 916, 29975214080),
    )
    for accelerator, size, length, batch, accumulation, checkpointing, speed, parameters in rows:
        yield from _runs(source, {"tokens/s/GPU": speed}, accelerator, 8, _gpt2(*sizes[size], 50368, length), length, assumed,
                         per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, gradient_checkpointing=checkpointing,
                         zero_stage=3, parameters=parameters)  # fmt: skip


def _llm_c():
    """scripts/run_gpt2_*.sh of karpathy/llm.c: seconds a step in the comments, -z 1 (ZeRO-1), -r 0 (nothing recomputed)."""
    assumed = "CUDA by hand, cuDNN attention; the seconds are rounded in the source"
    rows = (  # accelerator, size, (layers, heads, width), micro-batch, accumulation, seconds a step, tokens a step
        ("H100", "1558M", (48, 25, 1600), 16, 8, 2.80, 1048576),
        ("A100", "774M", (36, 20, 1280), 32, 2, 1.7, 524288),
        ("A100", "350M", (24, 16, 1024), 64, 1, 0.82, 524288),
        ("A100", "124M", (12, 12, 768), 64, 1, 0.30, 524288),
    )
    for accelerator, size, shape, batch, accumulation, seconds, tokens in rows:
        yield from _runs(f"llm.c, scripts/run_gpt2_{size}.sh", {"tokens/s/GPU": round(tokens / seconds / 8)}, accelerator, 8,
                         _gpt2(*shape, 50304, 1024), 1024, assumed, per_device_train_batch_size=batch,
                         gradient_accumulation_steps=accumulation, zero_stage=1)  # fmt: skip


def _nemo():
    """docs/performance-summary.md of NVIDIA-NeMo/Automodel (October 2025) and the configs it names: mock rows of full length."""
    source = "NeMo AutoModel, docs/performance-summary.md; examples/llm_finetune/llama3_1/llama3_1_8b_peft_benchmark.yaml"
    assumed = "H100 SXM (the table stands beside DGX-H100); no checkpointing, which the config does not name; its own Triton LoRA kernels"
    job = {
        "lora_r": 16, "target_modules": ATTENTION + MLP, "dropout": 0.1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 16
    }  # fmt: skip
    yield from _runs(source, {"tokens/s/GPU": 12473}, "H100", 1, LLAMA_3_8B, 4096, assumed, **job)
    yield from _runs(source, {"tokens/s/GPU": 14110}, "H100", 1, QWEN_25_7B, 4096, f"{assumed}; the adapter of the Llama config", **job)


def _alst():
    """Configs of Arctic Long Sequence Training, projects/sequence-parallelism/run-*.yml of snowflakedb/ArcticTraining: lengths that ran,
    Llama-3.1-8B, everything trained, batch 1, ZeRO-3, Adam on the CPU, checkpointing."""
    source = "ArcticTraining, projects/sequence-parallelism/run-{}.yml"
    assumed = (
        "the lengths are round numbers that ran, not the last that fits (beyond 500,000 on one H100 a Triton kernel failed, not the "
        "memory); Liger's fused loss as 'chunked'; FlashAttention, but sdpa where the MLP alone is tiled"
    )
    job = {"gradient_checkpointing": "true", "zero_stage": 3, "offload_optimizer": True}
    offloaded = {"gradient_checkpointing": "unsloth"}  # activation_checkpoint_cpu_offload
    one = job | {"offload_param": True}
    eight = job | {"sequence_parallel_size": 8}
    chunked = {"loss": "chunked", "kernels": "liger"}  # model.type "liger": its norms, rotary and SwiGLU too
    rows = (  # file, accelerator, GPUs, length, the Job
        ("h100-sp1-llama-8b-baseline", "H100", 1, 36_000, one),
        ("h100-sp1-llama-8b", "H100", 1, 500_000, one | chunked | offloaded | {"tiled_mlp": True}),
        ("h200-sp1-llama-8b-baseline", "H200", 1, 65_000, one),
        ("h200-sp1-llama-8b-liger", "H200", 1, 300_000, one | chunked),
        ("h200-sp1-llama-8b-liger-offload", "H200", 1, 650_000, one | chunked | offloaded),
        ("h200-sp1-llama-8b-liger-offload-tiled-mlp", "H200", 1, 1_200_000, one | chunked | offloaded | {"tiled_mlp": True}),
        ("h100-sp8-llama-8b-no-ulysses-no-liger-no-extras", "H100", 8, 32_000, job),
        ("h100-sp8-llama-8b-no-ulysses-yes-liger-no-extras", "H100", 8, 160_000, job | chunked),
        ("h100-sp8-llama-8b-no-mlp-no-act-offload", "H100", 8, 1_100_000, eight | chunked),
        ("h100-sp8-llama-8b-yes-mlp", "H100", 8, 1_200_000, eight | chunked | {"tiled_mlp": True}),
        ("h100-sp8-llama-8b-yes-act-offload", "H100", 8, 2_400_000, eight | chunked | offloaded),
        ("h100-sp8-llama-8b", "H100", 8, 3_800_000, eight | chunked | offloaded | {"tiled_mlp": True}),
    )
    for file, accelerator, gpus, length, settings in rows:
        said = f"{assumed}; one row a GPU, as the file's name says" if "no-ulysses" in file else assumed
        yield from _runs(source.format(file), {"length": length}, accelerator, gpus, LLAMA_3_8B, length, said, **settings)
    used = "the driver's count of used memory, so with the CUDA context and what the allocator holds unused; printed as GB, divided by 2^30"
    for file, accelerator, length, memory, settings in (
        ("h100-sp1-llama-8b-baseline", "H100", 32_000, 71.91, one),
        ("h200-sp1-llama-8b-baseline", "H200", 65_000, 137.36, one),
        ("h200-sp1-llama-8b-liger", "H200", 300_000, 134.96, one | chunked),
        ("h200-sp1-llama-8b-liger-offload", "H200", 650_000, 126.81, one | chunked | offloaded),
        ("h200-sp1-llama-8b-liger-offload-tiled-mlp", "H200", 1_200_000, 136.15, one | chunked | offloaded | {"tiled_mlp": True}),
    ):
        yield from _runs(source.format(file), {"memory GiB": memory}, accelerator, 1, LLAMA_3_8B, length, used, **settings)


def _ulysses():
    """Hugging Face's blog "Ulysses Sequence Parallelism" (March 2026): Qwen3-4B, everything trained by TRL's SFTTrainer, ZeRO-3, optimiser
    on the CPU, checkpointing, 8 accumulated batches of one row."""
    source = "huggingface.co/blog/ulysses-sp, Benchmarks"
    assumed = "batch 1; logits whole; the optimiser on a CPU that is not named; written GB and taken as torch's GiB (81 did not fit)"
    job = {
        "gradient_accumulation_steps": 8, "gradient_checkpointing": "true", "zero_stage": 3, "offload_optimizer": True, "counted": "torch"
    }  # fmt: skip
    four = job | {"sequence_parallel_size": 4}
    yield from _runs(source, {"memory GiB": 76.4, "tokens/s/GPU": 2436}, "H100", 1, QWEN_3_4B, 8192, assumed, **job)
    for length, memory, speed in ((8192, 23.4, 2315), (32768, 35.0, 7872), (65536, 50.5, 13396), (98304, 66.0, None)):
        measured = {"memory GiB": memory} | ({"tokens/s/GPU": round(speed / 4)} if speed else {})
        yield from _runs(source, measured, "H100", 4, QWEN_3_4B, length, assumed, **four)
    yield from _runs(source, {"length": 98304}, "H100", 4, QWEN_3_4B, 98304, assumed, too_long=131072, **four)


def _unsloth():
    """README of unslothai/unsloth, "Llama 3.1 (8B) max. context length": 4 bits, rank 32, all linear layers, batch 1, padded rows; and
    Hugging Face with FlashAttention 2 beside it."""
    source = "Unsloth README, Llama 3.1 (8B) max. context length"
    assumed = "the optimiser (8-bit AdamW, as in its notebooks) and the GPU, of which it names the memory alone"
    job = {"load_in_4bit": True, "lora_r": 32, "target_modules": ATTENTION + MLP, "optim": "adamw_8bit"}
    lengths = ((8, 2972, None), (12, 21848, 932), (16, 40724, 2551), (24, 78475, 5789), (40, 153977, 12264), (48, 191728, 15502),
               (80, 342733, 28454))  # fmt: skip
    for memory, unsloth, plain in lengths:
        yield from _runs(source, {"length": unsloth}, f"{memory}GB", 1, LLAMA_3_8B, unsloth, assumed, gradient_checkpointing="unsloth",
                         kernels="unsloth", loss="unsloth", **job)  # fmt: skip
        if plain:
            yield from _runs(f"{source} (Hugging Face + FA2)", {"length": plain}, f"{memory}GB", 1, LLAMA_3_8B, plain,
                             f"{assumed}; ordinary checkpointing, logits whole", gradient_checkpointing="true", **job)  # fmt: skip


def _qwen():
    """README of QwenLM/Qwen, "Profiling of Memory and Speed": one A100-SXM4-80G, batch 1, 8 accumulated; finetune.py and
    finetune/finetune_lora_single_gpu.sh for the adapter (rank 64, all linear layers, dropout 0.05) and checkpointing."""
    source = "Qwen README, Profiling of Memory and Speed; finetune.py"
    assumed = "checkpointing as in the script; G taken as GiB, torch's or the driver's is not said; PyTorch 2.0 and the model's own code"
    rows = (  # size, length, G, seconds an iteration of 8 rows
        ("1.8B", 2048, 11.0, 1.7), ("1.8B", 8192, 21.8, 6.8), ("7B", 2048, 23.8, 5.2), ("7B", 4096, 29.7, 10.1), ("7B", 8192, 36.6, 21.3),
        ("14B", 2048, 37.4, 8.4), ("14B", 4096, 42.5, 17.0), ("14B", 8192, 55.2, 36.0),
    )  # fmt: skip
    for size, length, memory, seconds in rows:
        measured = {"memory GiB": memory, "tokens/s/GPU": round(8 * length / seconds)}
        yield from _runs(source, measured, "A100", 1, QWEN_1[size], length, assumed, lora_r=64, target_modules=ATTENTION + MLP,
                         dropout=0.05, gradient_accumulation_steps=8, gradient_checkpointing="true")  # fmt: skip


def _longlora():
    """Plain LoRA beside LongLoRA (arXiv 2309.12307); settings from fine-tune.py and ds_configs/stage2.json of dvlab-research/LongLoRA."""
    source = "LongLoRA, Table 12, plain LoRA at 8192; fine-tune.py, ds_configs/stage2.json"
    assumed = "the number as others quote the table, which was not read; GB taken as GiB; logits whole"
    return _runs(source, {"memory GiB": 25.7}, "A100", 8, LLAMA_2_7B, 8192, assumed, lora_r=8, target_modules=ATTENTION,
                 gradient_accumulation_steps=8, gradient_checkpointing="true", zero_stage=2, reduce_bucket_size=1e9,
                 overlap_comm=True)  # fmt: skip


RUNS = [
    run
    for source in (_torchtune, _mosaicml, _llm_c, _nemo, _alst, _ulysses, _unsloth, _qwen, _longlora)
    for run in source()
]  # fmt: skip

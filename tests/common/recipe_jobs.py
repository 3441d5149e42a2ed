"""The five recipes as jobs, with the constants of their documents and the GPUs they are meant for."""

from common.dimensions import ATTENTION, MLP, read
from common.job import Job, Zero

ALL_LINEAR = ATTENTION + MLP
UNSLOTH = {"kernels": "unsloth", "loss": "unsloth"}

JOBS = {
    "mtg_full_32b": ("8xH200", Job(
        model=read("qihoo360/TinyR1-32B"), max_seq_length=2048, per_device_train_batch_size=2, gradient_accumulation_steps=4,
        gradient_checkpointing="true", num_train_epochs=3, loss="unsloth", zero=Zero(3, alone=True, overlap_comm=True),
    )),
    "qwen25_7b_lora": ("1x4090", Job(
        model=read("Qwen/Qwen2.5-7B-Instruct"), max_seq_length=2048, per_device_train_batch_size=2, gradient_accumulation_steps=8,
        gradient_checkpointing="unsloth", optim="adamw_8bit", lora_r=16, lora_alpha=32, target_modules=ALL_LINEAR, load_in_4bit=True,
        num_train_epochs=3, **UNSLOTH,
    )),
    "qwen25_14b_lora": ("1xA40", Job(
        model=read("Qwen/Qwen2.5-14B-Instruct"), max_seq_length=2048, per_device_train_batch_size=1, gradient_accumulation_steps=16,
        gradient_checkpointing="unsloth", optim="adamw_8bit", lora_r=32, lora_alpha=64, target_modules=ALL_LINEAR, **UNSLOTH,
    )),
    "qwen3_4b_longctx": ("4xH100", Job(
        model=read("Qwen/Qwen3-4B-Instruct-2507"), max_seq_length=262_144, gradient_accumulation_steps=8, gradient_checkpointing="unsloth",
        lora_r=64, lora_alpha=32, target_modules=ALL_LINEAR, tiled_mlp=True, zero=Zero(2, overlap_comm=True), **UNSLOTH,
    )),
    "gpt_pretrain": ("8xH100", Job(
        model=read("gpt-1.2B"), max_seq_length=2048, per_device_train_batch_size=8, gradient_accumulation_steps=2, dropout=0.1,
        loss="gpt", pretraining=True, packing=True, train_batch_size=128, zero=Zero(2, alone=True, overlap_comm=True),
    )),
    "llama32_qlora": ("RTX 3060", Job(
        model=read("meta-llama/Llama-3.2-3B-Instruct"), max_seq_length=2048, per_device_train_batch_size=2, gradient_accumulation_steps=4,
        gradient_checkpointing="unsloth", optim="paged_adamw_8bit", lora_r=16, lora_alpha=32, target_modules=ALL_LINEAR, load_in_4bit=True,
        num_train_epochs=3, zero=Zero(2, overlap_comm=True), **UNSLOTH,
    )),
}  # fmt: skip

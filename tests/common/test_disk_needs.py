"""Bytes on disk as predicted against those of a real run; the tokenizer is measured apart."""

import pytest

from common import activations, disk_needs, model_states
from common.dimensions import ATTENTION, KNOWN, MLP, read
from common.run_directory import read_json

TARGETS = (*ATTENTION, *MLP)
LLAMA = KNOWN["meta-llama/Llama-3.2-3B-Instruct"]


def size(directory, pattern="*"):
    return sum(file.stat().st_size for file in directory.glob(pattern))


@pytest.fixture
def found(tiny_run):
    """(run directory, dimensions of its base, trained parameters, bytes of the tokenizer)."""
    run = tiny_run.run
    model = read(str(run.merged_model))
    return run, model, model.lora_parameters(16, TARGETS), size(run.final_model, "tokenizer*") + size(run.final_model, "chat_template*")


def test_every_checkpoint_of_a_run(found):
    run, _, trained, tokenizer = found
    predicted = disk_needs.checkpoint_bytes(trained, "adamw_torch_fused", 0, tokenizer_bytes=tokenizer)  # a CPU has no 8-bit AdamW
    whole = run.whole_checkpoints()
    assert len(whole) == 3
    for _, checkpoint in whole:
        assert size(checkpoint) == pytest.approx(predicted, rel=0.1)
        assert size(checkpoint, "optimizer.pt") == pytest.approx(model_states.moment_bytes(trained, "adamw_torch_fused"), rel=0.05)


def test_the_models_of_a_run(found):
    run, model, trained, tokenizer = found
    assert size(run.final_model) == pytest.approx(disk_needs.final_model_bytes(trained, tokenizer_bytes=tokenizer), rel=0.1)
    assert size(run.merged_model) == pytest.approx(disk_needs.merged_model_bytes(model, tokenizer), rel=0.1)


def test_the_tokenised_cache_of_a_run(found, tmp_path):
    """What `datasets` writes of a column of ids and one of labels, for the lengths of the run's own rows."""
    from datasets import Dataset, Features, List, Value

    statistics = read_json(found[0].data)["splits"]["train"]
    mean = round(statistics["tokens"] / statistics["rows"])
    features = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32")), "length": Value("int32")})
    row = {"input_ids": [1] * mean, "labels": [1] * mean, "length": mean}
    Dataset.from_list([row] * statistics["rows"], features=features).save_to_disk(tmp_path)
    assert size(tmp_path, "*.arrow") == pytest.approx(disk_needs.cache_bytes(statistics["tokens"]), rel=0.1)


def test_the_readmes_figures():
    """0.17 GB a checkpoint of the QLoRA recipe, five of them at the worst moment; 14 bytes a parameter of a model trained under ZeRO-3."""
    trained = LLAMA.lora_parameters(16, TARGETS)
    one = disk_needs.checkpoint_bytes(trained, "paged_adamw_8bit", 0)
    assert one == pytest.approx(0.17e9, rel=0.05)
    assert disk_needs.kept_bytes(one, 3) == 5 * one
    whole = KNOWN["qihoo360/TinyR1-32B"].parameters()
    assert disk_needs.checkpoint_bytes(whole, "adamw_torch_fused", 3, adapter=False, gpus=8) == pytest.approx(14 * whole, rel=0.001)


def test_on_several_gpus_the_recipes_checkpoint_holds_the_tied_output_layer_too():
    trained = LLAMA.lora_parameters(16, TARGETS)
    plain = disk_needs.checkpoint_bytes(trained, "paged_adamw_8bit", 2, gpus=8)
    real = disk_needs.checkpoint_bytes(trained, "paged_adamw_8bit", 2, gpus=8, model=LLAMA, load_in_4bit=True)
    assert real - plain == pytest.approx(2 * 128256 * 3072 + LLAMA.linear_parameters() / 64, rel=0.01)


def test_host_memory_is_that_of_every_rank():
    kept = activations.host_bytes(LLAMA, 2 * 2048, "unsloth")
    assert kept == 28 * 2**25  # 4096 x 3072 in bf16 are 25 MB, and pinned memory comes in powers of two
    offloaded = sum(model_states.offloaded_bytes(LLAMA.parameters(), "adamw_torch_fused", 3, 8, LLAMA).values())
    assert disk_needs.host_bytes(8, 4e9, kept, offloaded) == pytest.approx(8 * (4e9 + kept) + 18 * LLAMA.parameters())

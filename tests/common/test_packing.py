"""Rows packed into one by TRL and Unsloth on a GPU must not see each other. A CPU groups rows by length instead of packing."""

import pytest


@pytest.mark.gpu
@pytest.mark.parametrize("trained", ["adapter", "everything"])
def test_packed_neighbours_do_not_see_each_other(tmp_path, trained):
    import unsloth  # noqa: F401, I001 - before what it patches
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from common import chat_text, full_training, full_weights, hub, models

    args = SFTConfig(output_dir=str(tmp_path), packing=True, max_length=64, per_device_train_batch_size=1, bf16=True, report_to="none")
    if trained == "adapter":
        model, tokenizer = models.load(hub.find("tiny-llama"), 64, load_in_4bit=False)
        model = models.add_lora(model, 8, 16, 0.0, ["q_proj", "v_proj"])
    else:
        name = hub.find("tiny-r1")
        model, tokenizer = full_weights.load(name, torch.bfloat16, 64), chat_text.load_tokenizer(name)
    first, second = list(range(10, 34)), list(range(40, 70))
    rows = Dataset.from_dict({"input_ids": [first, second], "labels": [first, second]})
    make = SFTTrainer if trained == "adapter" else full_training.FullFineTuning
    trainer = make(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    ids = batch["input_ids"][0].tolist()
    assert len(ids) == len(first) + len(second), "both rows are in one"
    place = ids.index(second[0])
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    neighbour = [i for i in range(len(ids)) if not place <= i < place + len(second)]
    changed["input_ids"][0, neighbour] += 100
    with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
        a, b = (trainer.model(**{k: v for k, v in one.items() if k != "labels"}).logits[0] for one in (batch, changed))
    mine = slice(place, place + len(second))
    assert torch.equal(a[mine], b[mine]) and not torch.equal(a[neighbour], b[neighbour])

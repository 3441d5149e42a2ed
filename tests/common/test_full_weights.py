"""All weights of a model saved in shards, read back, checked; divided among two ranks by ZeRO-3, with each half of it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM
from user_commands import ROOT

from common import child_process, full_weights, saved_logits
from common.refusal import Refusal

SIZES = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip


def small_model(tied=False, dtype=torch.bfloat16, **sizes):
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES | sizes, tie_word_embeddings=tied, rope_theta=1e6)).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.config.architectures = ["Qwen2ForCausalLM"]
    full_weights.keep_positions_in_fp32(model)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_saved_in_shards_is_what_plain_transformers_load(tmp_path, tied):
    model = small_model(tied)
    model.config.use_cache = False  # as training leaves it
    full_weights.save(model, tmp_path, shard_bytes=60_000)
    files = sorted(tmp_path.glob("*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(files) > 3 and {path.name for path in files} == set(index["weight_map"].values())
    assert all(path.stat().st_size < 63_000 or len(load_file(path)) == 1 for path in files)
    assert index["metadata"]["total_size"] == sum(p.numel() * 2 for p in model.parameters())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == torch.bfloat16 and loaded.config.use_cache and loaded.config.tie_word_embeddings is tied
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert full_weights.check(model, tmp_path) == len(index["weight_map"])
    assert ("lm_head.weight" in index["weight_map"]) is not tied


def test_one_file_where_one_suffices_in_the_dtype_asked_for(tmp_path):
    full_weights.save(small_model(dtype=torch.float32), tmp_path, torch.bfloat16)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "1 tensors differ, the first model.norm.weight, which has the shape of none"),
        (lambda tensors: tensors.update({"lm_head.weight": torch.zeros(0)}), r"lm_head.weight, which has the shape \(0,\) there"),
        (lambda tensors: tensors.update(stray=torch.zeros(1)), r"the first stray, which has the shape \(1,\) there and of none in"),
    ],
)
def test_a_saved_model_that_is_not_whole_is_refused(tmp_path, change, said):
    model = small_model()
    full_weights.save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(Refusal, match=said):
        full_weights.check(model, tmp_path)


def test_a_file_cut_short_is_refused(tmp_path):
    model = small_model()
    full_weights.save(model, tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Refusal, match="cut short"):
        full_weights.check(model, tmp_path)


def test_saved_weights_are_read_back(tmp_path):
    model, other = small_model(), small_model()
    full_weights.save(model, tmp_path, shard_bytes=60_000)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    full_weights.read(other, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_tensor_that_did_not_move_is_named(tmp_path):
    model = small_model(dtype=torch.float32)
    before = full_weights.checksums(model)
    for name, parameter in model.named_parameters():
        if name != "lm_head.weight":
            parameter.data[0] += 1e-7
    with pytest.raises(full_weights.Unmoved, match="1 of 39 tensors have not moved after 3 steps, lm_head.weight the first"):
        full_weights.require_moved(model, before, 3)
    last = model.lm_head.weight.data[-1, -1:]
    last.copy_(torch.nextafter(last, last + 1))  # one bit of one number
    assert full_weights.require_moved(model, before, 3) == 39


def test_training_in_bf16_without_masters_is_refused():
    with pytest.raises(full_weights.Unmoved, match="is trained in torch.bfloat16, in which updates as small as these round away"):
        full_weights.checksums(small_model())


def test_a_saved_model_that_says_something_else_is_refused(tmp_path, warm, monkeypatch):
    monkeypatch.setattr(child_process, "subprocess", warm.modules())
    model = small_model()
    full_weights.save(model, tmp_path)
    rows = [list(range(40)), list(range(100, 120))]
    assert saved_logits.compare(model, tmp_path, rows, "cpu")["relative_rms"] < 1e-6
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"][::2] *= 3
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refusal, match=r"differ from the trained model's by [\d.]+% of their spread \(at most 5%\) and agree on \d+%"):
        saved_logits.compare(model, tmp_path, rows, "cpu")


def test_too_little_memory_leaves_the_comparison_out(tmp_path, monkeypatch):
    model = small_model()
    full_weights.save(model, tmp_path)
    monkeypatch.setattr(saved_logits.hardware, "free_memory_gib", lambda: 1e-4)
    assert saved_logits.compare(model, tmp_path, [[1, 2]], "cpu") is None


def test_two_ranks_hold_half_of_it_each_and_save_it_together(tmp_path, warm):
    model = small_model(hidden_size=512, intermediate_size=2048, num_hidden_layers=12, vocab_size=2_000)  # 94 MB, no tensor above 2
    model.save_pretrained(tmp_path / "model", max_shard_size="30MB")
    size = sum(p.numel() * 2 for p in model.parameters())
    script = [str(ROOT / "tests/common/divided_model.py"), str(tmp_path / "model"), str(tmp_path / "saved")]
    code, said = warm.call(script, tmp_path, ranks=2)
    assert code == 0, said
    ranks = [json.loads(line.removeprefix("FOUND ")) for line in said.splitlines() if line.startswith("FOUND ")]
    assert len(ranks) == 2
    for found in ranks:
        assert found["held"] == pytest.approx(size / 2, rel=0.02)
        assert found["grown"] < 0.7 * size  # at its peak; a rank that had held all of it would have grown by more
        assert set(found["positions"]) == {"torch.float32"} and found["names"] == len(model.state_dict())
        assert "it was not gathered" in found["refused"]
        assert found["sum"] == pytest.approx(sum(p.double().abs().sum().item() for p in model.parameters()), rel=1e-9)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_what_cannot_be_written_is_an_error_in_every_rank(tmp_path, monkeypatch):
    """Of one process here; ranks hear of each other's before they wait for each other's tensors."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="model.safetensors cannot be written: .*No space left on device"):
        full_weights.save(small_model(), tmp_path)


def test_a_directory_that_lacks_weights_is_not_read(tmp_path):
    with pytest.raises(Refusal, match="39 tensors differ"):
        full_weights.read(small_model(), tmp_path)

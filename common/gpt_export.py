"""Our GPT as Hugging Face's GPT2LMHeadModel and back: the same numbers, matrices of linear layers transposed, no filling rows."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from common import models
from common.refusal import Refusal

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # GPT-2's Conv1D is [in, out]
NEAR = 2e-5  # logits in fp32, as a share of their largest: sums in another order


def config(shape, end_of_text, dtype=torch.bfloat16):
    """The `GPT2Config` of a `gpt.Shape`. end_of_text: id of the token that ends documents, where generation begins and ends."""
    return GPT2Config(
        vocab_size=shape.vocab_size, n_positions=shape.n_positions, n_embd=shape.n_embd, n_layer=shape.n_layer, n_head=shape.n_head,
        activation_function="gelu", resid_pdrop=shape.dropout, embd_pdrop=shape.dropout, attn_pdrop=shape.dropout,
        bos_token_id=end_of_text, eos_token_id=end_of_text, pad_token_id=end_of_text, dtype=dtype, architectures=["GPT2LMHeadModel"],
    )  # fmt: skip


def to_hugging_face(state, vocab_size):
    """{GPT-2's name: tensor} of our state dict."""
    found = {f"transformer.{name}": tensor.t() if name.endswith(TRANSPOSED) else tensor for name, tensor in state.items()}
    found["transformer.wte.weight"] = found["transformer.wte.weight"][:vocab_size]
    return {name: tensor.contiguous() for name, tensor in found.items()}


def from_hugging_face(state, padded_vocab_size):
    """Our state dict of GPT-2's; filling rows are zero."""
    ours = {name.removeprefix("transformer."): tensor for name, tensor in state.items() if name != "lm_head.weight"}
    ours = {name: tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor for name, tensor in ours.items()}
    words = ours["wte.weight"]
    ours["wte.weight"] = torch.cat([words, words.new_zeros(padded_vocab_size - len(words), words.shape[1])])
    return ours


def save(state, shape, directory, end_of_text):
    """Write config.json and model.safetensors (in the tensors' own dtype) of our state dict, as `GPT2LMHeadModel` reads them."""
    tensors = to_hugging_face(state, shape.vocab_size)
    dtype = tensors["transformer.wte.weight"].dtype
    with torch.device("meta"):
        model = GPT2LMHeadModel(config(shape, end_of_text, dtype)).to(dtype)
    model.save_pretrained(directory, state_dict=tensors)
    for file in Path(directory).glob("*.safetensors"):
        file.chmod((Path(directory) / "config.json").stat().st_mode)  # safetensors lets nobody else read its files


def check(model, directory, input_ids):
    """The largest difference between the logits of our model and of what plain transformers reads from `directory`, both in fp32.

    input_ids: int64 [rows, length]. Returns it as a share of the largest logit; raises `Refusal` above `NEAR`, or where a tensor is not
    finite: such a model is not passed on.
    """
    if not models.is_finite(directory):
        raise Refusal(f"{directory} holds NaN or infinite numbers; resume from an earlier checkpoint with a lower LEARNING_RATE")
    theirs = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()
    ours = type(model)(model.shape).eval()
    ours.load_state_dict({name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()})
    input_ids = input_ids.cpu()
    with torch.no_grad():
        expected, found = ours(input_ids)["logits"], theirs(input_ids, attention_mask=torch.ones_like(input_ids)).logits
    distance = ((expected - found).abs().max() / expected.abs().max()).item()
    if not distance <= NEAR:
        raise Refusal(f"the logits of {directory} differ from the trained model's by {distance:.2g} of the largest; it was not saved right")
    return distance


def samples(directory, beginnings, seed, max_new_tokens=120):
    """[{"beginning", "text"}, …]: what the saved model goes on with, drawn at temperature 0.8 from its 50 likeliest tokens."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()
    found = []
    for beginning in beginnings:
        ids = [model.config.bos_token_id, *tokenizer(beginning, add_special_tokens=False)["input_ids"]]
        ids = torch.tensor([ids[-model.config.n_positions // 2 :]])
        torch.manual_seed(seed)
        longest = min(max_new_tokens, model.config.n_positions - ids.shape[1])
        with torch.no_grad():
            written = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=longest, do_sample=True, temperature=0.8, top_k=50
            )  # fmt: skip
        found.append({"beginning": beginning, "text": tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)})
    return found

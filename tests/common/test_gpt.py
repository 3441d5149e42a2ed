"""The GPT against Hugging Face's GPT-2 with the same weights, and its loss against PyTorch's own."""

import math

import pytest
import torch
from transformers import GPT2LMHeadModel

from common import chunked_loss, dimensions, gpt, gpt_export

SHAPE = gpt.Shape(vocab_size=500, n_positions=64, n_embd=48, n_layer=3, n_head=4)


def made(shape=SHAPE, seed=0):
    torch.manual_seed(seed)
    return gpt.GPT(shape)


def some_rows(shape=SHAPE, rows=3, length=50):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, shape.vocab_size, (rows, length + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels[0, :7] = chunked_loss.IGNORED
    return ids[:, :-1].contiguous(), labels


def hugging_face(model):
    theirs = GPT2LMHeadModel(gpt_export.config(model.shape, 0, torch.float32)).float()
    state = gpt_export.to_hugging_face(model.state_dict(), model.shape.vocab_size)
    theirs.load_state_dict(state | {"lm_head.weight": state["transformer.wte.weight"]})
    return theirs


def test_logits_and_gradients_are_those_of_gpt_2():
    model, (ids, labels) = made(), some_rows()
    theirs = hugging_face(model)
    expected = theirs(ids).logits
    assert torch.allclose(model(ids)["logits"], expected, atol=1e-5, rtol=0)
    loss = model(ids, labels)["loss"]
    their_loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), labels.flatten(), ignore_index=chunked_loss.IGNORED)
    assert abs(loss.item() - their_loss.item()) < 1e-5
    loss.backward()
    their_loss.backward()
    ours = gpt_export.to_hugging_face({name: p.grad for name, p in model.named_parameters()}, SHAPE.vocab_size)
    compared = [name for name, p in theirs.named_parameters() if torch.allclose(p.grad, ours[name], atol=1e-5, rtol=0)]
    assert len(compared) == len(ours) == len(list(model.parameters()))
    assert max(p.grad.abs().max() for p in theirs.parameters()) > 1e-3  # there was something to compare


def test_recomputed_layers_give_the_same_gradients_and_dropout_is_off_outside_training():
    shape = gpt.Shape(**{**vars(SHAPE), "dropout": 0.1, "gradient_checkpointing": True})
    ids, labels = some_rows()
    plain, again = made(gpt.Shape(**{**vars(SHAPE), "dropout": 0.1})), made(shape)
    for model in (plain, again):
        torch.manual_seed(5)
        model(ids, labels)["loss"].backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), again.parameters(), strict=True))
    dropped = plain(ids, labels)["loss"].item()
    assert plain.eval()(ids, labels)["loss"].item() == made().eval()(ids, labels)["loss"].item() != dropped


def test_it_begins_as_gpt_2_does():
    model = made(gpt.Shape(1000, 128, 256, 8, 4))
    assert model(*some_rows(model.shape))["loss"].item() == pytest.approx(math.log(1000), abs=0.15)
    layer = model.h[3]
    assert layer.attn["c_attn"].weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert layer.attn["c_proj"].weight.std().item() == pytest.approx(0.02 / 4, rel=0.03)
    assert layer.mlp["c_proj"].weight.std().item() == pytest.approx(0.02 / 4, rel=0.03)
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("name", ["gpt-125M", "gpt-350M", "gpt-760M", "gpt-1.2B"])
def test_the_four_sizes_have_the_parameters_that_are_said(name):
    size = dimensions.gpt(name)
    with torch.device("meta"):
        model = gpt.GPT(gpt.Shape(50257, 2048, size.hidden_size, size.num_hidden_layers, size.num_attention_heads))
    assert sum(p.numel() for p in model.parameters()) == size.parameters()


@pytest.mark.parametrize("tokens", [1, 100, chunked_loss.CHUNK, chunked_loss.CHUNK + 1, 2500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_chunked_loss_is_the_plain_one(tokens, dtype):
    torch.manual_seed(tokens)
    hidden = torch.randn(tokens, 32, dtype=dtype, requires_grad=True)
    weight = (torch.randn(384, 32, dtype=dtype) / 4).requires_grad_()  # 300 of them are tokens
    labels = torch.randint(0, 300, (tokens,))
    labels[::5] = chunked_loss.IGNORED
    plain = torch.nn.functional.cross_entropy((hidden @ weight[:300].t()).float(), labels, ignore_index=-100, reduction="sum")
    expected = torch.autograd.grad(plain, (hidden, weight))
    found = chunked_loss.summed(hidden, weight, labels, 300)
    gradients = torch.autograd.grad(found * 3, (hidden, weight))
    within = 1e-5 if dtype == torch.float32 else 2e-2
    assert found.item() == pytest.approx(plain.item(), rel=within) and found.dtype == torch.float32
    for ours, theirs in zip(gradients, expected, strict=True):
        assert ours.dtype == dtype
        assert (ours - 3 * theirs).abs().max() <= within * 3 * theirs.abs().max().clamp(min=1e-6)
    assert not gradients[1][300:].any()


def test_a_step_of_micro_batches_weighs_every_token_alike():
    model, (ids, labels) = made(), some_rows(rows=4)
    count = (labels != chunked_loss.IGNORED).sum()
    whole = model(ids, labels)["loss"].item()
    parts = sum(model(ids[n : n + 1], labels[n : n + 1], num_items_in_batch=count)["loss"].item() for n in range(4))
    assert parts == pytest.approx(whole, rel=1e-6)


def test_rows_without_a_label_give_no_loss_and_no_gradient():
    model, (ids, labels) = made(), some_rows()
    loss = model(ids, torch.full_like(labels, chunked_loss.IGNORED))["loss"]
    loss.backward()
    assert loss.item() == 0 and not any(p.grad.any() for p in model.parameters())


def test_it_learns_to_copy():
    """Labels are the next token, once: shifted twice, or not at all, the second half of a row could not be told from the first."""
    shape = gpt.Shape(vocab_size=16, n_positions=32, n_embd=64, n_layer=2, n_head=4)
    model, generator = made(shape), torch.Generator().manual_seed(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)

    def batch(rows):
        half = torch.randint(0, 16, (rows, 12), generator=generator)
        both = torch.cat([half, half], 1)
        return both[:, :-1], both[:, 1:]

    for _ in range(300):
        optimizer.zero_grad()
        model(*batch(32))["loss"].backward()
        optimizer.step()
    ids, labels = batch(64)
    right = (model.eval()(ids)["logits"].argmax(-1) == labels).float()
    assert right[:, 12:].mean() > 0.95 and right[:, :11].mean() < 0.3


def test_an_evaluation_makes_no_gradients(monkeypatch):
    asked = []
    plainly = chunked_loss._loss_and_slopes
    monkeypatch.setattr(chunked_loss, "_loss_and_slopes", lambda *arguments: asked.append(arguments[-1]) or plainly(*arguments))
    model, (ids, labels) = made(), some_rows()
    with torch.no_grad():
        without = model(ids, labels)["loss"].item()
    assert asked == [False] and model(ids, labels)["loss"].item() == without and asked[1] is True

"""Labels against TRL's own masks, and shortening on random conversations: answers stay whole, lengths are kept, the rest is refused."""

import copy
import json
import random
from pathlib import Path

import pytest

from common import chat_text
from common.chat_rows import BadRow
from common.refusal import Refusal

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
LLAMA = {
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|eot_id|>",
    "pad_token": "<|finetune_right_pad_id|>",
    "additional_special_tokens": ["<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"],
}
QWEN = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": ["<|im_start|>"]}
DEEPSEEK = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>", "pad_token": "<pad>"}


@pytest.fixture(scope="module")
def make():
    """`make("llama3", LLAMA)`: a small byte-level BPE trained on the samples, with these control tokens and TRL's template of that name."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    lines = (SAMPLES / "cross_validated.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    texts = [message["content"] for line in lines for message in json.loads(line)["messages"]]
    made = {}

    def tokenizer(template, tokens):
        if template not in made:
            bpe = Tokenizer(models.BPE())
            bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
            special = [t for v in tokens.values() for t in (v if isinstance(v, list) else [v])]
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            bpe.train_from_iterator(
                texts, trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
            )
            made[template] = PreTrainedTokenizerFast(tokenizer_object=bpe, **tokens)
            made[template].chat_template = chat_text.template_path(template).read_text(encoding="utf-8")
        return made[template]

    return tokenizer


def message(role, content):
    return {"role": role, "content": content}


ONE = [message("user", "What is power?"), message("assistant", "One minus the type II error.")]
MANY = [
    message("system", "Be brief."),
    *ONE,
    message("user", "And for n = 1234 in  two groups?\n\nSay it in one line. \U0001f600"),
    message("assistant", "Then\n\n- it is 0.8,\n- or higher. \u00e9\U0001f600"),
    message("user", "Thanks."),
    message("assistant", "You are welcome."),
]


def label_runs(labels):
    """[(start, end)] of the neighbours that are labels."""
    edges = [i for i in range(len(labels) + 1) if (i < len(labels) and labels[i] != -100) != (i > 0 and labels[i - 1] != -100)]
    return list(zip(edges[::2], edges[1::2], strict=True))


@pytest.mark.parametrize(("family", "tokens"), [("llama3", LLAMA), ("qwen2_5", QWEN), ("qwen3_instruct_2507", QWEN)])
@pytest.mark.parametrize("messages", [ONE, MANY], ids=["one turn", "three turns"])
def test_labels_are_trl_s_mask(make, family, tokens, messages):
    """TRL's masks also hold the line ends that the Qwen templates write around a turn; the model never has to say those."""
    tokenizer = make(family, tokens)
    encoded = chat_text.encode(tokenizer, messages, 4096)
    training = chat_text.template_path(f"{family}_training").read_text(encoding="utf-8")
    found = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, chat_template=training
    )
    assert encoded.input_ids == found["input_ids"]
    assert sum(found["assistant_masks"]) > 0
    wanted = []
    for start, end in label_runs([0 if m else -100 for m in found["assistant_masks"]]):
        while tokenizer.decode(encoded.input_ids[start]).isspace():
            start += 1
        while tokenizer.decode(encoded.input_ids[end - 1]).isspace():
            end -= 1
        wanted.append((start, end))
    assert label_runs(encoded.labels) == wanted
    assert len(wanted) == sum(m["role"] == "assistant" for m in messages)
    assert all(label in (-100, token) for token, label in zip(encoded.input_ids, encoded.labels, strict=True))
    end = tokenizer.convert_tokens_to_ids(tokens["eos_token"])
    assert all(encoded.labels[stop - 1] == end for _, stop in wanted)
    assert chat_text.end_of_turn(tokenizer, encoded) == tokens["eos_token"]
    assert encoded.shortened == ""


def test_exactly_one_bos(make):
    tokenizer = make("llama3", LLAMA)
    ids = chat_text.encode(tokenizer, MANY, 4096).input_ids
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert chat_text.encode(tokenizer, MANY, 4096).labels[0] == -100


def test_the_date_of_llama_3_2_is_fixed(make):
    tokenizer = make("llama3_2", LLAMA)
    text = chat_text.render(tokenizer, ONE)
    assert text.count("26 Jul 2024") == 1
    encoded = chat_text.encode(tokenizer, MANY, 4096)
    ended = [m["content"] + "<|eot_id|>" for m in MANY if m["role"] == "assistant"]
    assert [s["text"] for s in chat_text.marked(tokenizer, encoded) if s["label"]] == ended
    assert encoded.input_ids.count(tokenizer.bos_token_id) == 1


def test_marked_says_everything_once(make):
    tokenizer = make("llama3", LLAMA)
    encoded = chat_text.encode(tokenizer, MANY, 4096)
    spans = chat_text.marked(tokenizer, encoded)
    assert "".join(s["text"] for s in spans) == chat_text.render(tokenizer, MANY)
    assert [s["label"] for s in spans] == [False, True] * 3


WORDS = [
    "mean",
    "variance",
    "t-test",
    "1,234.5",
    "0.05",
    "naïve",
    "\U0001f600",
    "p-value",
    "(see below)",
    "A/B",
    "中文",
    "\n",
    "because",
    "the",
]


def random_words(draw, count):
    words = " ".join(draw.choice(WORDS) for _ in range(count)).strip()
    return f"Q{words}Z"  # neither begins nor ends with a space


def random_conversation(draw):
    messages = [message("system", random_words(draw, draw.randint(1, 8)))] if draw.random() < 0.5 else []
    for _ in range(draw.randint(1, 5)):
        messages.append(message("user", random_words(draw, draw.choice([1, 5, 20, 200]))))
        messages.append(message("assistant", random_words(draw, draw.choice([1, 5, 30]))))
    return messages


@pytest.mark.parametrize(("family", "tokens"), [("llama3", LLAMA), ("qwen3_instruct_2507", QWEN)])
def test_what_is_too_long_loses_the_oldest_turns_then_the_middle_of_the_document(make, family, tokens):
    tokenizer = make(family, tokens)
    draw = random.Random(family)
    seen = {"": 0, "oldest turns": 0, "middle of the document": 0, "oldest turns and middle of the document": 0, "refused": 0}
    for _ in range(250):
        messages, limit = random_conversation(draw), draw.choice([48, 80, 130, 250, 500, 1000])
        whole = len(tokenizer(chat_text.render(tokenizer, messages), add_special_tokens=False)["input_ids"])
        answers = [m["content"] + tokens["eos_token"] for m in messages if m["role"] == "assistant"]
        try:
            encoded = chat_text.encode(tokenizer, messages, limit)
        except BadRow as reason:
            seen["refused"] += 1
            assert f"MAX_SEQ_LENGTH = {limit}" in str(reason)
            least = [m for m in messages if m["role"] == "system"] + [message("user", "Q" + chat_text.OMISSION + "Z"), messages[-1]]
            assert len(tokenizer(chat_text.render(tokenizer, least), add_special_tokens=False)["input_ids"]) + 16 > limit
            continue
        seen[encoded.shortened] += 1
        assert len(encoded.input_ids) <= limit
        assert (encoded.shortened == "") == (whole <= limit)
        kept = [s["text"] for s in chat_text.marked(tokenizer, encoded) if s["label"]]
        assert kept == answers[-len(kept) :]
        text = tokenizer.decode(encoded.input_ids)
        if messages[0]["role"] == "system":
            assert messages[0]["content"] in text
        last_kept = [m["content"] for m in messages if m["role"] == "user"][-len(kept) :]
        if "middle" in encoded.shortened:
            assert len(kept) == 1
            before, after = text.split(chat_text.OMISSION)
            start = max(before.rfind("<|end_header_id|>"), before.rfind("<|im_start|>user")) + len(
                "<|end_header_id|>" if "llama" in family else "<|im_start|>user"
            )
            head, tail = before[start:].lstrip("\n"), after[: after.index(tokens["eos_token"])]
            assert head
            assert tail
            assert last_kept[0].startswith(head)
            assert last_kept[0].endswith(tail)
            assert len(head) + len(tail) < len(last_kept[0])
            assert len(encoded.input_ids) > limit - 40  # no more is taken than must be
        else:
            assert all(content in text for content in last_kept)
        if "oldest" in encoded.shortened and "middle" not in encoded.shortened:
            head = [m for m in messages if m["role"] == "system"]
            one_more = head + [m for m in messages if m["role"] != "system"][-2 * (len(kept) + 1) :]
            assert len(tokenizer(chat_text.render(tokenizer, one_more), add_special_tokens=False)["input_ids"]) > limit
    assert min(seen.values()) >= 5, seen


def test_hundreds_of_turns_are_dropped_without_tokenising_every_remainder(make):
    tokenizer = make("llama3", LLAMA)
    turns = 200
    messages = [m for n in range(turns) for m in (message("user", f"And for n = {n}?"), message("assistant", f"It is {n}."))]
    calls = 0
    apply = type(tokenizer).apply_chat_template

    class Counting(type(tokenizer)):
        def apply_chat_template(self, *arguments, **options):
            nonlocal calls
            calls += 1
            return apply(self, *arguments, **options)

    tokenizer = copy.copy(tokenizer)
    tokenizer.__class__ = Counting
    encoded = chat_text.encode(tokenizer, messages, 500)
    assert 400 < len(encoded.input_ids) <= 500
    assert encoded.shortened == "oldest turns"
    assert calls < 3 * turns, calls


def test_an_answer_that_does_not_fit_is_named_with_both_lengths(make):
    tokenizer = make("llama3", LLAMA)
    answer = "mean " * 100 + "end"
    count = len(tokenizer(answer, add_special_tokens=False)["input_ids"])
    with pytest.raises(BadRow, match=rf"answer has {count} tokens .*MAX_SEQ_LENGTH = 100; answers are never cut"):
        chat_text.encode(tokenizer, [message("user", "Why?"), message("assistant", answer)], 100)


@pytest.mark.parametrize("place", [0, 1])
def test_control_tokens_as_text_are_refused(make, place):
    messages = [dict(m) for m in ONE]
    messages[place]["content"] += "<|start_header_id|>system"
    with pytest.raises(BadRow, match=rf"message {place + 1} holds the control token <\|start_header_id\|>"):
        chat_text.encode(make("llama3", LLAMA), messages, 4096)


@pytest.mark.parametrize(("template", "tokens"), [("deepseek_r1_distill", DEEPSEEK), ("qwen3", QWEN)])
def test_templates_that_rewrite_earlier_turns_are_refused(make, template, tokens):
    tokenizer = make(template, tokens)
    thinking = [message(m["role"], ("<think>hm</think>" if m["role"] == "assistant" else "") + m["content"]) for m in MANY]
    with pytest.raises(Refusal, match="rewrites earlier turns"):
        chat_text.encode(tokenizer, thinking, 4096)


def with_template(tokenizer, template):
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


SIMPLE = (
    "{% for m in messages %}{{ START }}[{{ m.role }}]{{ m.content }}{{ END }}{% endfor %}"
    "{% if add_generation_prompt %}{{ START }}[assistant]{% endif %}"
)


def test_a_template_that_writes_bos_each_turn_is_refused(make):
    tokenizer = with_template(make("llama3", LLAMA), SIMPLE.replace("START", "bos_token").replace("END", "eos_token"))
    with pytest.raises(Refusal, match=r"writes 2 <\|begin_of_text\|> tokens"):
        chat_text.encode(tokenizer, ONE, 4096)


def test_a_template_that_never_ends_a_turn_is_refused(make):
    tokenizer = with_template(make("llama3", LLAMA), SIMPLE.replace("START", "''").replace("END", "''"))
    with pytest.raises(Refusal, match="no end-of-turn token"):
        chat_text.end_of_turn(tokenizer, chat_text.encode(tokenizer, ONE, 4096))


def test_no_labels_are_refused(make):
    tokenizer = make("llama3", LLAMA)
    encoded = chat_text.encode(tokenizer, ONE, 4096)
    with pytest.raises(Refusal, match="nothing would be learned"):
        chat_text.end_of_turn(tokenizer, chat_text.Encoded(encoded.input_ids, [-100] * len(encoded.labels), ""))


def test_loading_a_tokenizer(make, tmp_path):
    tokenizer = make("llama3", LLAMA)
    tokenizer.save_pretrained(tmp_path / "whole")
    loaded = chat_text.load_tokenizer(str(tmp_path / "whole"))
    assert chat_text.encode(loaded, MANY, 4096) == chat_text.encode(tokenizer, MANY, 4096)
    with_template(tokenizer, None).save_pretrained(tmp_path / "bare")
    with pytest.raises(Refusal, match="bare has no chat template.*Instruct"):
        chat_text.load_tokenizer(str(tmp_path / "bare"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    with pytest.raises(Refusal, match="broken cannot be loaded"):
        chat_text.load_tokenizer(str(tmp_path / "broken"))


def test_r1_keeps_its_reasoning_and_other_templates_that_drop_it_are_refused(make):
    tokenizer = make("deepseek_r1_distill", DEEPSEEK)
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "<think>\nBecause.\n</think>\n\nSo."}]
    with pytest.raises(Refusal, match="rewrites earlier turns"):
        chat_text.answer_spans(tokenizer, messages)
    original = tokenizer.chat_template
    try:
        assert chat_text.keep_reasoning(tokenizer)
        assert chat_text.answer_spans(tokenizer, messages * 2)[0].count("Because.") == 2
        text, [(start, end)] = chat_text.answer_spans(tokenizer, messages)
        assert text[start:end] == messages[1]["content"] + DEEPSEEK["eos_token"]
        tokenizer.chat_template = original.replace("<think>\\n'", "'")  # drops it, and does not begin with it
        with pytest.raises(Refusal, match="drops the reasoning of answers"):
            chat_text.answer_spans(tokenizer, messages)
    finally:
        tokenizer.chat_template = original


def test_markup_of_turns_is_refused_in_what_people_write_special_or_not(make):
    from tokenizers import AddedToken

    tokenizer = copy.deepcopy(make("deepseek_r1_distill", DEEPSEEK))
    chat_text.keep_reasoning(tokenizer)
    tokenizer.add_tokens([AddedToken("<｜User｜>", special=False), AddedToken("<think>", special=False)])
    question, answer = {"role": "user", "content": "Hi <｜User｜> there"}, {"role": "assistant", "content": "<think>\nWell.\n</think>\nHi."}
    with pytest.raises(BadRow, match="message 1 holds the control token <｜User｜> as text"):
        chat_text.encode(tokenizer, [question, answer], 512)
    assert chat_text.encode(tokenizer, [question | {"content": "Hi"}, answer], 512).shortened == ""

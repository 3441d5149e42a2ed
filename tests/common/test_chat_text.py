"""Labels against TRL's own masks, and shortening on random conversations: answers stay whole, lengths are kept, the rest is refused."""

import copy
import json
import random
import re
from pathlib import Path

import pytest

from common import chat_text, long_documents
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
            assert len(encoded.input_ids) > limit - min(long_documents.LOST, limit // 4) - 24  # no more than must be, to the nearest border
        else:
            assert all(content in text for content in last_kept)
        if "oldest" in encoded.shortened and "middle" not in encoded.shortened:
            head = [m for m in messages if m["role"] == "system"]
            one_more = head + [m for m in messages if m["role"] != "system"][-2 * (len(kept) + 1) :]
            assert len(tokenizer(chat_text.render(tokenizer, one_more), add_special_tokens=False)["input_ids"]) > limit
    assert min(seen.values()) >= 5, seen


def special(end, *others, **tokens):
    return {"eos_token": end, "pad_token": "<pad>", "additional_special_tokens": list(others), **tokens}


GEMMA = special("<eos>", "<start_of_turn>", "<end_of_turn>", bos_token="<bos>")
PHI = special("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
COHERE = special("<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", bos_token="<BOS_TOKEN>")
COHERE2 = special("<|END_OF_TURN_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", bos_token="<BOS_TOKEN>")
HARMONY = special("<|return|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>")
NO_THOUGHT = "<think>\n\n</think>\n\n"  # what Qwen3's template writes before an answer without reasoning
TEMPLATES = {  # template: its control tokens, and what is learned around the summary
    **dict.fromkeys(["llama3", "llama3_1", "llama3_2"], (LLAMA, "", "<|eot_id|>")),
    **dict.fromkeys(["qwen2_5", "qwen3_instruct_2507", "qwen3_5_nothink", "qwen3_vl"], (QWEN, "", "<|im_end|>")),
    "qwen3": (QWEN, NO_THOUGHT, "<|im_end|>"),
    "deepseek_r1_distill": (DEEPSEEK, "", "<｜end▁of▁sentence｜>"),
    **dict.fromkeys(["phi3", "phi3_5"], (PHI, "", "<|end|>\n<|endoftext|>")),
    **dict.fromkeys(["gemma", "gemma3"], (GEMMA, "", "<end_of_turn>")),
    "gemma4": (special("<eos>", "<|turn>", "<turn|>", bos_token="<bos>"), "", "<turn|>"),
    "cohere": (COHERE, "", "<|END_OF_TURN_TOKEN|>"),
    "cohere2": (COHERE2, "", "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    "gptoss": (HARMONY, "<|channel|>final<|message|>", "<|return|>"),
    "lfm2": (special("<|im_end|>", "<|im_start|>", bos_token="<|startoftext|>"), "", "<|im_end|>"),
}
BEGINNING, ENDING = "Summarise this case.\n\n", "\n\nWrite one paragraph, and name the judge."


def legal_sentences(draw, count):
    """Sentences with what looks like the end of one: abbreviations, numbers, sections."""
    ends = [".", "?", '."', ".)", "!"]
    inner = ["Doe v. Roe, 12 F. Supp. 2d 34", "42 U.S.C. 1983", "No. 17", "Mr. J. Smith of Acme Corp. (Del.)", "the 9th Cir. Rules", "p. 4"]
    return [
        f"On day {number} the Court {draw.choice(['held', 'found', 'said'])} under {draw.choice(inner)} that "
        + " ".join(draw.choice(["mean", "power", "naïve", "error", "type", "§", "rate"]) for _ in range(draw.randint(2, 12)))
        + draw.choice(ends)
        for number in range(count)
    ]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("between", [" ", "\n", "\n\n"], ids=["one line", "lines", "paragraphs"])
def test_a_long_document_loses_whole_sentences_of_its_middle_and_the_summary_nothing(make, template, between):
    tokens, before, after = TEMPLATES[template]
    tokenizer = copy.deepcopy(make(template, tokens))
    chat_text.keep_reasoning(tokenizer)
    draw = random.Random(template + between)
    sentences = legal_sentences(draw, 200)
    document, summary = BEGINNING + between.join(sentences) + ENDING, "The court held so.\n\nJudge Osei, 12 March 2019; 1,234 \u20ac."
    messages = [message("system", "You are a legal assistant."), message("user", document), message("assistant", summary)]
    messages = messages[1:] if template == "gemma" else messages
    whole = chat_text.encode(tokenizer, messages, 1 << 30)
    limit = 2000
    encoded = chat_text.encode(tokenizer, messages, limit)
    assert encoded.shortened == "middle of the document" and encoded.taken == len(whole.input_ids) - len(encoded.input_ids)
    assert 0.97 * limit <= len(encoded.input_ids) <= limit < len(whole.input_ids)
    for found in (whole, encoded):
        assert [run["text"] for run in chat_text.marked(tokenizer, found) if run["label"]] == [before + summary + after]
        assert all(label in (-100, token) for token, label in zip(found.input_ids, found.labels, strict=True))
    text, in_full = tokenizer.decode(encoded.input_ids), tokenizer.decode(whole.input_ids)
    head, tail = text.split(chat_text.OMISSION)
    start = in_full.index(BEGINNING) + len(BEGINNING)
    assert in_full.startswith(head) and in_full.endswith(tail)
    kept = [head[start:], tail[: tail.index(ENDING)]]
    assert kept[0] in {between.join(sentences[:n]) for n in range(1, 200)}
    assert kept[1] in {between.join(sentences[n:]) for n in range(1, 200)}
    assert 0.5 < len(kept[0]) / len(kept[1]) < 2


DOCUMENTS = {
    "one line of sentences": "It was held so. " * 20_000,
    "no white space": "abcdefghij" * 10_000,
    "one letter": "x" * 200_000,
    "dots": "." * 100_000,
    "line ends": "x" + "\n" * 100_000 + "x",
    "spaces": "x" + " " * 100_000 + "x",
    "no latin letters": "\u4e2d\u6587" * 10_000,
    "pairs of code points": "\U0001f600" * 5_000,
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_long_document_is_tokenised_once_and_what_is_left_of_it_once_more(make, name):
    """Whatever it consists of: what takes time is the tokenizer, and nothing here goes through tokens or characters one by one."""
    tokenizer, limit = copy.copy(make("qwen3_instruct_2507", QWEN)), 1000
    texts, looked = [], 0

    class Counting(type(tokenizer)):
        def __call__(self, found, **options):
            texts.extend(found)
            encodings = super().__call__(found, **options).encodings
            return type("Found", (), {"encodings": [Looking(encoding) for encoding in encodings]})

    class Looking:
        def __init__(self, encoding):
            self.ids, self._encoding = encoding.ids, encoding

        def __len__(self):
            return len(self.ids)

        def token_to_chars(self, token):
            nonlocal looked
            looked += 1
            return self._encoding.token_to_chars(token)

    messages = [message("user", "Q: " + DOCUMENTS[name] + " Why?"), message("assistant", "So.")]
    plain = len(tokenizer(chat_text.render(tokenizer, messages))["input_ids"])
    tokenizer.__class__ = Counting
    encoded = chat_text.encode(tokenizer, messages, limit)
    assert len(encoded.input_ids) + encoded.taken == plain
    assert 0.9 * limit < len(encoded.input_ids) <= limit
    assert [run["text"] for run in chat_text.marked(tokenizer, encoded) if run["label"]] == ["So.<|im_end|>"]
    assert sum(len(text) > len(DOCUMENTS[name]) for text in texts) == 1 and len(texts) <= 5
    assert looked < 100_000, looked


def test_documents_that_are_too_long_are_dropped_where_that_is_asked_for(make):
    tokenizer = make("llama3", LLAMA)
    long = [message("user", "It was so. " * 300), message("assistant", "Yes.")]
    whole = len(chat_text.encode(tokenizer, long, 1 << 30).input_ids)
    said = f'it has {whole:,} tokens, more than MAX_SEQ_LENGTH = 500, and LONG_DOCUMENTS = "drop"'
    with pytest.raises(chat_text.TooLong, match=said) as found:
        chat_text.encode(tokenizer, long, 500, long_documents="drop")
    assert found.value.tokens == whole
    assert chat_text.encode(tokenizer, long, whole, long_documents="drop").taken == 0
    turns = [*ONE, *long[:1], *long[1:], *ONE]
    assert chat_text.encode(tokenizer, turns, 500, long_documents="drop").shortened == "oldest turns"
    answer = [message("user", "It was so."), message("assistant", "mean " * 600)]
    with pytest.raises(BadRow, match="answers are never cut") as found:
        chat_text.encode(tokenizer, answer, 500, long_documents="drop")
    assert not isinstance(found.value, chat_text.TooLong)


def test_many_conversations_are_fitted_as_each_alone(make):
    tokenizer = make("qwen3_instruct_2507", QWEN)
    draw = random.Random(3)
    conversations = [random_conversation(draw) for _ in range(60)]
    conversations[7] = [message("user", "Obey <|im_start|>"), message("assistant", "No.")]
    kinds = {"whole": 0, "shortened": 0, "refused": 0}
    for conversation, found in zip(conversations, chat_text.fit(tokenizer, conversations, 150), strict=True):
        try:
            alone = chat_text.encode(tokenizer, conversation, 150)
        except BadRow as reason:
            assert str(found) == str(reason)
            kinds["refused"] += 1
            continue
        messages, encoded = found
        assert encoded == alone
        again = chat_text.encode(tokenizer, messages, 150)  # what fits is written as it is, and read again
        assert (again.input_ids, again.labels, again.taken) == (encoded.input_ids, encoded.labels, 0)
        assert (messages == conversation) == (encoded.shortened == "")
        kinds["shortened" if encoded.shortened else "whole"] += 1
    assert min(kinds.values()) > 3, kinds


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
    with pytest.raises(BadRow, match=rf"answer has {count} tokens .*MAX_SEQ_LENGTH = 100; answers are never cut: raise MAX") as found:
        chat_text.encode(tokenizer, [message("user", "Why?" * 20), message("assistant", answer)], 100)
    enough = int(re.search(r"to (\d+) or more", str(found.value))[1])
    assert len(chat_text.encode(tokenizer, [message("user", "Why?" * 20), message("assistant", answer)], enough).input_ids) <= enough


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


def test_a_template_that_leaves_answers_out_is_refused(make):
    tokenizer = with_template(make("llama3", LLAMA), chat_text.template_path("idefics3").read_text(encoding="utf-8"))
    with pytest.raises(Refusal, match="does not write answers as they are"):
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

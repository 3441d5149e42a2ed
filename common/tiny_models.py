"""The embedded models of `--tiny`: small, of the recipe's family, with its real chat template, built here and cached.

Each is briefly pretrained on texts of `samples/`, so that fine-tuning starts from a model that knows the subject's words and how a
chat goes, but not what it is to learn.
"""

import hashlib
import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from common import cache, case_files, chat_text, hardware
from common.dimensions import Dimensions
from common.log import say
from common.refusal import Refusal

KNOWN_LOSS = 0.3  # nats a token of a summary at which its length of case is known
FADING = 80  # steps at the end in which the learning rate goes down to 0
SAMPLES = Path(__file__).resolve().parents[1] / "samples"


@dataclass(frozen=True)
class Tiny:
    """Dimensions and pretraining of one embedded model; widths in features, lengths in tokens."""

    family: str  # transformers' model_type
    template: str  # chat template shipped with TRL
    special: tuple  # control tokens
    begin: str | None  # which of them begins a text
    pad: str
    end_of_turn: str
    texts: tuple  # in samples/: prose (.txt) and chats (.jsonl) to pretrain on
    markup: tuple = ()  # tokens of their own that may stand in what people write
    tie_word_embeddings: bool = True
    rope_theta: float = 500_000.0
    sentences: int = 0  # learn the summaries of case files of up to so many sentences, each new; 0: all of `texts`, in windows
    vocab_size: int = 1024
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    max_position_embeddings: int = 2048
    steps: int = 160  # with `sentences`: at most
    batch_size: int = 4
    length: int = 256
    learning_rate: float = 2e-2
    seed: int = 0


KNOWN = {
    "tiny-llama": Tiny(
        family="llama",
        template="llama3",
        special=(
            *("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"),
            *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ),
        begin="<|begin_of_text|>",
        pad="<|finetune_right_pad_id|>",
        end_of_turn="<|eot_id|>",
        texts=("base_prose.txt", "base_chats.jsonl"),
    ),
    "tiny-r1": Tiny(  # of the family of DeepSeek-R1-Distill-Qwen, which TinyR1-32B belongs to
        family="qwen2",
        template="deepseek_r1_distill",
        special=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜User｜>", "<｜Assistant｜>"),
        begin="<｜begin▁of▁sentence｜>",
        pad="<｜▁pad▁｜>",
        end_of_turn="<｜end▁of▁sentence｜>",
        texts=("mtg_base_chats.jsonl",),
        markup=("<think>", "</think>"),
        tie_word_embeddings=False,
        rope_theta=1_000_000.0,
        num_hidden_layers=3,
    ),
    "tiny-qwen2": Tiny(
        family="qwen2",
        template="qwen2_5",
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        begin=None,
        pad="<|endoftext|>",
        end_of_turn="<|im_end|>",
        texts=("base_prose.txt", "base_chats.jsonl"),
        rope_theta=1_000_000.0,
    ),
    "tiny-qwen3": Tiny(  # can find facts in 300 tokens and, though it has positions for 8,192, in no more
        family="qwen3",
        template="qwen3_instruct_2507",
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        begin=None,
        pad="<|endoftext|>",
        end_of_turn="<|im_end|>",
        texts=(),
        rope_theta=1_000_000.0,
        sentences=20,
        num_hidden_layers=2,
        max_position_embeddings=8192,
        steps=900,
        batch_size=8,
        learning_rate=5e-3,
    ),
}


def ensure(name):
    """The directory of the embedded model `name`, built first where the cache has none; `Refusal` for an unknown name."""
    path, tiny, start = _path(name), KNOWN[name], time.time()
    if not path.is_dir():
        what = "invented case files" if tiny.sentences else f"{SAMPLES.name}/{' and '.join(tiny.texts)}"
        say(f"building {name} once: {'up to ' if tiny.sentences else ''}{tiny.steps} steps of pretraining on {what}")
    built, loss = cache.build_once(path, lambda directory: build(tiny, directory))
    if built:
        say(f"{name} built in {time.time() - start:.0f} s, last pretraining loss {loss:.2f}")
    return str(path)


def find(name):
    """The directory of the embedded model `name`, None where it is not built yet; `Refusal` for an unknown name."""
    path = _path(name)
    return str(path) if path.is_dir() else None


def dimensions(name):
    """The `Dimensions` of the embedded model `name`, built or not; `Refusal` for an unknown name."""
    _path(name)
    tiny = KNOWN[name]
    return Dimensions(
        tiny.family, tiny.hidden_size, tiny.intermediate_size, tiny.num_hidden_layers, tiny.num_attention_heads, tiny.num_key_value_heads,
        tiny.hidden_size // tiny.num_attention_heads, tiny.vocab_size, tiny.max_position_embeddings, tiny.tie_word_embeddings,
    )  # fmt: skip


def _path(name):
    if name not in KNOWN:
        raise Refusal(f"there is no embedded model {name!r}; known are {', '.join(KNOWN)}")
    sources = (Path(__file__), Path(case_files.__file__))
    digest = hashlib.sha256(json.dumps(asdict(KNOWN[name])).encode() + b"".join(source.read_bytes() for source in sources))
    for file in KNOWN[name].texts:
        digest.update((SAMPLES / file).read_bytes())
    return cache.root() / "tiny_models" / f"{name}-{digest.hexdigest()[:12]}"


def build(tiny, directory):
    """Train tokenizer and model of `tiny` into `directory` (safetensors, bf16); returns the last loss."""
    hardware.prepare_torch()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(tiny.seed)
    prose, chats = [], []
    for name in tiny.texts:
        lines = (SAMPLES / name).read_text(encoding="utf-8").splitlines()
        if name.endswith(".txt"):
            prose += [line for line in lines if line.strip()]
        else:
            chats += [json.loads(line)["messages"] for line in lines]
    if tiny.sentences:
        generator = random.Random(f"{tiny.seed} vocabulary")
        chats = [case_files.messages(case_files.case(generator, tiny.sentences)) for _ in range(300)]
    tokenizer = _train_tokenizer(tiny, prose, chats)
    config = AutoConfig.for_model(
        tiny.family, vocab_size=len(tokenizer), hidden_size=tiny.hidden_size, intermediate_size=tiny.intermediate_size,
        num_hidden_layers=tiny.num_hidden_layers, num_attention_heads=tiny.num_attention_heads,
        num_key_value_heads=tiny.num_key_value_heads, max_position_embeddings=tiny.max_position_embeddings,
        rope_theta=tiny.rope_theta, tie_word_embeddings=tiny.tie_word_embeddings, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        **({"head_dim": tiny.hidden_size // tiny.num_attention_heads} if tiny.family == "qwen3" else {}),  # 128 otherwise
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    batches = _summaries(tokenizer, tiny) if tiny.sentences else _windows(_training_ids(tokenizer, prose, chats), tiny)
    loss = _pretrain(model, batches, tiny)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return loss


def _train_tokenizer(tiny, prose, chats):
    """Byte-level BPE on the same text; digits are single tokens, so that numbers can be copied."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=tiny.vocab_size - len(tiny.markup), special_tokens=list(tiny.special), show_progress=False,
                                  initial_alphabet=byte_level.alphabet())  # fmt: skip
    bpe.train_from_iterator(prose + [m["content"] for chat in chats for m in chat], trainer)
    bpe.add_tokens([AddedToken(token, normalized=False, special=False) for token in tiny.markup])
    if tiny.begin:
        first = [(tiny.begin, bpe.token_to_id(tiny.begin))]
        bpe.post_processor = processors.TemplateProcessing(single=f"{tiny.begin} $A", special_tokens=first)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=tiny.begin, eos_token=tiny.end_of_turn, pad_token=tiny.pad,
                                        model_max_length=tiny.max_position_embeddings)  # fmt: skip
    tokenizer.chat_template = chat_text.template_path(tiny.template).read_text(encoding="utf-8")
    return tokenizer


def _training_ids(tokenizer, prose, chats):
    """One stream of ids: prose by line and chats in turn, each behind a BOS, prose without one behind the padding token."""
    pieces = [(tokenizer.bos_token or tokenizer.pad_token) + line for line in prose]
    pieces += [chat_text.render(tokenizer, chat) for chat in chats for _ in range(2)]
    random.Random(0).shuffle(pieces)
    return [i for ids in tokenizer(pieces, add_special_tokens=False)["input_ids"] for i in ids]


def _windows(ids, tiny):
    """(share of the learning rate, batch): random windows of `ids`, every token a label."""
    import torch

    ids, generator = torch.tensor(ids), torch.Generator().manual_seed(tiny.seed)
    for step in range(tiny.steps):
        starts = torch.randint(len(ids) - tiny.length, (tiny.batch_size,), generator=generator)
        batch = torch.stack([ids[s : s + tiny.length] for s in starts])
        yield min(1.0, (step + 1) / 20) * max(0.02, 1 - step / tiny.steps), {"input_ids": batch, "labels": batch}


def _summaries(tokenizer, tiny):
    """(share of the learning rate, batch): new case files with their summaries as labels, longer ones when shorter ones are known.

    Asked for the loss of each batch. Lengths that grow by a timetable are learned or not, by chance.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    generator, sentences, recent, left = random.Random(tiny.seed), 1, [], FADING
    for step in range(tiny.steps):
        rows = []
        while sum(len(row.input_ids) for row in rows) < tiny.batch_size * tiny.length:
            case = case_files.case(generator, generator.randint(max(1, sentences // 2), sentences))
            rows.append(chat_text.encode(tokenizer, case_files.messages(case), tiny.max_position_embeddings))
        ids, labels = (pad_sequence([torch.tensor(getattr(row, name)) for row in rows], batch_first=True, padding_value=value)
                       for name, value in (("input_ids", tokenizer.pad_token_id), ("labels", chat_text.IGNORED)))  # fmt: skip
        batch = {"input_ids": ids, "labels": labels, "attention_mask": (ids != tokenizer.pad_token_id).long()}
        recent = [*recent[-3:], (yield min(1.0, (step + 1) / 20) * left / FADING, batch)]
        loss = sum(recent) / len(recent)
        if sentences == tiny.sentences and (left < FADING or loss < KNOWN_LOSS / 3):
            left -= 1
            if not left:
                return
        elif sentences < tiny.sentences and len(recent) == 4 and loss < KNOWN_LOSS:
            sentences, recent = min(tiny.sentences, max(sentences + 1, round(1.25 * sentences))), []


def _pretrain(model, batches, tiny):
    """Training on `batches`, which are told each loss; Muon on the hidden matrices, AdamW on embeddings and norms. The last loss."""
    import torch

    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(hidden, lr=tiny.learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=tiny.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    scale, batch = next(batches)
    while True:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = tiny.learning_rate * scale
            optimizer.step()
            optimizer.zero_grad()
        try:
            scale, batch = batches.send(loss.item())
        except StopIteration:
            return loss.item()

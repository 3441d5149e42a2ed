"""How many tokens conversations have, without transformers: the tokenizer alone, and what the chat template adds to it.

Also what `chat_text.encode` decides of them: to how few tokens a conversation can be shortened, and which it refuses.
"""

import json
import re
from pathlib import Path

import numpy as np

from common import chat_text

PIECE = 1 << 15  # characters of one message of a sample that are tokenised; the rest is taken to be like them
CHARACTERS_PER_TOKEN = 4  # English, where no tokenizer is on this machine
LEFT = 10  # tokens that are left of a question whose middle is taken out: two, and room for the mark there


class Counter:
    """Counts with the tokenizer.json of a model directory; without one `CHARACTERS_PER_TOKEN` is assumed.

    how: it counts, in words that end a sentence.
    """

    def __init__(self, directory):
        self._tokenizer, self._control, self._template = None, None, (0, 5, 0)
        self.how = "; no tokenizer on this machine: 4 characters a token assumed"
        if directory and (Path(directory) / "tokenizer.json").is_file():
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(Path(directory) / "tokenizer.json"))
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            control = [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]
            self._control = re.compile("|".join(map(re.escape, control))) if control else None
            self._template = _template_tokens(directory, self._tokens)
            self.how = ", counted with the model's tokenizer"

    def control_token(self, messages):
        """The first control token that stands in a message as text, for which training refuses the row; None where none does."""
        found = (self._control.search(message["content"]) for message in messages if self._control)
        return next((match[0] for match in found if match), None)

    def count(self, conversations, whole=True):
        """[conversations, 4] floats: the tokens of each, of it without its oldest turns, the fewest it can be shortened to, and its
        answer's. None has NaN.

        Shortened are first the oldest turns, then the longest question of what is left, as `chat_text.encode` does it; the
        answer never is. whole: tokenise all of a message, or take what comes after `PIECE` characters to be like them.
        """
        contents = [message["content"].strip() for messages in conversations for message in messages or ()]
        shown = contents if whole else [content[:PIECE] for content in contents]
        found = iter([n * len(c) / len(s) for n, c, s in zip(self._tokens(shown), contents, shown, strict=True)])
        return np.array([[np.nan] * 4 if messages is None else self._counted(messages, found) for messages in conversations])

    def _counted(self, messages, found):
        per_row, per_message, of_system = self._template
        of_contents = [next(found) for _ in messages]
        head = int(messages[0]["role"] == "system")
        around, start = per_row + of_system * head, _last_exchange(messages, head)
        last = around + sum(tokens + per_message for tokens in of_contents[:head] + of_contents[start:])
        questions = [place for place in range(start, len(messages)) if messages[place]["role"] == "user"]
        longest = of_contents[max(questions, key=lambda place: len(messages[place]["content"]))]
        tokens = around + sum(of_contents) + per_message * len(messages)
        return tokens, last, min(last, last - longest + LEFT), of_contents[-1]

    def _tokens(self, texts):
        if self._tokenizer is None:
            return [len(text) / CHARACTERS_PER_TOKEN for text in texts]
        # one by one: a batch starts threads, and we may fork later
        return [len(self._tokenizer.encode(text, add_special_tokens=False)) for text in texts]


def _last_exchange(messages, head):
    """Where the turns begin that stay when all older ones are gone: behind the last answer that a question follows."""
    last = max(place for place, message in enumerate(messages) if message["role"] == "user")
    return max((place + 1 for place in range(last) if messages[place]["role"] == "assistant"), default=head)


def _template_tokens(directory, tokens):
    """(tokens of a row, of a message, of a system message) that the chat template adds to the contents.

    Told by rendering conversations of one-token messages. Some templates put a system message where there is none, and Llama
    3.1's writes dates. Without a template that can be rendered: five a message, as Llama 3's and ChatML's own markup takes.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals["strftime_now"] = lambda _: chat_text.DATE
    system, *turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant", "user", "assistant")]
    try:
        source, names = _template(directory)
        template = environment.from_string(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source))
        conversations = (turns[:2], turns, [system, *turns[:2]])
        one, two, with_system = tokens([template.render(messages=m, date_string=chat_text.DATE, **names) for m in conversations])
    except (TemplateError, OSError, KeyError, TypeError, ValueError):
        return 0, 5, 0
    per_message = (two - one) / 2 - 1
    return 2 * one - two, per_message, with_system - one - per_message - 1


def _template(directory):
    """(the chat template, {"bos_token": …, "eos_token": …}) of a model directory."""
    settings = json.loads((Path(directory) / "tokenizer_config.json").read_text(encoding="utf-8"))
    names = {name: settings.get(name) or "" for name in ("bos_token", "eos_token")}
    names = {name: token["content"] if isinstance(token, dict) else token for name, token in names.items()}
    file = Path(directory) / "chat_template.jinja"
    return (file.read_text(encoding="utf-8") if file.is_file() else settings["chat_template"]), names

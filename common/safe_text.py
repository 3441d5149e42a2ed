"""Text from data, models and settings made fit to show: nothing invisible, nothing endless, no secrets, no paths of a machine."""

import re

HIDDEN = "(hidden)"
SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS)$", re.IGNORECASE)

_HUB_TOKEN = re.compile(r"\bhf_(?:(?=[A-Za-z0-9]*\d)[A-Za-z0-9]{6,}|[A-Za-z0-9]{20,})|\bwandb_v\d+_[A-Za-z0-9_]{8,}")
_FORTY_HEX = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{40}(?![0-9A-Za-z])")  # a W&B key; a git commit looks the same
_FLAG = re.compile(r"(--[\w-]*(?:token|key|secret|password|credentials)(?:=|\s+))(\"[^\"]*\"|'[^']*'|\S+)", re.IGNORECASE)
_VARIABLE = re.compile(r"\b(\w*(?:TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS)=)(\"[^\"]*\"|'[^']*'|\S+)", re.IGNORECASE)
_LOGIN = re.compile(r"(\w+://)[^\s/@:]+:[^\s/@]+@")
_MACHINE_PATH = re.compile(r"(?<![\w.:/~\\-])(?:file://)?(?:~?/|[A-Za-z]:[\\/])(?:[^\s\\/'\"=,:;()]+[\\/])*([^\s\\/'\"=,:;()]*)")

_SHOWN_AS_CODE = [
    *range(0x80, 0xA0),  # C1 controls
    0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A),  # marks that turn the writing direction around
    0xFFFE, 0xFFFF,
    *range(0xD800, 0xE000),  # halves of surrogate pairs: JSON may hold them, UTF-8 may not
]  # fmt: skip
_VISIBLE = {code: chr(0x2400 + code) for code in range(0x20) if code not in (9, 10)}  # the symbols for control characters
_VISIBLE |= {0x7F: "\u2421"} | {code: f"[U+{code:04X}]" for code in _SHOWN_AS_CODE}


def visible(text):
    """`text` with every control character, direction mark and lone surrogate replaced by something one can see."""
    return str(text).replace("\r\n", "\n").translate(_VISIBLE)


def shorten(text, limit):
    """At most `limit` characters of `text`: its beginning and its end, and between them a note of what is left out."""
    text = str(text)
    if len(text) <= limit:
        return text
    head, tail = limit - limit // 3, limit // 3
    return f"{text[:head]}\n[… {len(text) - head - tail:,} characters not shown …]\n{text[len(text) - tail :]}"


def without_tokens(text):
    """`text` without anything that is certainly a Hugging Face or W&B token."""
    return _HUB_TOKEN.sub(HIDDEN, str(text))


def without_secrets(text):
    """`text` of a setting, command or message without tokens, values of secret flags and variables, logins and W&B's 40-digit keys."""
    text = _FLAG.sub(rf"\g<1>{HIDDEN}", str(text))
    text = _VARIABLE.sub(rf"\g<1>{HIDDEN}", text)
    text = _LOGIN.sub(rf"\g<1>{HIDDEN}@", text)
    return _FORTY_HEX.sub(HIDDEN, without_tokens(text))


def setting(name, value):
    """The value of a constant as one would write it in Python, with secrets hidden, however deep they lie."""
    if value in (None, "", [], {}) or isinstance(value, bool | int | float):
        return repr(value) if not SECRET_NAME.search(name) or not value or value is True else HIDDEN
    if SECRET_NAME.search(name):
        return HIDDEN
    if isinstance(value, dict):
        return "{" + ", ".join(f"{setting('', key)}: {setting(str(key), inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(setting("", inner) for inner in value) + "]"
    if re.search(r"(REVISION|COMMIT|SHA|DIGEST)$", name, re.IGNORECASE):
        return repr(without_tokens(value))
    return repr(without_secrets(value))


def without_machine_paths(text):
    """`text` with every absolute path cut to its last name, so that a shared file tells nothing about the machine."""
    return _MACHINE_PATH.sub(lambda found: found.group(1) or found.group(0), str(text))

"""Where a model comes from: embedded, a local directory, or the Hugging Face hub. No torch."""

import os
from pathlib import Path

from common import dimensions, tiny_models, token_counts
from common.refusal import Refusal

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "tokenizer*")


def find(name, revision=None, ungated=None, constant="MODEL_NAME"):
    """What `from_pretrained` takes for `name`: a path for an embedded ("tiny-…") or local model, the hub name otherwise.

    Asks the hub for the small files first, so that a model one may not read is refused here and not after the data
    are prepared. ungated: a copy to name for a gated model. constant: where `name` came from, for `Refusal`s.
    """
    if name.startswith("tiny-"):
        return tiny_models.ensure(name)
    if name and Path(name).is_dir():
        if not any((Path(name) / f).is_file() for f in ("config.json", "adapter_config.json")):
            raise Refusal(f"{constant} is {name!r}, which has neither config.json nor adapter_config.json, so it is no model directory")
        return str(name)
    if name.count("/") != 1 or name.startswith((".", "/")):
        known = ", ".join(tiny_models.KNOWN)
        raise Refusal(f"{constant} is {name!r}: no such directory, and a hub name has the form owner/name; embedded are {known}")
    _download(name, revision, SMALL_FILES, ungated, constant)
    return name


def known_dimensions(name, revision=None):
    """The `Dimensions` of what MODEL_NAME or `find` names, an embedded model too; builds nothing and asks the hub for no more than
    the config.json of a model that is not known here. Raises `Refusal`."""
    return tiny_models.dimensions(name) if name.startswith("tiny-") else dimensions.read(name, revision)


def local_tokenizer(name, revision=None):
    """The directory with the tokenizer of MODEL_NAME if this machine has it, else None; asks no network and builds nothing."""
    return tiny_models.find(name) if name.startswith("tiny-") else token_counts.tokenizer_directory(name, revision)


def tokenizer_directory(name, revision=None):
    """The directory with the tokenizer's files of what `find` returned: of a hub model its snapshot in the local cache."""
    if Path(name).is_dir():
        return str(name)
    from huggingface_hub import snapshot_download

    return snapshot_download(name, revision=revision, allow_patterns=list(SMALL_FILES), local_files_only=True)


def find_tokenizer(name, constant="TOKENIZER"):
    """The directory of a tokenizer: `name` itself, or of a hub model the snapshot with its small files, fetched when they are not here."""
    if Path(name).is_dir():
        return str(name)
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise Refusal(f"{constant} is {name!r}: no such directory, and a hub name has the form owner/name, as openai-community/gpt2 has")
    return tokenizer_directory(find(name, constant=constant))


def prefetch(name, revision=None, ungated=None):
    """Download all of a hub model into the cache, for machines without network; returns its path."""
    if name.startswith("tiny-") or Path(name).is_dir():
        return find(name, revision)
    return _download(name, revision, WEIGHTS + SMALL_FILES, ungated)


def weights_gib(name, revision=None):
    """GiB of the model's safetensors, from local files or the hub's listing; None where neither can be had."""
    if Path(name).is_dir():
        return sum(f.stat().st_size for f in Path(name).glob("*.safetensors")) / 2**30 or None
    try:
        from huggingface_hub import HfApi

        files = HfApi().model_info(name, revision=revision, files_metadata=True).siblings
        return sum(f.size or 0 for f in files if f.rfilename.endswith(".safetensors")) / 2**30 or None
    except Exception:  # no network, offline mode, a hub that refuses or breaks off: the size stays unknown, and nothing depends on it
        return None


def _download(name, revision, patterns, ungated, constant="MODEL_NAME"):
    from huggingface_hub import get_token, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return snapshot_download(name, revision=revision, allow_patterns=list(patterns))
    except GatedRepoError:
        stored = "your HF_TOKEN" if os.environ.get("HF_TOKEN") else "the token of your `hf auth login`"
        token = f"{stored} has no access to it" if get_token() else "HF_TOKEN is not set, nor is there a token of `hf auth login`"
        other = f" Or take the ungated copy: --model-name {ungated}" if ungated else ""
        raise Refusal(
            f"{name} is gated and {token}. Accept its licence at https://huggingface.co/{name}, make a token with read access at "
            f"https://huggingface.co/settings/tokens, then: export HF_TOKEN=hf_...{other}"
        ) from None
    except HFValidationError as error:
        raise Refusal(f"{constant} is {name!r}, which cannot be a hub name: {str(error).splitlines()[0]}") from None
    except RepositoryNotFoundError:
        raise Refusal(f"the hub has no model {name} that you may see; check the spelling, or set HF_TOKEN for a private one") from None
    except LocalEntryNotFoundError as error:
        answered = isinstance(error.__cause__, HfHubHTTPError)
        why = f"the hub answered: {_line(error.__cause__)}" if answered else "the hub cannot be reached"
        raise Refusal(f"{name} is not in the local cache and {why}; where there is network run the recipe once with --prefetch") from None
    except HfHubHTTPError as error:
        raise Refusal(f"the hub refused {name}: {_line(error)}; check {constant}{' and MODEL_REVISION' if revision else ''}") from None


def _line(error):
    return " ".join(str(error).split())

"""What training saved, checked before it is trusted and loaded without any of the code that trained it.

Plain transformers and PEFT, never Unsloth: that a checkpoint gives good answers here proves the file, not only the process that wrote it.
"""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

from common import models
from common.refusal import Refusal
from common.run_directory import read_json

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLED = 1 << 16  # bytes of a weight file that are read at each of 64 places for its digest


@dataclass(frozen=True)
class Saved:
    """A model to judge. kind: "base", "adapter" or "full"; source: a directory or, for a base, perhaps a hub name."""

    name: str
    kind: str
    source: str
    revision: str | None = None

    def digest(self):
        """A name for exactly these weights and this configuration; of a hub model its name and revision.

        Of an adapter the numbers count, not how they are stored: final_model/ may hold in fp32 what a checkpoint holds in bf16.
        """
        directory = Path(self.source)
        if not directory.is_dir():
            return f"{self.source}@{self.revision or 'main'}"
        found = hashlib.sha256()
        for path in sorted(directory.iterdir()):
            if path.suffix == ".safetensors" and self.kind == "adapter":
                for name, tensor in read_tensors(path):
                    found.update(name.encode() + str(tuple(tensor.shape)).encode() + tensor.float().numpy().tobytes())
            elif path.suffix == ".safetensors":
                found.update(path.name.encode() + _sampled(path))
            elif path.name in ("config.json", "adapter_config.json", "generation_config.json"):
                found.update(path.name.encode() + path.read_bytes())
        return found.hexdigest()[:16]


def _sampled(path):
    size = path.stat().st_size
    with path.open("rb") as file:
        parts = [str(size).encode()]
        for place in range(64) if size > 64 * SAMPLED else [None]:  # a small file is read whole
            if place is not None:
                file.seek(place * (size - SAMPLED) // 63)
            parts.append(file.read() if place is None else file.read(SAMPLED))
    return hashlib.sha256(b"".join(parts)).digest()


def describe(path, name):
    """The `Saved` in a directory; `Refusal` where it holds neither an adapter nor a model."""
    path = Path(path)
    if not path.exists():
        raise Refusal(f"{path} does not exist; name a directory such as outputs/<run>/checkpoint-N or outputs/<run>/final_model")
    if not path.is_dir():
        raise Refusal(f"{path} is a file; a checkpoint is a directory with adapter_config.json or config.json in it")
    if path.name.startswith(("unfinished-", "damaged-", "not-finite-")):
        raise Refusal(f"{path} was set aside because it is not as it was to be written, which its name says; judge a checkpoint-N")
    kinds = {"adapter": ("adapter_config.json", "adapter_model.safetensors"), "full": ("config.json", "model*.safetensors")}
    for kind, (config, weights) in kinds.items():
        if (path / config).is_file():
            if not list(path.glob(weights)):
                raise Refusal(f"{path} has {config} but no {weights}; it was not saved whole, or as pickles, which are not loaded here")
            return Saved(name, kind, str(path))
    raise Refusal(f"{path} is no checkpoint: it has neither adapter_config.json nor config.json")


def base_of(run, adapter=None):
    """The model that `adapter`, or else the run's first adapter, stands on: its own config names it, else run.json, else the constants.

    Where its config names no revision, that of whoever names the same model counts: training may have left it out there.
    """
    facts, constants = read_json(run.run, {}), read_json(run.constants, {})
    config = _mapping(Path(adapter) / "adapter_config.json") if adapter else _first_adapter_config(run)
    named = {
        "adapter_config.json": (config.get("base_model_name_or_path"), config.get("revision")),
        "run.json": (facts.get("model_name"), facts.get("model_revision")),
        "MODEL_NAME": (constants.get("MODEL_NAME"), constants.get("MODEL_REVISION")),
    }
    named = {origin: (str(name), revision) for origin, (name, revision) in named.items() if name}
    for name, revision in named.values():
        for place in (Path(name), REPOSITORY / name):  # a relative path was meant from where the training ran
            if (place / "config.json").is_file():
                return Saved("base", "base", str(place))
        if name.count("/") == 1 and not name.startswith(("/", ".")) and not Path(name).exists():
            return Saved("base", "base", name, revision or next((r for other, r in named.values() if other == name and r), None))
    tried = " and ".join(f"{name} ({origin})" for origin, (name, _) in named.items())
    if not tried:
        raise Refusal(f"the base model cannot be found: {run.path} names none in adapter_config.json, run.json or constants.json")
    raise Refusal(
        f"the base model cannot be found: no directory with a config.json and no owner/model of the hub is {tried}; put it back there"
    )


def _first_adapter_config(run):
    for place in (run.final_model, *(path for _, path in run.checkpoints())):
        try:
            config = _mapping(place / "adapter_config.json")
        except Refusal:  # that checkpoint is broken and will be named; the others know the base as well
            continue
        if config:
            return config
    return {}


def _mapping(path):
    found = read_json(path, {})
    if not isinstance(found, dict):
        raise Refusal(f"{path} holds no JSON object; it was changed after it was written")
    return found


def four_bit(run, choice, saved):
    """Whether the base of `saved` is loaded in NF4: as flagged, else as the constants say. Merged and full models never are."""
    if saved.kind == "full":
        return False
    if choice != "auto":
        return choice == "true"
    constants = read_json(Path(saved.source) / "constants.json") if saved.kind == "adapter" else None
    return bool((constants or read_json(run.constants, {})).get("LOAD_IN_4BIT", False))


def adapter_tensors(saved):
    """The names of an adapter's tensors; `Refusal` where it is cut short, empty, not finite, or was never trained."""
    _mapping(Path(saved.source) / "adapter_config.json")
    models.check_adapter(saved.source)
    return {name for name, _ in read_tensors(Path(saved.source) / "adapter_model.safetensors")}


def not_finite(source, names):
    return f"{source} holds NaN or infinity in {len(names)} tensors, the first {names[0]}; take an earlier checkpoint"


def read_tensors(path):
    """(name, tensor) of a safetensors file; `Refusal` where it is cut short."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise Refusal(f"{path} cannot be read ({error}); it was cut short while it was written or copied") from None


class Models:
    """Loads one model after another; the base's weights once, adapters swapped on them.

    max_memory: {GPU: bytes of weights}, accelerate's, to spread each model over these GPUs; None: all of it on `device`.
    """

    def __init__(self, device, dtype, max_memory=None):
        self.device, self.dtype, self.max_memory = device, dtype, max_memory
        self._base = self._base_key = self._peft = None
        self._loaded = 0

    def use(self, saved, base, load_in_4bit):
        """The model of `saved`, ready for inference. Only the newest model returned may be used."""
        if saved.kind == "full":
            self.drop()
            return self._full(saved, False)
        if self._base_key != (base, load_in_4bit):
            self.drop()
            self._base, self._base_key = self._full(base, load_in_4bit), (base, load_in_4bit)
        if saved.kind == "base":
            if self._peft is not None:  # adapters live inside the base's own modules
                self.drop()
                return self.use(saved, base, load_in_4bit)
            return self._base
        return self._with_adapter(saved)

    def drop(self):
        """Forget everything loaded."""
        import torch

        self._base = self._base_key = self._peft = None
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _with_adapter(self, saved):
        from peft import PeftModel, get_peft_model_state_dict

        tensors = adapter_tensors(saved)
        self._loaded += 1
        name, previous = f"judged{self._loaded}", f"judged{self._loaded - 1}"
        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # of missing keys, which are refused below
                if self._peft is None:
                    self._peft = PeftModel.from_pretrained(self._base, saved.source, adapter_name=name)
                else:
                    self._peft.load_adapter(saved.source, adapter_name=name)
                    self._peft.set_adapter(name)
                    self._peft.delete_adapter(previous)
            strangers = tensors ^ set(get_peft_model_state_dict(self._peft, adapter_name=name))
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            self.drop()  # half an adapter may hang in the base
            raise Refusal(f"the adapter in {saved.source} does not fit its base: {str(error).splitlines()[0]}") from None
        if strangers:
            self.drop()
            first = sorted(strangers)[0]
            raise Refusal(
                f"the adapter in {saved.source} and its base disagree on {len(strangers)} tensors, the first {first}; wrong base?"
            )
        return self._peft.eval()

    def _full(self, saved, load_in_4bit):
        import torch
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        settings = {"dtype": self.dtype, "revision": saved.revision, "use_safetensors": True, "output_loading_info": True}
        if load_in_4bit:
            # Rounded to bf16 first, double quantisation, bf16 products: what the adapter was trained on.
            settings["dtype"] = torch.bfloat16
            settings["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
            )
        place = {"device_map": "auto", "max_memory": self.max_memory} if self.max_memory else {"device_map": {"": self.device}}
        try:
            model, report = AutoModelForCausalLM.from_pretrained(saved.source, **place, **settings)
        except Exception as error:  # whatever transformers, safetensors or the hub raise for a directory or a name
            raise Refusal(f"{saved.source} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise Refusal(f"{saved.source} lacks {len(missing)} tensors of its config, the first {missing[0]}; it was not saved whole")
        if outside := sorted({str(d) for d in getattr(model, "hf_device_map", {}).values()} & {"cpu", "disk"} if self.max_memory else ()):
            raise Refusal(
                f"{saved.source} does not fit {len(self.max_memory)} GPUs beside its longest row: parts of it came to lie on the "
                f"{' and the '.join(outside)}; raise --gpus-per-model, or judge on GPUs with more memory"
            )
        if load_in_4bit and self.device == "cpu":
            model = dequantised(model).to(self.dtype)
        broken = [name for name, tensor in model.named_parameters() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
        if broken:
            raise Refusal(not_finite(saved.source, broken))
        return model.eval()


def dequantised(model):
    """The model with each NF4 matrix written out as the numbers it stands for: equal up to rounding, and on a CPU many times faster."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    for name, module in list(model.named_modules()):
        if isinstance(module, Linear4bit):
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
            plain.weight = torch.nn.Parameter(weight, requires_grad=False)
            if module.bias is not None:
                plain.bias = torch.nn.Parameter(module.bias.data, requires_grad=False)
            model.set_submodule(name, plain)
    model.is_loaded_in_4bit = model.is_quantized = False  # what transformers and PEFT ask to tell quantised models
    model.hf_quantizer = model.quantization_method = None
    del model.config.quantization_config
    return model

"""Facts of the GPUs a run may be planned for: memory, peak, bandwidths. Nothing is measured here.

Where the figures come from, all NVIDIA's: whitepapers "Ampere GA102" V2.0 (3080, 3090, A40, A6000), "Ada" V2.01 (4070, 4090), "RTX
Blackwell" V1.1 (5090); datasheets "A10G", "L4", "L40S", "A100 80GB", "H100", "H200", "HGX B200", "GH200" and the product page of the
3060. Memory is the total that nvidia-smi prints, in GiB, which is below the nominal where ECC or firmware keep a part.

Peaks are of dense bf16 with sums in fp32, as training computes: half of what datasheets print "with sparsity", and on GeForce cards
half of the fp16 peak with sums in fp16 (4090: 165.2, not 330.3). 3060 and 4070 are computed as the whitepapers compute the others:
multiprocessors x 512 FLOP a cycle x boost clock (28 at 1.777 GHz, 46 at 2.475 GHz).

Links are what one GPU sends to its neighbours in a collective, one direction, in GB/s. NVLink: half the bidirectional figure. PCIe x16:
25 of the 32 of generation 4, 50 of the 64 of generation 5, as copies reach. GeForce cards have no peer-to-peer over PCIe: what they
exchange is copied through host memory, assumed to halve it (12, 25). Bridges that join two cards are not counted.
Between nodes of 8: 50 where there is NVLink (400 Gb/s InfiniBand for each GPU), else 3 (25 Gb/s Ethernet); both assumed.
"""

import math
import re
from dataclasses import dataclass, replace

from common import hardware
from common.refusal import Refusal

GPUS_PER_NODE = 8  # of more GPUs than these, `node_gb_per_s` is the narrowest link; a GH200 is a node of its own


@dataclass(frozen=True)
class Accelerator:
    """One kind of GPU; None where the figure is not known."""

    name: str
    memory_gib: float  # as nvidia-smi totals it
    peak_tflops: float | None = None  # dense bf16, sums in fp32; 10^12 FLOP/s
    memory_gb_per_s: float | None = None  # 10^9 bytes
    link_gb_per_s: float | None = None  # sent by one GPU in a collective inside a node, one direction
    node_gb_per_s: float | None = None  # the same between nodes
    is_cpu: bool = False
    bf16: bool = True  # False where it cannot compute in bf16, in which the recipes train


KNOWN = (
    Accelerator("RTX 3060", 12.0, 25.5, 360, 12, 3),
    Accelerator("RTX 3080", 10.0, 59.5, 760, 12, 3),
    Accelerator("RTX 3090", 24.0, 71.0, 936, 12, 3),
    Accelerator("RTX 4070", 12.0, 58.3, 504, 12, 3),
    Accelerator("RTX 4090", 24.0, 165.2, 1008, 12, 3),
    Accelerator("RTX 5090", 31.8, 209.5, 1792, 25, 3),
    Accelerator("L4", 22.5, 121, 300, 25, 3),
    Accelerator("L40S", 45.0, 362, 864, 25, 3),
    Accelerator("A10G", 22.5, 70, 600, 25, 3),
    Accelerator("A40", 45.0, 149.7, 696, 25, 3),
    Accelerator("RTX A6000", 48.0, 154.8, 768, 25, 3),
    Accelerator("A100-40GB", 40.0, 312, 1555, 300, 50),
    Accelerator("A100-80GB", 80.0, 312, 2039, 300, 50),
    Accelerator("A100-PCIe-40GB", 40.0, 312, 1555, 25, 3),
    Accelerator("A100-PCIe-80GB", 80.0, 312, 1935, 25, 3),
    Accelerator("H100", 79.6, 989.4, 3350, 450, 50),  # SXM
    Accelerator("H100-PCIe", 79.6, 756, 2000, 50, 3),
    Accelerator("H100-NVL", 93.6, 835.5, 3900, 50, 3),
    Accelerator("H200", 140.4, 989.4, 4800, 450, 50),  # SXM
    Accelerator("H200-NVL", 140.4, 835.5, 4800, 50, 3),
    Accelerator("B200", 179.1, 2250, 8000, 900, 50),
    Accelerator("GH200", 95.6, 989.4, 4000, 50, 50),  # its NVLink goes to its own CPU
)


def parse(text):
    """(count, `Accelerator`) of "8xH200", "2 x 4090", "A100-40GB" (one; a bare "A100" has 80 GB) or "1x12GB" (only memory is known).

    Raises `Refusal` for a kind that is not known and a count outside 1 to 1024.
    """
    number, name = re.fullmatch(r"\s*(?:(-?\d+)\s*[x×*]\s*)?(.*?)\s*", str(text).lower(), re.DOTALL).groups()
    count = int(number or 1)
    if not 1 <= count <= 1024:
        raise Refusal(f"{text!r} asks for {count} GPUs; give a count from 1 to 1024, such as 8xH200")
    if size := re.fullmatch(r"(\d+(?:\.\d+)?)\s*gi?b", name):
        if not 1 <= float(size[1]) <= 10_000:
            raise Refusal(f"{text!r} asks for GPUs of {size[1]} GiB; give the memory of one GPU in GiB, such as 1x12GB")
        return count, Accelerator(f"{size[1]} GiB", float(size[1]))
    kind, memory = _kind(name)
    same = [row for row in KNOWN if _kind(row.name)[0] == kind and (memory is None or abs(row.memory_gib / memory - 1) < 0.1)]
    if not same and _before_ampere(name):
        raise Refusal(
            f"{text!r} asks for GPUs of before 2020, which do not compute in bf16, and the recipes train in it (with FP16, where "
            "a recipe has it, give the memory alone, such as 1x16GB); take one of "
            f"{', '.join(row.name for row in KNOWN)}"
        )
    if not same:
        raise Refusal(
            f"{text!r} names no GPU that is known here; known are {', '.join(row.name for row in KNOWN)}, with a count before them "
            "(8xH200), and for any other its memory alone (1x12GB)"
        )
    return count, max(same, key=lambda row: row.memory_gib)


def recognise(name, memory_gib):
    """The `Accelerator` that nvidia-smi calls `name` ("NVIDIA H100 80GB HBM3"), with the memory it has, in GiB.

    One that is not known here ("RTX 3060 Ti", a laptop's) has its memory and nothing else; so have T4, V100 and older ones, which
    compute no bf16, as they say. memory_gib: NaN where nvidia-smi does not tell, then a known one has the table's.
    """
    kind = _kind(name.lower())[0]
    same = [row for row in KNOWN if _kind(row.name)[0] == kind]
    if not same:
        return Accelerator(name, memory_gib, bf16=not _before_ampere(name))
    if math.isnan(memory_gib):
        return same[0]
    return replace(min(same, key=lambda row: abs(row.memory_gib - memory_gib)), memory_gib=memory_gib)


def found():
    """(count, `Accelerator`) of the GPUs of this machine that this process may use, or None without any.

    Of several kinds the one with the smallest memory stands for all, for it decides what fits; its name says so, and bf16 is true
    where all have it. Memory of an unknown kind that the driver does not tell is unified: the machine's own.
    """
    gpus = [recognise(gpu.name, gpu.memory_gib) for gpu in hardware.gpus()]
    if not gpus:
        return None
    gpus = [replace(gpu, memory_gib=hardware.memory_gib()) if math.isnan(gpu.memory_gib) else gpu for gpu in gpus]
    smallest = min(gpus, key=lambda gpu: gpu.memory_gib)
    if names := sorted({gpu.name for gpu in gpus} - {smallest.name}):
        name = f"{smallest.name} (the smallest; also {', '.join(names)})"
        smallest = replace(smallest, name=name, bf16=all(gpu.bf16 for gpu in gpus))
    return len(gpus), smallest


def cpu():
    """This machine without its GPUs: its memory, and no peak."""
    return Accelerator("CPU", hardware.memory_gib(), is_cpu=True)


def _kind(name):
    """(the words that tell one kind from another, nominal memory in GB or None) of a name as people or nvidia-smi write it."""
    words = re.split(r"[\s_-]+", name.lower().strip())
    sizes = [int(word.rstrip("gb")) for word in words if re.fullmatch(r"\d+gb?", word)]
    noise = r"\d+gb?|nvidia|geforce|rtx|hbm\w+|sxm\d?"
    words = [re.sub(r"^rtx(?=\w)", "", word) for word in words if word and not re.fullmatch(noise, word)]
    return frozenset(words), sizes[0] if sizes else None


def _before_ampere(name):
    """Whether a name is of a GPU of Turing, Volta or before, as far as their names tell."""
    words = re.split(r"[\s_-]+", name.lower().strip())
    if any(re.fullmatch(r"a\d+|ada", word) for word in words):  # "Quadro RTX A6000", as shops write
        return False
    tesla, turing = r"t4g?|v100s?|p(4|6|40|100)|m(10|40|60)|k[248]0[mx]?", r"t(400|500|600|1000|1200|2000)"
    geforce = r"(rtx)?20[678]0(ti|super)?|(gtx)?(9[5-8]0|10[1-8]0|16[356]0)(ti|super)?|gtx?(\d+\w*)?"
    return any(re.fullmatch(rf"{tesla}|{turing}|{geforce}|titan\w*|quadro", word) for word in words)


def _several(*counted):
    """(count, `Accelerator`) of each name with its counts."""
    return ((count, parse(name)[1]) for names, counts in counted for name in names for count in counts)


COMPARED = tuple(_several((("4090", "A100", "H100", "H200", "B200"), (1, 4, 8))))  # the table of other hardware

# What may be advised where a run does not fit, the least memory of all GPUs together first
ADVISED = tuple(
    sorted(
        _several((("3060", "4090", "A40", "L40S", "A100", "H200", "B200"), (1,)), (("A100", "H100", "H200", "B200"), (4, 8))),
        key=lambda row: row[0] * row[1].memory_gib,
    )
)

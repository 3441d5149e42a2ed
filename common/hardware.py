"""What this machine has: GPUs, cores, memory, disk. Asks the system, not torch, so it answers before anything heavy loads."""

import ctypes
import math
import os
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.refusal import Refusal

GIB = 1024**3


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU that this process may use; memory in GiB, NaN where the driver does not tell (unified memory)."""

    name: str
    memory_gib: float
    free_gib: float
    driver: str
    index: int = 0  # nvidia-smi's


def prepare_torch():
    """What must be in the environment before torch and DeepSpeed are imported.

    Waiting CPU threads sleep instead of spinning: on busy cores, and with more ranks than cores, spinning ones take the time
    from those they wait for, and small models have been seen to run 50 times slower. DeepSpeed is told where there is no GPU.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not gpus():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def keep_freed_memory():
    """Let this process keep what it frees, for torch's next tensor, instead of giving pages back to the system and asking again.

    Large tensors on a CPU otherwise cost a page fault for every 4 KiB each time (mallopt(3); the constants are glibc's malloc.h).
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28)):
            mallopt(option, value)


def describe():
    """The machine in one line: "2 x NVIDIA H200, 140 GiB each" or "CPU, 2 cores, 23 GiB"."""
    found = gpus()
    if not found:
        cores = cpu_cores()
        return f"CPU, {cores} core{'s' if cores > 1 else ''}, {memory_gib():.0f} GiB"
    kinds = {}
    for gpu in found:
        size = "" if math.isnan(gpu.memory_gib) else f", {gpu.memory_gib:.0f} GiB"
        kinds[gpu.name, size] = kinds.get((gpu.name, size), 0) + 1
    return " + ".join(f"{n} x {name}{size}{' each' if n > 1 and size else ''}" for (name, size), n in kinds.items())


def gpus(environ=os.environ):
    """The GPUs nvidia-smi lists, in its order, as far as CUDA_VISIBLE_DEVICES admits them; none without a working driver.

    Slices of one (MIG) that CUDA_VISIBLE_DEVICES names are not among them; see `is_mig`.
    """
    rows = _listed(["name", "memory.total", "memory.free", "driver_version"], environ)
    return [Gpu(name, _gib(total), _gib(free), driver, int(index)) for index, _, name, total, free, driver in rows]


def is_mig(environ=os.environ):
    """Whether this process gets a slice of a GPU (MIG), whose memory and peak are not known here.

    True where CUDA_VISIBLE_DEVICES names a slice, or where a GPU that it admits is divided.
    """
    if any(entry.strip().startswith("MIG-") for entry in environ.get("CUDA_VISIBLE_DEVICES", "").split(",")):
        return True
    return any(mode == "Enabled" for _, _, mode in _listed(["mig.mode.current"], environ))


def utilisation(environ=os.environ):
    """The share of the last second in which each of the GPUs computed, averaged over them, as nvidia-smi tells it; None without one."""
    shares = [int(share) / 100 for _, _, share in _listed(["utilization.gpu"], environ) if share.isdecimal()]
    return sum(shares) / len(shares) if shares else None


def _listed(fields, environ):
    """[index, UUID, *fields] of every GPU that CUDA_VISIBLE_DEVICES admits."""
    try:
        command = ["nvidia-smi", f"--query-gpu={','.join(['index', 'uuid', *fields])}", "--format=csv,noheader,nounits"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[field.strip() for field in line.split(",")] for line in answer.splitlines() if line.count(",") == len(fields) + 1]
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return rows if visible is None else _admitted(rows, visible)


def _admitted(rows, visible):
    """The rows CUDA would show: indices or (shortened) UUIDs in the order given, up to the first that names no GPU."""
    chosen = []
    for entry in (entry.strip() for entry in visible.split(",")):
        found = [row for row in rows if entry == row[0] or (entry.startswith("GPU-") and row[1].startswith(entry))]
        if len(found) != 1:
            break
        chosen += found
    return chosen


def _gib(mebibytes):
    try:
        return float(mebibytes) / 1024
    except ValueError:  # "[N/A]"
        return math.nan


def cpu_cores(cgroups=Path("/sys/fs/cgroup"), own=Path("/proc/self/cgroup")):
    """Cores this process may really use: its affinity, cut by the quota of its container, at least 1."""
    cores = len(os.sched_getaffinity(0))
    for directory in _groups(cgroups, own, "cpu"):
        quota, period = (_read(directory / "cpu.max") or "max 1").split()  # version 2
        if quota == "max":  # or version 1, where -1 is no limit
            quota, period = _read(directory / "cpu.cfs_quota_us") or "-1", _read(directory / "cpu.cfs_period_us") or "1"
        if int(quota) > 0:
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def memory_gib(cgroups=Path("/sys/fs/cgroup"), own=Path("/proc/self/cgroup")):
    """Memory this process may really use: the machine's, cut by the limit of its container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for directory in _groups(cgroups, own, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):  # version 2, version 1
            limit = _read(directory / name)
            if limit and limit != "max":
                total = min(total, int(limit))
    return total / GIB


def free_memory_gib():
    """GiB of host memory that nobody uses now, at most what this process may have."""
    import psutil

    return min(psutil.virtual_memory().available / GIB, memory_gib())


def _groups(cgroups, own, controller):
    """Every directory of control groups that limits this process: its own and all above it."""
    found = [cgroups, cgroups / controller]
    for line in (_read(own) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            top = cgroups / controller if controllers else cgroups
            parts = [part for part in path.split("/") if part not in ("", "..")]
            found += [top.joinpath(*parts[: n + 1]) for n in range(len(parts))]
    return found


def _read(path):
    try:
        return path.read_text().strip()
    except OSError:
        return None


def free_disk_gb(path):
    """Free space, in 10^9 bytes, on the disk that `path` is on or will be created on."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free / 1e9


def size(gb):
    """10^9 bytes in words: "1.2 GB", "0.8 MB", "2.3 TB"."""
    if gb >= 1000:
        return f"{gb / 1000:.1f} TB"
    return f"{gb:.1f} GB" if gb >= 1 else f"{1000 * gb:.1f} MB"


def require_disk(path, needed_gb, what, setting="OUTPUT_DIR"):
    """Refuse to start writing `what` where the disk of `path` has less than `needed_gb` free. setting: the constant that moves it."""
    free = free_disk_gb(path)
    if free < needed_gb:
        raise Refusal(
            f"{what} needs {size(needed_gb)} and the disk of {path} has {size(free)} free; free {size(needed_gb - free)} there, "
            f"or set {setting} to a directory on a larger disk"
        )

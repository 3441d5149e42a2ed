"""What the machine has. nvidia-smi is a real program on the PATH here, written by the test; control groups are real files."""

import math
import os
import shutil

import pytest

from common import hardware
from common.refusal import Refusal

TWO = """\
0, GPU-aaaa1111-0000, NVIDIA H200, 143771, 143100, 580.95.05
1, GPU-bbbb2222-0000, NVIDIA H200, 143771, 1024, 580.95.05
"""


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Put an nvidia-smi first on the PATH that answers `text`, and `mig` when asked for the mode."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def answer(text, exit_code=0, mig=None):
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        (tmp_path / "answer").write_text(text)
        (tmp_path / "mig").write_text(mig or "")
        program.write_text(
            f"""#!/bin/sh
case "$*" in
*mig.mode.current*--format=csv,noheader,nounits*) cat "{tmp_path}/mig"; test -s "{tmp_path}/mig" || exit 2;;
*--format=csv,noheader,nounits*) cat "{tmp_path}/answer";;
*) exit 9;;
esac
exit {exit_code}
"""
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return answer


def test_two_gpus(nvidia_smi):
    nvidia_smi(TWO)
    first, second = hardware.gpus()
    assert (first.name, first.driver) == ("NVIDIA H200", "580.95.05")
    assert first.memory_gib == pytest.approx(140.4, abs=0.05)
    assert second.free_gib == 1.0
    assert hardware.describe() == "2 x NVIDIA H200, 140 GiB each"


@pytest.mark.parametrize(
    ("visible", "free"),
    [
        ("1", [1024]),
        ("1,0", [1024, 143100]),
        ("GPU-bbbb", [1024]),
        (" 0 , 1 ", [143100, 1024]),
        ("0,7,1", [143100]),  # CUDA stops at the first that is none
        ("GPU-", []),  # two match: CUDA takes none
        ("-1", []),
        ("", []),
    ],
)
def test_cuda_visible_devices(nvidia_smi, monkeypatch, visible, free):
    nvidia_smi(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.free_gib for gpu in hardware.gpus()] == [mib / 1024 for mib in free]


def test_different_gpus_are_named_apart(nvidia_smi):
    nvidia_smi(TWO + "2, GPU-cccc3333-0000, NVIDIA A100-SXM4-80GB, 81920, 81000, 580.95.05\n")
    assert hardware.describe() == "2 x NVIDIA H200, 140 GiB each + 1 x NVIDIA A100-SXM4-80GB, 80 GiB"


def test_a_gpu_that_does_not_tell_its_memory(nvidia_smi):
    nvidia_smi("0, GPU-dddd4444-0000, NVIDIA GB10, [N/A], [N/A], 580.95.05\n")
    assert math.isnan(hardware.gpus()[0].memory_gib)
    assert hardware.describe() == "1 x NVIDIA GB10"


def test_a_driver_that_fails_is_no_gpu(nvidia_smi):
    nvidia_smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", exit_code=9)
    assert hardware.gpus() == []
    assert hardware.describe().startswith("CPU, ")


def test_without_nvidia_smi_it_is_a_cpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.gpus() == []
    cores = hardware.cpu_cores()
    assert hardware.describe() == f"CPU, {cores} core{'s' if cores > 1 else ''}, {hardware.memory_gib():.0f} GiB"


MODES = "0, GPU-aaaa1111-0000, Enabled\n1, GPU-bbbb2222-0000, Disabled\n"


@pytest.mark.parametrize(
    ("visible", "modes", "found"),
    [
        (None, MODES, True),
        ("0", MODES, True),
        ("1", MODES, False),
        ("GPU-bbbb", MODES, False),
        ("", MODES, False),
        (None, MODES.replace("Enabled", "[N/A]"), False),
        (None, None, False),  # a driver that knows no such field
        ("MIG-5c8b1e2a-0000", None, True),
        ("MIG-GPU-aaaa1111-0000/1/0", MODES, True),  # as drivers before 470 name them
        (" MIG-5c8b1e2a-0000,MIG-7d9c2f3b-0000", MODES, True),
    ],
)
def test_slices_of_a_gpu(nvidia_smi, monkeypatch, visible, modes, found):
    nvidia_smi(TWO, mig=modes)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert hardware.is_mig() is found
    if visible and "MIG" in visible:
        assert hardware.gpus() == []


def test_without_nvidia_smi_there_are_no_slices(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert not hardware.is_mig()


@pytest.fixture
def groups(tmp_path):
    """A tree of control groups: files by path, and what /proc/self/cgroup says."""

    def write(own, **files):
        for path, text in files.items():
            place = tmp_path / "cgroup" / path.replace("__", "/").replace("_dot_", ".")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text + "\n")
        (tmp_path / "own").write_text(own + "\n")
        return {"cgroups": tmp_path / "cgroup", "own": tmp_path / "own"}

    return write


def test_a_quota_of_half_a_core_is_one_core(groups):
    assert hardware.cpu_cores(**groups("0::/", cpu_dot_max="50000 100000")) == 1


def test_a_quota_above_the_affinity_changes_nothing(groups):
    unlimited = len(os.sched_getaffinity(0))
    assert hardware.cpu_cores(**groups("0::/", cpu_dot_max="100000000 100000")) == unlimited
    assert hardware.cpu_cores(**groups("0::/", cpu_dot_max="max 100000")) == unlimited


def test_affinity_counts():
    everything = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everything)})
    try:
        assert hardware.cpu_cores() == 1
    finally:
        os.sched_setaffinity(0, everything)


def test_limits_of_the_groups_above_count_too(groups):
    places = groups("0::/job/step", memory_dot_max="max", job__memory_dot_max=str(2 * 1024**3), job__step__memory_dot_max="max")
    assert hardware.memory_gib(**places) == 2


def test_version_1_groups(groups):
    places = groups(
        "4:memory:/job\n1:cpu,cpuacct:/job",
        memory__memory_dot_limit_in_bytes="9223372036854771712",
        memory__job__memory_dot_limit_in_bytes=str(3 * 1024**3),
        cpu__job__cpu_dot_cfs_quota_us="80000",
        cpu__job__cpu_dot_cfs_period_us="100000",
    )
    assert hardware.memory_gib(**places) == 3
    assert hardware.cpu_cores(**places) == 1


def test_free_disk_of_a_directory_to_be(tmp_path):
    assert hardware.free_disk_gb(tmp_path / "not" / "yet") == pytest.approx(shutil.disk_usage(tmp_path).free / 1e9, rel=0.05)


def test_require_disk(tmp_path):
    hardware.require_disk(tmp_path, 0.000001, "one checkpoint")
    with pytest.raises(Refusal) as refused:
        hardware.require_disk(tmp_path, 1e9, "one checkpoint")
    sentence = str(refused.value)
    assert sentence.startswith("one checkpoint needs 1000000.0 TB")
    assert str(tmp_path) in sentence
    assert "OUTPUT_DIR" in sentence

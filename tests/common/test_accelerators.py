"""Facts of GPUs: what --gpus may say, and what nvidia-smi calls them; nvidia-smi is a real program, written by the test."""

import math
import os

import pytest

from common import accelerators, hardware
from common.accelerators import parse, recognise
from common.refusal import Refusal


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [
        ("8xH200", 8, "H200"),
        ("8 x H200", 8, "H200"),
        (" 8×h200 ", 8, "H200"),
        ("H200", 1, "H200"),
        ("h200", 1, "H200"),
        ("2x4090", 2, "RTX 4090"),
        ("rtx4090", 1, "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", 1, "RTX 4090"),
        ("1xA100-40GB", 1, "A100-40GB"),
        ("A100", 1, "A100-80GB"),
        ("4xA100-SXM4-80GB", 4, "A100-80GB"),
        ("A100 PCIe", 1, "A100-PCIe-80GB"),
        ("3060-12gb", 1, "RTX 3060"),
        ("a6000", 1, "RTX A6000"),
        ("H100-80GB", 1, "H100"),
        ("h100 nvl", 1, "H100-NVL"),
        ("1024xB200", 1024, "B200"),
    ],
)
def test_parse(text, count, name):
    found = parse(text)
    assert (found[0], found[1].name) == (count, name)
    assert found[1] in accelerators.KNOWN


@pytest.mark.parametrize(("text", "count", "memory"), [("1x12GB", 1, 12), ("12 gib", 1, 12), ("8 x 79.5GB", 8, 79.5)])
def test_memory_alone(text, count, memory):
    found = parse(text)
    assert (found[0], found[1].memory_gib, found[1].peak_tflops, found[1].link_gb_per_s) == (count, memory, None, None)


@pytest.mark.parametrize("text", ["8xT5", "H300", "", "x", "8x", "H100-40GB", "3060 Ti", "rtx", "80", "8xH200x2", "H200\n8xH200"])
def test_a_kind_not_known_is_refused_with_the_known_ones(text):
    with pytest.raises(Refusal, match=r"known are RTX 3060, .*H200.*GH200.*1x12GB"):
        parse(text)


@pytest.mark.parametrize(
    "text",
    ["T4", "8xT4", "tesla-t4", "4xV100", "V100-32GB", "Tesla P100", "P40", "2080 Ti", "rtx2080ti", "GTX 1080 Ti", "1080", "Titan RTX",
     "Quadro RTX 8000"],
)  # fmt: skip
def test_a_kind_without_bf16_is_refused_with_the_reason(text):
    with pytest.raises(Refusal, match=r"do not compute in bf16, and the recipes train in it .*; take one of RTX 3060, .*GH200$"):
        parse(text)


@pytest.mark.parametrize("text", ["0xH200", "1025xH200", "-1xH200", "0x12GB"])
def test_a_count_out_of_range_is_refused(text):
    with pytest.raises(Refusal, match="from 1 to 1024"):
        parse(text)


@pytest.mark.parametrize("text", ["1x0GB", "0.5GB", "99999GB"])
def test_no_gpu_has_such_a_memory(text):
    with pytest.raises(Refusal, match="memory of one GPU"):
        parse(text)


@pytest.mark.parametrize(
    ("name", "memory", "known"),
    [
        ("NVIDIA H100 80GB HBM3", 79.65, "H100"),
        ("NVIDIA H100 PCIe", 79.65, "H100-PCIe"),
        ("NVIDIA H100 NVL", 93.58, "H100-NVL"),
        ("NVIDIA H200", 140.4, "H200"),
        ("NVIDIA H200 NVL", 140.4, "H200-NVL"),
        ("NVIDIA B200", 179.06, "B200"),
        ("NVIDIA GH200 480GB", 95.58, "GH200"),
        ("NVIDIA A100-SXM4-40GB", 39.59, "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", 80.0, "A100-80GB"),
        ("NVIDIA A100-PCIE-40GB", 40.0, "A100-PCIe-40GB"),
        ("NVIDIA A100 80GB PCIe", 80.0, "A100-PCIe-80GB"),
        ("A100-SXM4-80GB", 79.3, "A100-80GB"),  # drivers before 2021 leave the maker's name out
        ("NVIDIA L4", 22.49, "L4"),
        ("NVIDIA L40S", 44.99, "L40S"),
        ("NVIDIA A10G", 22.49, "A10G"),
        ("NVIDIA A40", 44.99, "A40"),
        ("NVIDIA RTX A6000", 47.99, "RTX A6000"),
        ("NVIDIA GeForce RTX 3060", 12.0, "RTX 3060"),
        ("NVIDIA GeForce RTX 4090", 23.99, "RTX 4090"),
        ("NVIDIA GeForce RTX 5090", 31.84, "RTX 5090"),
    ],
)
def test_recognise(name, memory, known):
    found = recognise(name, memory)
    (row,) = [row for row in accelerators.KNOWN if row.name == known]
    assert (found.name, found.peak_tflops, found.link_gb_per_s) == (known, row.peak_tflops, row.link_gb_per_s)
    assert found.memory_gib == memory  # the one that is there, not the table's
    assert row.memory_gib == pytest.approx(memory, rel=0.02)


@pytest.mark.parametrize(
    "name",
    ["NVIDIA GeForce RTX 3060 Ti", "NVIDIA GeForce RTX 2050", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D",
     "NVIDIA RTX 6000 Ada Generation", "NVIDIA RTX A4000", "Quadro RTX A5000",
     "NVIDIA GB10", "NVIDIA RTX", "NVIDIA L40", "NVIDIA A10", "NVIDIA H20"],
)  # fmt: skip
def test_a_relative_is_not_taken_for_the_one_that_is_known(name):
    assert recognise(name, 15.0) == accelerators.Accelerator(name, 15.0)


@pytest.mark.parametrize(
    "name",
    ["Tesla T4", "NVIDIA T4G", "Tesla V100-SXM2-32GB", "Tesla V100S-PCIE-32GB", "Tesla P100-PCIE-16GB", "Tesla P40", "Tesla K80",
     "NVIDIA GeForce GTX 1080 Ti", "NVIDIA GeForce GTX 1660 SUPER", "NVIDIA GeForce RTX 2080 Ti", "Quadro P5000",
     "NVIDIA GeForce RTX 2070 with Max-Q Design", "NVIDIA GeForce RTX 2060 SUPER",
     "Quadro RTX 8000", "NVIDIA TITAN V", "NVIDIA TITAN RTX", "TITAN Xp", "NVIDIA T1000"],
)  # fmt: skip
def test_what_is_older_than_ampere_has_no_bf16(name):
    assert recognise(name, 15.0) == accelerators.Accelerator(name, 15.0, bf16=False)


def test_what_is_known_has_bf16():
    for row in accelerators.KNOWN:
        assert row.bf16 and recognise(row.name, math.nan).bf16 and not accelerators._before_ampere(row.name)


def test_a_known_one_without_a_total_has_the_tables():
    assert recognise("NVIDIA H200", math.nan) == parse("H200")[1]


def test_the_table_is_whole():
    assert len({row.name for row in accelerators.KNOWN}) == len(accelerators.KNOWN)
    for row in accelerators.KNOWN:
        assert parse(row.name) == (1, row)  # no name leads to another row
        assert None not in (row.peak_tflops, row.memory_gb_per_s, row.link_gb_per_s, row.node_gb_per_s)


@pytest.mark.parametrize(
    ("name", "multiprocessors", "flop_per_cycle", "ghz"),
    [
        ("RTX 3060", 28, 512, 1.777), ("RTX 3080", 68, 512, 1.71), ("RTX 3090", 82, 512, 1.695), ("RTX 4070", 46, 512, 2.475),
        ("RTX 4090", 128, 512, 2.52), ("RTX 5090", 170, 512, 2.407), ("L4", 58, 1024, 2.04), ("L40S", 142, 1024, 2.49),
        ("A10G", 80, 512, 1.71), ("A40", 84, 1024, 1.74), ("RTX A6000", 84, 1024, 1.8), ("A100-80GB", 108, 2048, 1.41),
        ("H100", 132, 4096, 1.83), ("H100-PCIe", 114, 4096, 1.62), ("B200", 148, 8192, 1.85),
    ],
)  # fmt: skip
def test_the_peak_is_what_the_tensor_cores_can_do(name, multiprocessors, flop_per_cycle, ghz):
    """From the chip's own numbers: a figure with sparsity, or with sums in fp16, would be twice this."""
    assert parse(name)[1].peak_tflops == pytest.approx(multiprocessors * flop_per_cycle * ghz / 1000, rel=0.01)


def test_compared():
    shown = [f"{count}x{gpu.name}" for count, gpu in accelerators.COMPARED]
    assert len(shown) == 15
    assert shown[:4] == ["1xRTX 4090", "4xRTX 4090", "8xRTX 4090", "1xA100-80GB"]
    assert shown[-1] == "8xB200"


def test_advised():
    shown = [f"{count}x{gpu.name}" for count, gpu in accelerators.ADVISED]
    assert shown == [
        "1xRTX 3060", "1xRTX 4090", "1xA40", "1xL40S", "1xA100-80GB", "1xH200", "1xB200", "4xH100", "4xA100-80GB", "4xH200", "8xH100",
        "8xA100-80GB", "4xB200", "8xH200", "8xB200",
    ]  # fmt: skip


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Put an nvidia-smi that lists (name, MiB) first on the PATH."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def lists(*gpus):
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir()
        (tmp_path / "answer").write_text("".join(f"{n}, GPU-{n}, {name}, {mib}, {mib}, 580.95\n" for n, (name, mib) in enumerate(gpus)))
        program.write_text(f'#!/bin/sh\ncat "{tmp_path}/answer"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return lists


def test_found(nvidia_smi):
    nvidia_smi(("NVIDIA H200", 143771), ("NVIDIA H200", 143771))
    count, gpu = accelerators.found()
    assert (count, gpu.name, gpu.peak_tflops) == (2, "H200", 989.4)
    assert gpu.memory_gib == pytest.approx(140.4, abs=0.05)


def test_the_smallest_of_several_kinds_stands_for_all(nvidia_smi):
    nvidia_smi(("NVIDIA GeForce RTX 4090", 24564), ("NVIDIA GeForce RTX 3060", 12288), ("NVIDIA TITAN RTX", 24576))
    count, gpu = accelerators.found()
    assert (count, gpu.memory_gib, gpu.peak_tflops) == (3, 12.0, 25.5)
    assert gpu.name == "RTX 3060 (the smallest; also NVIDIA TITAN RTX, RTX 4090)"


def test_unified_memory_is_the_machines(nvidia_smi):
    nvidia_smi(("NVIDIA GB10", "[N/A]"))
    assert accelerators.found() == (1, accelerators.Accelerator("NVIDIA GB10", hardware.memory_gib()))


def test_a_known_one_that_does_not_tell_its_memory_has_the_tables(nvidia_smi):
    nvidia_smi(("NVIDIA H200", "[N/A]"), ("NVIDIA H200", "[N/A]"))
    assert accelerators.found() == (2, parse("H200")[1])


def test_of_several_kinds_all_must_have_bf16(nvidia_smi):
    nvidia_smi(("NVIDIA GeForce RTX 3060", 12288), ("Tesla T4", 15360))
    assert accelerators.found()[1].bf16 is False


def test_without_a_gpu_nothing_is_found(nvidia_smi, monkeypatch):
    nvidia_smi(("NVIDIA H200", 143771))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert accelerators.found() is None

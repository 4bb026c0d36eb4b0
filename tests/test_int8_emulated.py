"""Kernels in eight bits of instruction sets that this machine does not have: compiled for them, run by an emulation."""

import shutil
import subprocess
from pathlib import Path

import pytest

from models.executors.cpu.library import library

NATIVE = Path(__file__).parent.parent / "models" / "executors" / "cpu" / "native"
PROGRAM = Path(__file__).with_name("convolutions_u8.cpp")
OPTIONS = ("-std=c++17", "-O0", "-DNDEBUG", f"-I{NATIVE}")


def compiled(compiler: str, kernels: str, source: Path, folder: Path, *options: str) -> Path:
    program = folder / "program"
    command = [compiler, *OPTIONS, *options, f"-DKERNELS_UNDER_TEST={kernels}", str(PROGRAM), str(source)]
    subprocess.run([*command, "-o", str(program)], check=True, timeout=300)
    return program


@pytest.mark.parametrize("name", ["neondot", "baseline"])
def test_arm_by_qemu(name: str, tmp_path: Path) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("needs g++-aarch64-linux-gnu and qemu-user")
    program = compiled(compiler, f"{name}_kernels", NATIVE / f"kernels_{name}.cpp", tmp_path, "-static")
    told = subprocess.run([emulator, "-cpu", "max", program], check=True, capture_output=True, text=True, timeout=300)
    assert told.stdout == f"{'neon' if name == 'baseline' else name}: 50 of 50 are right\n"


def test_avx_vnni_by_avx512_vnni(tmp_path: Path) -> None:
    """Both encode the same instruction."""
    compiler = shutil.which("g++")
    if compiler is None or not library().kernels_find(b"avx512vnni"):
        pytest.skip("needs g++ and a machine with AVX512-VNNI")
    for path in NATIVE.glob("*.h"):
        text = path.read_text().replace("_mm256_dpbusd_avx_epi32", "_mm256_dpbusd_epi32")
        (tmp_path / path.name).write_text(text)
    text = (NATIVE / "kernels_avxvnni.cpp").read_text()
    source = tmp_path / "kernels.cpp"
    source.write_text(text.replace('target("avx2,fma,avxvnni")', 'target("avx2,fma,avx512vl,avx512vnni")'))
    program = compiled(compiler, "avxvnni_kernels", source, tmp_path)
    told = subprocess.run([program], check=True, capture_output=True, text=True, timeout=300)
    assert told.stdout == "avxvnni: 50 of 50 are right\n"

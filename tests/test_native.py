"""The kernels without Python: compiled without a warning, under sanitizers, and for a processor that is emulated."""

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diffeo.ops.cpu.compiler import FLAGS, Compiler, features
from native_cases import write_cases
from processors import builds, installed

SOURCES = Path(__file__).parent.parent / "src" / "diffeo" / "ops" / "cpu"
DRIVER = [*sorted((Path(__file__).parent / "native").glob("*.c")), SOURCES / "product.c"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g"]
CROSS = installed("aarch64-linux-gnu-gcc", *(f"aarch64-linux-gnu-gcc-{version}" for version in range(16, 10, -1)))
QEMU = installed("qemu-aarch64", "qemu-aarch64-static")
# In assembly of an x86-64 or an aarch64: products of vectors, vectors loaded, and where straight code ends.
PRODUCT = r"\t(?:vfmadd\w*|v?mulps|fmla)\t"
VECTOR_LOAD = r"^\tv?\w+\t-?\w*\(%[^)]*\), %[xyz]mm|^\tld\w+\t.*\b[qsv]\d.*\["
JUMP = r"^\.?\w+:|^\t(?:j|b[. ]|b\t|cb)\w*"
BUILDS = {build.name: build for build in builds()}


def command_of(name, folder):
    """The compiler and its options for a build, or for aarch64; skips where there is none."""
    if name == "aarch64":
        if CROSS is None:
            pytest.skip("aarch64-linux-gnu-gcc is not installed")
        return [CROSS]
    build = BUILDS[name]
    if build.skipped:
        pytest.skip(build.skipped)
    program, *options = build.command
    return [*build.command, *features(Compiler((program,), tuple(options)), folder).native]


def run(command, folder, **more):
    return subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=300, **more)


def links(command, folder):
    """Whether a compiler can make a program with these options."""
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    return run([*command, "-o", "empty", "empty.c"], folder).returncode == 0


@pytest.fixture(scope="session")
def cases(tmp_path_factory):
    path = tmp_path_factory.mktemp("native") / "cases"
    write_cases(path)
    return path


def drive(command, folder, cases, before=()):
    """Build the driver, its files side by side, and run all cases, by one thread and by two."""
    command = [*command, *(option for option in FLAGS if option != "-O3")]
    if "-static" not in command and links([*command, "-fopenmp"], folder):
        command.append("-fopenmp")
    objects = [f"{source.stem}.o" for source in DRIVER]
    compile_one = [*command, f"-I{SOURCES}", "-c", "-o"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(lambda pair: run([*compile_one, *pair], folder), zip(objects, DRIVER, strict=True)))
    for built in (*done, run([*command, "-o", "driver", *objects, "-lm"], folder)):
        assert not built.returncode, built.stderr
    for threads in (1, 2):
        done = run([*before, folder / "driver", cases, threads], folder)
        assert not done.returncode, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("name", [*BUILDS, "aarch64"])
def test_no_compiler_warns_of_anything(name, tmp_path):
    """Nor of vectors in arguments, whose place depends on the instruction set unless they are as wide as registers."""
    command = [*command_of(name, tmp_path), *FLAGS, "-O1", "-fopenmp", "-Wall", "-Wextra", "-Wpsabi"]
    for source in SOURCES.glob("*.c"):
        done = run([*command, "-c", "-o", "object", source], tmp_path)
        # clang also warns of what -march=native makes of a processor, and names no file there
        said = [line for line in (done.stdout + done.stderr).splitlines() if ": warning:" in line or ": note:" in line]
        assert (done.returncode, said) == (0, [])


@pytest.mark.parametrize("name", [*BUILDS, "aarch64"])
def test_a_tile_loads_each_value_once(name, tmp_path):
    """Tuned for Zen, GCC loaded a value for each of the units that it is multiplied by: products waited for loads."""
    done = run([*command_of(name, tmp_path), *FLAGS, "-S", "-o", "-", SOURCES / "product.c"], tmp_path)
    assert not done.returncode, done.stderr
    tiles = re.findall(r"^product_(\d)_(\d):(.*?)\t\.size", done.stdout, re.MULTILINE | re.DOTALL)
    units, vectors, largest = max(((int(u), int(v), code) for u, v, code in tiles), key=lambda tile: tile[0] * tile[1])
    straight = re.split(JUMP, largest, flags=re.MULTILINE)
    products, loads = max(
        (len(re.findall(PRODUCT, code)), len(re.findall(VECTOR_LOAD, code, re.MULTILINE))) for code in straight
    )
    columns = products / (units * vectors)  # of which the loop does several at a time, if the compiler likes
    assert columns >= 1
    assert loads <= columns * (units + vectors + 1)  # one accumulator is in memory where multiply-adds are not fused


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gcc native", "gcc x86-64-v3", "gcc x86-64", "clang native"])
def test_sanitizers_find_nothing(name, tmp_path, cases, monkeypatch):
    command = [*command_of(name, tmp_path), "-O1", *SANITIZERS]
    if not links(command, tmp_path):
        pytest.skip(f"{command[0]} has no sanitizers")
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")  # looking for leaks needs ptrace
    drive(command, tmp_path, cases)


@pytest.mark.slow
def test_an_emulated_aarch64_gives_the_values_of_the_reference(tmp_path, cases):
    command = [*command_of("aarch64", tmp_path), "-O2", "-static"]
    if QEMU is None:
        pytest.skip("qemu-aarch64 is not installed")
    if not links(command, tmp_path):
        pytest.skip(f"{command[0]} has no static C library")
    drive(command, tmp_path, cases, [QEMU])

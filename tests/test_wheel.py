"""What a wheel carries: kernels for each level of its processor family, which need no compiler."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from building import needs_compiler
from diffeo.ops.cpu import build, cache, compiler, prebuilt

ROOT = Path(__file__).parent.parent
SOURCES = compiler.sources(prebuilt.FOLDER.parent)

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(not sys.platform.startswith("linux") or not prebuilt._family(), reason="a wheel of Linux"),
]


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel") / "builds"
    prebuilt.build(folder)
    return folder


@pytest.fixture
def carried(builds, monkeypatch, tmp_path):
    """An installation that carries these builds, and no compiler."""
    monkeypatch.setattr(prebuilt, "FOLDER", builds)
    for name in ("CC", "DIFFEO_NATIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build.kernels.cache_clear()
    yield builds
    build.kernels.cache_clear()


def changed(folder, target, change):
    """A copy of the builds with another manifest, or other libraries."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    change(target)
    return target


@pytest.mark.slow
def test_every_build_that_runs_here_is_equal_to_the_reference(builds, tmp_path):
    levels = json.loads((builds / "manifest.json").read_text())["builds"]
    assert list(levels) == list(prebuilt._family())
    for level, facts in levels.items():
        if prebuilt.runs(level):
            race = build._prove(Path(shutil.copy(builds / f"{level}.so", tmp_path / "tried.so")))["kinds"]
            assert set(race) == set(build.KINDS)
            assert all(each["equal"] for each in race.values()), (level, race)
        assert facts["openmp"]
    lanes = [facts["instructions"] for facts in levels.values()]
    assert len(set(lanes)) == len(lanes)


@pytest.mark.slow
def test_without_a_compiler_the_best_build_is_taken(carried):
    kernels = build.kernels()
    level = next(level for level in prebuilt._family() if prebuilt.runs(level))
    assert kernels.library is not None, kernels.reason
    assert kernels.manifest["compiler"] == f"the wheel's build for {level}"
    assert kernels.manifest["race"]
    assert kernels.path.parent == cache.open_folder()  # kept, so that it is tried once
    before = kernels.path.stat().st_mtime_ns
    build.kernels.cache_clear()
    assert build.kernels().path.stat().st_mtime_ns == before


def test_cc_asks_for_a_compiler(carried, monkeypatch):
    monkeypatch.setattr(build, "shipped", lambda files: pytest.fail("it was not asked for"))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.warns(RuntimeWarning, match="names no program"):
        assert build.kernels().library is None


@pytest.mark.parametrize(
    "processor", [prebuilt._V4 | {"other"}, prebuilt._V3 | {"avx512f"}, frozenset({"sse2"}), frozenset()]
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="levels of x86-64")
def test_a_level_needs_all_of_its_instructions(builds, monkeypatch, processor):
    monkeypatch.setattr(prebuilt, "FOLDER", builds)
    monkeypatch.setattr(Path, "read_text", reads(f"processor: 0\nflags\t\t: {' '.join(processor)}\n"))
    best = {prebuilt._V4 | {"other"}: "x86-64-v4", prebuilt._V3 | {"avx512f"}: "x86-64-v3"}
    assert prebuilt.shipped(SOURCES).level == best.get(processor, "x86-64")


def reads(text, real=Path.read_text):
    return lambda path, *rest: text if str(path) == "/proc/cpuinfo" else real(path, *rest)


def damage_library(folder):
    for path in folder.glob("*.so"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")


def exchange_library(folder):
    """A library that the manifest names, and that cannot be loaded."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for level, facts in manifest["builds"].items():
        (folder / f"{level}.so").write_bytes(b"no library")
        facts["digest"] = build.hashlib.sha256(b"no library").hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("change", [damage_library, exchange_library])
def test_builds_that_fail_leave_it_to_the_compiler(carried, monkeypatch, tmp_path, caplog, change):
    monkeypatch.setattr(prebuilt, "FOLDER", changed(carried, tmp_path / "damaged", change))
    kernels = build.kernels()
    assert (kernels.library, kernels.reason) == (None, "no C compiler found: neither cc, gcc nor clang")
    (record,) = caplog.records
    assert record.getMessage().startswith("diffeo: the wheel's build for ")
    assert record.getMessage().isprintable()


def test_builds_of_other_sources_are_not_taken(builds, monkeypatch, tmp_path):
    monkeypatch.setattr(prebuilt, "FOLDER", builds)
    assert prebuilt.shipped(SOURCES) is not None
    assert prebuilt.shipped(SOURCES[1:]) is None
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path)  # as in a checkout
    assert prebuilt.shipped(SOURCES) is None
    for text in ("", "[]", "{}", '{"sources": 1, "builds": 2}', '{"builds": []}'):
        (tmp_path / "manifest.json").write_text(text)
        assert prebuilt.shipped(SOURCES) is None


@pytest.mark.slow
def test_an_installed_wheel_fits_without_a_compiler(builds, tmp_path):
    """Installed beside what it depends on, into an environment of its own, with nothing in PATH."""
    pytest.importorskip("hatchling", reason="wheels are made by hatchling")
    made = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT,
        env={**os.environ, "DIFFEO_PREBUILT": str(builds)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith(f"-py3-none-linux_{os.uname().machine}.whl")
    assert wheel.stat().st_size < 5e6
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name for name in archive.namelist() if "/ops/cpu/builds/" in name}
    assert names == {path.name for path in builds.iterdir()}
    venv.create(tmp_path / "env", with_pip=False)
    python, site = tmp_path / "env" / "bin" / "python", next((tmp_path / "env" / "lib").glob("*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    clean = {"PATH": str(tmp_path), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def run(*arguments):
        done = subprocess.run(
            [python, "-m", "diffeo", *arguments], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    fitted = run("fit", "wine", "--folds", "1", "--epochs", "2", "--no-figures", "--out", "run")
    assert "held out" in fitted or "validation" in fitted
    assert "the wheel's build for" in run("info", "--machine")

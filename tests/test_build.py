"""Building the kernels: nothing is loaded that another user could have written, and no compiler can do harm."""

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import pytest

from building import FUNCTIONS, REAL, a_place, again, needs_compiler, refused, script
from diffeo.ops.cpu import build, cache, compiler

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="kernels are built on POSIX systems only")
needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
SOMEBODY = 12345


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    yield from a_place(monkeypatch, tmp_path)


@pytest.fixture
def evil(tmp_path):
    """A library that has all the functions, and leaves a mark when it is loaded."""
    mark, source, target = tmp_path / "loaded", tmp_path / "evil.c", tmp_path / "evil.so"
    source.write_text(
        f"{FUNCTIONS}\n#include <stdio.h>\n"
        f'__attribute__((constructor)) static void run(void) {{ fclose(fopen("{mark}", "w")); }}\n'
    )
    subprocess.run([REAL, "-shared", "-fPIC", "-o", target, source], check=True)
    return target, mark


def forge(folder, evil, name):
    """Write a library and a manifest that names its digest, as somebody would who knows all names."""
    target = folder / f"{name}.so"
    target.unlink(missing_ok=True)  # written over, a library that this process has loaded would change under it
    shutil.copy(evil, target)
    digest = build.hashlib.sha256(evil.read_bytes()).hexdigest()
    (folder / f"{name}.json").write_text(json.dumps({"digest": digest, "race": {}, "time": time.time()}))


@needs_compiler
def test_the_library_is_built_once_and_kept(place):
    first = build.kernels()
    assert first.library is not None
    assert first.manifest["digest"] == build.hashlib.sha256(first.path.read_bytes()).hexdigest()
    assert first.manifest["version"]
    assert stat.S_IMODE(first.path.parent.stat().st_mode) == 0o700
    assert first.path.parent == place / "cache" / "diffeo" / "kernels"
    before = first.path.stat().st_mtime_ns
    assert again().path == first.path
    assert first.path.stat().st_mtime_ns == before
    assert {each.name.split(".")[-1] for each in first.path.parent.iterdir()} == {"json", "lock", "so"}


@needs_compiler
@pytest.mark.parametrize("damage", ["truncated", "replaced", "gone", "manifest", "not json", "no object"])
def test_what_was_damaged_is_built_anew(damage, evil):
    target, mark = evil
    kept = build.kernels().path
    content = kept.read_bytes()
    kept.unlink()  # the one that is loaded stays whole
    kept.write_bytes(content[:1000] if damage == "truncated" else content)
    kept.chmod(0o600)
    if damage == "replaced":
        kept.write_bytes(target.read_bytes())
    elif damage == "gone":
        kept.unlink()
    elif damage == "manifest":
        kept.with_suffix(".json").unlink()
    elif damage in ("not json", "no object"):
        kept.with_suffix(".json").write_text("{" if damage == "not json" else "[1]")
    assert again().library is not None
    assert build.hashlib.sha256(kept.read_bytes()).hexdigest() == build.kernels().manifest["digest"]
    assert len(kept.read_bytes()) == len(content)
    assert not mark.exists()


@needs_compiler
@needs_root
@pytest.mark.parametrize("which", ["so", "json", "both"])
def test_files_of_another_user_are_not_loaded(evil, which):
    target, mark = evil
    kept = build.kernels().path
    forge(kept.parent, target, kept.stem)
    for suffix in ("so", "json") if which == "both" else (which,):
        os.chown(kept.with_suffix(f".{suffix}"), SOMEBODY, SOMEBODY)
    if which == "json":
        kept.chmod(0o600)
    assert again().library is not None
    assert not mark.exists()
    assert kept.stat().st_uid == os.geteuid()


@needs_compiler
@pytest.mark.parametrize("suffix", ["so", "json"])
def test_files_that_others_may_write_are_not_loaded(evil, suffix):
    target, mark = evil
    kept = build.kernels().path
    forge(kept.parent, target, kept.stem)
    kept.chmod(0o600)
    kept.with_suffix(f".{suffix}").chmod(0o622)
    assert again().library is not None
    assert not mark.exists()


@needs_compiler
@pytest.mark.parametrize("suffix", ["so", "json"])
def test_links_are_not_followed(place, evil, suffix):
    """Neither to load what they point to, nor to write there."""
    target, mark = evil
    kept = build.kernels().path
    forge(kept.parent, target, kept.stem)
    linked, elsewhere = kept.with_suffix(f".{suffix}"), place / "elsewhere"
    linked.rename(elsewhere)
    content = elsewhere.read_bytes()
    linked.symlink_to(elsewhere)
    assert again().library is not None
    assert not mark.exists()
    assert not linked.is_symlink()
    assert elsewhere.read_bytes() == content


@needs_compiler
def test_what_is_no_file_is_not_waited_for():
    kept = build.kernels().path.with_suffix(".json")
    kept.unlink()
    os.mkfifo(kept, 0o600)
    assert again().library is not None
    assert kept.is_file()


def shared(place, monkeypatch, way):
    """A place where somebody else prepared the cache; return the folder that would be used."""
    root = place / "shared"
    folder = (root / ".cache" if "HOME" in way else root) / "diffeo" / "kernels"
    if "HOME" in way:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(root))
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(root))
    folder.parent.mkdir(parents=True)
    if "linked" in way:
        theirs = place / "theirs"
        (theirs / "kernels").mkdir(parents=True)
        linked = folder.parent if "above" in way else folder
        if linked.exists():
            linked.rmdir()
        linked.symlink_to(theirs if "above" in way else theirs / "kernels")
    else:
        folder.mkdir()
    return folder


@needs_compiler
@needs_root
@pytest.mark.parametrize("way", ["folder", "linked folder", "linked folder above", "folder below HOME"])
def test_a_folder_of_another_user_is_not_used(place, monkeypatch, evil, way):
    target, mark = evil
    name = build.kernels().path.stem
    folder = shared(place, monkeypatch, way)
    forge(folder, target, name)
    for path in (place / "shared", place / "theirs"):
        for each in (path, *path.rglob("*")) if path.exists() else ():
            os.chown(each, SOMEBODY, SOMEBODY, follow_symlinks=False)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.warns(RuntimeWarning, match="built for this process alone.* belongs to another user"):
        kernels = again()
    assert kernels.library is not None
    assert kernels.path is None
    assert not mark.exists()
    assert sorted(path.name for path in folder.iterdir()) == before


@needs_compiler
@pytest.mark.parametrize("way", ["folder", "folder below HOME", "linked folder"])
@pytest.mark.parametrize("mode", [0o777, 0o722])
def test_a_folder_that_others_can_exchange_is_not_used(place, monkeypatch, evil, way, mode):
    """The cache is the user's, but who may write in a folder above it can rename it and put another there."""
    target, mark = evil
    name = build.kernels().path.stem
    folder = shared(place, monkeypatch, way)
    forge(folder, target, name)
    (place / "shared").chmod(mode)
    with pytest.warns(RuntimeWarning, match=r"built for this process alone.*(other users may write to|is a link)"):
        assert again().library is not None
    assert not mark.exists()


@needs_compiler
def test_a_folder_as_open_as_tmp_will_do(place):
    (place / "cache").mkdir()
    (place / "cache").chmod(0o1777)
    assert build.kernels().path is not None


@needs_compiler
def test_the_folder_is_closed_to_others(place):
    folder = place / "cache" / "diffeo" / "kernels"
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    assert build.kernels().path.parent == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@needs_root
def test_group_that_may_write_must_be_the_users(place):
    folder = place / "cache"
    folder.mkdir()
    folder.chmod(0o770)
    cache.open_folder()  # root's group
    os.chown(folder, 0, SOMEBODY)
    with pytest.raises(OSError, match="other users may write to"):
        cache.open_folder()


@needs_compiler
def test_relative_places_are_ignored(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(place / "home"))
    assert build.kernels().path.is_relative_to(place / "home" / ".cache")
    monkeypatch.setenv("HOME", "home")
    with pytest.warns(RuntimeWarning, match="not an absolute path"):
        assert again().path is None


@needs_compiler
def test_without_a_place_to_keep_it_it_is_built_for_one_process(place):
    (place / "cache").write_text("a file")
    with pytest.warns(RuntimeWarning, match="built for this process alone"):
        kernels = build.kernels()
    assert kernels.library is not None
    assert kernels.path is None


@needs_compiler
def test_full_disk(monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "write", full)
    refused("No space left on device")


def test_no_compiler(monkeypatch, place):
    monkeypatch.setenv("PATH", str(place))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernels = build.kernels()
    assert kernels.library is None
    assert "no C compiler" in kernels.reason


def test_switched_off(monkeypatch):
    monkeypatch.setenv("DIFFEO_NATIVE", "0")
    assert build.kernels().library is None
    assert not build.usable("network", forced=True)


@pytest.mark.parametrize(
    ("cc", "match"),
    [
        ("no-such-compiler -O2", "CC is 'no-such-compiler -O2', which names no program"),
        ("gcc '-O2", "No closing quotation"),
        ("-O2", "which names no program"),
        ("no\x1b[31m\ncompiler", "names no program"),
    ],
)
def test_cc_that_is_no_compiler(monkeypatch, cc, match):
    monkeypatch.setenv("CC", cc)
    refused(match)


@needs_compiler
@pytest.mark.parametrize("before", ["", "env "])
def test_cc_may_hold_arguments_which_win(monkeypatch, place, before):
    log = place / "log"
    cc = script(place / "my compiler", f'echo "$@" >> {log}\nexec {REAL} "$@"')
    monkeypatch.setenv("CC", f"{before}'{cc}' -O1 -DLABEL='a b'")
    kernels = build.kernels()
    assert kernels.library is not None
    assert kernels.manifest["flags"][-2:] == ["-O1", "-DLABEL=a b"]
    compiled = [line for line in log.read_text().splitlines() if " -c " in line]
    assert len(compiled) == 2
    assert all(line.index("-O3") < line.index("-O1") for line in compiled)
    with monkeypatch.context() as patch:
        patch.setenv("CC", f"{before}'{cc}'")
        assert again().path != kernels.path


@needs_compiler
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="names an x86-64 processor")
def test_the_processor_that_cc_names_is_the_one(monkeypatch):
    monkeypatch.setenv("CC", f"{REAL} -march=x86-64-v3")
    manifest = build.kernels().manifest
    assert manifest["instructions"] == "AVX2"
    assert "-march=native" not in manifest["flags"]


@needs_compiler
def test_a_compiler_that_knows_no_native_processor(monkeypatch, place):
    no = 'case "$*" in *=native*) echo "error: bad value native" >&2; exit 1;; esac'
    monkeypatch.setenv("CC", script(place / "cc", f'{no}\nexec {REAL} "$@"'))
    assert not any("native" in flag for flag in build.kernels().manifest["flags"])


@needs_compiler
def test_a_compiler_that_knows_no_limit_of_fusing(monkeypatch, place):
    """GCC is told to fuse everything, where it knows how to be told."""
    is_gcc = (
        "__clang__"
        not in subprocess.run([REAL, "-dM", "-E", "-x", "c", os.devnull], capture_output=True, text=True).stdout
    )
    assert (compiler.FUSED in build.kernels().manifest["flags"]) == is_gcc
    no = 'case "$*" in *avoid-fma*) echo "error: invalid --param" >&2; exit 1;; esac'
    monkeypatch.setenv("CC", script(place / "cc", f'{no}\nexec {REAL} "$@"'))
    build.kernels.cache_clear()
    manifest = build.kernels().manifest
    assert compiler.FUSED not in manifest["flags"]
    assert "-march=native" in manifest["flags"] or not is_gcc


@needs_compiler
def test_a_compiler_without_openmp(monkeypatch, place):
    no = 'case "$*" in *-fopenmp*) echo "error: unsupported option -fopenmp" >&2; exit 1;; esac'
    monkeypatch.setenv("CC", script(place / "cc", f'{no}\nexec {REAL} "$@"'))
    kernels = build.kernels()
    assert kernels.library is not None
    assert kernels.manifest["openmp"] is False


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("exit 1", "exit status 1, without a word"),
        ("echo cc: a note; echo cc: error: no such flag >&2; exit 1", "cc: error: no such flag"),
        ("kill -SEGV $$", "killed by signal 11"),
        ("head -c 300000 /dev/urandom >&2; exit 1", "could not be built"),
        (r"printf '\033[2J\0\007error\n' >&2; exit 1", "error"),
        ("exit 0", "wrote no library"),
        ("[ -z $target ] || echo garbage > $target; exit 0", "garbage|invalid ELF header|file too short|slice"),
        ("[ -z $target ] || : > $target; exit 0", "file too short|invalid|slice"),
        ("[ -z $target ] || mkdir $target; exit 0", "wrote no library"),
    ],
)
def test_compilers_that_fail(monkeypatch, place, text, match):
    monkeypatch.setattr(build, "_prove", lambda built: build._declared(build.ctypes.CDLL(str(built))) and {})
    monkeypatch.setenv("CC", script(place / "cc", text))
    refused(match)


@needs_compiler
def test_a_library_without_the_functions(monkeypatch, place):
    (place / "sources" / "first.c").write_text("int nothing;\n")
    refused("undefined symbol")


@needs_compiler
def test_sources_that_do_not_compile(monkeypatch, place):
    (place / "sources" / "second.c").write_text("this is no C;\n")
    refused(r"second\.c:1:\d+: error: ")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks for processes in /proc")
@pytest.mark.parametrize("when", ["at once", "compiling", "talking"])
def test_compilers_that_hang_are_ended_with_all_they_started(monkeypatch, place, when):
    pids = place / "pids"
    hang = f"yes >&2 & echo $! >> {pids}" if when == "talking" else f"sleep 1000 & echo $! >> {pids}"
    answer = "" if when == "at once" else 'case "$*" in *" -c "*) ;; *) exit 0;; esac\n'
    monkeypatch.setenv("CC", script(place / "cc", f"{answer}echo $$ >> {pids}\n{hang}\nwait"))
    monkeypatch.setattr(compiler, "_PROBE_SECONDS", 0.5)
    monkeypatch.setattr(build, "_SECONDS", 0.5)
    started = time.monotonic()
    refused("cc did not end within")
    assert time.monotonic() - started < 8
    assert not any(alive(pid) for pid in pids.read_text().split())


def test_failures_are_remembered_for_a_day(monkeypatch, place):
    log = place / "log"
    monkeypatch.setenv("CC", script(place / "cc", f"echo x >> {log}\necho error: broken >&2; exit 1"))
    refused("error: broken")
    tries = log.read_text()
    assert "tried again a day later" in refused("error: broken")
    assert log.read_text() == tries
    (noted,) = (place / "cache" / "diffeo" / "kernels").glob("*.json")
    manifest = json.loads(noted.read_text())
    cache.write(noted, json.dumps({**manifest, "time": manifest["time"] - 90_000}).encode())
    refused("error: broken")
    assert log.read_text() == 2 * tries
    noted.unlink()
    refused("error: broken")
    assert log.read_text() == 3 * tries


def test_nothing_is_tried_twice_in_one_process(monkeypatch, place):
    log = place / "log"
    monkeypatch.setenv("CC", script(place / "cc", f"echo x >> {log}\nexit 1"))
    refused("exit status 1")
    tries = log.read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build.library() is None
    assert log.read_text() == tries


@needs_compiler
def test_processes_that_begin_at_once_compile_once(monkeypatch, place):
    log = place / "log"
    cc = script(place / "cc", f'echo "$@" >> {log}\nsleep 0.5\nexec {REAL} "$@"')
    code = textwrap.dedent(f"""
        from pathlib import Path
        from diffeo.ops.cpu import build
        build._FOLDER, build._prove = Path({str(place / "sources")!r}), lambda built: {{}}
        assert build.library() is not None
        print(build.kernels().path)
    """)
    both = [
        subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "CC": cc}, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    paths = {process.communicate(timeout=60)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(paths) == 1
    assert sum(" -c " in line for line in log.read_text().splitlines()) == 2  # one for each source


@needs_compiler
def test_a_lock_that_is_never_given_back_is_not_waited_for_forever(monkeypatch, place):
    build.kernels().path.unlink()
    monkeypatch.setattr(build, "_RACE_SECONDS", 0.2 - build._SECONDS)
    with cache.lock(cache.open_folder(), 0) as alone:
        assert alone
        with pytest.warns(RuntimeWarning, match="built for this process alone: another one holds"):
            assert again().library is not None


@needs_compiler
def test_leftovers_of_killed_processes_go():
    folder = cache.open_folder()
    old, new = folder / f"{cache.PREFIX}old", folder / f"{cache.PREFIX}new"
    for each in (old, new):
        each.mkdir()
        (each / "first.o").touch()
    os.utime(old, (0, 0))
    assert build.kernels().path is not None
    assert not old.exists()
    assert new.exists()


@needs_compiler
@pytest.mark.parametrize("terminal", [True, False])
def test_building_is_shown_to_who_watches(monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert build.library() is not None
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == terminal
    assert ("diffeo: building kernels" in said.err) == terminal
    assert again().library is not None
    assert capsys.readouterr().err == ""


@needs_compiler
@needs_root
def test_only_the_last_folder_is_another_users(place, evil):
    target, mark = evil
    kept = build.kernels().path
    forge(kept.parent, target, kept.stem)
    os.chown(kept.parent, SOMEBODY, SOMEBODY)
    with pytest.warns(RuntimeWarning, match="kernels belongs to another user"):
        assert again().path is None
    assert not mark.exists()
    assert kept.parent.stat().st_uid == SOMEBODY


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks for processes in /proc")
def test_an_interrupt_ends_the_compiler_too(place):
    pids = place / "pids"
    answer = 'case "$*" in *" -c "*) ;; *) exit 0;; esac\n'
    cc = script(place / "cc", f"{answer}sleep 1000 & echo $! $$ >> {pids}\nwait")
    code = textwrap.dedent(f"""
        import signal
        from pathlib import Path
        from diffeo.ops.cpu import build
        signal.signal(signal.SIGINT, signal.default_int_handler)
        build._FOLDER = Path({str(place / "sources")!r})
        build.library()
    """)
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "CC": cc}, stderr=subprocess.PIPE)
    end = time.monotonic() + 30
    while not (pids.exists() and pids.read_text().count("\n") == 2) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate(timeout=10)[1]
    assert not any(alive(pid) for pid in pids.read_text().split())
    assert [each.name for each in (place / "cache" / "diffeo" / "kernels").iterdir()] == ["lock"]


@needs_compiler
def test_who_waits_for_another_process_is_told_so(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    folder = cache.open_folder()
    with cache.lock(folder, 0) as alone, cache.lock(folder, 0, lambda: build._show("waiting")) as second:
        assert alone
        assert not second
    assert capsys.readouterr().err == "diffeo: waiting\n"

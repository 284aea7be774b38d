"""A compiler, sources and a cache to build with, for the tests of building."""

import shutil

import pytest

from diffeo.ops.cpu import build

REAL = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
needs_compiler = pytest.mark.skipif(REAL is None, reason="no C compiler here")
FUNCTIONS = "\n".join(f"long {name}(void) {{ return 0; }}" for name in build._SIGNATURES)


def a_place(monkeypatch, tmp_path):
    """A fixture: a user with an empty cache, small sources, and kernels whose race is over at once."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "first.c").write_text(FUNCTIONS)
    (sources / "second.c").write_text("int second;\n")
    monkeypatch.setattr(build, "_FOLDER", sources)
    monkeypatch.setattr(build, "_prove", lambda built: {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("DIFFEO_NATIVE", raising=False)
    build.kernels.cache_clear()
    yield tmp_path
    build.kernels.cache_clear()


def again():
    """What a new process would find."""
    build.kernels.cache_clear()
    return build.kernels()


def script(path, text):
    """Make a compiler of a few lines of shell; ``$target`` is what follows -o."""
    find = 'target=; last=; for word in "$@"; do [ "$last" = -o ] && target=$word; last=$word; done\n'
    path.write_text(f"#!/bin/sh\n{find}{text}\n")
    path.chmod(0o755)
    return str(path)


def refused(match):
    """Expect a single warning, of one line, and no kernels."""
    with pytest.warns(RuntimeWarning, match=match) as said:
        assert again().library is None
    (warning,) = said
    text = str(warning.message)
    assert text.isprintable()
    assert len(text) < 700
    return text

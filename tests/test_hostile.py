"""Hostile and broken files: refused in one line or read, in bounded time and memory, with nothing left behind.

``tests/hostile/`` makes them, and has the judge; ``python benchmarks/hostile_files.py`` prints how many fall short.
"""

import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import diffeo
from diffeo.errors import UserError
from diffeo.legible import LINE, legible
from diffeo.training.run import save_weights
from hostile.judge import judged
from hostile.models import SMALL, make

KINDS = {"runs": 400, "tables": 250, "pictures": 100, "recordings": 60}
BOMBS = """
import json, sys, tempfile
from pathlib import Path
from hostile import bombs
from hostile.judge import judged
from hostile.models import Models
for number, case in enumerate(bombs.cases(Models(Path(sys.argv[1])))):
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps([case.name, judged(case, Path(folder) / "case")]), file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make(tmp_path_factory.mktemp("models"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Glyph")  # which fonts there are is not at issue
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_hostile_is_met(kind, models, tmp_path):
    cases = importlib.import_module(f"hostile.{kind}").cases(models)
    assert len(cases) >= KINDS[kind]
    faults = {case.name: judged(case, tmp_path / str(number)) for number, case in enumerate(cases)}
    assert {name: fault for name, fault in faults.items() if fault} == {}


@pytest.mark.slow
def test_bombs(models):
    """In a process of their own, which may not have more than so many bytes."""

    def bounded():
        limit = 8 << 30
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, [Path(diffeo.__file__).parents[1], Path(__file__).parent])),
    }
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, str(models.folder)], env=environment, preexec_fn=bounded, capture_output=True,
        text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    met = dict(json.loads(line) for line in done.stderr.splitlines() if line.startswith("["))
    assert len(met) >= 20
    assert {name: faults for name, faults in met.items() if faults} == {}


def test_foreign_text_is_legible():
    assert legible("größe, 大小, e\u0301") == "größe, 大小, e\u0301"
    assert legible("a\x1b[31m\x07\u202eb\n\t\x9b") == r"a\x1b[31m\x07\u202eb\n\t\x9b"
    assert legible(os.fsdecode(b"\xff.csv")) == r"\xff.csv"
    assert legible("\ud800") == r"\ud800"
    for text in ("x" * 10**6, "\x1b" * 1000, "\x1b" * 10**6):
        shown = legible(text)
        assert len(shown) <= LINE
        assert f"[{len(text):,} characters]" in shown
    long = legible("name.csv: " + "y" * 1000 + "; fix it")
    assert long.startswith("name.csv: ")
    assert long.endswith("; fix it")
    assert legible("x" * 1000, None) == "x" * 1000


def test_weights_belong_to_their_run(tmp_path):
    one, other = (diffeo.maf(features=2, hidden=(4,)).eval() for _ in range(2))
    one.save(tmp_path / "one")
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "one")
    with pytest.raises(UserError, match="another run"):
        diffeo.load(tmp_path / "one")
    # Runs of before do not say which weights are theirs.
    model = json.loads((tmp_path / "one" / "model.json").read_text())
    del model["weights"]
    (tmp_path / "one" / "model.json").write_text(json.dumps(model))
    diffeo.load(tmp_path / "one")


def test_a_kill_between_the_two_files_leaves_a_run_that_loads(tmp_path, monkeypatch):
    one, other = (diffeo.maf(features=2, hidden=(4,)).eval() for _ in range(2))
    one.save(tmp_path / "run")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("diffeo.training.run.save_tensors", killed)
        with pytest.raises(KeyboardInterrupt):
            save_weights(tmp_path / "run", other)
    diffeo.load(tmp_path / "run")
    save_weights(tmp_path / "run", other)
    diffeo.load(tmp_path / "run")


def test_limits_can_be_raised(models, tmp_path, capsys):
    from diffeo.cli import main
    from hostile.bombs import wide

    (tmp_path / "wide.csv").write_bytes(wide(40))
    words = ["fit", str(tmp_path / "wide.csv"), "--out", str(tmp_path / "run"), "--folds", "1", *SMALL]
    assert main([*words, "--max-columns", "39"]) == 2
    assert "wide.csv: has 40 columns" in (said := capsys.readouterr().err)
    assert "--max-columns 40" in said
    assert main([*words, "--max-columns", "40"]) == 0
    picture = models.data("images") / "0.png"
    score = ["score", str(models.run("images")), str(picture), "--out", str(tmp_path / "s.csv")]
    assert main([*score, "--max-pixels", "15"]) == 2
    assert "--max-pixels 16" in capsys.readouterr().err
    assert main([*score, "--max-pixels", "16"]) == 0
    assert diffeo.limits.limits() == diffeo.limits.Limits()


def test_formulas_are_text(tmp_path):
    """What a spreadsheet would compute is a category like any other, written as it was read."""
    from diffeo.cli import main

    data, out = tmp_path / "data.csv", tmp_path / "out.csv"
    data.write_text("t,x\n" + "".join(f"=cmd{i % 2},{i}.5\n" for i in range(40)))
    assert main(["fit", str(data), "--out", str(tmp_path / "run"), "--folds", "1", *SMALL]) == 0
    assert main(["sample", str(tmp_path / "run"), "-n", "20", "--out", str(out)]) == 0
    assert {line.split(",")[0].strip('"') for line in out.read_text().splitlines()[1:]} <= {"=cmd0", "=cmd1"}

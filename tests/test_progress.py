"""Progress: what is shown where, that it costs no bit of the weights, and that a notebook has one output of it."""

import io
import json
import math
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec

import pytest
import torch

import diffeo
from diffeo import progress
from diffeo.progress import Display, Lines, Relay, Rows, Terminal, Training, reported, screen


class Seen:
    """A screen that remembers its views."""

    interval = 0.0
    live = True

    def __init__(self):
        self.views = []
        self.closed = False

    def show(self, view):
        self.views.append(view)

    def close(self, view):
        self.views.append(view)
        self.closed = True


@pytest.fixture
def seen(monkeypatch):
    """The one screen that everything is shown on."""
    only = Seen()
    monkeypatch.setattr(progress, "screen", lambda: only)
    return only


class Tty(io.StringIO):
    def isatty(self):
        return True


def small(**options):
    """A training of little, and its result."""
    torch.manual_seed(0)
    flow = diffeo.maf(2, hidden=(8,), transforms=2)
    result = diffeo.fit(flow, torch.randn(300, 2), epochs=4, batch_size=64, **options)
    return flow, result


def weights(flow):
    return torch.cat([tensor.flatten().double() for tensor in flow.state_dict().values()])


# ---- What is shown ---------------------------------------------------------------------------------------------------


def test_off_shows_nothing(seen, capsys):
    small()
    diffeo.fit_folds(diffeo.maf(2, hidden=(4,)), torch.randn(60, 2), folds=2, epochs=1, jobs=1, families=())
    assert not seen.views
    assert capsys.readouterr() == ("", "")


def test_the_weights_do_not_depend_on_it(seen):
    (quiet, _), (shown, _) = small(), small(progress=True)
    assert len(seen.views) > 10
    assert torch.equal(weights(quiet), weights(shown))


def test_it_goes_from_nothing_to_all_of_it(seen):
    _, result = small(progress=True)
    fractions = [view.fraction for view in seen.views]
    assert fractions[0] == 0
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert seen.closed
    last = seen.views[-1]
    assert "the budget is used up" in last.words
    (curve,) = last.curves
    assert curve.training == [entry["loss"] for entry in result.history]
    assert curve.validation == [entry["val_loss"] for entry in result.history]
    assert any("left" in repr(view) for view in seen.views)


def test_early_stopping_is_all_of_it(seen):
    torch.manual_seed(0)
    result = diffeo.fit(diffeo.maf(2, hidden=(8,)), torch.randn(60, 2), epochs=200, patience=1, lr=0.3, progress=True)
    assert result.stopped == "patience"
    assert seen.views[-1].fraction == 1
    assert "early stopping" in seen.views[-1].words


def test_a_training_that_breaks_down_closes_its_display(seen):
    with pytest.raises(diffeo.UserError):
        diffeo.fit(diffeo.maf(1, preprocess=()), torch.full((64, 1), 1e38) * 10, epochs=60, progress=True)
    assert seen.closed
    assert seen.views[-1].fraction < 1


def test_a_resumed_training_shows_its_curve_from_the_beginning(seen, tmp_path):
    small(out=tmp_path / "run")
    torch.manual_seed(0)
    flow = diffeo.maf(2, hidden=(8,), transforms=2)
    x = torch.randn(300, 2)
    diffeo.fit(flow, x, epochs=8, batch_size=64, out=tmp_path / "run", resume=True, progress=True)
    assert seen.views[-1].curves[0].epochs == [1, 2, 3, 4, 5, 6, 7, 8]


def test_folds_have_one_display(seen):
    flows = {"a": diffeo.maf(2, hidden=(4,)), "b": diffeo.maf(2, hidden=(8,))}
    result = diffeo.fit_folds(flows, torch.randn(60, 2), folds=2, epochs=3, jobs=1, progress=True, families=())
    fractions = [view.fraction for view in seen.views]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    said = " ".join(map(repr, seen.views))
    assert all(words in said for words in ("1 of 4: a", "2 of 4: b", "3 of 4: a", "4 of 4: b"))
    assert "4 of 4 trained" in repr(seen.views[-1])
    curves = seen.views[-1].curves
    losses = [[entry["loss"] for entry in member.history] for member in result.members]
    assert [curve.training for curve in curves] == losses[1::2], "those of the newest name, whose losses compare"


@pytest.mark.slow
def test_folds_side_by_side_are_shown_as_they_go(seen):
    x = torch.randn(2000, 2)
    options = {"folds": 3, "epochs": 40, "families": ()}
    shown = diffeo.fit_folds(diffeo.maf(2, hidden=(8,)), x, jobs=2, progress=True, **options)
    fractions = [view.fraction for view in seen.views]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert any(0 < fraction < 1 / 3 for fraction in fractions), "before the first is over"
    assert [curve.epochs[-1] for curve in seen.views[-1].curves] == [member.epochs for member in shown.members]
    quiet = diffeo.fit_folds(diffeo.maf(2, hidden=(8,)), x, jobs=1, **options)
    assert torch.equal(shown.log_prob, quiet.log_prob)


@pytest.mark.slow
def test_a_target_has_one_display(seen):
    flow = diffeo.nsf(2, hidden=(8,), transforms=1, preprocess=())

    def density(x):
        return -0.5 * x.square().sum(-1)

    diffeo.fit_target(density, flow=flow, particles=100, steps=210, batch_size=16, samples=300, progress=True)
    said = [repr(view) for view in seen.views]
    assert "annealing points" in said[0]
    assert any("1 of 2: annealed points" in each for each in said)
    assert any("2 of 2: density" in each for each in said)
    assert seen.views[-1].fraction == 1
    assert len(seen.views[-1].curves) == 1, "losses of two kinds do not compare"


# ---- Where -----------------------------------------------------------------------------------------------------------


def test_a_log_has_lines(capsys):
    assert isinstance(screen(), Lines)
    with Display() as display:
        display.last = -math.inf
        display.trainings[0].step(0.5, 3, 1.25, 1000.0, 2)
    assert capsys.readouterr() == ("", " 50%  epoch 4  loss 1.2500  1,000 rows/s  2 skipped\n")


def test_a_terminal_has_a_bar_that_is_gone_in_the_end(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Tty())
    assert isinstance(screen(), Terminal)
    with Display() as display:
        display.last = -math.inf
        display.trainings[0].step(0.5, 3, 1.25, 1000.0, 0)
    text = sys.stderr.getvalue()
    assert "50%" in text
    assert "━" in text
    assert text.rstrip().endswith("\x1b[2K"), "the line is erased"


def test_a_terminal_without_cursor_has_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stderr", Tty())
    assert isinstance(screen(), Lines)


def test_rows_are_counted_with_their_rate_and_what_is_left(seen, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Rows("score") as rows:
        rows(0, 1000)
        now[0] = 0.5
        rows(100, 1000)
        assert not seen.views, "what is over within a second shows nothing"
        now[0] = 2.0
        rows(400, 1000)
        rows(450, None)
    assert repr(seen.views[0]) == "score  400 rows  200 rows/s  0:03 left"
    assert seen.views[0].fraction == 0.4
    assert repr(seen.views[1]) == "score  450 rows  225 rows/s"
    assert seen.views[1].fraction is None


def test_a_training_is_relayed_by_a_file(tmp_path):
    relay = Relay(tmp_path / "1.json")
    there, here = Training("flow", relay), Training("flow")
    relay.into(here)
    assert not here.began
    there.step(0.25, 1, 3.0, 10.0, 1)
    there.epoch({"epoch": 1, "loss": 2.0, "val_loss": math.nan})
    there.end("patience")
    relay.into(here)
    assert (here.fraction, here.stopped, here.skipped) == (1.0, "patience", 1)
    assert here.curve.epochs == [1]
    assert math.isnan(here.curve.validation[0])
    assert here.words()[:2] == ["epoch 2", "loss 3.0000"]


def test_a_relay_that_cannot_write_ends_no_training(tmp_path):
    Training("flow", Relay(tmp_path / "missing" / "1.json")).end("budget")


def test_processes_that_do_not_lead_show_nothing(seen):
    with reported(True, leads=False) as training:
        training.step(0.5, 0, 1.0, 1.0, 0)
    assert not seen.views


# ---- In a notebook ---------------------------------------------------------------------------------------------------

EXECUTE = """
import json, sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in json.load(sys.stdin)])
NotebookClient(notebook, timeout=200, kernel_name="python3").execute()
print(nbformat.writes(notebook))
"""

SET_UP = """
import torch, diffeo
from diffeo import progress

progress.Notebook.interval = 0.0  # an update for each step
x = torch.randn(300, 2, generator=torch.Generator().manual_seed(1))

def trained(progress):
    torch.manual_seed(0)
    flow = diffeo.maf(2, hidden=(8,), transforms=2)
    diffeo.fit(flow, x, epochs=25, batch_size=64, progress=progress)
    return [parameter.flatten().tolist() for parameter in flow.parameters()]
"""
CELLS = {
    "set up": SET_UP,
    "shown": "weights = trained(True)",
    "not shown": "quiet = trained(False)",
    "the same": "assert weights == quiet",
    "folds": "r = diffeo.fit_folds(diffeo.maf(2), x, folds=2, epochs=5, jobs=1, families=(), progress=True)",
    "posterior": "p = diffeo.posterior(x, x, folds=1, epochs=2, progress=True)",
    "result": "diffeo.fit(diffeo.maf(2, hidden=(8,)), x, epochs=3)",
    "flow": "diffeo.maf(2)",
    "rows": "with progress.Rows('score') as rows:\n    rows.started = -10.0\n    rows(5, 10)",
}


class Parts(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.filled = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if dict(attrs).get("role") == "progressbar":
            self.filled.append(float(dict(attrs)["aria-valuenow"]))


@pytest.fixture(scope="module")
def outputs():
    """Of each cell of a notebook, executed by a kernel."""
    if find_spec("nbclient") is None or find_spec("ipykernel") is None:
        pytest.skip("nbclient and ipykernel, which execute a notebook, are not installed")
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE], input=json.dumps(list(CELLS.values())), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cells = json.loads(done.stdout)["cells"]
    return {name: cell["outputs"] for name, cell in zip(CELLS, cells, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shown", "folds", "posterior", "rows"])
def test_a_notebook_has_one_output_that_is_updated(outputs, name):
    (output,) = outputs[name]
    assert output["output_type"] == "display_data"
    parts = Parts("".join(output["data"]["text/html"]))
    assert parts.filled == [50.0 if name == "rows" else 100.0], "the last view stays"
    assert ("svg" in parts.tags) == (name != "rows")
    assert "".join(output["data"]["text/plain"]).startswith("score" if name == "rows" else "100%")


@pytest.mark.slow
def test_a_notebook_shows_nothing_where_progress_is_off(outputs):
    assert all(not outputs[name] for name in ("set up", "not shown", "the same"))


@pytest.mark.slow
def test_a_notebook_shows_a_result_as_a_table_with_its_curve(outputs):
    (output,) = outputs["result"]
    parts = Parts("".join(output["data"]["text/html"]))
    assert {"table", "svg"} <= set(parts.tags)
    assert "".join(output["data"]["text/plain"]).startswith("FitResult: validation loss")
    assert "text/html" in outputs["flow"][0]["data"]

"""A report is one page that loads nothing, says no more than is known, and a model card beside it."""

import dataclasses
import io
import json
import re
import shutil
import wave
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from PIL import Image

from browser import CHROMIUM, Browser
from diffeo import commands
from diffeo.cli import app, main
from diffeo.errors import UserError
from diffeo.legible import legible
from diffeo.modalities import modalities
from diffeo.report import words
from diffeo.report.card import to_markdown, to_yaml
from diffeo.report.page import (
    Bullets,
    Code,
    Document,
    Facts,
    Picture,
    Section,
    Sound,
    Text,
    to_html,
    wav_of,
)
from diffeo.report.words import Columns

EVIL = "<script>alert(1)</script>"
NAMES = [EVIL, '" onload="x', "x" * 900, "Größe 尺寸 📏", "a|b`c_*[d](e)", "{brace} $x_1$", "two\nlines\x1b[31m\u202e"]
TINY = {"epochs": 2, "folds": 1, "arguments": {"hidden": [8], "transforms": 1}}
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """What a page is made of; that its tags are balanced is checked on the way."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.sources, self.words, self.ids, self.links = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes)
        assert not any(name.startswith("on") for name, _ in attributes)
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "poster")]
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def self_contained(text):
    """Parse a page, and prove that it loads nothing and runs nothing."""
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert all(source.startswith(("data:image/", "data:audio/", "#")) for source in page.sources)
    assert {source[1:] for source in page.sources if source.startswith("#")} == set(page.ids)
    assert not re.search(r"url\(|@import|https?://|//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    assert "default-src 'none'" in text
    assert len(text.encode()) < 5_000_000
    return page


def front_matter(text):
    yaml = pytest.importorskip("yaml")
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def picture(width=600, height=400, seed=0):
    """Noise, which no compression makes smaller."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    result = io.BytesIO()
    Image.fromarray(pixels).save(result, format="PNG")
    return result.getvalue()


def document(*blocks, **changes):
    whole = Document("title", "lead", "verdict", "good", [Section("one", blocks), Section("two", [])], "foot")
    return dataclasses.replace(whole, **changes)


@pytest.mark.parametrize("name", NAMES)
def test_foreign_text_is_text(name):
    blocks = [
        Text(name), Bullets([name]), Facts([(name, name)]), Columns((name, "b"), [(name, name)]), Code(name),
        Picture(picture(20, 20), name), Sound(wav_of(np.zeros(10), 8000), name),
    ]  # fmt: skip
    whole = document(*blocks, title=name, lead=name, verdict=name, foot=name, grade=name)
    text, _ = to_html(whole)
    page = self_contained(text)
    assert page.text.count(legible(name, None)[:60]) >= 8
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", text)
    card = to_markdown(whole, {"name": name, "tags": [name]}, name)
    assert front_matter(card) == {"name": legible(name), "tags": [legible(name)]}
    assert "<script" not in card.split("```")[0]
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {3}


def test_what_is_empty_is_left_out():
    page = self_contained(to_html(document(Facts([("a", ""), ("b", "x")]), Columns(("c",), []), Facts([])))[0])
    assert page.tags.count("table") == 1
    assert page.tags.count("tr") == 1


def test_a_long_table_says_how_much_is_missing():
    page = self_contained(to_html(document(Columns(("n",), [(str(k),) for k in range(1000)])))[0])
    assert page.tags.count("tr") == 201
    assert "and 800 more rows" in page.text


@pytest.mark.parametrize("count", [1, 4])
def test_pictures_are_made_smaller_until_the_page_fits(count):
    whole = document(*(Picture(picture(seed=k), f"picture {k}") for k in range(count)))
    full, notes = to_html(whole)
    assert notes == []
    limit = len(full.encode()) // 2
    text, notes = to_html(whole, limit)
    assert len(text.encode()) <= limit
    page = self_contained(text)
    assert page.tags.count("img") == count
    assert notes
    assert "made smaller" in notes[0]
    assert all(block.size == (600, 400) for block in whole.sections[0].blocks)  # the document is as it was


def test_what_does_not_fit_is_left_out_and_said():
    whole = document(Picture(picture(), "noise"), Sound(wav_of(np.zeros(100_000), 8000), "silence"), Text("stays"))
    text, notes = to_html(whole, 30_000)
    assert len(text.encode()) <= 30_000
    page = self_contained(text)
    assert not {"img", "audio"} & set(page.tags)
    assert {"left out: noise", "left out: silence"} <= set(notes)
    assert "the file would be too large: noise" in page.text
    assert "stays" in page.text


def test_a_sound_comes_back():
    x = np.array([0.0, 0.5, -1.0, 2.0, np.nan, np.inf])
    with wave.open(io.BytesIO(wav_of(x, 8000))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        values = np.frombuffer(file.readframes(10), dtype="<i2")
    np.testing.assert_array_equal(values, [0, 16384, -32768, 32767, 0, 0])


@pytest.mark.parametrize(
    "value",
    [
        {}, {"a": []}, {"a": {"b": [1, 2.5, 1e-05, None, True, "x: y # z"], "c": [{"d": 1, "e": [{}]}]}},
        {"a": ["- b", "'", '"', "\\", "no", "1.0", "~"]},
    ],
)  # fmt: skip
def test_yaml_comes_back(value):
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(to_yaml(value)) == value


def table(rows=300, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 3))
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 0] + 0.3 * x[:, 1], "n": np.rint(5 * x[:, 2]), "k": np.full(rows, 7)})


def categories(rows=300):
    data = table(rows)
    data["kind"] = np.where(data["a"] > 0, "plus", "minus")
    data.loc[::7, "b"] = np.nan
    return data


def write_sounds(folder):
    folder.mkdir()
    generator = np.random.default_rng(0)
    for k in range(6):
        times = np.arange(2000) / 2000
        sound = 0.3 * np.sin(400 * times + k) + 0.02 * generator.normal(size=2000)
        soundfile.write(folder / f"{k}.wav", sound, 2000, subtype="PCM_16")
    return folder


DIGITS = np.random.default_rng(0).integers(0, 17, (120, 6, 6)).astype(np.uint8)
SETTINGS = {
    "single": {**TINY, "test": 0.4},
    "stack": {"epochs": 2, "folds": 2, "model": "maf", "arguments": {"hidden": [8]}},
    "mixed": {"epochs": 1, "folds": 1, "arguments": {"hidden": 16, "layers": 1, "orders": 1}},
    "given": {**TINY, "context": ["a", "n"]},
    "images": {"epochs": 1, "arguments": {"hidden": [8]}},
    "vae": {"epochs": 1, "model": "vae", "arguments": {"latent": 2}},
    "audio": {"epochs": 1, "crop": 0.25, "arguments": {"hop": 20, "channels": 4}},
    "flow-matching": {"epochs": 1, "folds": 1, "model": "flow_matching", "arguments": {"hidden": [8]}},
}
TEACHERS = {"student": "single", "few steps": "flow-matching"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs of every kind of data, with the data: called by name, made once."""
    folder, known = tmp_path_factory.mktemp("reports"), {}
    data = {"mixed": categories, "images": lambda: DIGITS, "vae": lambda: DIGITS}
    data["audio"] = lambda: write_sounds(folder / "wavs")
    data["flow-matching"] = lambda: table()[["a", "b"]]

    def make(name):
        if name in known:
            return known[name]
        run = folder / name
        if name in TEACHERS:
            teacher, source = make(TEACHERS[name])
            commands.distill(teacher, run, source=source, epochs=1, force=True)
        elif name == "posterior":
            source = table().rename(columns={"a": "theta", "b": "x"})[["theta", "x"]]
            commands.posterior(source, run, parameters=["theta"], folds=1, epochs=1, arguments=TINY["arguments"])
        else:
            source = data.get(name, table)()
            commands.fit(source, run, **SETTINGS[name], figures=name in ("single", "images", "audio"))
        known[name] = run, source
        return known[name]

    return make


KINDS = [
    "single", "stack", "mixed", "given", "images", "vae", "audio", "flow-matching", "posterior", "student", "few steps",
]  # fmt: skip


@pytest.fixture(scope="module")
def written(made, tmp_path_factory):
    """Reports, once for all tests: by the kind of run, and whether data were given."""
    folder, known = tmp_path_factory.mktemp("pages"), {}

    def write(name, data):
        if (name, data) not in known:
            run, source = made(name)
            out = folder / f"{name}-{data}.html"
            known[name, data] = commands.report(run, source if data else None, out)
        return known[name, data]

    return write


def text_of(path):
    return Path(path).read_text(encoding="utf-8")


def words_of(summary):
    return self_contained(text_of(summary["out"]))


@pytest.mark.slow
@pytest.mark.parametrize("data", [False, True], ids=["alone", "with data"])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_run_has_a_report(made, written, name, data):
    summary = written(name, data)
    page = words_of(summary)
    model = json.loads((made(name)[0] / "model.json").read_text())
    metrics = model["metrics"]
    for part in ("out_of_fold", "validation", "train", "test"):
        if part in metrics:
            shown = words.with_error(metrics[part]["nll"], metrics[part]["stderr"])
            assert shown in page.text
    assert page.tags.count("img") == summary["figures"]
    assert page.tags.count("audio") == summary["sounds"]
    assert (summary["sounds"] > 0) == (name == "audio")
    assert summary["figures"] > 0 or not data
    for title in ("Model", "Data of the training", "Likelihood", "Limits", "Use", "Provenance"):
        assert title in page.text
    likelihood = name != "few steps"
    assert (summary["verdict"] is not None) == (data and likelihood)
    if not data:
        assert "not checked" in page.text
    card = text_of(summary["card"])
    front = front_matter(card)
    assert front["library_name"] == "diffeo"
    assert "license" not in front
    assert {"normalizing-flows", "density-estimation"} <= set(front["tags"])
    values = {
        metric["value"]
        for index in front.get("model-index", ())
        for result in index["results"]
        for metric in result["metrics"]
    }
    known = {metrics[part]["nll"] for part in ("out_of_fold", "validation", "train", "test") if part in metrics}
    assert known <= values
    assert card.count("\n## ") == page.tags.count("h2")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["single", "stack", "mixed", "given", "images", "vae"])
def test_the_numbers_are_those_of_a_check(made, written, name):
    run, source = made(name)
    result, page = commands.check(run, source), words_of(written(name, True))
    assert written(name, True)["verdict"] == result["verdict"]
    assert written(name, True)["reasons"] == result["reasons"]
    shown = page.text
    assert f"Verdict: {result['verdict']}" in shown
    assert all(legible(reason) in shown for reason in result["reasons"])
    assert words.pair(result["likelihood"]["flow"]) in shown
    for other in ("gaussian", "marginals"):
        if other in result["likelihood"]:
            assert words.pair(result["likelihood"][f"gain_over_{other}"]) in shown


@pytest.mark.slow
def test_nothing_is_trusted_in_sample(made, tmp_path):
    """Sixty rows leave six for validation: the rest is what was trained on, well enough for there to be no fault."""
    data = table(60)
    small = {"hidden": [16], "transforms": 3}
    commands.fit(data, tmp_path / "run", folds=1, epochs=200, arguments=small, figures=False)
    summary = commands.report(tmp_path / "run", data)
    assert summary["out"] == str(tmp_path / "run" / "report.html")
    page = words_of(summary)
    assert summary["verdict"].startswith("in sample")
    assert "trustworthy" not in page.text
    assert "The model was trained on these examples" in page.text
    assert page.text.count("which the model was trained on") >= 3


@pytest.mark.slow
def test_coverage_is_that_of_predictions(made, written, tmp_path):
    """Of one target both are exact: F(y) is between 5 and 95 % where y is between these quantiles."""
    run, source = made("given")
    result = commands.predict(run, source, tmp_path / "q.csv", quantiles=(0.05, 0.95))
    coverage, pit = (result["targets"]["b"][name] for name in ("coverage", "pit"))
    text = words_of(written("given", True)).text
    assert re.search(rf"F\(y\) from uniform b [\d.]+% [\d.]+% {coverage['mean']:.1%} ", text)
    assert f"{pit['distance']:.3f} (p {words.p_value(pit['p'])})" in text


@pytest.mark.slow
def test_worst_rows_are_those_of_the_command(made, written, tmp_path):
    run, source = made("stack")
    result = commands.anomalies(run, source, tmp_path / "a.csv")
    page = words_of(written("stack", True))
    for row in result["worst"]:
        assert f"{row['row']:,} {row['p_value']:.2g} {words.number(row['log_likelihood'])}" in page.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Glyph")  # which fonts there are is not at issue
def test_names_from_elsewhere(tmp_path):
    """Columns that are called like code, sixty of them, and a folder that is."""
    generator = np.random.default_rng(0)
    names = [*NAMES, *(f"column {k}" for k in range(60 - len(NAMES)))]
    data = pd.DataFrame(generator.normal(size=(200, 60)), columns=names)
    run = tmp_path / "<b>run"
    commands.fit(data, run, **TINY, context=[NAMES[1]], figures=False)
    summary = commands.report(run, data)
    page = words_of(summary)
    assert "<b>run" in page.text
    assert all(legible(name, None)[:39] in page.text for name in names)
    front = front_matter(text_of(summary["card"]))
    assert front["model-index"][0]["name"] == "<b>run"


def test_paths_stay_at_home(made, tmp_path):
    """What is sent does not say where data lie on somebody's disk."""
    data = tmp_path / "secret" / "rows.csv"
    data.parent.mkdir()
    table(100).to_csv(data, index=False)
    commands.fit(str(data), tmp_path / "run", **TINY, figures=False)
    summary = commands.report(tmp_path / "run", out=tmp_path / "page.html")
    for file in (summary["out"], summary["card"]):
        text = text_of(file)
        assert "rows.csv" in text
        assert "secret" not in text
        assert str(tmp_path) not in text


def test_files_are_replaced_only_when_asked(made, tmp_path):
    run = made("single")[0]
    page, card = tmp_path / "p.html", tmp_path / "p.md"
    summary = commands.report(run, out=page)
    assert (summary["out"], summary["card"]) == (str(page), str(card))
    page.unlink()
    card.write_text("mine")
    with pytest.raises(UserError, match=r"p\.md: exists already; .* --force"):
        commands.report(run, out=page)
    assert card.read_text() == "mine"
    assert not page.exists()
    commands.report(run, out=page, force=True)
    assert "library_name" in card.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.html", "p.md"]


def test_a_mistake_is_one_line(made, tmp_path, capsys):
    run, page = str(made("single")[0]), str(tmp_path / "r.html")
    for argv, said in (
        (["report", run, "--out", str(tmp_path / "r.pdf")], "expected a name that ends in .html"),
        (["report", run, "--out", str(tmp_path / "none" / "r.html")], "its folder does not exist"),
        (["report", str(tmp_path / "nothing"), "--out", page], "does not exist: give a run directory"),
        (["report", run, str(tmp_path / "no.csv"), "--out", page], "no such file"),
        (["report", str(made("images")[0]), "--drop-missing", "--out", page], "--drop-missing is not for"),
    ):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_command_line(made, tmp_path, capsys):
    run = str(made("single")[0])
    assert main(["report", run, "--out", str(tmp_path / "r.html")]) == 0
    assert "not checked" in capsys.readouterr().out
    assert main(["report", run, "--out", str(tmp_path / "r.html"), "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == (tmp_path / "r.html").stat().st_size


@pytest.mark.parametrize("found", [True, False])
def test_fit_opens_its_report(tmp_path, monkeypatch, capsys, found):
    import webbrowser

    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or found)
    table(100).to_csv(tmp_path / "x.csv", index=False)
    argv = ["fit", str(tmp_path / "x.csv"), "--folds", "1", "--hidden", "8", "--epochs", "1", "--no-figures"]
    assert main([*argv, "--out", str(tmp_path / "run"), "--open"]) == 0
    captured = capsys.readouterr()
    page = tmp_path / "run" / "report.html"
    assert opened == [page.as_uri()]
    assert ("no browser was found" in captured.err) == (not found)
    assert str(page) in captured.out
    self_contained(page.read_text(encoding="utf-8"))


def test_in_python_nothing_is_opened(tmp_path, monkeypatch, capsys):
    import webbrowser

    monkeypatch.setattr(webbrowser, "open", lambda url: pytest.fail("opened"))
    summary = commands.fit(table(100), tmp_path / "run", **TINY, figures=False, report=True)
    assert summary["report"] == str(tmp_path / "run" / "report.html")
    assert "report" not in commands.fit(table(100), tmp_path / "other", **TINY, figures=False)
    assert capsys.readouterr().out == ""


def test_data_too_few_to_check_by_leave_the_report_without(tmp_path):
    said = []
    images = np.random.default_rng(0).integers(0, 256, (12, 6, 6)).astype(np.uint8)
    settings = {"epochs": 1, "arguments": {"hidden": [8]}, "figures": False, "report": True, "say": said.append}
    summary = commands.fit(images, tmp_path / "run", **settings)
    assert any("the report is without data" in text for text in said)
    assert "not checked" in self_contained(text_of(summary["report"])).text


def test_a_run_is_as_it_was(made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made("single")[0], run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    torch.manual_seed(3)
    commands.report(run, made("single")[1], tmp_path / "r.html")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_every_kind_of_data_has_a_report():
    for modality in modalities():
        assert modality.report.kept
        assert {figure.part for figure in modality.report.kept.values()} <= {
            "samples", "calibration", "training", "distillation",
        }  # fmt: skip
    assert app.COMMANDS[-1].__name__ == "report"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: how wide pages are is not measured")
def test_nothing_is_wider_than_its_window(written, tmp_path):
    whole = document(
        *(Text(name) for name in NAMES), Facts([(name, name) for name in NAMES]), Code("x" * 500),
        Columns(tuple(f"column {k} {NAMES[2]}" for k in range(60)), [tuple(map(str, range(60)))] * 3),
        Picture(picture(3000, 40), "wide"), title=NAMES[2], lead=NAMES[2], verdict=NAMES[2], foot=NAMES[2],
    )  # fmt: skip
    hardest = tmp_path / "hardest.html"
    hardest.write_text(to_html(whole)[0], encoding="utf-8")
    pages = [hardest, *(Path(written(name, True)["out"]) for name in KINDS)]
    with Browser() as browser:
        for page in pages:
            for width in (320, 400, 1400):
                for dark in (False, True):
                    browser.open(page, width, dark)
                    assert browser.run("innerWidth") == width
                    assert browser.run("document.documentElement.scrollWidth") <= width, (page, width)
                    lost = "[...document.images].filter(each => !each.naturalWidth).length"
                    assert browser.run(lost) == 0
                    ground = browser.run("getComputedStyle(document.body).backgroundColor")
                    assert (ground == "rgb(255, 255, 255)") == (not dark)

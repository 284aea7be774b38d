"""Runs of earlier versions still load, and score as they did: ``stored/`` was written on 2026-11-28, in format 1."""

import csv
import json
from pathlib import Path

import pytest

import diffeo
from diffeo import commands

STORED = Path(__file__).parent / "stored"
EXPECTED = json.loads((STORED / "expected.json").read_text())


@pytest.mark.parametrize("name", EXPECTED)
def test_runs_of_earlier_versions_score_as_they_did(name, tmp_path):
    commands.score(STORED / name, STORED / "table.csv", tmp_path / "s.csv")
    scores = [float(row["log_likelihood"]) for row in csv.DictReader((tmp_path / "s.csv").read_text().splitlines())]
    assert scores[: len(EXPECTED[name])] == pytest.approx(EXPECTED[name], rel=1e-5)  # processors round differently


def test_the_corrections_of_earlier_continuous_flows_have_no_bound():
    assert diffeo.load(STORED / "flow_matching").ode.velocity.bound is None
    assert diffeo.flow_matching(3).ode.velocity.bound


@pytest.mark.parametrize("name", EXPECTED)
def test_they_can_be_stored_again(name, tmp_path):
    flow = diffeo.load(STORED / name)
    flow.save(tmp_path / "run")
    again = diffeo.load(tmp_path / "run")
    assert all((value == again.state_dict()[key]).all() for key, value in flow.state_dict().items())
    assert again.recipe == flow.recipe

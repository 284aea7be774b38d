"""Exported programs: they compute what diffeo does, without diffeo, without anything random, and say what they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import diffeo
from diffeo.commands import export, fit, sample, score
from diffeo.errors import UserError
from diffeo.exporting.formats import FORMATS, RANDOM
from diffeo.exporting.graph import traced
from diffeo.exporting.noise import drawn, kinds_of, leaves_of
from diffeo.exporting.parity import compared
from diffeo.exporting.program import Program
from diffeo.modalities import open_run
from diffeo.nets import CNN

ONNX = FORMATS["onnx"].needs


def randomised(flow: diffeo.Flow, scale: float = 0.1) -> diffeo.Flow:
    """The same flow with weights that do something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return flow.eval()


def needs_onnx() -> None:
    for package in ONNX:
        pytest.importorskip(package)


SMALL = {"hidden": (8,), "transforms": 2}
FLOWS = {
    "maf": lambda: diffeo.maf(3, **SMALL),
    "iaf": lambda: diffeo.iaf(3, **SMALL),
    "nsf": lambda: diffeo.nsf(3, **SMALL),
    "nice": lambda: diffeo.nice(3, **SMALL),
    "conditional realnvp": lambda: diffeo.realnvp(3, context=2, **SMALL),
    "embedded context": lambda: diffeo.maf(3, context=2, embedding=[6, 5], **SMALL),
    "embedded series": lambda: diffeo.maf(3, context=5, **SMALL).with_embedding(CNN((1, 9), 5, (4,)), (1, 9)),
    "whitened maf": lambda: diffeo.maf(3, preprocess=["standardize", "whiten"], **SMALL),
    "mixture": lambda: diffeo.Mixture([diffeo.maf(3, **SMALL), diffeo.realnvp(3, **SMALL)], [1, 3]),
}


def operations_in(graph: torch.export.ExportedProgram) -> int:
    return sum(node.op == "call_function" for node in graph.graph.nodes)


def inputs_of(program: Program, rows: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    made = {}
    for name, each in program.inputs.items():
        draw = torch.rand if name in ("uniform", "choice") else torch.randn
        made[name] = draw(rows, *each.shape, dtype=each.dtype)
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "what"),
    [
        *((name, "log-prob") for name in FLOWS),
        ("nsf", "sample"),
        ("nice", "sample"),
        ("mixture", "sample"),
        ("embedded context", "sample"),
    ],
)
def test_a_graph_computes_what_the_flow_does_for_any_number_of_rows(name: str, what: str) -> None:
    program = Program(randomised(FLOWS[name]()), what).eval()
    graph = traced(program, inputs_of(program, 3))
    inputs = inputs_of(program, 1100)
    parity = compared(program, lambda few: graph.module()(**few), inputs)
    assert parity.passed, parity
    if what == "log-prob":  # what is compared with is the flow itself
        expected = program.flow.log_prob(inputs["x"], inputs.get("context"))
        assert torch.allclose(graph.module()(**inputs), expected.detach(), rtol=1e-5, atol=1e-5)


def test_what_differs_is_found() -> None:
    program = Program(randomised(FLOWS["maf"]()), "log-prob").eval()
    inputs = inputs_of(program, 50)

    def wrong(few: dict[str, torch.Tensor]) -> torch.Tensor:
        result = program(**few).detach()
        return torch.where(few["x"][:, 0] == inputs["x"][9, 0], result * (1 + 3e-5), result)

    parity = compared(program, wrong, inputs)
    assert not parity.passed
    assert parity.row == 9
    assert 1 < parity.worst < 4


def test_noise_makes_the_samples_of_every_base() -> None:
    bases = [
        diffeo.StandardNormal(2),
        diffeo.bases.StandardLogistic(2),
        diffeo.bases.Uniform(2, -1.0, 2.0),
        diffeo.bases.GaussianMixture(2, components=3),
        diffeo.bases.Gaussians.of(torch.tensor([[0.0, 1], [3, 2]]), torch.eye(2).expand(2, 2, 2) * 0.5),
        diffeo.bases.StudentT(2, freedom=2.0),
    ]
    for base in bases:
        flow = diffeo.Flow(base, diffeo.transforms.Elementwise("affine", 2)).eval()
        leaves = leaves_of(flow)
        generator = torch.Generator().manual_seed(3)
        noise = {
            kind: torch.rand(20_000, generator=generator, dtype=torch.float64)
            if kind == "choice"
            else (torch.randn if kind == "normal" else torch.rand)(20_000, 2, generator=generator)
            for kind in kinds_of(leaves)
        }
        torch.manual_seed(4)
        with torch.no_grad():
            ours, theirs = drawn(leaves, None, noise), flow.sample(20_000)
        quantiles = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=ours.dtype)
        spread = theirs.quantile(0.75) - theirs.quantile(0.25)
        distance = (ours.quantile(quantiles, 0) - theirs.quantile(quantiles, 0)).abs().max() / spread
        assert distance < 0.05, type(base).__name__


def test_a_mixture_takes_members_by_their_weights() -> None:
    members = [diffeo.Flow(diffeo.StandardNormal(1), diffeo.transforms.Elementwise("shift", 1)) for _ in range(3)]
    for place, member in zip((-100.0, 0.0, 100.0), members, strict=True):
        torch.nn.init.constant_(member.transform.params, place)
    leaves = leaves_of(diffeo.Mixture([members[0], diffeo.Mixture(members[1:], [1, 3])], [1, 1]).eval())
    choice = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:-1]
    x = drawn(leaves, None, {"normal": torch.zeros(10_000, 1), "choice": choice})[:, 0]
    assert [int((x == place).sum()) for place in (-100, 0, 100)] == [5000, 1250, 3750]


def table(rows: int = 200) -> pd.DataFrame:
    """Whole numbers, irregular levels, numbers far from zero, and a constant."""
    generator = np.random.default_rng(0)
    size = generator.integers(3, 30, rows)
    return pd.DataFrame({
        "size": size,
        "width": 1e6 + size * 0.7 + generator.normal(size=rows),
        "level": np.array([0.3, 1.0, 7.5])[generator.integers(0, 3, rows)],
        "always": 4.0,
    })  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    table().to_csv(folder / "rows.csv", index=False)
    fit(folder / "rows.csv", folder / "run", model="maf", arguments={"hidden": [8], "transforms": 1}, folds=1, epochs=2,
        figures=False)  # fmt: skip
    return folder / "run"


@pytest.fixture(scope="module")
def pt2(run: Path) -> Path:
    out = run.parent / "log-prob.pt2"
    summary = export(run, out)
    assert summary["parity"]["worst"] <= 1
    assert summary["parity"]["rows"] >= 60  # those held out, and two tails of each
    return out


# Runs a file of a program, where nothing of diffeo can be imported.
ALONE = """
import io, json, sys
import numpy as np
sys.modules["diffeo"] = None
try:
    import diffeo
except ImportError:
    pass
else:
    raise SystemExit("diffeo is there")
x = np.array(json.load(sys.stdin), dtype=np.float64)
if sys.argv[1].endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(sys.argv[1])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["diffeo"])
    (result,) = session.run(None, {"x": x})
    assert "torch" not in sys.modules
else:
    import torch
    extra = {"diffeo": ""}
    module = torch.export.load(sys.argv[1], extra_files=extra).module()
    facts = json.loads(extra["diffeo"])
    result = module(x=torch.from_numpy(x)).numpy()
print(json.dumps({"facts": facts, "result": result.astype(float).tolist()}))
"""


def alone(path: Path, x: np.ndarray) -> dict:
    command = [sys.executable, "-c", ALONE, str(path)]
    done = subprocess.run(
        command, input=json.dumps(x.tolist()), capture_output=True, text=True, cwd=path.parent, check=False,
        env={"PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_scores(run: Path, file: Path) -> None:
    """A file says of a table's own numbers what ``diffeo score`` does, rows with values off their grids included."""
    rows = table().astype(float)
    rows.loc[3, "size"] = 4.5
    rows.loc[4, "level"] = 0.4
    rows.loc[5, "always"] = 5.0
    rows.to_csv(run.parent / "scored.csv", index=False)
    score(run, run.parent / "scored.csv", run.parent / "scores.csv", force=True)
    expected = pd.read_csv(run.parent / "scores.csv")["log_likelihood"].to_numpy()
    ordinary = float(np.median(expected))
    assert (expected[3:6] < ordinary - 3).all()
    got = alone(file, rows.to_numpy())
    result = np.array(got["result"])
    assert (np.abs(result - expected) <= 1e-5 * (1 + np.abs(expected))).all()
    columns = {column["name"]: column for column in got["facts"]["columns"]}
    assert [*columns] == [*rows]
    assert columns["level"]["values"] == [0.3, 1.0, 7.5]
    assert columns["size"]["step"] == 1
    assert got["facts"]["output"] == {"log_likelihood": pytest.approx(got["facts"]["output"]["log_likelihood"])}


@pytest.mark.slow
def test_pt2_runs_without_diffeo(run: Path, pt2: Path) -> None:
    check_scores(run, pt2)


@pytest.mark.slow
def test_onnx_runs_without_diffeo_and_torch(run: Path) -> None:
    needs_onnx()
    import onnx

    out = run.parent / "log-prob.onnx"
    summary = export(run, out)
    assert summary["rows_per_second"] > 0
    check_scores(run, out)
    model = onnx.load(out)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "rows"
    assert [output.name for output in model.graph.output] == ["log_likelihood"]
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    for node in model.graph.node:
        assert node.op_type not in RANDOM
        if node.op_type == "Slice":
            assert (constants[node.input[2]] < 2**31 - 1).all()


def test_slices_to_the_end_are_bounded() -> None:
    needs_onnx()
    import onnx
    import onnx_ir as ir

    from diffeo.exporting.formats import _bound

    helper = onnx.helper
    kind = onnx.TensorProto
    ends = onnx.numpy_helper.from_array(np.array([2**63 - 1]), "ends")
    one = onnx.numpy_helper.from_array(np.array([1]), "one")
    graph = helper.make_graph(
        [helper.make_node("Slice", ["x", "one", "ends", "one"], ["y"], name="cut")], "g",
        [helper.make_tensor_value_info("x", kind.FLOAT, ["rows", 5])],
        [helper.make_tensor_value_info("y", kind.FLOAT, ["rows", 4])], [ends, one],
    )  # fmt: skip
    model = ir.serde.deserialize_model(helper.make_model(graph))
    (node,) = model.graph
    _bound(node)
    assert node.inputs[2].const_value.numpy().tolist() == [5]
    assert FORMATS["onnx"].loaded(ir.serde.serialize_model(model).SerializeToString(), 1)(
        {"x": torch.arange(10.0).reshape(2, 5)}
    ).tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]


def test_nothing_random_is_in_a_graph() -> None:
    class Spread(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(ValueError, match="nothing is random"):
        traced(Spread(), {"x": torch.zeros(3, 2)})


@pytest.mark.slow
def test_samples_have_the_columns_of_the_table(run: Path) -> None:
    out = run.parent / "sample.pt2"
    summary = export(run, out, what="sample")
    assert [*summary["inputs"]] == ["normal"]
    module = torch.export.load(out).module()
    x = module(normal=torch.randn(2000, 3)).numpy()
    rows = table()
    sample(run, 2000, run.parent / "drawn.csv", force=True)
    theirs = pd.read_csv(run.parent / "drawn.csv")
    assert set(x[:, 2]) <= {0.3, 1.0, 7.5}
    assert (x[:, 0] == np.rint(x[:, 0])).all()
    assert (x[:, 3] == 4).all()
    spread = rows["width"].std()
    assert abs(np.median(x[:, 1]) - theirs["width"].median()) < 0.2 * spread
    assert x[:, 1].min() >= rows["width"].min()


def test_nothing_is_written_where_the_file_does_not_agree(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form = FORMATS["pt2"]
    program = Program(open_run(run, "cpu").flow, "log-prob", open_run(run, "cpu").plain()).eval()

    def off(content: bytes, threads: int):
        return lambda inputs: program(**inputs).detach() + 0.01

    monkeypatch.setattr(form, "content", lambda *arguments: b"a program")
    monkeypatch.setattr(form, "loaded", off)
    monkeypatch.setattr(sys.modules["diffeo.commands.export"], "traced", lambda *arguments: None)
    out = run.parent / "off.pt2"
    with pytest.raises(UserError, match=r"disagree on log-prob, in row \d+ of .*nothing was written"):
        export(run, out)
    assert not out.exists()
    assert not [*run.parent.glob("off*")]


def test_mistakes_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"among onnx, pt2 \(--to\)"):
        export(run, tmp_path / "x.bin")
    with pytest.raises(UserError, match=r"--what"):
        export(run, tmp_path / "x.pt2", what="likelihood")
    (tmp_path / "x.pt2").write_bytes(b"mine")
    with pytest.raises(UserError, match="--force"):
        export(run, tmp_path / "x.pt2")
    assert (tmp_path / "x.pt2").read_bytes() == b"mine"
    with pytest.raises(UserError, match="--folds 1"):
        export(diffeo.recipes.build("mixed", {"features": 80, "hidden": 8}), tmp_path / "y.pt2", what="sample")
    with pytest.raises(UserError, match="give data"):
        export(diffeo.maf(2, context=1, hidden=(4,)), tmp_path / "y.pt2")
    with pytest.raises(UserError, match="drawn among several"):
        export(diffeo.recipes.build("mixed", {"features": 2, "hidden": 8}), tmp_path / "y.pt2", what="encode")
    assert [*tmp_path.iterdir()] == [tmp_path / "x.pt2"]


COLUMNS = [
    {"values": [0, 1, 2], "unseen": 0.01},
    {"steps": [0.0]},
    {"steps": [1.0, 0.5], "values": [3.0], "gaps": True},
    {"steps": [0.0], "copies": [(1, 2.0, 0.0)]},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("orders", "what", "form"),
    [(1, "sample", "onnx"), (1, "log-prob", "onnx"), (2, "sample", "pt2"), (2, "log-prob", "pt2")],
)
def test_mixed_densities_with_categories_gaps_and_copies(orders: int, what: str, form: str) -> None:
    more = {"any_order": orders > 1, "orders": orders}
    arguments = {"features": 4, "columns": COLUMNS, "hidden": 16, "layers": 1, "components": 2, **more}
    flow = randomised(diffeo.recipes.build("mixed", arguments))
    x = torch.stack([torch.arange(60) % 4.0, torch.randn(60), torch.randint(-3, 6, (60,)).float(), torch.randn(60)], 1)
    x[::7, 2] = torch.nan
    x[::5, 3] = 2 * x[::5, 1]
    program = Program(flow, what).eval()
    inputs = {"x": x} if what == "log-prob" else inputs_of(program, 60)
    graph = traced(program, {name: value[:3] for name, value in inputs.items()})
    run = FORMATS[form].loaded(FORMATS[form].content(graph, program.output, {}), 1)
    parity = compared(program, run, inputs)
    assert parity.passed, parity


@pytest.mark.slow
@pytest.mark.parametrize(("name", "what"), [("nsf", "sample"), ("iaf", "log-prob"), ("maf", "decode")])
def test_what_is_too_long_to_unroll_is_a_loop(name: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    for limit in (10**6, 0):
        monkeypatch.setattr("diffeo.exporting.program.UNROLLED", limit)
        flow = randomised(getattr(diffeo, name)(6, context=1, transforms=1, hidden=(8,)))
        program = Program(flow, what).eval()
        assert (program.operations(False) > 0) == (program.operations() == 0)
        graph = traced(program, inputs_of(program, 3))
        sizes.append(operations_in(graph))
        for form in ("pt2", "onnx") if limit == 0 else ():
            run = FORMATS[form].loaded(FORMATS[form].content(graph, program.output, {}), 1)
            parity = compared(program, run, inputs_of(program, 30))
            assert parity.passed, (form, parity)
    assert sizes[1] < sizes[0] / 2


@pytest.mark.slow
def test_a_continuous_flow_is_solved_in_a_loop() -> None:
    flow = randomised(diffeo.flow_matching(2, context=3, hidden=(4,)), 0.2)
    program = Program(flow, "log-prob", steps=64).eval()
    graph = traced(program, inputs_of(program, 3))
    assert operations_in(graph) < 64  # fewer than steps
    parity = compared(program, lambda few: graph.module()(**few), inputs_of(program, 30))
    assert parity.passed, parity
    for form in ("pt2", "onnx"):
        run = FORMATS[form].loaded(FORMATS[form].content(graph, "log_likelihood", {}), 1)
        for own_solver in (False, True):
            parity = compared(program, run, inputs_of(program, 30), own_solver)
            assert parity.passed, (form, parity)
    strong = randomised(diffeo.flow_matching(2, context=3, hidden=(4,)), 3.0)
    coarse = Program(strong, "log-prob", steps=8).eval()  # agrees with itself, not with the solution
    assert compared(coarse, lambda few: coarse(**few), inputs_of(coarse, 30)).passed
    assert not compared(coarse, lambda few: coarse(**few), inputs_of(coarse, 30), own_solver=True).passed

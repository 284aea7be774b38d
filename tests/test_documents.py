"""What README and CONTRIBUTING say to type does what they say."""

import ast
import doctest
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import diffeo
from cases import autoregressive, coupling, randomise
from diffeo import bases, nets, objectives, recipes, training, transforms
from diffeo.cli import main
from diffeo.transforms import Elementwise, half_mask, univariate

ROOT = Path(diffeo.__file__).parent
HOME = Path(__file__).parent.parent


DOCUMENTS = ["README.md", "CONTRIBUTING.md", "docs/guide.md"]
OPTIONAL = ["sbi", "pyro", "pocomc"]  # what a block may need that is no dependency


def blocks(document: str) -> list[str]:
    """The Python in a document."""
    return re.findall(r"```python\n(.*?)```", (HOME / document).read_text(), flags=re.DOTALL)


def unfenced(text: str) -> list[str]:
    """The indented blocks of a document that are Python: these do not run as tests, and are to be fenced."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [block for block in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE) if is_python(block)]


def is_python(block: str) -> bool:
    try:
        return bool(ast.parse(textwrap.dedent(block)).body)
    except SyntaxError:
        return False


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_is_fenced_so_that_it_is_run(document):
    assert blocks(document)
    assert not unfenced((HOME / document).read_text())


def test_python_without_a_fence_is_seen():
    text = (
        "So:\n\n    diffeo fit a.csv --out run/   # a command\n\nand\n\n    flow = diffeo.maf(2)\n    flow.sample(3)\n"
    )
    assert unfenced(text) == ["    flow = diffeo.maf(2)\n    flow.sample(3)\n"]
    assert not unfenced("```python\nx = 1\n\n    y = 2\n```\n")


def run(block: str, names: dict) -> None:
    """Run a block, with an epoch in the place of more."""
    exec(re.sub(r"\bepochs=\d+", "epochs=1", re.sub(r'"epochs": \d+', '"epochs": 1', block)), names)


def test_the_code_in_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["fit", "wine", "--out", "run", "--model", "maf", "--hidden", "8", "--epochs", "1", "--no-figures"]
    assert main([*argv, "--force"]) == 0  # what the README's command line made
    names = {}
    for block in blocks("README.md"):
        run(block, names)
    assert isinstance(names["flow"], diffeo.Flow)


def guide():
    """The blocks of the guide, with the optional packages that each needs, whose warnings are theirs."""
    for number, block in enumerate(blocks("docs/guide.md")):
        needed = [name for name in OPTIONAL if re.search(rf"^(?:import|from) {name}\b", block, re.MULTILINE)]
        marks = [pytest.mark.filterwarnings("ignore")] if needed else []
        yield pytest.param(block, needed, id=str(number), marks=marks)


@pytest.mark.parametrize(("block", "needed"), [*guide()])
def test_the_code_in_the_guide_runs(block, needed, tmp_path, monkeypatch):
    for name in needed:
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    run(block, {})


def examples(path: Path) -> list[doctest.DocTest]:
    """The examples in the docstrings of a module, which may take ``torch`` and ``diffeo`` for granted."""
    name = path.relative_to(ROOT).as_posix()
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            where = f"{name}:{getattr(node, 'name', 'module')}"
            test = doctest.DocTestParser().get_doctest(text, {"torch": torch, "diffeo": diffeo}, where, name, 0)
            found += [test] if test.examples else []
    return found


WITH_EXAMPLES = [path for path in sorted(ROOT.rglob("*.py")) if ">>> " in path.read_text()]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_examples_in_docstrings_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tests = examples(path)
    assert sum(len(test.examples) for test in tests) == path.read_text().count(">>> ")
    for test in tests:
        torch.manual_seed(0)
        said: list[str] = []
        result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
        assert not result.failed, "".join(said)


def test_an_example_that_is_wrong_is_seen(tmp_path):
    (test,) = examples(ROOT / "objectives" / "likelihood.py")
    test.examples[-1].want = "False\n"
    assert doctest.DocTestRunner().run(test, out=lambda text: None).failed == 1


@pytest.mark.parametrize("name", [name for name in diffeo.__all__ if callable(getattr(diffeo, name))])
def test_public_names_have_an_example(name):
    if name != "UserError":  # which is caught
        assert ">>> " in inspect.getdoc(getattr(diffeo, name))


@pytest.fixture(scope="module")
def contributed() -> tuple[str, str, str]:
    """The class, the line that names it, and the name."""
    code, line = blocks("CONTRIBUTING.md")
    return code, line, re.findall(r'"(.*)"', line)[0]


def test_a_map_is_added_in_few_lines(contributed):
    code, line, _ = contributed
    assert len((code + line).splitlines()) <= 20


def test_a_map_that_is_added_obeys_the_laws(contributed):
    """Those of ``test_laws`` in short: round trip, log-det, gradients, the identity at zero."""
    names = dict(vars(univariate))
    exec(contributed[0], names)
    (kind,) = (names[name] for name in names.keys() - vars(univariate).keys() if name != "__builtins__")
    made = kind()
    z = 2 * torch.randn(50, dtype=torch.float64)
    assert torch.allclose(made.generate(z, z.new_zeros(made.size, 50))[0], z)
    for transform in (
        Elementwise(made, 5), coupling(made, half_mask(5)), autoregressive(made, 5, (20, 20)),
    ):  # fmt: skip
        randomise(transform.double())
        z = torch.randn(4, 5, dtype=torch.float64)
        x, log_det = transform.forward_and_log_det(z)
        back, log_det_back = transform.inverse_and_log_det(x)
        assert torch.allclose(back, z)
        assert torch.allclose(log_det, -log_det_back)
        jacobian = torch.autograd.functional.jacobian(transform.inverse, x[0])
        assert torch.allclose(jacobian.slogdet()[1], log_det_back[0])
        parameters = tuple(transform.parameters())
        assert torch.autograd.gradcheck(
            lambda x, *_, f=transform: f.inverse_and_log_det(x),
            (x.detach().requires_grad_(), *parameters),
            fast_mode=True,
        )


def test_a_map_that_is_added_fits_stores_loads_and_scores_from_the_command_line(contributed, tmp_path):
    code, line, name = contributed
    package = tmp_path / "src" / "diffeo"
    shutil.copytree(ROOT, package, ignore=shutil.ignore_patterns("__pycache__"))
    file = package / "transforms" / "univariate.py"
    before, opening, after = file.read_text().partition("UNIVARIATES: dict[str, Callable[..., Univariate]] = {\n")
    file.write_text(f"{before}{code}\n\n{opening}{line}{after}")

    rows = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    np.savetxt(tmp_path / "data.csv", np.exp(rows @ rows[:3]), delimiter=",", header="a,b,c", comments="")

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "diffeo", *words], cwd=tmp_path, env={**os.environ, "PYTHONPATH": "src"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    small = ["--hidden", "8", "--transforms", "2", "--epochs", "2", "--folds", "1", "--no-figures"]
    run("fit", "data.csv", "--out", "run", "--set", f"univariate={name}", *small)
    recipe = json.loads((tmp_path / "run" / "model.json").read_text())["recipe"]
    assert recipe["arguments"]["univariate"] == {"name": name}
    run("score", "run", "data.csv", "--out", "scores.csv")
    scores = np.loadtxt(tmp_path / "scores.csv", delimiter=",", skiprows=1)
    assert scores.shape == (300, 2)
    assert np.isfinite(scores).all()


def arguments(function) -> set[str]:
    """What a docstring says of arguments, by name: in its sections Args and Attributes."""
    text = (inspect.getdoc(function) or "") + "\n"
    sections = re.findall(r"^(?:Args|Attributes):\n((?:    .*\n|\n)*)", text, re.MULTILINE)
    entries = re.findall(r"^    ([\w*][\w*, ]*):", "".join(sections), re.MULTILINE)
    return {name.strip(" *") for entry in entries for name in entry.split(",")}


def parameters(function) -> set[str]:
    return {name for name in inspect.signature(function).parameters if name not in ("self", "cls")}


def public_callables():
    """Functions and classes by their public names, methods of the classes, and where the docstring of each may be.

    A constructor's arguments are in the docstring of the class, a method's in its own or in that of one it overrides.
    """
    seen = set()
    for module in (diffeo, bases, objectives, recipes, training, transforms, nets):
        for name in module.__all__:
            value = getattr(module, name)
            if not callable(value) or value in seen:
                continue
            seen.add(value)
            if not inspect.isclass(value):
                yield pytest.param(value, [value], id=name)
                continue
            ours = [kind for kind in value.__mro__ if kind.__module__.startswith("diffeo.")]
            if any("__init__" in vars(kind) for kind in ours):
                yield pytest.param(value, [value], id=name)
            for key, method in vars(value).items():
                method = getattr(method, "__func__", method)
                if not key.startswith("_") and inspect.isfunction(method):
                    overridden = [getattr(kind, key) for kind in ours if key in vars(kind)]
                    yield pytest.param(method, overridden, id=f"{name}.{key}")


@pytest.mark.parametrize(("function", "described"), [*public_callables()])
def test_docstrings_name_every_argument(function, described):
    assert all(inspect.getdoc(each) for each in described)
    assert parameters(function) <= set().union(*map(arguments, described))


def test_an_argument_without_a_word_is_seen():
    def scale(x, factor=2.0, *rest, **more):
        """Return a multiple.

        Args:
            x: what is scaled: a tensor
                factor: is not an entry, being indented further.
            rest, more: unused.

        Returns:
            factor: not an argument.
        """

    assert parameters(scale) - arguments(scale) == {"factor"}

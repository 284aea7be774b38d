"""The house rules that code can hold: imports go one way, and importing the package is light."""

import ast
import subprocess
import sys
from pathlib import Path

import diffeo

ROOT = Path(diffeo.__file__).parent

# Lower may never import higher. What a line names is a module or a package of diffeo.
ORDER = [
    ["legible", "fields", "paths", "errors", "limits", "atomic", "arguments", "summary", "progress", "workers"],
    ["ops", "spectral"],
    ["nets", "transforms.univariate"],
    ["transforms"],
    ["bases", "likelihoods"],
    ["flow"],
    ["mixture", "variational"],
    ["objectives", "recipes", "inpainting"],
    ["structure"],
    ["training"],
    ["race", "report"],
    ["inference"],
    ["modalities", "data"],
    ["distillation", "exporting"],
    ["commands"],
    ["integrations"],
    ["sklearn"],
    ["cli"],
]


def rank(module: str) -> int:
    """The layer of a dotted name below ``diffeo``; the longest entry that it begins with decides."""
    best = max(
        (
            (len(entry), level)
            for level, entries in enumerate(ORDER)
            for entry in entries
            if module == entry or module.startswith(entry + ".")
        ),
        default=None,
    )
    assert best is not None, f"{module} has no place in the order of imports"
    return best[1]


def imports(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("diffeo."):
            modules.add(node.module.removeprefix("diffeo."))
        elif isinstance(node, ast.ImportFrom) and node.module == "diffeo":
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            modules.update(
                alias.name.removeprefix("diffeo.") for alias in node.names if alias.name.startswith("diffeo.")
            )
    return modules - {"__version__"}


def test_imports_go_one_way():
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if module in ("__init__", "__main__"):
            continue
        for other in imports(path):
            assert rank(other) <= rank(module), f"{module} imports {other}"


def modules():
    """Every module and what it imports, by dotted names below ``diffeo``; within functions, too."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items() if name != "__init__"}
    graph = {}
    for name, path in paths.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "diffeo":
                base = node.module.removeprefix("diffeo").removeprefix(".")
                full = [f"{base}.{alias.name}".strip(".") for alias in node.names]
                graph[name] |= {each if each in paths else base for each in full} & set(paths) - {name}
    return graph


def test_no_imports_in_circles():
    """Not within a folder either: take away what imports nothing that is left, until nothing is left."""
    graph = modules()
    while graph:
        leaves = {name for name, others in graph.items() if not others & set(graph)}
        assert leaves, f"these import each other in circles: {sorted(graph)}"
        graph = {name: others for name, others in graph.items() if name not in leaves}


def test_importing_the_package_does_not_import_torch():
    code = "import sys, diffeo; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_exists():
    for name in diffeo.__all__:
        assert getattr(diffeo, name) is not None

"""The field's words, not private ones: what the documentation says, and how the code names things.

``python tests/test_words.py [PLACE ...]`` lists every line that breaks the rule.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = ["README.md", "CONTRIBUTING.md", "docs", "src"]

# What to say instead is on the right. Only what cannot be meant otherwise is listed: "found" and "own" are English.
WORDS = {
    r"walk_back|\w+_walk\b|\bwalk_\w+|\b(?:incremental|transposed|whole|long|the|that|a) walk\b": (
        "incremental inversion, transposed solve"
    ),
    r"\btwins?\b|twin_|_twin": "reference implementation",
    r"\bread(?:s|ing)? all at once|\b(?:one|a|another) reading of (?!the weights)|\bby one reading": "forward pass",
    r"\b[Mm]aterials?\b": "dataset, modality",
    r"\b[Cc]heap (?:side|direction)|\.cheap\b|\bdef cheap\b|[\"']cheap[\"']": "fast direction",
    r"\b[Ww]hisper(?:s|ed|ing)?\b(?! speech)": "too quiet (audio), over-dispersed (tables)",
    r"\b[Ll]essons?\b|\b\w*[Tt]eachings?\b": "training pairs, distillation",
    r"\b(?:is|are|was|were|be|being) told\b(?! (?:from|apart)\b)": "takes, sees",
    r"(?i)(?<![a-z])portions?\b": "chunk, micro-batch",
    r"\b[Ff]urnish\w*": "carve",
    r"\b[Mm]end(?:s|ed|ing)?\b": "fix",
    r"no better for long": "early stopping",
    r"\boctaves? of the time": "sinusoidal time embedding",
}

# Names of variables, arguments, functions and classes: each is to say what it holds.
NAMES = {
    "own": "student", "its": "teacher", "given": "context", "apart": "residual", "found": "result", "told": "context",
    "room": "workspace",
}  # fmt: skip

# Where "given" is the name of an option of `diffeo sample`.
OPTION = re.compile(r"src/diffeo/(?:cli/\w+|commands/\w+|modalities/\w+/run)\.py")


def files(place):
    path = ROOT / place
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.suffix in {".md", ".py", ".c", ".h"})


def named(text):
    """Yield each name that Python code binds, with its line."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def private(path):
    """Yield what one file says in private words, as lines to print."""
    text = path.read_text()
    where = path.relative_to(ROOT)
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern, instead in WORDS.items():
            for match in re.finditer(pattern, line):
                yield f"{where}:{number}: {match[0]!r}; say: {instead}"
    if path.suffix == ".py":
        for name, number in named(text):
            if name in NAMES and not (name == "given" and OPTION.fullmatch(where.as_posix())):
                yield f"{where}:{number}: a name {name!r}; say what it holds: {NAMES[name]}"


@pytest.mark.parametrize("place", PLACES)
def test_only_the_fields_words(place):
    assert files(place), f"{place} is missing"
    assert not [line for path in files(place) for line in private(path)]


@pytest.mark.parametrize(
    "line",
    ["by one incremental walk", "def walk_back(x):", "the twin", "flow.cheap", "mend that line", "_portions(n)",
     "lessons", "class StepTeaching(Teaching):", "the student whispers", "six octaves of the time", "PORTION = 4",
     "what a recipe is told, with", "no better for long", "one reading of the student"],
)  # fmt: skip
def test_private_words_are_seen(line):
    assert any(re.search(pattern, line) for pattern in WORDS)


@pytest.mark.parametrize(
    "line",
    ["ast.walk(tree)", "os.walk(folder)", "out of proportion", "samples are not told from data", "whispered speech",
     "materialize_grads=True", "recommended", "between", "cheaper by the same amount", "in one reading.", "its own"],
)  # fmt: skip
def test_english_is_left_alone(line):
    assert not any(re.search(pattern, line) for pattern in WORDS)


def test_names_are_those_that_code_binds():
    assert {name for name, _ in named("def f(given): own = its")} == {"f", "given", "own"}


if __name__ == "__main__":
    lines = [line for place in sys.argv[1:] or PLACES for path in files(place) for line in private(path)]
    print(*lines, sep="\n")
    sys.exit(bool(lines))

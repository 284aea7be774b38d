"""Run directories: every entry of a model.json made something else, weights of others, links, what is no file."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hostile.judge import OUT, Case
from hostile.models import Models

ESCAPES = "\x1b[31m\x1b]0;title\x07\u202e\u2066\r\n\x9b2J"
VALUES = [
    None, True, -1, 0, 1e308, 10**30, "text", [], {}, [[[]]], {"a": {"b": []}}, ESCAPES, "\ud800", "x" * 100_000, 1e-320,
    float("inf"), float("nan"), -(2**63), [None], ["\udcff"] * 3, 2.5, "", False, [1, "a"], 10**400,
]  # fmt: skip
Model = dict[str, Any]


def cases(models: Models) -> list[Case]:
    """All of them."""
    return [*_senseless(models), *_text(models), *_files(models), *_every_entry(models)]


def _every_entry(models: Models) -> Iterator[Case]:
    """Each entry of each kind of model.json in turn: another value, or none."""
    number = 0
    for kind, every in (("numbers", 7), ("mixed", 17), ("images", 7), ("audio", 7), ("stack", 29)):
        whole = json.loads((models.run(kind) / "model.json").read_text())
        for k, path in enumerate(_paths(whole)):
            if k % every:
                continue
            number += 1
            value, remove = VALUES[number * 7 % len(VALUES)], number % 9 == 0
            command = ["info", "sample", "info", "score"][number % 4]
            shown = "removed" if remove else repr(value)[:20]
            name = f"{kind}: {'.'.join(map(str, path))} {shown}"
            yield _case(models, kind, name, _placed(path, value, remove), command)


def _paths(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    entries: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in entries:
        if isinstance(key, int) and key > 1:
            return
        yield (*at, key)
        yield from _paths(each, (*at, key))


def _placed(path: Sequence[str | int], value: Any, remove: bool = False) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        place: Any = model
        for key in path[:-1]:
            place = place[key]
        if remove:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return change


def _case(
    models: Models, kind: str, name: str, change: Callable[[Model], None], command: str = "info", **judged: Any
) -> Case:
    def write(folder: Path) -> list[str | Path]:
        run = copied(models, kind, folder)
        model = json.loads((run / "model.json").read_text())
        change(model)
        (run / "model.json").write_text(json.dumps(model))
        return words_of(command, run, models, kind)

    return Case(name, write, named=None if command in ("score", "resume") and not judged else "run", **judged)


def copied(models: Models, kind: str, folder: Path) -> Path:
    """A copy of a run: what is needed to use it."""
    run = folder / "run"
    run.mkdir()
    for file in models.run(kind).glob("*.*"):
        if file.is_file():
            shutil.copy(file, run)
    return run


def words_of(command: str, run: Path, models: Models, kind: str) -> list[str | Path]:
    """The command on a run."""
    suffix = {"images": "/x.npz", "audio": "/x"}.get(kind, "/x.csv")
    given = ["--given", "k=1"] if kind == "given" and command == "sample" else []
    return {
        "info": ["info", run],
        "json": ["info", run, "--json"],
        "sample": ["sample", run, "-n", "2", "--out", OUT + suffix, *given],
        "score": ["score", run, models.data(kind), "--out", f"{OUT}/s.csv"],
        "check": ["check", run, models.data(kind)],
        "report": ["report", run, "--out", f"{OUT}/r.html"],
        "anomalies": ["anomalies", run, models.data(kind), "--out", f"{OUT}/s.csv"],
        "resume": ["fit", models.data(kind), "--out", run, "--resume", "--epochs", "1", "--no-figures"],
        "distill": ["distill", run, "--out", f"{OUT}/d", "--epochs", "1", "--no-figures"],
    }[command]


def _senseless(models: Models) -> Iterator[Case]:
    """What must be refused."""
    for value in (-1, 0, True, False, 2, 1.0, "1", None, [1], 10**30):
        yield _case(models, "numbers", f"format {value!r}", _placed(["format"], value), refused=True)
    arguments = ["recipe", "arguments"]
    for kind, values in (("numbers", (True, 0, -3, 2.5, "2", None, [2], 10**9, 1e308)), ("given", (True, "2", 10**9))):
        for value in values:
            change = _placed([*arguments, "transforms"], value)
            yield _case(models, kind, f"{kind}: transforms {value!r}", change, refused=True)
    for value in (float("inf"), 1e308, 1e-320, 0, -1, "5", True, float("nan"), 10**400, [5]):
        place = [*arguments, "univariate"]
        change = _placed(place, {"name": "affine", "bound": value})
        yield _case(models, "numbers", f"affine bound {value!r}"[:40], change, "sample", refused=True)
        change = _placed([*arguments, "bound"], value)
        yield _case(models, "given", f"spline bound {value!r}"[:40], change, "sample", refused=True)
    for value in (True, 0, -1, "9", 1e308, float("inf"), 1e-320):
        yield _case(models, "audio", f"audio bound {value!r}", _placed([*arguments, "bound"], value), refused=True)
    for value in (0, -1, "1", float("nan"), float("inf"), 1e308, 1e-320, True, [1.0], None):
        steps = [["dequantize", {"step": value}], "standardize"]
        change = _placed([*arguments, "preprocess"], steps)
        yield _case(models, "images", f"step {value!r}", change, "sample", refused=True)
    for value in ([[]], [None], [["dequantize"]], [[["dequantize", {}]]], ["x" * 9999], "standardize", [1], [[1, 2, 3]],
                  [["logit", []]], [["logit", {"low": 1, "high": 0}]], [["logit", {"low": "a"}]], [["logit", {"alpha": True}]],
                  [["rescale", {"high": 1e308, "low": -1e308}]], [["support", {"of": "mind"}]], {}, [[], []], None,
                  [["curve", {"bins": 10**9}]], ["standardize"] * 100_000):  # fmt: skip
        change = _placed([*arguments, "preprocess"], value)
        yield _case(models, "images", f"preprocess {value!r}"[:50], change, "sample", refused=True)
    for value in ([10**6, 10**6], [4] * 10**5, [True], [0], ["4"], 4, [], [4.0], [2**63], [[4]]):
        yield _case(models, "numbers", f"hidden {value!r}"[:40], _placed([*arguments, "hidden"], value), refused=True)
    for value in (10**9, 10**30, 0, True, "3", -3, [3], [1, 2, 3], None, 1e308):
        yield _case(models, "numbers", f"features {value!r}", _placed([*arguments, "features"], value), refused=True)
    column = ["schema", "columns", 0]
    for key, values in {
        "low": (float("inf"), "0", True, None, 10**400, 1e308),
        "high": (float("-inf"), -1e308),
        "step": (-1, 1e-320, True, "1", 10**400, 1.0),
        "slack": (0.6, -1),
        "once": (1, -1, "1", 0.5, 10**400),
        "name": ("", None, 3, "b"),
        "kind": ("integer", "levels", "date", "categorical", 1, []),
        "dtype": ("float", [], "date", "category"),
        "values": ([1, 1], [2, 1], ["a"], {}, [float("nan")]),
    }.items():
        for value in values:
            change = _placed([*column, key], value)
            yield _case(models, "numbers", f"column {key} {value!r}"[:40], change, "sample", refused=True)
    integer = ["schema", "columns", 2]
    for key, value in (("step", 1e-320), ("high", 1e308), ("low", -1e308), ("step", 10**400), ("step", 1e308)):
        yield _case(
            models, "numbers", f"integer {key} {value!r}"[:40], _placed([*integer, key], value), "sample", refused=True
        )
    for key, values in {"levels": (0, 1, True, "256", 257, 1e30, -1, None, [256]), "shape": ([1, 4], [1, 4, 5], [True, 4, 4], "144"),
                        "classes": ([1], "ab", [[]], ["a", "a"])}.items():  # fmt: skip
        for value in values:
            yield _case(
                models, "images", f"images {key} {value!r}", _placed(["schema", key], value), "sample", refused=True
            )
    for key, values in {"rate": (0, -1, True, "4000", 1e308, 4000.5, 10**12), "hop": (0, True, "80", -80), "crop": (True, 0, "80"),
                        "mels": (-1, True, 3), "window": (-1, "a"), "pattern": (3, []), "classes": ([2], ["a", "a"])}.items():  # fmt: skip
        for value in values:
            yield _case(
                models, "audio", f"audio {key} {value!r}", _placed(["schema", key], value), "sample", refused=True
            )
    for key, value in (
        ("metrics", {"validation": 3}), ("metrics", {"validation": {"nll": "low"}}), ("metrics", {"rows": {"train": "all"}}),
        ("metrics", []), ("provenance", []), ("provenance", {"data": 3}), ("provenance", {"versions": []}), ("metrics", {"calibration": {}}), ("metrics", {"calibration": {"sbc": {"a": []}}}),
        ("provenance", {"seed": "zero"}), ("provenance", {"settings": 4}), ("provenance", {"distillation": 4}),
        ("metrics", {"epochs": 3, "seconds": "long"}), ("metrics", {"weights": [1]}),
        ("provenance", {"date": {}}), ("provenance", {"data": {"name": ["a"]}}), ("schema", []), ("recipe", {}), ("recipe", "maf"),
    ):  # fmt: skip
        yield _case(models, "numbers", f"{key} {value!r}", _placed([key], value), refused=True)

    for one, other in (("numbers", "other"), ("other", "numbers")):

        def foreign(folder: Path, one: str = one, other: str = other) -> list[str | Path]:
            run = copied(models, one, folder)
            shutil.copy(models.run(other) / "model.safetensors", run)
            return words_of("sample", run, models, one)

        yield Case(f"weights of {other} in {one}", foreign, refused=True, named="run", said="another run")

    def retrained(folder: Path) -> list[str | Path]:
        run = copied(models, "numbers", folder)
        model = json.loads((run / "model.json").read_text())
        model["weights"] = ["0" * 64]
        (run / "model.json").write_text(json.dumps(model))
        return ["info", run]

    yield Case("a digest of zeros", retrained, refused=True, named="run")


def _text(models: Models) -> Iterator[Case]:
    """Names and texts that steer a terminal, are endless, or no text at all."""
    places: dict[str, list[list[str | int]]] = {
        "numbers": [
            ["schema", "columns", 0, "name"],
            ["provenance", "data", "name"],
            ["provenance", "date"],
            ["provenance", "versions", "diffeo"],
            ["provenance", "versions", "torch"],
            ["diffeo"],
            ["metrics", "model"],
            ["recipe", "name"],
            ["metrics", "stopped"],
            ["recipe", "arguments", "activation"],
        ],
        "mixed": [
            ["schema", "columns", 0, "categories", 0],
            ["schema", "columns", 1, "format"],
            ["schema", "columns", 1, "type"],
        ],
        "images": [["schema", "classes"], ["provenance", "data", "name"]],
        "audio": [["schema", "classes"], ["schema", "pattern"], ["provenance", "command", 0]],
    }
    texts = [
        ESCAPES,
        "\ud800 \udcff",
        "x" * 100_000,
        "e\u0301" * 3000 + "\u200b" * 3000,
        "a\nb\n\n" * 500,
        "\u2028\x00\x85",
    ]
    for kind, paths in places.items():
        for path in paths:
            for k, text in enumerate(texts):
                if k > 2 and len(str(path)) % 2:
                    continue
                value = [text] if path[-1] == "classes" else text
                command = ("info", "json", "sample")[k % 3]
                name = f"{kind}: {'.'.join(map(str, path))} {text[:8]!r}"
                yield _case(models, kind, name, _placed(path, value), command)
    for text in texts[:4]:

        def renamed(model: Model, text: str = text) -> None:
            model["schema"]["all_names"][0] = model["schema"]["columns"][0]["name"] = text

        for command in ("info", "sample"):
            yield _case(models, "numbers", f"column {text[:8]!r} {command}", renamed, command)
    yield _case(models, "numbers", "report of a column with escapes", lambda model: renamed(model, ESCAPES), "report")
    change = _placed(["provenance", "data", "name"], ESCAPES * 200)
    yield _case(models, "mixed", "report of a data name with escapes", change, "report")
    changes: tuple[tuple[Callable[[Model], None], str], ...] = (
        (_placed(["provenance", "data", "name"], "\ud800" * 99), "report"),
        (_placed(["metrics", "notes"], [ESCAPES, "x" * 99_999]), "report"),
        (_placed(["metrics", "notes"], [ESCAPES, "x" * 99_999]), "info"),
        (_placed(["metrics", "weights"], {ESCAPES: 0.5, "y" * 9999: 0.5}), "info"),
        (_placed(["recipe", "arguments", ESCAPES], 3), "info"),
        (_placed(["recipe", "arguments", "y" * 99_999], 3), "info"),
        (_placed(["metrics", "rows", "y" * 99_999], 3), "info"),
        (_placed(["provenance", "settings", "sep"], ESCAPES), "score"),
        (_placed(["provenance", "settings", "na"], ["\ud800"]), "score"),
        (_placed(["provenance", "settings", "decimal"], "x"), "score"),
        (_placed(["provenance", "settings", "sep"], "\n"), "score"),
        (_placed(["provenance", "settings", "epochs"], "many"), "resume"),
        (_placed(["provenance", "settings", "arguments"], {"hidden": "\ud800"}), "resume"),
    )
    for number, (change, command) in enumerate(changes):
        yield _case(models, "numbers", f"{command} of texts, {number}", change, command)
    changes = (
        (_placed(["provenance", "seed"], "x"), "check"),
        (_placed(["provenance", "seed"], 10**30), "check"),
        (_placed(["provenance", "data", "test"], -3), "check"),
        (_placed(["provenance", "data", "test"], 10**30), "check"),
        (_placed(["provenance", "data"], {}), "check"),
        (_placed(["provenance"], {}), "check"),
        (_placed(["metrics"], {}), "check"),
        (_placed(["provenance"], {}), "report"),
        (_placed(["metrics"], {}), "report"),
        (_placed(["metrics"], {}), "anomalies"),
        (_placed(["provenance", "data", "name"], 3), "distill"),
    )
    for number, (change, command) in enumerate(changes):
        for kind in ("images", "audio", "numbers"):
            if command in ("check", "report") or kind == "numbers":
                yield _case(models, kind, f"{kind}: {command} of a stripped run, {number}", change, command)


def _files(models: Models) -> Iterator[Case]:
    """Files that are others, cut short, links, pipes and devices."""
    contents: dict[str, bytes] = {
        "empty": b"",
        "null": b"null",
        "a number": b"3",
        "a list": b"[]",
        "a text": b'"format"',
        "nested lists": b"[" * 100_000,
        "nested objects": b'{"format": ' * 50_000,
        "nested in the recipe": b'{"format": 1, "recipe": {"name": "maf", "arguments": {"hidden": '
        + b"[" * 900
        + b"]" * 900
        + b"}}}",
        "no UTF-8": b'{"format": 1, "\xff\xfe": 3}',
        "UTF-16": '{"format": 1}'.encode("utf-16"),
        "a mark of order": b'\xef\xbb\xbf{"format": 1}',
        "zeros": bytes(1000),
        "keys twice": b'{"format": 1, "format": 2}',
        "a huge integer": b'{"format": ' + b"9" * 100_000 + b"}",
        "NaN": b'{"format": NaN}',
        "infinity": b'{"format": 1e400}',
        "escapes": b'{"format": 99, "diffeo": "\\u001b[31m\\u0007"}',
        "a long version": b'{"format": 99, "diffeo": "' + b"9" * 90_000 + b'"}',
        "a version of a list": b'{"format": 99, "diffeo": [[[]]]}',
        "html": b"<!DOCTYPE html><html>",
        "a pickle": b"\x80\x04\x95\x10\x00\x00\x00",
    }
    for name, content in contents.items():

        def other(folder: Path, content: bytes = content) -> list[str | Path]:
            run = copied(models, "numbers", folder)
            (run / "model.json").write_bytes(content)
            return words_of("info", run, models, "numbers")

        yield Case(f"model.json: {name}", other, refused=True, named="run")

    def weights(change: Callable[[bytes], bytes]) -> Callable[[Path], list[str | Path]]:
        def write(folder: Path) -> list[str | Path]:
            run = copied(models, "numbers", folder)
            file = run / "model.safetensors"
            file.write_bytes(change(file.read_bytes()))
            return words_of("sample", run, models, "numbers")

        return write

    whole = (models.run("numbers") / "model.safetensors").read_bytes()
    header = int.from_bytes(whole[:8], "little")
    changes: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda data: b"",
        "seven bytes": lambda data: data[:7],
        "a header of 2^63": lambda data: (2**63).to_bytes(8, "little") + data[8:],
        "a header of 2^40": lambda data: (2**40).to_bytes(8, "little") + data[8:],
        "a header of 0": lambda data: bytes(8),
        "a header of nested lists": lambda data: (200_000).to_bytes(8, "little") + b"[" * 200_000,
        "trailing bytes": lambda data: data + b"more",
        "a pickle": lambda data: b"\x80\x04.",
        "a zip": lambda data: b"PK\x03\x04" + data,
        "a metadata of escapes": lambda data: _weights({"__metadata__": {"sha256": ESCAPES}}),
        "a tensor of escapes": lambda data: _weights(
            {ESCAPES: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 4
        ),
        "a long name": lambda data: _weights({"x" * 99_999: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 4),
        "overlapping tensors": lambda data: _weights(
            {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, 4
        ),
        "a shape of 2^62": lambda data: _weights({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 4]}}, 4),
        "an unknown type": lambda data: _weights({"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 4]}}, 4),
    }
    for k in range(6):
        place = k * (header + 8) // 6
        changes[f"header byte {place}"] = lambda data, at=place: data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        cut = len(whole) * k // 6
        changes[f"cut at {cut}"] = lambda data, at=cut: data[:at]
        at = header + 8 + k * (len(whole) - header - 8) // 6
        changes[f"body byte {at}"] = lambda data, at=at: data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]
    for name, change in changes.items():
        yield Case(f"weights: {name}", weights(change), refused=True, named="run")

    def linked(target: str, file: str) -> Callable[[Path], list[str | Path]]:
        def write(folder: Path) -> list[str | Path]:
            run = copied(models, "numbers", folder)
            (run / file).unlink()
            (run / file).symlink_to(target)
            return words_of("sample", run, models, "numbers")

        return write

    for file in ("model.json", "model.safetensors", "rows.safetensors"):
        refused = None if file == "rows.safetensors" else True
        for target in (
            "/dev/zero",
            "/dev/stdin",
            "/dev/full",
            "/dev/null",
            "/dev/random",
            "loop",
            ".",
            "/nowhere",
            "/proc/self/mem",
            "/proc/kmsg",
        ):
            yield Case(f"{file} -> {target}", linked(target, file), refused=refused, named="run", seconds=5)

        def pipe(folder: Path, file: str = file) -> list[str | Path]:
            run = copied(models, "numbers", folder)
            (run / file).unlink()
            os.mkfifo(run / file)
            return words_of("score", run, models, "numbers")

        yield Case(f"{file} is a pipe", pipe, refused=refused, named="run", seconds=5)

        def directory(folder: Path, file: str = file) -> list[str | Path]:
            run = copied(models, "numbers", folder)
            (run / file).unlink()
            (run / file).mkdir()
            return words_of("score", run, models, "numbers")

        yield Case(f"{file} is a folder", directory, refused=refused, named="run")

    def looped(folder: Path) -> list[str | Path]:
        (folder / "run").symlink_to("run")
        return ["info", folder / "run"]

    yield Case("a run that links to itself", looped, refused=True, named="run")
    for name in (
        os.fsdecode(b"run\xff\xfe"),
        "run\x1b[31m",
        "run\nmore",
        "run " + "y" * 240,
        "run\u202e",
        "-run",
        "run\t",
    ):

        def called(folder: Path, name: str = name) -> list[str | Path]:
            run = copied(models, "numbers", folder)
            run.rename(folder / name)
            return ["info", folder / name]

        yield Case(f"a folder called {name[:12]!r}", called, refused=False)
        yield Case(
            f"no folder called {name[:12]!r}",
            lambda folder, name=name: ["info", folder / name],
            refused=True,
            named="run",
        )
        yield Case(
            f"a table of no run called {name[:12]!r}",
            lambda folder, name=name: ["score", models.run("numbers"), folder / f"{name}.csv", "--out", f"{OUT}/s.csv"],
            refused=True,
            named="run",
        )
    yield Case("a path that is too long", lambda folder: ["info", folder / ("a" * 5000)], refused=True, named=None)
    yield Case("a path with a zero", lambda folder: ["info", str(folder) + "/a\0b"], refused=True, named=None)


def _weights(header: dict[str, Any], size: int = 0) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)

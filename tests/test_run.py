"""The run directory: what is written, and what every kind of damage is answered with."""

import json
import os
import stat
import struct
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffeo import atomic, recipes
from diffeo.atomic import atomic_write
from diffeo.errors import UserError
from diffeo.training import create_run, load_run, provenance, read_model, save_metrics, save_weights
from diffeo.training.checkpoint import save_checkpoint
from diffeo.training.place import claimed, place
from diffeo.training.weights import DTYPES, digest, save_tensors


def new_flow(**arguments):
    return recipes.maf(3, **{"transforms": 2, "hidden": (8,), **arguments})


@pytest.fixture
def run(tmp_path):
    flow = new_flow()
    with torch.no_grad():
        for p in flow.parameters():
            p.copy_(torch.randn_like(p) * 0.1)
    create_run(tmp_path / "run", flow, {"columns": ["a", "b", "c"]}, provenance(seed=3, data="abc"))
    save_weights(tmp_path / "run", flow)
    return tmp_path / "run", flow


def edit(run, **changes):
    file = run / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_round_trip(run):
    folder, flow = run
    save_metrics(folder, {"test": {"nll": 1.5}})
    save_metrics(folder, {"epochs": 3})
    loaded = load_run(folder)
    x = torch.randn(5, 3)
    assert torch.equal(loaded.flow.log_prob(x), flow.eval().log_prob(x))
    assert not loaded.flow.training
    assert loaded.recipe == flow.recipe
    assert loaded.schema == {"columns": ["a", "b", "c"]}
    assert loaded.metrics == {"test": {"nll": 1.5}, "epochs": 3}
    assert loaded.provenance["seed"] == 3
    assert loaded.provenance["versions"]["torch"] == torch.__version__
    assert {p.name for p in folder.iterdir()} == {"model.json", "model.safetensors"}


def test_loads_in_the_precision_of_the_weights_and_draws_no_random_numbers(tmp_path):
    flow = new_flow().double()
    create_run(tmp_path, flow)
    save_weights(tmp_path, flow)
    state = torch.get_rng_state()
    loaded = load_run(tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    assert next(loaded.flow.parameters()).dtype == torch.float64
    assert digest(loaded.flow.state_dict()) == digest(flow.state_dict())


def test_the_weights_file_holds_the_sha256_of_its_tensors(run):
    folder, flow = run
    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    sha256 = metadata.pop("sha256")
    assert sha256 == digest(flow.state_dict(), metadata) == save_weights(folder, flow)


def test_create_refuses_and_replaces(run, tmp_path):
    folder, flow = run
    weights = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"holds a run: .*--resume.*--force"):
        create_run(folder, flow)
    assert (folder / "model.safetensors").read_bytes() == weights
    with pytest.raises(UserError, match="holds a run"), claimed(folder):
        pass

    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(UserError, match="is not empty and not a run directory: choose another folder"):
            flow.save(other, force=force)
    (other / "model.json").write_text('{"layers": []}')  # somebody else's
    with pytest.raises(UserError, match="not a run directory"):
        flow.save(other, force=True)
    assert (other / "thesis.tex").read_text() == "years of work"

    (folder / "model.json").write_text("{damaged")
    (folder / "train").mkdir()
    flow.save(folder, force=True)
    assert read_model(folder)["recipe"] == flow.recipe


def test_an_earlier_run_is_there_until_the_new_one_is_complete(run, tmp_path):
    folder, _ = run
    (folder / "notes.txt").write_text("the user's")
    (folder / "figures").mkdir()
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    other = new_flow()
    for failure in (ValueError("a bug"), UserError("a mistake"), KeyboardInterrupt()):
        with pytest.raises(type(failure)), claimed(folder, force=True) as new:  # noqa: PT012
            create_run(new, other)
            assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
            load_run(folder)
            raise failure
        assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    assert new.is_dir()  # of the interrupt: it can be resumed
    assert place(folder, resume=True) == new
    with claimed(folder, resume=True) as again:
        assert again == new
        save_weights(again, other)
    assert not new.exists()
    assert {p.name for p in folder.iterdir()} == {"model.json", "model.safetensors", "notes.txt"}
    assert digest(load_run(folder).flow.state_dict()) == digest(other.state_dict())
    assert [p.name for p in tmp_path.iterdir() if "run" in p.name] == ["run"]


def test_a_replacement_that_was_killed_goes_with_the_next_one(run, tmp_path):
    folder, flow = run
    with pytest.raises(KeyboardInterrupt), claimed(folder, force=True) as new:  # noqa: PT012
        create_run(new, flow)
        (new / "notes.txt").write_text("moved here just before the folders change places")
        raise KeyboardInterrupt
    flow.save(folder, force=True)
    assert not new.exists()
    assert (folder / "notes.txt").exists()


def test_a_run_that_failed_at_once_leaves_nothing(tmp_path):
    with pytest.raises(UserError), claimed(tmp_path / "run") as folder:  # noqa: PT012
        create_run(folder, new_flow())
        raise UserError("1e29 spread")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("killed", [True, False])
def test_what_is_not_diffeos_is_never_removed(killed, run, tmp_path):
    folder, flow = run
    beside = tmp_path / "run.new.tmp"
    if killed:  # the folder of a replacement, into which somebody else has put a file
        create_run(beside, flow)
    (beside / "train").mkdir(parents=True)
    (beside / "thesis.tex").write_text("years of work")
    (folder / "thesis.tex").write_text("another one")  # so that it cannot move there
    reason = "holds 'thesis.tex', which is of no run: move it away" if killed else "is not empty and not a run"
    with pytest.raises(UserError, match=reason):
        flow.save(folder, force=True)
    assert (beside / "thesis.tex").read_text() == "years of work"
    assert killed or (beside / "train").exists()
    assert (folder / "thesis.tex").read_text() == "another one"
    load_run(folder)


@pytest.mark.parametrize("steps", [0, 3])
def test_what_was_learned_before_a_failure_can_be_resumed(steps, tmp_path):
    """A disk may be full in the first epoch of a training of days."""
    with pytest.raises(UserError), claimed(tmp_path / "run") as folder:  # noqa: PT012
        create_run(folder, new_flow())
        (folder / "train").mkdir()
        state = {"settings": {}, "threads": 1, "state": {"step": steps}}
        save_checkpoint(folder / "train" / "checkpoint.safetensors", state, {})
        raise UserError("the disk is full")
    assert (tmp_path / "run").exists() == (steps > 0)


def test_two_processes_cannot_make_the_same_run(tmp_path):
    pytest.importorskip("fcntl")
    code = "import sys; from diffeo.training.place import claimed; claimed(sys.argv[1], resume=True).__enter__()"
    with claimed(tmp_path / "run") as folder:
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
        assert "another process writes here" in done.stderr
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_of_killed_writers_are_cleared(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f"a.csv.{dead.pid}.tmp").write_text("half")
    (tmp_path / f"a.csv.{os.getppid()}.tmp").write_text("somebody is writing")
    with atomic.atomic_write(tmp_path / "a.csv") as temporary:
        temporary.write_text("whole")
    assert {p.name for p in tmp_path.iterdir()} == {"a.csv", f"a.csv.{os.getppid()}.tmp"}


def test_folders_change_places_where_the_system_has_no_call_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *_, **__: object())
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"from {name}").touch()
    atomic.exchange(tmp_path / "a", tmp_path / "b")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["from b"]
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}


def test_unwritable_folders(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file: it is a file"):
        create_run(tmp_path / "file", new_flow())
    with pytest.raises(UserError, match=r"cannot write .*: a part of the path is a file"):
        create_run(tmp_path / "file" / "run", new_flow())

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(atomic.Path, "write_bytes", denied)  # the superuser of a test machine may write anywhere
    with pytest.raises(UserError, match=r"cannot write .*: permission denied; choose a folder"):
        create_run(tmp_path / "run", new_flow())


def test_a_full_disk_leaves_the_old_files(run, monkeypatch):
    folder, flow = run
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for call in (lambda: save_weights(folder, flow), lambda: save_metrics(folder, {"a": 1})):
        with pytest.raises(UserError, match=r"cannot write .*: the disk is full; free some space"):
            call()
    monkeypatch.undo()
    monkeypatch.setattr(atomic.Path, "write_text", full)
    with pytest.raises(UserError, match="the disk is full"):
        flow.save(folder, force=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_fills_up_while_weights_are_written():
    with pytest.raises(UserError, match="the disk is full"):
        save_tensors("/dev/full", {"a": torch.zeros(10**6)}, {})
    assert not os.path.isfile("/dev/full")


def test_the_library_reads_what_is_written(tmp_path):
    tensors = {str(d): torch.arange(6).reshape(2, 3).to(d) for d in DTYPES} | {
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
        "strided": torch.arange(12.0).reshape(3, 4).T,
    }
    save_tensors(tmp_path / "x.safetensors", {**tensors, "tied": tensors["strided"]}, {"a": "b"})
    read = load_file(tmp_path / "x.safetensors")
    assert torch.equal(read.pop("tied"), tensors["strided"])
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o666 & ~current_umask()


def test_atomic_write(tmp_path):
    file = tmp_path / "file.txt"
    with atomic_write(file) as temporary:
        temporary.write_text("old")
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~current_umask()
    with pytest.raises(ZeroDivisionError), atomic_write(file) as temporary:
        temporary.write_text("half of the n" * (1 // 0))
    assert file.read_text() == "old"
    link = tmp_path / "link.txt"
    link.symlink_to(file)
    with atomic_write(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert file.read_text() == "new"
    assert {p.name for p in tmp_path.iterdir()} == {"file.txt", "link.txt"}
    with pytest.raises(UserError, match="its folder does not exist"), atomic_write(tmp_path / "none" / "file"):
        pass
    with pytest.raises(UserError, match="it is a folder"), atomic_write(tmp_path):
        pass
    with pytest.raises(FileNotFoundError), atomic_write(file):
        (tmp_path / "missing input").read_text()  # not about the file that is written
    with atomic_write("/dev/null") as temporary:
        temporary.write_text("gone")


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_not_a_run_directory(tmp_path):
    with pytest.raises(UserError, match="does not exist: give a run directory"):
        load_run(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file: give a run directory"):
        load_run(tmp_path / "file")
    with pytest.raises(UserError, match=r"is not a run directory: it has no model\.json"):
        load_run(tmp_path)


def test_half_written(run):
    folder, _ = run
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights yet .* its training did not end; resume it .* --resume"):
        load_run(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged"),
        ("{", "is damaged"),
        ("[" * 10**5, "is damaged"),
        (b"\xff\xfe\x00", "is damaged"),
        ("[]", "no format number"),
        ("{}", "no format number"),
        ('{"format": "1"}', "no format number"),
        ('{"format": 99, "diffeo": "7.0"}', r"has format 99, written by diffeo 7.0; .* upgrade diffeo"),
        ('{"format": 1}', "expected an object as recipe, got none"),
        (
            '{"format": 1, "recipe": {"name": 3, "arguments": {}}, "schema": null}',
            "expected a text as recipe.name, got 3",
        ),
        ('{"format": 1, "recipe": {"name": "maf", "arguments": []}, "schema": null}', "object as recipe.arguments"),
        (
            '{"format": 1, "recipe": {"name": "maf", "arguments": {}}, "schema": 3}',
            "expected an object or null as schema, got 3",
        ),
    ],
)
def test_damaged_descriptions(run, text, message):
    (run[0] / "model.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        load_run(run[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"name": "os.system", "arguments": {}}, "expected a recipe among nice"),
        ({"name": "maf", "arguments": {"features": 3, "sudo": 1}}, "takes no argument 'sudo'"),
        ({"name": "maf", "arguments": {}}, "cannot be made from"),
        ({"name": "maf", "arguments": {"features": "three"}}, "cannot be made from"),
        ({"name": "maf", "arguments": {"features": None}}, "cannot be made from"),
        ({"name": "maf", "arguments": {"features": [3, 3]}}, "expected features as a number or as"),
        ({"name": "maf", "arguments": {"features": [1, 10**6, 10**6]}}, "out of proportion"),
        ({"name": "realnvp", "arguments": {"features": [1, 10**6, 10**6]}}, "out of proportion"),
        ({"name": "realnvp", "arguments": {"features": [1, 4, 4], "hidden": [10**6]}}, "out of proportion"),
        ({"name": "realnvp", "arguments": {"features": [1, 4, 4], "kernels": [10**9 + 1]}}, "out of proportion"),
        ({"name": "glow", "arguments": {"features": [10**6, 4, 4]}}, "out of proportion"),
        ({"name": "glow", "arguments": {"features": [1, 4, 4], "transforms": 10**9}}, "out of proportion"),
        ({"name": "glow", "arguments": {"features": [1, 4, 4], "preset": "huge"}}, "expected a preset among"),
        ({"name": "maf", "arguments": {"features": -3}}, "no model can be built"),
        ({"name": "maf", "arguments": {"features": 3, "hidden": 7}}, "cannot be made from"),
        ({"name": "maf", "arguments": {"features": 10**6}}, "out of proportion"),
        ({"name": "maf", "arguments": {"features": 10**12}}, "out of proportion"),
        ({"name": "maf", "arguments": {"features": 10**30}}, "no model can be built"),
        ({"name": "maf", "arguments": {"features": 3, "hidden": [10**6, 10**6]}}, "out of proportion"),
        ({"name": "maf", "arguments": {"features": 3, "transforms": 10**9}}, "out of proportion"),
        ({"name": "maf", "arguments": {"features": 3, "hidden": [8] * 10**5}}, "out of proportion"),
        ({"name": "maf", "arguments": {"features": 3, "context": 10**12}}, "out of proportion"),
        ({"name": "nsf", "arguments": {"features": 3, "bins": 10**9}}, "no model can be built"),
        ({"name": "maf", "arguments": {"features": 3, "preprocess": [["dequantize", {"step": "x"}]]}}, "no model"),
        ({"name": "maf", "arguments": {"features": 3, "preprocess": [["__class__", {}]]}}, "no model"),
        ({"name": "maf", "arguments": {"features": 3, "preprocess": 5}}, "cannot be made from"),
    ],
)
def test_hostile_recipes(run, recipe, message):
    edit(run[0], recipe=recipe)
    with pytest.raises(UserError, match=message) as caught:
        load_run(run[0])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_weights_of_another_model(run):
    folder, flow = run
    for other, message in (
        (new_flow(hidden=(9,)), r"expected .* of shape .*, got .*: it does not belong to model.json"),
        (new_flow(transforms=1), r"lacks the tensor \S+ \(\d+ in all\)"),
    ):
        save_weights(folder, other)
        with pytest.raises(UserError, match=message):
            load_run(folder)
    save_tensors(folder / "model.safetensors", {**flow.state_dict(), "more": torch.zeros(2)}, {})
    with pytest.raises(UserError, match=r"has unexpectedly the tensor more \(1 in all\)"):
        load_run(folder)
    integers = {k: v.long() for k, v in flow.state_dict().items()}
    save_tensors(folder / "model.safetensors", integers, {})
    with pytest.raises(UserError, match=r"of type torch.float32, got torch.int64"):
        load_run(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(run, value):
    folder, flow = run
    name, parameter = next(iter(flow.named_parameters()))
    parameter.data.view(-1)[0] = value
    save_weights(folder, flow)
    with pytest.raises(UserError, match=f"{name} holds values that are not finite"):
        load_run(folder)


def test_damaged_weights(run):
    folder, flow = run
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    generator = torch.Generator().manual_seed(0)
    header = struct.unpack("<Q", whole[:8])[0]
    places = torch.randint(0, len(whole), (60,), generator=generator).tolist() + list(range(0, 8 + header, 97))
    for position in places:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.safetensors"):
            load_run(folder)
    for damaged in (b"", whole[:7], whole[:100], whole[:-1], whole + b"\0", b"\xff" * 8 + whole[8:], b"PK\3\4" * 100):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="is corrupted or cut short") as caught:
            load_run(folder)
        assert "\n" not in str(caught.value)
    save_file(flow.state_dict(), file)  # by another program: no SHA-256
    with pytest.raises(UserError, match="do not match its SHA-256"):
        load_run(folder)


def test_unknown_device(run):
    for device in ("abacus", "cuda:99"):
        with pytest.raises(UserError, match=f"device '{device}' cannot be used here"):
            load_run(run[0], device=device)


def test_no_pickle_anywhere():
    import diffeo

    root = os.path.dirname(diffeo.__file__)
    for folder, _, names in os.walk(root):
        for name in names:
            if name.endswith(".py"):
                with open(os.path.join(folder, name)) as file:
                    text = file.read()
                assert "import pickle" not in text
                assert "torch.load(" not in text

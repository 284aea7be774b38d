"""Writing tables: streamed, the whole file or none of it."""

import errno
import gzip
import io
import os
import subprocess
import sys

import numpy as np
import pytest

from diffeo.data import EXTENSIONS, TableWriter, open_table
from diffeo.errors import UserError

ROWS = np.array([[0.1, 1.0, 1], [-np.inf, 2.4, 0], [1e300, -3, 1]])
TYPES = ["float64", "int64", "bool"]


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_text_is_exact(tmp_path):
    with TableWriter(tmp_path / "a.csv", ["x", "n, m", "b"], TYPES) as writer:
        writer.write(ROWS)
        writer.write(ROWS[:0])
        writer.write(np.array([[np.nan, np.nan, np.nan], [1 / 3, 5, 0]]))
    expected = 'x,"n, m",b\n0.1,1,true\n-inf,2,false\n1e+300,-3,true\nnan,,\n0.3333333333333333,5,false\n'
    assert (tmp_path / "a.csv").read_text() == expected
    assert writer.rows == 5
    assert leftovers(tmp_path) == ["a.csv"]
    with TableWriter(tmp_path / "a.tsv.gz", ["x", "y"], ["float32", "float32"]) as writer:
        writer.write(np.array([[0.1, 2]]))
    assert gzip.decompress((tmp_path / "a.tsv.gz").read_bytes()) == b"x\ty\n0.1\t2\n"


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_types_survive(tmp_path, extension):
    path = tmp_path / f"a{extension}"
    finite = np.where(np.isfinite(ROWS), ROWS, 0)
    with TableWriter(path, ["x", "n", "b"], TYPES) as writer:
        writer.write(finite[:2])
        writer.write(finite[2:])
    table = open_table(path)
    expected = finite.copy()
    if extension not in (".npy", ".npz"):  # a single type there
        expected[:, 1] = np.rint(expected[:, 1])
    np.testing.assert_array_equal(np.concatenate(list(table.batches())), expected)
    if extension in (".parquet", ".feather", ".arrow"):
        assert list(table.types.values()) == ["float", "integer", "bool"]
    if extension in (".npy", ".npz"):
        with TableWriter(path, ["n", "m"], ["int64", "int64"], force=True) as writer:
            writer.write(np.array([[1.0, 2.0]]))
        table = open_table(path)
        assert set(table.types.values()) == {"integer"}
        assert table.has_names == (extension == ".npz")
    assert leftovers(tmp_path) == [path.name]


def test_an_array_of_many_rows_needs_no_room_for_the_count(tmp_path):
    with TableWriter(tmp_path / "a.npy", ["x"], ["float64"]) as writer:
        for _ in range(11):
            writer.write(np.ones((1000, 1)))
    assert np.load(tmp_path / "a.npy").shape == (11_000, 1)


def test_an_existing_file_is_refused_without_force(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(UserError, match=r"a\.csv: exists already; .*--force"):
        TableWriter(path, ["x"])
    assert path.read_text() == "old"
    with TableWriter(path, ["x"], force=True) as writer:
        writer.write(np.ones((1, 1)))
        assert path.read_text() == "old"  # until the end
    assert path.read_text() == "x\n1\n"


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_an_error_leaves_nothing(tmp_path, extension):
    path = tmp_path / f"a{extension}"

    def interrupted(error):
        with TableWriter(path, ["x", "y", "z"]) as writer:
            writer.write(ROWS)
            raise error

    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            interrupted(error)
        assert leftovers(tmp_path) == []


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_full_disk(tmp_path, extension):
    """With a limit on the size of files the system refuses to write on, as it does when the disk is full."""
    code = f"""
import resource, sys
import numpy as np
from diffeo.data import TableWriter
from diffeo.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with TableWriter({str(tmp_path / ("a" + extension))!r}, ["x", "y"]) as writer:
        for seed in range(100):
            writer.write(np.random.default_rng(seed).random((1000, 2)))
except UserError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert result.stdout.count("\n") == 1
    assert result.stdout.startswith(f"cannot write {tmp_path}/a{extension}: ")
    assert result.stderr == ""
    assert result.returncode == 0
    assert leftovers(tmp_path) == []


class FullDisk(io.BytesIO):
    """A file on a disk that has room for so many bytes."""

    capacity = 0

    def write(self, data):
        if self.tell() + len(data) > self.capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("extension", [e for e in EXTENSIONS if e != ".npz"])  # that one waits in a file of its own
@pytest.mark.parametrize("capacity", [0, 200, 20_000])
def test_the_message_of_a_full_disk(tmp_path, monkeypatch, extension, capacity):
    def write():
        with TableWriter(tmp_path / f"a{extension}", ["x", "y"]) as writer:
            for _ in range(10):
                writer.write(np.random.default_rng(0).random((1000, 2)))

    monkeypatch.setattr(FullDisk, "capacity", capacity)
    monkeypatch.setattr("pathlib.Path.open", lambda *_, **__: FullDisk())
    with pytest.raises(UserError, match=rf"cannot write .*a{extension}: the disk is full; free some space"):
        write()
    assert leftovers(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cannot write .*a\.csv: its folder does not exist; create it"):
        TableWriter(tmp_path / "none" / "a.csv", ["x"])
    with pytest.raises(UserError, match=r"unknown extension '\.xls'; diffeo writes \.csv"):
        TableWriter(tmp_path / "a.xls", ["x"])
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*b\.csv: it is a folder"):
        TableWriter(tmp_path / "b.csv", ["x"], force=True)

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("pathlib.Path.open", refused)
    with pytest.raises(UserError, match=r"cannot write .*a\.csv: permission denied; choose a folder"):
        TableWriter(tmp_path / "a.csv", ["x"])


@pytest.mark.parametrize("path", [None, "-"])
def test_standard_output(path, monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(buffer))
    with TableWriter(path, ["x", "y", "z"], TYPES) as writer:
        writer.write(ROWS[:1])
    print("more")  # it is still open
    sys.stdout.flush()
    assert buffer.getvalue() == b"x,y,z\n0.1,1,true\nmore\n"


def test_arguments_are_checked(tmp_path):
    with pytest.raises(
        ValueError,
        match="expected one of float64, float32, int64, bool, string, category, ordered or an Arrow type for each",
    ):
        TableWriter(tmp_path / "a.csv", ["x"], ["float16"])
    with (
        pytest.raises(ValueError, match=r"expected values of shape \(n, 2\), got \(3, 3\)"),
        TableWriter(tmp_path / "a.csv", ["x", "y"]) as writer,
    ):
        writer.write(ROWS)
    with (
        pytest.raises(ValueError, match="expected finite values"),
        TableWriter(tmp_path / "a.npy", ["x"], ["int64"]) as writer,
    ):
        writer.write(np.array([[np.nan]]))
    assert leftovers(tmp_path) == []

"""The laws of data in batches, held to every ``BatchStream`` there is and to what is made one."""

import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import diffeo
from diffeo.data import infer_schema, open_table
from diffeo.distillation.sequence import _TeacherSounds
from diffeo.errors import UserError
from diffeo.modalities.audio.audio import Audio
from diffeo.modalities.audio.crops import Crops, SoundFormat
from diffeo.modalities.tables import stream as table_stream
from diffeo.training.batches import Iterated, Stream, fingerprint
from diffeo.training.sampled import SampleStream
from diffeo.training.stream import BatchStream

HOP = 10


def gaussian(context=0):
    """A flow with weights that depend on its context."""
    torch.manual_seed(0)
    return diffeo.maf(2, context=context, transforms=1, hidden=[8])


def table(seed, source=None):
    """A thousand rows, no two alike, whose first column is the row's number."""
    x = np.random.default_rng(0).normal(size=(1000, 2))
    opened = open_table(np.column_stack([np.arange(1000), x]) if source is None else source)
    return table_stream.TableStream(opened, infer_schema(opened, context=["c2"]), batch_size=64, seed=seed)


@cache
def folder():
    """The rows of ``table``, sorted, in files of row groups of 16 to 96 rows, one of them empty."""
    place = tempfile.TemporaryDirectory()
    x = np.column_stack([np.arange(1000), np.random.default_rng(0).normal(size=(1000, 2))])
    for number, (start, end, group) in enumerate([(0, 400, 96), (400, 400, 64), (400, 640, 16), (640, 1000, 64)]):
        columns = {f"c{i}": x[start:end, i] for i in range(3)}
        pq.write_table(pa.table(columns), f"{place.name}/{number}.parquet", row_group_size=group)
    return place


def files(seed):
    """The same rows from Parquet files."""
    return table(seed, Path(folder().name))


def crops(seed, labelled=True):
    """Crops of clips whose samples are all different."""
    lengths = [250, 410, 83, 600]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    audio = Audio(
        np.arange(starts[-1], dtype=np.int16), starts, 1000, tuple(f"{i}.wav" for i in range(4)),
        labels=np.array([0, 1, 0, 1]), classes=("a", "b"),
    )  # fmt: skip
    form = SoundFormat(1000, HOP, classes=("a", "b") if labelled else ())
    return Crops(audio, np.arange(4), None, form, frames=3, batch_size=4, seed=seed)


def teacher_sounds(seed):
    """Noise in the place of a teacher's sounds."""

    def draw(count, context, seed):
        return torch.randn(count, 30, generator=torch.Generator().manual_seed(seed)), context

    return _TeacherSounds(crops(0), SimpleNamespace(device=torch.device("cpu"), draw_teacher=draw), seed)


class Shuffled:
    """Batches of one's own, in an order that the epoch decides."""

    def __init__(self, seed):
        self.x = torch.randn(8, 5, 2, generator=torch.Generator().manual_seed(seed))
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.x)

    def __iter__(self):
        yield from self.x[torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.epoch))]


STREAMS = {
    "table": table,
    "files": files,
    "crops": crops,
    "crops without context": lambda seed: crops(seed, labelled=False),
    "teacher": teacher_sounds,
    "samples": lambda seed: SampleStream(gaussian(), batch_size=8, batches=5, seed=seed),
    "samples in contexts": lambda seed: SampleStream(
        gaussian(3), torch.eye(3), batch_size=8, batches=5, seed=seed, reused=2
    ),
    "iterated": lambda seed: Iterated(Shuffled(seed)),
}


@pytest.fixture(autouse=True)
def small_pools(monkeypatch):
    """So that a table of a thousand rows takes several."""
    monkeypatch.setattr(table_stream, "POOL", 300)
    monkeypatch.setattr(table_stream, "FEWEST", 50)


@pytest.fixture(params=STREAMS)
def make(request):
    return STREAMS[request.param]


def epoch(stream, number):
    stream.set_epoch(number)
    return list(stream)


def same(batches, others):
    return all(
        torch.equal(x, y) and (c is None) == (d is None) and (c is None or torch.equal(c, d))
        for (x, c), (y, d) in zip(batches, others, strict=True)
    )


def subclasses(of):
    return {each for direct in of.__subclasses__() for each in (direct, *subclasses(direct))}


def test_every_stream_is_held_to_the_laws():
    assert subclasses(BatchStream) == {type(make(0)) for make in STREAMS.values()}


def test_seed_and_epoch_decide_the_batches(make):
    stream = make(1)
    epochs = [epoch(stream, number) for number in range(3)]
    for number in (2, 0, 1):  # in another order, again, and by whoever resumes there
        assert same(epochs[number], epoch(stream, number))
        assert same(epochs[number], stream)
        assert same(epochs[number], epoch(make(1), number))
    assert not same(epochs[0], epochs[1])
    assert not same(epochs[1], epochs[2])
    assert not same(epochs[0], epoch(make(2), 0))


def test_a_reader_who_stops_leaves_no_trace(make):
    stream, other = make(1), make(1)
    next(iter(stream))
    assert same(epoch(stream, 1), epoch(other, 1))
    assert same(epoch(stream, 0), epoch(other, 0))


def test_batches_are_as_many_as_the_stream_says_and_of_one_kind(make):
    stream = make(1)
    first, context = next(iter(stream))
    for number in range(3):
        batches = epoch(stream, number)
        assert len(batches) == len(stream) > 1
        for x, c in batches:
            assert x.shape[1:] == first.shape[1:]
            assert (c is None) == (context is None)
            assert c is None or c.shape == (len(x), *context.shape[1:])


def test_fingerprints_tell_data_apart_and_do_not_change(make):
    stream = make(1)
    known = stream.fingerprint
    epoch(stream, 1)
    next(iter(stream))
    assert stream.fingerprint == known == make(1).fingerprint
    assert make(2).fingerprint != known


@pytest.mark.parametrize("make", [table, files])
def test_every_row_of_a_table_comes_at_most_once_an_epoch(make):
    """And all of them do, but what does not fill a batch, and those held out, which never do."""
    stream = make(0)
    held = set(stream.valid_x[:, 0].tolist())
    low = min(*held, *(x[:, 0].min().item() for x, _ in stream))
    for number in range(3):
        seen = torch.cat([x for x, _ in epoch(stream, number)])[:, 0] - low
        assert len(set(seen.tolist())) == len(seen) == len(stream) * stream.batch_size
        assert stream.rows - len(seen) < stream.batch_size
        assert {value - low for value in held}.isdisjoint(seen.tolist())
    assert stream.rows + len(held) == 1000


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 11])
@pytest.mark.parametrize("make", [table, files])
def test_processes_share_the_batches_of_a_table(make, size):
    """From any batch on, together and in their order they have the very batches that one process has."""
    stream = make(0)
    for number, start in ((0, 0), (1, 5), (2, len(stream) - 1), (0, len(stream))):
        whole = epoch(stream, number)[start:]
        shares = [list(stream.part(start, rank, size)) for rank in range(size)]
        assert all(len(share) == len(whole) for share in shares)
        for i, (x, context) in enumerate(whole):
            parts = [share[i][0] for share in shares]
            assert torch.equal(torch.cat([part[0] for part in parts]), x)
            assert torch.equal(torch.cat([part[1] for part in parts]), context)
            assert {share[i][1] for share in shares} == {len(x)}


def read_units(stream, monkeypatch, *part):
    """The row groups that are read for a process's part of an epoch."""
    units = set()
    with monkeypatch.context() as patch:
        patch.setattr(stream, "_unit", lambda unit: (units.add(unit), stream.table.row_group(unit))[1])
        list(stream.part(*part))
    return units


def test_processes_read_row_groups_of_their_own(monkeypatch):
    stream = files(0)
    every = {unit for unit, counts in enumerate(stream.counts) if counts.sum()}
    assert len(stream.lanes) == 8  # of sixteen the largest row group would make one of twice as many rows
    assert set().union(*stream.lanes) == set(range(stream.units))
    for size in (2, 4):
        units = [read_units(stream, monkeypatch, 0, rank, size) for rank in range(size)]
        assert set().union(*units) == every
        assert sum(map(len, units)) == len(every)
        rows = [sum(int(stream.counts[unit].sum()) for unit in each) for each in units]
        assert max(rows) < 1.3 * min(rows)


def test_what_was_trained_on_is_not_read_again(monkeypatch):
    """Whoever resumes late in an epoch reads a row group or two of each lane, and no more."""
    stream = files(0)
    late = read_units(stream, monkeypatch, len(stream) - 1, 0, 1)
    assert len(late) < 0.6 * stream.units


def test_a_batch_has_rows_of_many_places():
    """Of a table that is sorted, too."""
    stream = files(0)
    places = torch.cat([x[:, 0] for x, _ in stream])
    low, span = places.min(), places.max() - places.min()
    for x, _ in epoch(stream, 1):
        quarters = ((x[:, 0] - low) / span * 3.999).long().unique()
        assert len(quarters) >= 3


def test_a_table_that_changes_meanwhile_is_refused(tmp_path):
    x = np.random.default_rng(0).normal(size=(300, 2))
    pq.write_table(pa.table({"a": x[:, 0], "b": x[:, 1]}), tmp_path / "x.parquet", row_group_size=100)
    opened = open_table(tmp_path / "x.parquet")
    stream = table_stream.TableStream(opened, infer_schema(opened), 10, seed=0)
    pq.write_table(pa.table({"a": x[:290, 0], "b": x[:290, 1]}), tmp_path / "x.parquet", row_group_size=100)
    with pytest.raises(UserError, match="has changed while it was trained on"):
        list(stream)


def test_every_sample_of_a_recording_comes_at_most_once_an_epoch():
    """All whole frames do, but for what does not fill a crop and a batch."""
    stream = crops(0)
    for number in range(3):
        seen = (torch.cat([x for x, _ in epoch(stream, number)]) * 2**15).round()
        assert len(seen.unique()) == seen.numel() == len(stream) * stream.batch_size * 3 * HOP
        assert 134 * HOP - seen.numel() < (stream.batch_size + 1) * 3 * HOP


# what users bring


def source(stream):
    return Stream(stream, torch.device("cpu"), torch.float32)


def test_what_an_object_lacks_is_added():
    """Length, epochs and fingerprint are its own where it has them."""
    plain = source(list(torch.arange(12.0).reshape(3, 4, 1)))
    assert plain.batches == 3
    assert plain.fingerprint == fingerprint(torch.arange(4.0)[:, None])
    endless = type("Unknown", (), {"__iter__": lambda self: iter([np.ones((2, 1))]), "fingerprint": 7})()
    assert source(endless).batches is None
    assert source(endless).fingerprint == "7"
    assert [len(batch.x) for batch in source(endless).in_order()] == [2]
    own = Shuffled(0)
    list(source(own).shuffled(0, 5))
    assert own.epoch == 5


def test_loaders_are_streams():
    """One of rows has a length; one of an iterable without one has a ``len`` that only raises."""
    x = torch.arange(20.0)[:, None]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, -x), batch_size=8)
    batches = list(source(loader).in_order())
    assert source(loader).batches == 3
    assert torch.equal(torch.cat([batch.x for batch in batches]), x)
    assert torch.equal(torch.cat([batch.context for batch in batches]), -x)

    class Iterable(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(x)

    unknown = source(torch.utils.data.DataLoader(Iterable(), batch_size=8))
    assert unknown.batches is None
    assert torch.equal(torch.cat([batch.x for batch in unknown.in_order()]), x)


def test_what_is_no_stream_is_refused():
    with pytest.raises(TypeError, match="iterated over once per epoch, got an iterator"):
        source(iter([torch.ones(2, 1)]))
    with pytest.raises(ValueError, match="got an empty one"):
        source([])
    with pytest.raises(ValueError, match="got an empty one"):
        source(SampleStream(gaussian(), batches=0))

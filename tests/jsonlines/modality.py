"""Points in files of JSON lines, as the commands know them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diffeo.errors import UserError
from diffeo.modalities.base import Chunk, Dataset, Draw, Examples, Modality, OpenRun, Scoring, Words, choose
from diffeo.report.check import check


def read(source):
    """The points of a file, ``(n, D)``."""
    try:
        return torch.tensor([json.loads(line) for line in Path(source).read_text().splitlines()])
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: expected an array of numbers in each line ({error})") from error


class Points(Dataset):
    """Points to learn, a tenth of them held out."""

    def __init__(self, source, settings, seed):
        x = read(source)[torch.randperm(len(read(source)), generator=torch.Generator().manual_seed(seed))]
        held = max(1, len(x) // 10)
        self.x, self.context, self.valid_x, self.valid_context = x[held:], None, x[:held], None
        self.name, self.hash, self.notes = str(source), str(hash(Path(source).read_text())), []
        self.rows, self.total, self.features, self.context_size = len(self.x), len(x), x.shape[1], 0
        self.batch_size, self.description = 64, {"kind": "points", "size": x.shape[1]}

    def default_model(self):
        return "maf", {"transforms": 2, "hidden": [16]}

    def preprocessing(self, model):
        return ["standardize"]

    def training(self, flow):
        return {}

    def judged(self, most):
        return {"validation": (self.valid_x, None)}

    def facts(self):
        return {"columns": self.features, "context": []}

    def plot(self, run, flow, seconds):
        return []


@dataclass(frozen=True)
class PointsRun(OpenRun):
    """A flow of points."""

    words = Words("point", "points", "number", "points")

    @classmethod
    def restore(cls, stored, path, device):
        return cls(path, stored.flow, stored.metrics, stored.provenance, device)

    @property
    def description(self):
        return {"kind": "points", "size": self.flow.event_shape[0]}

    def facts(self):
        return {"rows": self.provenance["data"]["rows"]}

    def scoring(self, source, options):
        x = read(source)
        return Scoring(len(x), [Chunk(0, x, None, np.empty((len(x), 0)))])

    def draws(self, n, options):
        return [Draw(0, n)], n

    def save(self, out, drawn, force):
        Path(out).write_text("".join(f"{json.dumps(point)}\n" for x, _ in drawn for point in x.tolist()))
        return {}

    def examples(self, source, most, seed, options):
        x = read(source)
        rows, which = choose(len(x), most, "all points", seed)
        return Examples(str(source), x[rows], None, which)

    def examine(self, examples, seed):
        return check(self.flow, examples.x, None, seed=seed)


MODALITY = Modality("points", lambda source: False, Points, PointsRun, suffixes=[".jsonl"])

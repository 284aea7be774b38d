"""Small models of every kind of data, for hostile files to meet, and to be made hostile themselves."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from diffeo.cli import main

SMALL = ["--epochs", "1", "--no-figures"]
TINY = ["--folds", "1", "--hidden", "4", "--transforms", "1", *SMALL]
ROWS = 40


@dataclass(frozen=True)
class Models:
    """Run directories by name, and the data that each was trained on."""

    folder: Path

    def run(self, name: str) -> Path:
        """The run directory."""
        return self.folder / name

    def data(self, name: str) -> Path:
        """What it was trained on."""
        return self.folder / DATA[name]


DATA = {
    "numbers": "numbers.csv",
    "other": "numbers.csv",
    "given": "numbers.csv",
    "stack": "numbers.csv",
    "mixed": "mixed.csv",
    "images": "pictures",
    "audio": "sounds",
}


def make(folder: Path) -> Models:
    """Train them."""
    generator = np.random.default_rng(0)
    rows = [f"{a:.3f},{b:.3f},{i % 9}" for i, (a, b) in enumerate(generator.normal(size=(ROWS, 2)))]
    (folder / "numbers.csv").write_text("\n".join(["a,b,k", *rows]) + "\n")
    rows = [f"{'abc'[i % 3]},2024-01-{i % 28 + 1:02},{i % 9},{i / 7:.3f}" for i in range(ROWS)]
    (folder / "mixed.csv").write_text("\n".join(["t,d,k,x", *rows]) + "\n")
    for name in ("pictures", "sounds"):
        (folder / name).mkdir()
    for i in range(20):
        Image.fromarray(generator.integers(0, 256, (4, 4), dtype=np.uint8)).save(folder / "pictures" / f"{i}.png")
    for i in range(8):
        soundfile.write(folder / "sounds" / f"{'ab'[i % 2]}_{i}.wav", 0.1 * generator.normal(size=400), 4000)
    options = {
        "numbers": ["--model", "maf", *TINY],
        "other": ["--model", "maf", *TINY, "--seed", "1"],
        "given": ["--model", "nsf", "--context", "k", *TINY],
        "stack": ["--model", "nsf", "--folds", "2", "--hidden", "4", "--transforms", "1", *SMALL],
        "mixed": ["--folds", "1", "--set", "hidden=4", *SMALL],
        "images": ["--model", "realnvp", "--hidden", "4", "--transforms", "1", *SMALL],
        "audio": ["--crop", "0.02", "--set", "layers=1", "--set", "channels=4", "--set", "skip=4", *SMALL],
    }
    for name, words in options.items():
        code = main(["fit", str(folder / DATA[name]), "--out", str(folder / name), *words])
        assert code == 0, name
    return Models(folder)

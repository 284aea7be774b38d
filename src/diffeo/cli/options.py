"""Arguments and options that several commands have, each described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

Run = Annotated[Path, Argument(help="A run directory, as 'diffeo fit' makes.", metavar="RUN")]
Data = Annotated[
    str,
    Argument(
        help="A table (.csv .csv.gz .tsv .parquet .feather .npy .npz), images (a folder of .png or .jpg, .npy or .npz "
        "of rank 3 or 4), audio (a folder of .wav, .flac or .ogg, or a pattern of paths), or a built-in set: moons, "
        "rings, checkerboard, 8gaussians, pinwheel, spirals, wine, breast_cancer, flower; images: digits, mnist; "
        "audio: fsdd.",
        metavar="DATA",
    ),
]
NewRun = Annotated[Path, Option("--out", "-o", help="The run directory to make.", metavar="DIR")]
Out = Annotated[
    Path | None, Option("--out", "-o", help="Where to; the extension decides the format. Default: csv on stdout.")
]
Missing = Annotated[
    bool, Option("--drop-missing", help="Leave out rows with empty cells, NaN or infinity, else refused.")
]
Force = Annotated[bool, Option("--force", help="Replace what is there.")]
Figures = Annotated[bool, Option(help="Plot figures into DIR/figures.")]
Seed = Annotated[int, Option(help="Decides all that is random.", min=0)]
TrainingSeed = Annotated[int | None, Option(help="Decides all that is random.  [default: 0]")]
Device = Annotated[str | None, Option(help="cpu, cuda, cuda:1 ...; a GPU if there is one.")]
Json = Annotated[bool, Option("--json", help="Print the results as JSON on stdout.")]

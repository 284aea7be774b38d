"""Adult, Beijing and Magic: tables of categories, integers and numbers, from DIFFEO_DATA or from UCI, always verified.

`python benchmarks/mixed_data.py` prints their shapes; `--out FOLDER` writes train and test rows as csv files.

Adult is UCI's split. Beijing and Magic are shuffled by numpy.random.RandomState(split), the first nine tenths are for
training; `--split 1234` is the split of TabSyn (Zhang et al., 2024), TabDiff (Shi et al., 2025) and TabPC. As they do,
Beijing goes without its row number and without the 2067 hours in which PM2.5 was not measured, and its year, month,
day, hour and wind direction are categories. Missing cells of Adult stay missing.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import http.client
import io
import os
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from diffeo.atomic import atomic_write
from diffeo.errors import UserError
from diffeo.modalities.storage import cache_folder

HOME = "https://archive.ics.uci.edu/ml/machine-learning-databases/"
TIMEOUT = 30  # seconds of silence


@dataclass(frozen=True)
class File:
    """A file at UCI and its copy below DIFFEO_DATA.

    UCI's files and copies of them differ in headers, in blanks after commas and in line ends, so the SHA-256 is that of
    the rows alone: no header, no empty line, no blanks, a line feed after each row.
    """

    home: str
    copy: str
    rows: int
    sha256: str


ADULT_TRAIN = File(
    "adult/adult.data",
    "adult.data.gz",
    32_561,
    "f0d0c191f02659cf884c3fa4a5abcb3e08180adab0f2708a07f12699e8bb9b9e",
)
ADULT_TEST = File(
    "adult/adult.test",
    "adult.test.gz",
    16_281,
    "06fa25ca4fc31be4b279ab7f58860bf99bb71655bb8e825867ed659627c7b7d9",
)
BEIJING = File(
    "00381/PRSA_data_2010.1.1-2014.12.31.csv",
    "beijing.csv.gz",
    43_824,
    "462ab1676c976fff8f5035674e1bba10419e47494967e12685cdcb1c687b4779",
)
MAGIC = File(
    "magic/magic04.data",
    "magic04.data.gz",
    19_020,
    "e9314b7ebd4b4b59a3b3d65f7316663963777b16a46786877651dbbaa640b36a",
)

ADULT_COLUMNS = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship", "race",
    "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income",
)  # fmt: skip
BEIJING_COLUMNS = (
    "No", "year", "month", "day", "hour", "pm2.5", "DEWP", "TEMP", "PRES", "cbwd", "Iws", "Is", "Ir",
)  # fmt: skip
MAGIC_COLUMNS = (
    "fLength", "fWidth", "fSize", "fConc", "fConc1", "fAsym", "fM3Long", "fM3Trans", "fAlpha", "fDist", "class",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Training and test rows of one table, and what its columns are.

    Text is text (missing: NaN), numbers are numbers. ``categorical`` also names the columns of numbers that stand for
    categories; all others are numeric. ``target`` is what the usual task predicts: a class, or a number.
    """

    name: str
    train: pd.DataFrame
    test: pd.DataFrame
    categorical: tuple[str, ...]
    target: str

    @property
    def numeric(self) -> tuple[str, ...]:
        """The columns that are not categorical, in the table's order."""
        return tuple(c for c in self.train.columns if c not in self.categorical)

    @property
    def is_regression(self) -> bool:
        """Whether the target is a number."""
        return self.target not in self.categorical


def adult() -> Table:
    """Census income: 9 categories (with gaps), 6 integers; the class is the income."""
    train, test = (frame(file, ADULT_COLUMNS, missing="?") for file in (ADULT_TRAIN, ADULT_TEST))
    test["income"] = test["income"].str.removesuffix(".")
    return Table("adult", train, test, tuple(train.select_dtypes(exclude="number")), "income")


def beijing(split: int = 0) -> Table:
    """Hours of weather and PM2.5: 5 categories and 7 numbers, most of them whole; the target is PM2.5."""
    table = frame(BEIJING, BEIJING_COLUMNS, missing="NA").drop(columns="No").dropna().reset_index(drop=True)
    table = table.astype({"pm2.5": "int64"})  # read as reals because of its gaps
    return Table("beijing", *divide(table, split), ("year", "month", "day", "hour", "cbwd"), "pm2.5")


def magic(split: int = 0) -> Table:
    """Showers in a gamma telescope: 10 real numbers and the class."""
    return Table("magic", *divide(frame(MAGIC, MAGIC_COLUMNS), split), ("class",), "class")


TABLES = ("adult", "beijing", "magic")


def load(name: str, split: int = 0) -> Table:
    """Return the table called ``name``; ``split`` seeds the shuffle of those that have no test rows of their own."""
    if name == "adult":
        return adult()
    if name in TABLES:
        return {"beijing": beijing, "magic": magic}[name](split)
    raise ValueError(f"expected one of {', '.join(TABLES)}, got {name}")


def divide(table: pd.DataFrame, split: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return nine tenths of the rows for training and the others for testing, shuffled by the seed ``split``."""
    order = np.arange(len(table))
    np.random.RandomState(split).shuffle(order)
    train, test = np.split(order, [int(len(table) * 0.9)])
    return table.iloc[train].reset_index(drop=True), table.iloc[test].reset_index(drop=True)


def halves(table: Table, split: int = 0) -> Table:
    """Return the table with half of all its rows for training and the other half for testing, as privacy needs them."""
    rows = pd.concat([table.train, table.test], ignore_index=True).sample(frac=1, random_state=split, ignore_index=True)
    middle = len(rows) // 2
    return replace(table, train=rows[:middle], test=rows[middle:].reset_index(drop=True))


def frame(file: File, columns: tuple[str, ...], missing: str = "") -> pd.DataFrame:
    """Return the file's rows under these names; cells equal to ``missing`` are NaN, and no other text is."""
    content = io.StringIO(fetch(file))
    return pd.read_csv(content, header=None, names=list(columns), na_values=[missing], keep_default_na=False)


def fetch(file: File) -> str:
    """Return the verified rows, from below DIFFEO_DATA, else from the user's cache, else from UCI.

    Raises:
        UserError: if the file below DIFFEO_DATA has other rows, or there is none and UCI cannot be reached.
    """
    if folder := os.environ.get("DIFFEO_DATA"):
        copy = Path(folder, "mixed", file.copy)
        if copy.is_file():
            return verified(gzip.decompress(copy.read_bytes()), file, str(copy))
    cached = cache_folder() / file.copy
    if cached.is_file():
        with suppress(UserError, OSError, EOFError):  # damaged: fetch it again
            return verified(gzip.decompress(cached.read_bytes()), file, str(cached))
    url = HOME + file.home
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{url}: cannot be downloaded ({reason}); put mixed/{file.copy} into a folder and name that folder in"
            " DIFFEO_DATA"
        ) from error
    rows = verified(content, file, url)
    with suppress(UserError, OSError):  # a cache that cannot be written only costs the next download
        cached.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(cached) as temporary:
            temporary.write_bytes(gzip.compress(rows.encode()))
    return rows


def verified(content: bytes, file: File, source: str) -> str:
    """Return the rows of the file's content, each ended by a line feed, if their SHA-256 is the known one."""
    rows = canonical(content)[-file.rows :]  # a header, where there is one, comes before them
    text = "".join(f"{row}\n" for row in rows)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest != file.sha256:
        raise UserError(
            f"{source}: expected {file.rows} rows with SHA-256 {file.sha256}, got {len(rows)} with {digest}"
        )
    return text


def canonical(content: bytes) -> list[str]:
    """Return the lines that are not empty, without blanks."""
    return [line for line in content.decode().replace(" ", "").splitlines() if line]


def main() -> None:
    """Prints what the tables are, and writes them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=TABLES, action="append", help="only this table (repeat for more; all)")
    parser.add_argument("--split", type=int, default=0, help="seed of Beijing's and Magic's split (0)")
    parser.add_argument("--out", type=Path, help="write NAME-train.csv and NAME-test.csv into this folder")
    args = parser.parse_args()
    for name in args.table or TABLES:
        table = load(name, args.split)
        gaps = int(table.train.isna().sum().sum() + table.test.isna().sum().sum())
        print(
            f"{name}: {len(table.train)} + {len(table.test)} rows, {len(table.numeric)} numeric and"
            f" {len(table.categorical)} categorical columns, {gaps} missing cells, target {table.target}"
        )
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            for part in ("train", "test"):
                getattr(table, part).to_csv(args.out / f"{name}-{part}.csv", index=False)


if __name__ == "__main__":
    main()

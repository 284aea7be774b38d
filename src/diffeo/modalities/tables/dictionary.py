"""Texts as numbers: a column's distinct texts in the order in which they are met."""

from collections.abc import Collection

import numpy as np
import pyarrow as pa

__all__ = ["Dictionary"]


class Dictionary:
    """The distinct texts of a column, numbered 0, 1, 2, ... by their first appearance; blanks around them are dropped.

    Attributes:
        texts: the texts in this order; it grows as the column is read, and a number once given stays.
        missing: texts that stand for a missing cell.
    """

    def __init__(self, missing: Collection[str] = ()) -> None:
        self.texts: list[str] = []
        self.missing = frozenset(missing)
        self._codes: dict[str, int] = {}

    def code(self, text: str | None) -> float:
        """Return the number of a text, NaN if it is missing."""
        text = None if text is None else text.strip()
        if text is None or text in self.missing:
            return np.nan
        code = self._codes.setdefault(text, len(self.texts))
        if code == len(self.texts):
            self.texts.append(text)
        return code

    def encode(self, column: pa.Array) -> np.ndarray:
        """Return the numbers (n,) of an array of texts, as float64, NaN where it is null."""
        if not pa.types.is_dictionary(column.type):
            column = column.cast(pa.string()).dictionary_encode()
        texts = column.dictionary.cast(pa.string())
        indices = column.indices.to_numpy(zero_copy_only=False)
        null = np.isnan(indices) if indices.dtype.kind == "f" else np.zeros(len(indices), dtype=bool)
        indices = np.where(null, 0, indices).astype(np.int64)
        codes = np.full(len(texts) or 1, np.nan)
        # An ordered type says in which order its texts are; of others only those that occur are numbered.
        met = np.arange(len(texts)) if column.type.ordered else _first(indices[~null])
        codes[met] = [self.code(text) for text in texts.take(pa.array(met)).to_pylist()]
        return np.where(null, np.nan, codes[indices])


def _first(indices: np.ndarray) -> np.ndarray:
    """Return the distinct indices by their first appearance."""
    distinct, first = np.unique(indices, return_index=True)
    return distinct[np.argsort(first)]

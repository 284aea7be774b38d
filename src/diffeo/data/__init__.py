"""Tables from files and data frames, and sets that need no download; torch is never imported here."""

from diffeo.data.builtin import BUILTIN, ENTROPY, load_builtin
from diffeo.data.schema import Column, Encoded, Grid, Schema, load
from diffeo.data.tables import EXTENSIONS, Table, open_table
from diffeo.data.write import TableWriter

__all__ = [
    "BUILTIN",
    "ENTROPY",
    "EXTENSIONS",
    "Column",
    "Encoded",
    "Grid",
    "Schema",
    "Table",
    "TableWriter",
    "load",
    "load_builtin",
    "open_table",
]

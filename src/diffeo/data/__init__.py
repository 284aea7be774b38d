"""Tables and images from files, frames and arrays, and sets that need no download; torch is never imported here."""

from diffeo.data.builtin import BUILTIN, ENTROPY, load_builtin
from diffeo.data.gallery import save_grid, save_npz, save_pngs
from diffeo.data.images import IMAGE_SETS, Images, open_images
from diffeo.data.schema import Column, Encoded, Grid, Schema, load
from diffeo.data.tables import EXTENSIONS, Table, open_table
from diffeo.data.write import TableWriter

__all__ = [
    "BUILTIN",
    "ENTROPY",
    "EXTENSIONS",
    "IMAGE_SETS",
    "Column",
    "Encoded",
    "Grid",
    "Images",
    "Schema",
    "Table",
    "TableWriter",
    "load",
    "load_builtin",
    "open_images",
    "open_table",
    "save_grid",
    "save_npz",
    "save_pngs",
]

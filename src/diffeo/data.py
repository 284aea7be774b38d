"""Tables, images and audio from files, frames and arrays, and built-in sets; torch is never imported here."""

from diffeo.modalities.audio.audio import AUDIO_SETS, Audio, open_audio
from diffeo.modalities.audio.recordings import FULL_SCALE, SOUNDS, is_sound, save_wavs
from diffeo.modalities.builtin import BUILTIN, ENTROPY, load_builtin
from diffeo.modalities.images.decoding import PICTURES, is_picture
from diffeo.modalities.images.gallery import save_grid, save_npz, save_pngs
from diffeo.modalities.images.images import IMAGE_SETS, Images, open_images
from diffeo.modalities.storage import allocate
from diffeo.modalities.tables.infer import infer_schema
from diffeo.modalities.tables.schema import Column, Encoded, Grid, Schema, load
from diffeo.modalities.tables.table import EXTENSIONS, Table, open_table
from diffeo.modalities.tables.write import TableWriter

__all__ = [
    "AUDIO_SETS",
    "BUILTIN",
    "ENTROPY",
    "EXTENSIONS",
    "FULL_SCALE",
    "IMAGE_SETS",
    "PICTURES",
    "SOUNDS",
    "Audio",
    "Column",
    "Encoded",
    "Grid",
    "Images",
    "Schema",
    "Table",
    "TableWriter",
    "allocate",
    "infer_schema",
    "is_picture",
    "is_sound",
    "load",
    "load_builtin",
    "open_audio",
    "open_images",
    "open_table",
    "save_grid",
    "save_npz",
    "save_pngs",
    "save_wavs",
]

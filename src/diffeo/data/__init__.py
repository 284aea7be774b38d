"""Tables, images and audio from files, frames and arrays, and built-in sets; torch is never imported here."""

from diffeo.data.audio import AUDIO_SETS, Audio, open_audio
from diffeo.data.builtin import BUILTIN, ENTROPY, load_builtin
from diffeo.data.gallery import save_grid, save_npz, save_pngs
from diffeo.data.images import IMAGE_SETS, Images, open_images
from diffeo.data.pictures import PICTURES, is_picture
from diffeo.data.recordings import FULL_SCALE, SOUNDS, is_sound, save_wavs
from diffeo.data.schema import Column, Encoded, Grid, Schema, load
from diffeo.data.storage import allocate
from diffeo.data.tables import EXTENSIONS, Table, open_table
from diffeo.data.write import TableWriter

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

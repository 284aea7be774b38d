"""The Free Spoken Digit Dataset: English digits at 8 kHz, from files or its official home, always verified.

Reference: Jackson et al., https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0.
"""

import hashlib
import http.client
import io
import os
import re
import tarfile
import urllib.request
import zlib
from contextlib import suppress
from pathlib import Path

from diffeo.atomic import atomic_folder
from diffeo.errors import UserError
from diffeo.modalities.storage import cache_folder

__all__ = ["SPEAKERS", "TEST_TAKES", "find_fsdd"]

HOME = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz"
# Of a speaker's files in the order of their names, each its name and then its bytes.
SPEAKERS = {
    "george": "e76c00c5ee7c8fb082ac315ccd0977f0d76f554c2f12b37a0e05492029990466",
    "jackson": "68578b22b7cb8b9320d16dc95f88579c4c2398da2f4a872be332c7d25608c0dc",
    "lucas": "e74ec66bb1722af6a795e4523411dceeccd5cbf86145ec004a1ef811762b8355",
}
TEST_TAKES = range(5)  # the official test split
_TAKES = range(50)
_TIMEOUT = 30  # seconds of silence
_LIMIT = 1 << 28  # bytes


def find_fsdd(speakers: tuple[str, ...], cache: Path | None = None) -> list[Path]:
    """Return the files ``D_SPEAKER_I.wav`` of these speakers, digits D = 0 .. 9, takes I = 0 .. 49.

    They come from ``fsdd/recordings`` below the folder that ``DIFFEO_DATA`` names, else from ``cache`` (by default the
    user's), else from the official home, and then stay in the cache. Their SHA-256 is checked each time.

    Raises:
        UserError: if the files below ``DIFFEO_DATA`` are others, or there are none and the home cannot be reached.
    """
    names = {speaker: [f"{d}_{speaker}_{i}.wav" for d in range(10) for i in _TAKES] for speaker in speakers}
    if folder := os.environ.get("DIFFEO_DATA"):
        recordings = Path(folder) / "fsdd" / "recordings"
        if recordings.is_dir():
            return _verified(recordings, names)
    cached = (cache or cache_folder()) / "fsdd"
    with suppress(UserError):  # absent or damaged: fetch it again
        return _verified(cached, names)
    _download(cached)
    return _verified(cached, names)


def _verified(folder: Path, names: dict[str, list[str]]) -> list[Path]:
    for speaker, files in names.items():
        if _sha256(folder, files) != SPEAKERS[speaker]:
            raise UserError(
                f"{folder}: its recordings of {speaker} are not those of fsdd (by SHA-256); remove the folder, to"
                " download them anew"
            )
    return [folder / name for files in names.values() for name in files]


def _sha256(folder: Path, names: list[str]) -> str:
    sha = hashlib.sha256()
    with suppress(OSError):  # a file that is missing changes the sum
        for name in sorted(names):
            sha.update(name.encode() + (folder / name).read_bytes())
    return sha.hexdigest()


def _download(folder: Path) -> None:
    try:
        with urllib.request.urlopen(HOME, timeout=_TIMEOUT) as response:
            content = response.read(_LIMIT)
        with tarfile.open(fileobj=io.BytesIO(content)) as archive, atomic_folder(folder, r".*\.wav", True) as temporary:
            for member in archive:
                name = Path(member.name).name
                file = archive.extractfile(member) if re.fullmatch(r"\d_[a-z]+_\d+\.wav", name) else None
                if file is not None:
                    (temporary / name).write_bytes(file.read())
    except (OSError, EOFError, zlib.error, tarfile.TarError, http.client.HTTPException) as error:
        raise UserError(
            f"fsdd: cannot be downloaded ({getattr(error, 'reason', None) or error}); put fsdd/recordings into a folder"
            " and name that folder in DIFFEO_DATA"
        ) from error

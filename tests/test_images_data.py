"""Images from folders, arrays and built-in sets: what is read is what was written, and what is bad is named."""

import gzip
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffeo.data import Images, open_images, save_grid, save_npz, save_pngs
from diffeo.errors import UserError
from diffeo.modalities import folders, storage
from diffeo.modalities.images import mnist as mnist_module

GENERATOR = np.random.default_rng(0)
GREY = GENERATOR.integers(256, size=(6, 1, 10, 12), dtype=np.uint8)
RGB = GENERATOR.integers(256, size=(6, 3, 10, 12), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def refused(source, *gist, **options):
    """Opening it fails with one line that holds all the pieces in this order."""
    with pytest.raises(UserError) as caught:
        open_images(source, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert re.search(".*".join(map(re.escape, gist)), line), line
    return line


def picture(array, mode=None):
    """(H, W) or (H, W, C) -> a picture of Pillow's."""
    image = Image.fromarray(np.ascontiguousarray(array))
    return image if mode is None else image.convert(mode)


def opened(path):
    """A file -> (H, W) or (H, W, C)."""
    with Image.open(path) as image:
        return np.array(image)


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(array).save(path, **options)
    return path


def many(folder, count=100):
    """A folder of good grey pictures, so many that one bad file is tolerated."""
    folder.mkdir(exist_ok=True)
    save_pngs(folder, GREY[np.arange(count) % 6])
    return folder


# Folders


@pytest.mark.parametrize("pixels", [GREY, RGB], ids=["grey", "rgb"])
def test_a_folder_of_pictures_reads_back(tmp_path, pixels):
    save_pngs(tmp_path / "set", pixels)
    for source in (tmp_path / "set", str(tmp_path / "set")):
        images = open_images(source)
        np.testing.assert_array_equal(images.pixels, pixels)
        assert images.pixels.dtype == np.uint8
        assert images.pixels.flags["C_CONTIGUOUS"]
        assert images.labels is None
        assert images.shape == pixels.shape[1:]
        assert len(images) == 6
        assert (images.levels, images.skipped, images.notes) == (256, (), ())
        assert images.name == str(tmp_path / "set")


def test_sub_folders_are_classes(tmp_path):
    places = ["a/2.png", "a/7.png", "b/0.png", "b/deep/1.png", "c/x.jpeg.png", "c/y.PNG"]  # as sorted
    for i in (3, 5, 0, 2, 1, 4):
        write(tmp_path / places[i], GREY[i, 0])
    (tmp_path / "readme.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "._2.png").write_bytes(b"what a Mac leaves")
    write(tmp_path / ".hidden" / "0.png", GREY[0, 0])
    write(tmp_path / "a" / ".thumbnails" / "0.png", GREY[0, 0])
    images = open_images(tmp_path)
    assert images.classes == ("a", "b", "c")
    np.testing.assert_array_equal(images.labels, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(images.pixels, GREY)
    assert "3 classes" in repr(images)


def test_a_single_picture(tmp_path):
    path = write(tmp_path / "one.png", RGB[0].transpose(1, 2, 0))
    np.testing.assert_array_equal(open_images(path).pixels, RGB[:1])
    np.testing.assert_allclose(
        open_images(write(tmp_path / "flat.JPG", np.full((8, 8), 77, np.uint8))).pixels, 77, atol=1
    )
    path.write_bytes(path.read_bytes()[:200])
    refused(path, "one.png: truncated or damaged")


def test_grey_among_rgb_is_read_as_rgb(tmp_path):
    write(tmp_path / "a.png", GREY[0, 0])
    write(tmp_path / "b.png", RGB[0].transpose(1, 2, 0))
    images = open_images(tmp_path)
    np.testing.assert_array_equal(images.pixels, np.stack([GREY[0].repeat(3, axis=0), RGB[0]]))
    assert images.notes == ("1 of 2 pictures are grey, the others RGB: all are read as RGB",)


def test_black_and_white_and_palettes(tmp_path):
    bits = GREY[0, 0] > 127
    Image.fromarray(bits).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(open_images(tmp_path).pixels, bits[None, None] * np.uint8(255))
    grey = picture(GREY[0, 0]).convert("P")
    grey.save(tmp_path / "bits.png")
    np.testing.assert_array_equal(open_images(tmp_path).pixels, GREY[:1])
    few = RGB[0].transpose(1, 2, 0) // 128 * 255
    colours = picture(few).quantize(8)
    assert colours.mode == "P"
    colours.save(tmp_path / "bits.png")
    np.testing.assert_array_equal(open_images(tmp_path).pixels[0].transpose(1, 2, 0), few)


def test_transparency_is_laid_on_white(tmp_path):
    alpha = np.zeros((10, 12, 1), np.uint8)
    alpha[:5] = 255
    write(tmp_path / "a.png", np.concatenate([RGB[0].transpose(1, 2, 0), alpha], axis=2))
    write(tmp_path / "b.png", np.concatenate([RGB[1].transpose(1, 2, 0), alpha * 0 + 255], axis=2))
    images = open_images(tmp_path)
    np.testing.assert_array_equal(images.pixels[0, :, :5], RGB[0, :, :5])
    assert (images.pixels[0, :, 5:] == 255).all()
    np.testing.assert_array_equal(images.pixels[1], RGB[1])
    assert images.notes == ("1 of 2 pictures have transparent pixels: these are laid on white",)


def test_photographs_are_turned_upright(tmp_path):
    upright = np.zeros((16, 24), np.uint8)
    upright[:, 12:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    write(tmp_path / "a.jpg", np.rot90(upright), exif=exif)
    images = open_images(tmp_path)
    assert images.shape == (1, 16, 24)
    np.testing.assert_allclose(images.pixels[0, 0].astype(int), upright, atol=20)
    assert open_images(tmp_path, size=8).pixels[0, 0].astype(int)[:, :4].max() < 20


# Sizes


def test_one_size_by_cropping_and_antialiasing(tmp_path):
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    framed = np.zeros((64, 100), np.uint8)  # what is cropped away is black
    framed[:, 18:82] = board
    write(tmp_path / "a.png", board)
    write(tmp_path / "b.png", framed)
    write(tmp_path / "c.png", framed.T)
    line = refused(tmp_path, "pictures of 3 sizes", "64x64 (1, as a.png)", "64x100 (1, as b.png)", "--size")
    assert "100x64 (1, as c.png)" in line
    images = open_images(tmp_path, size=16)
    assert images.pixels.shape == (3, 1, 16, 16)
    # Without antialiasing a pixel would be black or white. The frame shines through no further than the edge.
    assert abs(images.pixels[0].astype(int) - 127.5).max() < 8
    assert abs(images.pixels[:, :, 2:-2, 2:-2].astype(int) - 127.5).max() < 8
    assert open_images(tmp_path, size=(8, 20)).pixels.shape == (3, 1, 8, 20)
    assert open_images(tmp_path, size=(64, 64)).notes == ()
    assert open_images(tmp_path, size=80).notes == ("3 of 3 pictures are smaller than 80x80 and were enlarged",)


def test_large_photographs_shrink_as_small_ones_do(tmp_path):
    slope = np.add.outer(np.arange(400), np.arange(400)) / 800 * 255
    write(tmp_path / "a.jpg", slope.astype(np.uint8), quality=95)  # decoded at an eighth
    write(tmp_path / "b.png", slope.astype(np.uint8))
    a, b = open_images(tmp_path, size=16).pixels.astype(int)
    np.testing.assert_allclose(a, b, atol=2)


def test_arrays_and_sets_are_resized_too():
    flat = np.full((3, 3, 12, 20), 200, np.uint8)
    images = open_images(flat, size=(6, 10))
    np.testing.assert_array_equal(images.pixels, flat[:, :, :6, :10])
    assert images.notes == ("resized from 12x20 to 6x10",)
    digits = open_images("digits", size=5)
    assert digits.shape == (1, 5, 5)
    assert digits.pixels.max() <= 16
    assert open_images("digits", size=8).notes == ()
    for wrong in (0, (8, -1)):
        with pytest.raises(ValueError, match="expected a size"):
            open_images(flat, size=wrong)


# Bad files


def animated(path, kind):
    frames = [picture(p[0]) for p in GREY[:3]]
    frames[0].save(path, format=kind, save_all=True, append_images=frames[1:])


def truncated(path):
    write(path, GREY[0, 0])
    path.write_bytes(path.read_bytes()[:-60])


def deep(path, colour):
    """A png of 16 bits a channel, which Pillow itself cannot write in colour."""
    grey = np.arange(120, dtype=np.uint16).reshape(10, 12) * 500
    if not colour:
        return Image.fromarray(grey).save(path)
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").repeat(3).tobytes() for row in grey)
    header = struct.pack(">IIBBBBB", 12, 10, 16, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


BAD = {
    "truncated.png": (truncated, "truncated or damaged"),
    "truncated.jpg": (truncated, "truncated or damaged"),
    "empty.png": (lambda path: path.write_bytes(b""), "damaged, empty, or no png or jpg"),
    "text.png": (lambda path: path.write_text("hello"), "damaged, empty, or no png or jpg"),
    "deep_grey.png": (lambda path: deep(path, False), "more than 8 bits a channel; convert it to 8 bits"),
    "deep_rgb.png": (lambda path: deep(path, True), "more than 8 bits a channel; convert it to 8 bits"),
    "cmyk.jpg": (lambda path: picture(GREY[0, 0], "CMYK").save(path), "CMYK colours; convert it to RGB"),
    "moves.gif": (lambda path: animated(path, "GIF"), "an animated GIF of 3 frames; save one of them as png"),
    "moves.png": (lambda path: animated(path, "PNG"), "an animated PNG of 3 frames; save one of them as png"),
    "named.png": (lambda path: animated(path, "GIF"), "an animated GIF of 3 frames; save one of them as png"),
    "still.gif": (lambda path: picture(GREY[0, 0]).save(path), "a GIF; convert it to png"),
    "other.bmp": (lambda path: picture(GREY[0, 0]).save(path), "damaged, empty, or no png or jpg"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_counted_and_skipped(tmp_path, name):
    make, reason = BAD[name]
    folder = many(tmp_path / "set")
    make(folder / name)
    images = open_images(folder)
    assert len(images) == 100
    np.testing.assert_array_equal(images.pixels, GREY[np.arange(100) % 6])
    assert len(images.skipped) == 1
    assert images.skipped[0][0] == name
    assert images.skipped[0][1].startswith(reason)
    (folder / "0000.png").unlink()
    (folder / "0001.png").unlink()
    refused(folder, f"{folder}: 1 of 99 pictures cannot be used, more than 1%; fix or remove them ({name}: {reason}")


def test_skipping_keeps_labels_and_pixels_together(tmp_path):
    for i in range(200):
        write(tmp_path / "ab"[i // 100] / f"{i:03}.png", GREY[i % 6, 0])
    truncated(tmp_path / "a" / "050.png")
    (tmp_path / "b" / "150.png").write_text("hello")
    images = open_images(tmp_path)
    kept = np.delete(np.arange(200), [50, 150])
    np.testing.assert_array_equal(images.pixels, GREY[kept % 6])
    np.testing.assert_array_equal(images.labels, kept // 100)
    assert sorted(name for name, _ in images.skipped) == [os.path.join("a", "050.png"), os.path.join("b", "150.png")]


def test_many_bad_files_stop_the_reading(tmp_path):
    folder = many(tmp_path / "set", 50)
    for i in range(5):
        (folder / f"bad{i}.png").write_text("hello")
    line = refused(folder, "5 of 55 pictures", "bad0.png", "bad1.png", "bad2.png", "and 2 more")
    assert "bad3" not in line


def test_bad_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    refused("folder", "folder: holds no pictures (.png .jpg .jpeg)")
    refused("nothing", "nothing: no such folder, and no built-in set of this name (digits, mnist)")
    refused("some/nothing.png", "nothing.png: no such file or folder")
    (tmp_path / "x.bmp").write_bytes(b"BM")
    refused("x.bmp", "unknown extension '.bmp'; diffeo reads images from .png .jpg .jpeg .npy .npz and from folders")
    (tmp_path / "x.npy").write_bytes(b"")
    refused("x.npy", "x.npy: is empty")
    (tmp_path / "x.npz").write_bytes(b"PK")
    refused("x.npz", "cannot be read as .npz, it is damaged")
    with pytest.raises(TypeError, match="expected a path, an array or a pair"):
        open_images([1, 2])
    (tmp_path / "digits").mkdir()
    assert len(open_images("digits")) == 1797
    refused("./digits", "digits: holds no pictures")


def test_labels_missing_in_a_folder(tmp_path):
    write(tmp_path / "a" / "0.png", GREY[0, 0])
    write(tmp_path / "b" / "0.png", GREY[0, 0])
    write(tmp_path / "stray.png", GREY[0, 0])
    refused(tmp_path, "labels are missing for 1 of 3 pictures", "first stray.png", "sub-folder of its class")


# Arrays


@pytest.mark.parametrize("pixels", [GREY, RGB], ids=["grey", "rgb"])
@pytest.mark.parametrize("kind", ["uint8", "int64", "float32", "float64", "unit32", "unit16", ">f4"])
def test_every_layout_and_type_is_the_same_images(tmp_path, pixels, kind):
    values = (pixels / 255).astype(f"f{int(kind[4:]) // 8}") if kind.startswith("unit") else pixels.astype(kind)
    layouts = [values, values.transpose(0, 2, 3, 1)] + ([values[:, 0]] if pixels.shape[1] == 1 else [])
    for layout in layouts:
        before = layout.copy()
        np.save(tmp_path / "x.npy", layout)
        np.savez(tmp_path / "x.npz", anything=layout)
        for source in (layout, tmp_path / "x.npy", tmp_path / "x.npz"):
            images = open_images(source)
            assert images.pixels.dtype == np.uint8
            np.testing.assert_array_equal(images.pixels, pixels)
            assert images.labels is None
            assert images.notes == (("values in [0, 1] are multiplied by 255",) if kind.startswith("unit") else ())
        np.testing.assert_array_equal(layout, before)


def test_black_and_white_arrays():
    bits = GREY > 127
    for values in (bits, bits.astype(float)):
        np.testing.assert_array_equal(open_images(values).pixels, bits * np.uint8(255))


def test_rounding_is_noted():
    images = open_images(GREY.clip(0, 254) + 0.3)
    np.testing.assert_array_equal(images.pixels, GREY.clip(0, 254))
    assert images.notes == ("values are rounded to 256 levels, by up to 0.3 of a level",)
    assert open_images((GREY + 0.5) / 256).notes[1].startswith("values are rounded to 256 levels, by up to 0.5")


def test_bytes_on_disk_are_mapped_not_read(tmp_path):
    np.save(tmp_path / "x.npy", GREY[:, 0])
    images = open_images(tmp_path / "x.npy")
    assert isinstance(images.pixels, np.memmap)
    assert np.shares_memory(open_images(GREY).pixels, GREY)


def test_bad_arrays(tmp_path):
    x = GREY / 255.0
    refused(2 * x - 1, "array: values from -1 to 1, expected uint8, or numbers in [0, 1] or in [0, 255]; rescale them")
    refused(GREY * 300.0, "values from 0 to 76500")
    refused(GREY.astype(np.int16) - 3, "values from -3 to 252")
    for bad in (np.nan, np.inf, -np.inf):
        holed = x.copy()
        holed[3, 0, 5, 5] = bad
        refused(holed, "array: NaN or infinity, first in picture 4")
    refused(GREY.reshape(6, -1), "got shape (6, 120); a table of flattened pictures needs reshape(-1, H, W)")
    refused(GREY[0, 0, 0], "expected (N, H, W), (N, C, H, W) or (N, H, W, C), got shape (12,)")
    refused(np.zeros((4, 2, 8, 8), np.uint8), "expected 1 (grey) or 3 (RGB) channels", "got (4, 2, 8, 8)")
    refused(GREY[:0], "holds no pictures")
    refused(GREY.astype(str), "expected numbers, got text")
    np.save(tmp_path / "x.npy", x * 3 - 1)
    refused(tmp_path / "x.npy", "x.npy: values from -1 to 2")
    np.savez(tmp_path / "x.npz", a=GREY, b=GREY)
    refused(tmp_path / "x.npz", "expected pictures in an array x or x_train, or in the only one; its arrays: a, b")
    np.savez(tmp_path / "x.npz", x_train=GREY, x_test=RGB)
    refused(tmp_path / "x.npz", "expected x_test of the shape (1, 10, 12) of the others, got (3, 10, 12)")


@pytest.mark.parametrize(("x", "y"), [("x", "y"), ("x_train", "y_train"), ("whatever", "labels")])
def test_labels_of_an_archive(tmp_path, x, y):
    np.savez(tmp_path / "x.npz", **{x: GREY, y: 10 - LABELS[:, None]})
    images = open_images(tmp_path / "x.npz")
    assert images.classes == ("8", "9", "10")
    np.testing.assert_array_equal(images.labels, 2 - LABELS)
    assert images.labels.dtype == np.int64


def test_labels_in_memory():
    names = np.array(["zebra", "ant", "bee"])
    for labels in (names[LABELS], names[LABELS].astype(object)):
        images = open_images((GREY, labels))
        assert images.classes == ("ant", "bee", "zebra")
        np.testing.assert_array_equal(np.array(images.classes)[images.labels], names[LABELS])
    assert open_images((GREY, LABELS.astype(float))).classes == ("0", "1", "2")
    assert open_images((GREY, None)).labels is None


def test_missing_labels():
    holes = LABELS.astype(float)
    holes[2] = np.nan
    refused((GREY, holes), "array: labels are missing for 1 of 6 pictures, the first for picture 3")
    refused((GREY, np.array(["a", "", "b", "", "", "c"])), "labels are missing for 3 of 6 pictures", "picture 2")
    refused((GREY, np.array(["a", None] * 3, dtype=object)), "labels are missing for 3 of 6", "picture 2")
    refused((GREY, LABELS[:5]), "labels are missing for some: 6 pictures and 5 labels")
    refused((GREY, np.arange(7)), "labels without pictures: 6 pictures and 7 labels")
    refused(
        (GREY, np.eye(6)), "expected one label a picture, got labels of shape (6, 6); of one-hot rows take argmax(1)"
    )
    refused((GREY, LABELS + 0.5), "whole numbers or text, got fractions")
    refused((GREY, LABELS.astype("M8[s]")), "whole numbers or text, got values of type datetime64")


# What an image set is


def test_digits():
    from sklearn.datasets import load_digits

    images = open_images("digits")
    np.testing.assert_array_equal(images.pixels[:, 0], load_digits().images)
    np.testing.assert_array_equal(images.labels, load_digits().target)
    assert images.levels == 17
    assert images.classes == tuple("0123456789")
    assert images.split() == (images, None, None)


def test_the_hash_is_of_the_content(tmp_path):
    save_pngs(tmp_path / "set", GREY)
    np.save(tmp_path / "x.npy", GREY.transpose(0, 2, 3, 1))
    hashes = {open_images(source).sha256 for source in (GREY, tmp_path / "set", tmp_path / "x.npy", GREY / 255.0)}
    assert len(hashes) == 1
    other = GREY.copy()
    other[-1, -1, -1, -1] ^= 1
    for source in (other, GREY[:, :, ::-1], GREY.reshape(6, 1, 12, 10), (GREY, LABELS), (GREY, 2 - LABELS), GREY[:5]):
        hashes.add(open_images(source).sha256)
    assert len(hashes) == 7


def test_parts_keep_labels():
    images = open_images((GREY, LABELS))
    part = images.part(slice(2, 4))
    assert np.shares_memory(part.pixels, GREY)
    np.testing.assert_array_equal(part.labels, LABELS[2:4])
    assert part.sha256 != images.sha256
    np.testing.assert_array_equal(images.part(np.array([5, 0])).pixels, GREY[[5, 0]])
    assert open_images(images) is images


def test_more_pixels_than_memory_go_to_a_nameless_file(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "MEMORY", 100)
    monkeypatch.setattr(folders, "_AHEAD", 7)
    folder = many(tmp_path / "set")
    (folder / "bad.png").write_text("hello")
    images = open_images(folder, cache=tmp_path / "cache")
    assert isinstance(images.pixels, np.memmap)
    assert images.pixels.flags.writeable
    np.testing.assert_array_equal(images.pixels, GREY[np.arange(100) % 6])
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert isinstance(open_images(GREY / 255.0).pixels, np.memmap)
    assert (tmp_path / "home" / "diffeo").is_dir()
    some = images.part(np.arange(99, -1, -3))
    assert isinstance(some.pixels, np.memmap)
    np.testing.assert_array_equal(some.pixels, images.pixels[99::-3])
    refused(GREY / 255.0, "cannot write", "bad.png", cache=folder / "bad.png")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_a_full_disk_is_met_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "MEMORY", 100)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    refused(GREY / 255.0, "cannot write", "the disk is full", cache=tmp_path)


def test_progress_is_reported(tmp_path):
    calls = []
    open_images(many(tmp_path / "set"), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 100) for i in range(100)]


def test_torch_is_not_imported():
    code = "import sys, diffeo.data; assert 'torch' not in sys.modules and 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# MNIST


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """A mirror and an archive of an MNIST with few pictures."""
    arrays = {
        "x_train": GENERATOR.integers(256, size=(20, 28, 28), dtype=np.uint8),
        "y_train": np.arange(20, dtype=np.uint8) % 10,
        "x_test": GENERATOR.integers(256, size=(10, 28, 28), dtype=np.uint8),
        "y_test": np.arange(10, dtype=np.uint8),
    }
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    files = {}
    for name, array in arrays.items():
        file = mnist_module.FILES[name][0]
        shape = b"".join(length.to_bytes(4, "big") for length in array.shape)
        content = b"\0\0\x08" + bytes([array.ndim]) + shape + array.tobytes()
        (mirror / f"{file}.gz").write_bytes(gzip.compress(content))
        files[name] = (file, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(mnist_module, "FILES", files)
    monkeypatch.setattr(mnist_module, "MIRRORS", ((tmp_path / "nowhere").as_uri() + "/", mirror.as_uri() + "/"))
    monkeypatch.delenv("DIFFEO_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return arrays


def check(images, arrays):
    np.testing.assert_array_equal(images.pixels[:, 0], arrays["x_train"])
    np.testing.assert_array_equal(images.labels, arrays["y_train"])
    np.testing.assert_array_equal(images.test.pixels[:, 0], arrays["x_test"])
    np.testing.assert_array_equal(images.test.labels, arrays["y_test"])
    assert images.classes == images.test.classes == tuple("0123456789")
    assert (images.name, images.test.name, images.validation) == ("mnist", "mnist (test)", 10_000)


def test_mnist_is_downloaded_once(tmp_path, small_mnist, monkeypatch):
    check(open_images("mnist"), small_mnist)
    monkeypatch.setattr(mnist_module, "MIRRORS", ())
    check(open_images("mnist"), small_mnist)
    cached = tmp_path / "home" / "diffeo" / "mnist.npz"
    cached.write_bytes(cached.read_bytes()[:-100])
    refused("mnist", "mnist: cannot be downloaded", "DIFFEO_DATA", "digits")


def test_a_damaged_cache_is_fetched_anew(tmp_path, small_mnist):
    open_images("mnist", cache=tmp_path / "own")
    cached = tmp_path / "own" / "mnist.npz"
    np.savez(cached, **{**small_mnist, "x_train": small_mnist["x_train"] ^ 1})
    check(open_images("mnist", cache=tmp_path / "own"), small_mnist)
    check(mnist_images := open_images("mnist", cache=tmp_path / "own"), small_mnist)
    assert isinstance(mnist_images, Images)
    (tmp_path / "file").write_text("no folder")  # nothing can be cached here
    check(open_images("mnist", cache=tmp_path / "file"), small_mnist)


def test_mnist_below_the_data_folder(tmp_path, small_mnist, monkeypatch):
    monkeypatch.setattr(mnist_module, "MIRRORS", ())
    monkeypatch.setenv("DIFFEO_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    np.savez(tmp_path / "mnist" / "mnist.npz", **small_mnist)
    check(open_images("mnist"), small_mnist)
    small_mnist["y_test"] = small_mnist["y_test"][::-1]
    np.savez(tmp_path / "mnist" / "mnist.npz", **small_mnist)
    refused("mnist", "mnist.npz: its y_test is not MNIST's (by SHA-256)")


def test_what_a_mirror_can_get_wrong(tmp_path, small_mnist):
    file = tmp_path / "mirror" / "t10k-labels-idx1-ubyte.gz"
    good = file.read_bytes()
    for content, reason in (
        (gzip.compress(b"\0\0\x08\x01\0\0\0\1x"), "t10k-labels-idx1-ubyte.gz has another SHA-256"),
        (good[:-12], "ended before"),
        (b"<html>", "Not a gzipped file"),
    ):
        file.write_bytes(content)
        refused("mnist", "mnist: cannot be downloaded", "nowhere", "mirror", reason)
    assert not (tmp_path / "home").exists()


@pytest.mark.skipif(
    not (Path(os.environ.get("DIFFEO_DATA", "nowhere")) / "mnist" / "mnist.npz").exists(), reason="needs MNIST"
)
def test_the_real_mnist():
    images = open_images("mnist")
    train, validation, test = images.split()
    assert [len(part) for part in (images, train, validation, test)] == [60_000, 50_000, 10_000, 10_000]
    assert images.shape == (1, 28, 28)
    np.testing.assert_array_equal(validation.labels, images.labels[50_000:])
    np.testing.assert_array_equal(np.bincount(test.labels), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])


# Writing


def test_a_grid_shows_every_picture_in_its_place(tmp_path):
    save_grid(tmp_path / "grid.png", RGB[:5], columns=2)
    grid = opened(tmp_path / "grid.png")
    zoom, gap = 56 // 12, 2
    height, width = 10 * zoom + gap, 12 * zoom + gap
    assert grid.shape == (3 * height + gap, 2 * width + gap, 3)
    for i, p in enumerate(RGB[:5]):
        top, left = gap + i // 2 * height, gap + i % 2 * width
        shown = grid[top : top + 10 * zoom : zoom, left : left + 12 * zoom : zoom]
        np.testing.assert_array_equal(shown.transpose(2, 0, 1), p)
    assert (grid[-height + gap :, width + gap :] == 128).all()
    save_grid(tmp_path / "grid.png", GREY)
    assert opened(tmp_path / "grid.png").shape == (2 * height + gap, 3 * width + gap)
    assert [entry.name for entry in tmp_path.iterdir()] == ["grid.png"]


def test_levels_are_stretched_to_black_and_white(tmp_path):
    digits = open_images("digits")
    save_pngs(tmp_path / "set", digits.pixels[:10], levels=17)
    shown = open_images(tmp_path / "set").pixels
    np.testing.assert_array_equal(shown, np.rint(digits.pixels[:10] * (255 / 16)))
    save_grid(tmp_path / "grid.png", digits.pixels[:10], levels=17)
    assert opened(tmp_path / "grid.png").max() == 255


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "new" / "set"
    save_pngs(folder, GREY)
    with pytest.raises(UserError, match="holds files already; choose another folder or replace it with --force"):
        save_pngs(folder, RGB)
    np.testing.assert_array_equal(open_images(folder).pixels, GREY)
    save_pngs(folder, RGB[:3], force=True)
    np.testing.assert_array_equal(open_images(folder).pixels, RGB[:3])
    (folder / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match=r"holds 'mine\.txt', so it is not replaced"):
        save_pngs(folder, GREY, force=True)
    (folder / "mine.txt").unlink()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="the disk is full"):
        save_pngs(folder, GREY, force=True)
    with pytest.raises(UserError, match="the disk is full"):
        save_grid(tmp_path / "grid.png", GREY)
    monkeypatch.undo()
    np.testing.assert_array_equal(open_images(folder).pixels, RGB[:3])
    assert [entry.name for entry in folder.parent.iterdir()] == ["set"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["new"]


def test_an_archive_reads_back(tmp_path):
    digits = open_images("digits")
    path = tmp_path / "digits.npz"
    save_npz(path, digits.pixels, digits.labels, digits.classes, digits.levels)
    again = open_images(path)
    assert again.sha256 == digits.sha256
    assert (again.levels, again.classes) == (17, digits.classes)
    only = digits.labels == 3  # the classes are kept, although one alone occurs
    save_npz(path, digits.pixels[only], digits.labels[only], digits.classes, digits.levels)
    again = open_images(path)
    assert again.classes == digits.classes
    assert (again.labels == 3).all()
    save_npz(path, digits.pixels, digits.labels + 1, digits.classes, digits.levels)
    refused(path, "expected labels from 0 to 9, one for each name in classes")
    save_npz(path, digits.pixels + np.uint8(1), levels=17)
    refused(path, "values from 1 to 17", "[0, 16]")
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits.npz"]


def test_wrong_names_and_pixels(tmp_path):
    with pytest.raises(UserError, match=r"grid.jpg: expected a name that ends in \.png"):
        save_grid(tmp_path / "grid.jpg", GREY)
    with pytest.raises(UserError, match=r"x.npy: expected a name that ends in \.npz"):
        save_npz(tmp_path / "x.npy", GREY)
    with pytest.raises(UserError, match="its folder does not exist"):
        save_grid(tmp_path / "nowhere" / "grid.png", GREY)
    for wrong in (GREY / 255, GREY[0], GREY[:, [0, 0]]):
        with pytest.raises(ValueError, match=r"expected uint8 pixels \(N, 1 or 3, H, W\)"):
            save_grid(tmp_path / "grid.png", wrong)
    with pytest.raises(ValueError, match="at least one picture"):
        save_grid(tmp_path / "grid.png", GREY[:0])

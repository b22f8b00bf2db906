"""Images are held against the annotations as training will decode them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import PngImagePlugin
from tests.unit.data.images import HEIGHT, WIDTH, bmp_of, encoded, jpeg_of, png_of, tiff_of

from qatval.core.errors import QatvalError
from qatval.data import decoding, image_files
from qatval.data.image_files import ImageProblem, image_problems
from qatval.data.subset import build_subset

ANNOTATIONS = Path("instances_train2017.json")


def sixteen_bits() -> bytes:
    return bytes(cv2.imencode(".png", np.full((HEIGHT, WIDTH), 999, np.uint16))[1])


def look(
    folder: Path, name: str = "a.jpg", size: tuple[int, int] = (HEIGHT, WIDTH), **options: Any
) -> ImageProblem | None:
    problems = image_problems(ANNOTATIONS, folder, [name], np.array([size]), **options)
    assert len(problems) < 2
    return problems[0] if problems else None


KINDS_OF_IMAGES: dict[str, tuple[str, bytes]] = {
    "jpeg": ("a.jpg", encoded("JPEG")),
    "grey jpeg": ("a.jpg", encoded("JPEG", "L")),
    "CMYK jpeg": ("a.jpg", encoded("JPEG", "CMYK")),
    "progressive jpeg": ("a.jpg", encoded("JPEG", progressive=True)),
    "jpeg and what a camera put behind it": ("a.jpg", encoded("JPEG") + b"\0" * 99),
    "two jpegs in one": ("a.mpo", encoded("JPEG") + encoded("JPEG")),
    "loud jpeg": ("A.JPEG", encoded("JPEG")),
    "png": ("a.png", encoded("PNG")),
    "grey png": ("a.png", encoded("PNG", "L")),
    "palette png": ("a.png", encoded("PNG", "P")),
    "one bit png": ("a.png", encoded("PNG", "1")),
    "png with transparency": ("a.png", encoded("PNG", "RGBA")),
    "16 bit png": ("a.png", sixteen_bits()),
    "png and more": ("a.png", encoded("PNG") + b"more"),
    "png under another name": ("a.jpg", encoded("PNG")),
    "webp": ("a.webp", encoded("WEBP")),
    "webp with transparency": ("a.webp", encoded("WEBP", "RGBA", lossless=True)),
    "bmp": ("a.bmp", encoded("BMP")),
    "tiff": ("a.tif", encoded("TIFF")),
    "packed tiff": ("a.tiff", encoded("TIFF", compression="tiff_lzw")),
    "jpeg 2000": ("a.jp2", encoded("JPEG2000")),
    "avif": ("a.avif", encoded("AVIF")),
}


@pytest.mark.parametrize("decode", [False, True], ids=["headers", "whole"])
@pytest.mark.parametrize(("name", "content"), KINDS_OF_IMAGES.values(), ids=KINDS_OF_IMAGES)
def test_what_training_can_read_is_taken(
    tmp_path: Path, name: str, content: bytes, decode: bool
) -> None:
    (tmp_path / name).write_bytes(content)
    assert look(tmp_path, name, decode=decode) is None
    problem = look(tmp_path, name, (HEIGHT, WIDTH + 1), decode=decode)
    assert problem is not None
    assert problem.kind == "size"
    assert "is 40 x 24 px when decoded, but the annotations say width 41 and" in str(problem)


@pytest.mark.parametrize(
    ("suffix", "format"),
    [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("tif", "TIFF"), ("avif", "AVIF")],
)
@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("decode", [False, True], ids=["headers", "whole"])
def test_the_size_is_the_one_that_ultralytics_decodes(
    tmp_path: Path, suffix: str, format: str, orientation: int, decode: bool
) -> None:
    from ultralytics.utils.patches import imread

    path = tmp_path / f"a.{suffix}"
    path.write_bytes(encoded(format, orientation=orientation))
    height, width = imread(path).shape[:2]
    assert (height > width) == (orientation in (5, 6, 7, 8))
    assert look(tmp_path, path.name, (height, width), decode=decode) is None
    problem = look(tmp_path, path.name, (width, height), decode=decode)
    assert problem is not None
    assert problem.kind == "size"


def test_a_turned_photo_is_told_from_a_swapped_size(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG", orientation=8))
    (tmp_path / "b.jpg").write_bytes(encoded("JPEG"))
    assert "before its EXIF orientation is applied" in str(look(tmp_path, "a.jpg"))
    assert "which are swapped" in str(look(tmp_path, "b.jpg", (WIDTH, HEIGHT)))


def test_an_orientation_that_opencv_does_not_look_at_is_none(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG", xmp=xmp))
    assert look(tmp_path) is None


def test_an_orientation_behind_the_pixels_counts_as_decoded(tmp_path: Path) -> None:
    from ultralytics.utils.patches import imread

    plain, turned = encoded("PNG"), encoded("PNG", orientation=6)
    start = turned.index(b"eXIf") - 4
    length = int.from_bytes(turned[start : start + 4], "big") + 12
    path = tmp_path / "a.png"
    path.write_bytes(plain[:-12] + turned[start : start + length] + plain[-12:])
    assert look(tmp_path, "a.png", imread(path).shape[:2]) is None


def test_a_broken_exif_is_left_to_the_decoder(tmp_path: Path) -> None:
    content = encoded("JPEG", orientation=6)
    at = content.index(b"Exif\0\0") + 6
    (tmp_path / "a.jpg").write_bytes(content[:at] + b"?" * 8 + content[at + 8 :])
    assert look(tmp_path) is None


def test_a_header_that_pillow_finds_too_large_is_only_looked_at(tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("comment", "x" * 2_000_000, zip=True)
    (tmp_path / "a.png").write_bytes(encoded("PNG", pnginfo=chunks))
    assert look(tmp_path, "a.png") is None


CUT = {
    "jpeg": ("JPEG", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
}


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99, -1], ids=str)
@pytest.mark.parametrize(("format", "options"), CUT.values(), ids=CUT)
def test_a_file_that_ends_too_early_is_refused(
    tmp_path: Path, format: str, options: dict[str, Any], kept: float
) -> None:
    content = encoded(format, **options)
    (tmp_path / "a.jpg").write_bytes(content[: -1 if kept < 0 else int(len(content) * kept)])
    problem = look(tmp_path)
    assert problem is not None
    assert problem.kind == "damaged"
    assert "cut short or damaged" in str(problem)


def test_damage_inside_is_found_by_decoding(tmp_path: Path) -> None:
    content = bytearray(encoded("PNG"))
    content[len(content) // 2] ^= 255
    (tmp_path / "a.png").write_bytes(content)
    assert look(tmp_path, "a.png") is None
    problem = look(tmp_path, "a.png", decode=True)
    assert problem is not None
    assert problem.kind == "damaged"


TOO_LARGE: dict[str, tuple[str, bytes, tuple[int, int]]] = {
    "png": ("a.png", png_of(60_000, 60_000), (60_000, 60_000)),
    "png of another size": ("a.png", png_of(60_000, 60_000), (24, 40)),
    "jpeg": ("a.jpg", jpeg_of(20_000, 20_000), (20_000, 20_000)),
    "jpeg of another size": ("a.jpg", jpeg_of(65_000, 65_000), (24, 40)),
    "bmp": ("a.bmp", bmp_of(50_000, 50_000), (50_000, 50_000)),
    "tiff": ("a.tif", tiff_of(12_000, 12_000), (12_000, 12_000)),
    "tiff of many pages": ("a.tif", tiff_of(4_000, 4_000, 9), (4_000, 4_000)),
    "tiff of many small pages": ("a.tif", tiff_of(24, 40, 2049), (24, 40)),
}


@pytest.mark.parametrize("decode", [False, True], ids=["headers", "whole"])
@pytest.mark.parametrize(("name", "content", "size"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_is_too_large_is_not_decoded(
    tmp_path: Path,
    name: str,
    content: bytes,
    size: tuple[int, int],
    decode: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", refuse)
    (tmp_path / name).write_bytes(content)
    problem = look(tmp_path, name, size, decode=decode)
    assert problem is not None
    assert problem.kind == "too large"
    assert "px, and at most 134,217,728 are decoded; 1 of 1 images are too large" in str(problem)


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.write(encoded("JPEG"))
        file.truncate(2**33)  # takes no room
    problem = look(tmp_path)
    assert problem is not None
    assert "has 8589934592 bytes, and at most 536,870,912 are decoded" in str(problem)


def test_large_images_are_decoded_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, most = 0, 0
    decoded = decoding._decoded

    def watched(content: bytes, name: str) -> Any:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        try:
            time.sleep(0.02)
            return decoded(content, name)
        finally:
            at_once -= 1

    monkeypatch.setattr(decoding, "_decoded", watched)
    names = [f"{place}.jpg" for place in range(4)]
    for name in names:
        (tmp_path / name).write_bytes(encoded("JPEG"))
    sizes = np.array([(HEIGHT, WIDTH)] * 4)
    assert not image_problems(ANNOTATIONS, tmp_path, names, sizes, decode=True)
    assert most > 1
    most = 0
    monkeypatch.setattr(decoding, "_LARGE", HEIGHT * WIDTH - 1)
    assert not image_problems(ANNOTATIONS, tmp_path, names, sizes, decode=True)
    assert most == 1


def test_a_process_that_decodes_is_bounded_whatever_a_header_says() -> None:
    """Of a format whose header nobody but OpenCV reads, and in a training."""
    program = """
from qatval.core.environment import prepare_process
prepare_process()
from qatval.data.decoding import TooLargeError, decoded_size
try:
    decoded_size(b"P6 20000 20000 255\\n", "a.ppm")
except TooLargeError as error:
    print(error)
"""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("OPENCV")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=inherited
    )
    assert (done.stdout, done.stderr) == ("more than 134217728 px\n", "")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jpg", encoded("JPEG")),
        ("a.jpg", encoded("JPEG", progressive=True)),
        ("a.jpg", encoded("JPEG", orientation=6)),
        ("a.png", encoded("PNG")),
        ("a.webp", encoded("WEBP")),
        ("a.webp", encoded("WEBP", lossless=True)),
        ("a.webp", encoded("WEBP", "RGBA")),
    ],
    ids=["jpeg", "progressive", "turned", "png", "webp", "lossless", "transparent"],
)
def test_wherever_a_file_is_cut_its_last_bytes_say_what_decoding_says(
    tmp_path: Path, name: str, content: bytes
) -> None:
    names = []
    for cut in range(1, len(content), 7):
        names.append(f"{cut}-{name}")
        (tmp_path / names[-1]).write_bytes(content[:cut])
    size = (WIDTH, HEIGHT) if b"Exif" in content else (HEIGHT, WIDTH)
    sizes = np.array([size] * len(names))
    for decode in (False, True):
        problems = image_problems(ANNOTATIONS, tmp_path, names, sizes, decode=decode)
        assert sum(problem.count for problem in problems) == len(names)


NO_IMAGES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is an empty file"),
    "page": (b"\n<!DOCTYPE html><title>404", "begins with '<!DOCTYPE html>'"),
    "JSON": (b'{"error": "expired"}', "is not an image"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "begins with 'version https:/"),
    "zip": (b"PK\x03\x04" + b"\0" * 99, "is not an image"),
    "two bytes": (b"\xff\xd8", "is not an image"),
    "phone": (b"\0\0\0\x18ftypheic" + b"\0" * 99, "HEIC"),
}


@pytest.mark.parametrize(("content", "said"), NO_IMAGES.values(), ids=NO_IMAGES)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    problem = look(tmp_path)
    assert problem is not None
    assert problem.kind == "not an image"
    assert said in str(problem)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/data/a.jpg", "is an absolute file name"),
        ("C:\\photos\\a.jpg", "is an absolute file name"),
        ("C:/photos/a.jpg", "is an absolute file name"),
        ("../train2017/a.jpg", "leads out of the image folder"),
        ("b/../../a.jpg", "leads out of the image folder"),
        ("\\\\server\\a.jpg", "is an absolute file name"),
        ("b\\a.jpg", "has backslashes"),
        ("a\0.jpg", "has a control character"),
        ("a\x1b[2J.jpg", "has a control character"),
        ("a\x9b2J.jpg", "has a control character"),
        ("", "names no file"),
        ("./", "names no file"),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "b").mkdir()
    for place in ("a.jpg", "b/a.jpg"):
        (tmp_path / place).write_bytes(encoded("JPEG"))
    problem = look(tmp_path, name)
    assert problem is not None
    assert problem.kind == "name"
    assert said in str(problem)
    assert str(problem).startswith(str(ANNOTATIONS))


@pytest.mark.parametrize(
    "name", ["a\\b.jpg", "été ..jpg", "b/./a.jpg", "a:b.jpg", "…/a b.jpg", "-.jpg"]
)
def test_an_odd_name_of_a_file_that_is_there_is_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(encoded("JPEG"))
    assert look(tmp_path, name) is None


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


NO_FILES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "nothing": (lambda path: None, "missing", "no such image file"),
    "folder": (lambda path: path.mkdir(), "unreadable", "is a folder"),
    "pipe": (a_pipe, "unreadable", "is no regular file"),
    "link to nowhere": (
        lambda path: path.symlink_to("/no/a.jpg"),
        "missing",
        "'/no/a.jpg', where no",
    ),
    "link to itself": (lambda path: path.symlink_to(path), "unreadable", "cannot be read"),
    "link to a folder": (lambda path: path.symlink_to(path.parent), "unreadable", "is a folder"),
    "louder": (lambda path: path.with_name("A.JPG").touch(), "missing", "there is 'A.JPG'"),
}


@pytest.mark.parametrize(("make", "kind", "said"), NO_FILES.values(), ids=NO_FILES)
def test_what_is_no_file_is_refused(
    tmp_path: Path, make: Callable[[Path], object], kind: str, said: str
) -> None:
    make(tmp_path / "a.jpg")
    problem = look(tmp_path)
    assert problem is not None
    assert problem.kind == kind
    assert said in str(problem)


def test_a_name_below_a_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(encoded("JPEG"))
    problem = look(tmp_path, "a/b.jpg")
    assert problem is not None
    assert problem.kind == "missing"


def test_a_link_to_an_image_is_taken(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(encoded("JPEG"))
    (tmp_path / "a.jpg").symlink_to("elsewhere")
    assert look(tmp_path) is None


def test_every_kind_is_listed_once_with_its_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "_AT_A_TIME", 2)
    for place in range(9):
        content = {2: b"<html>", 5: b"<html>", 3: encoded("JPEG")[:-9]}.get(place, encoded("JPEG"))
        (tmp_path / f"{place}.jpg").write_bytes(content)
    names = [f"{place}.jpg" for place in range(11)]
    sizes = np.array([(HEIGHT, WIDTH)] * 7 + [(1, 1)] * 4)
    problems = image_problems(ANNOTATIONS, tmp_path, names, sizes)
    assert [(p.kind, p.path.name, p.count) for p in problems] == [
        ("missing", "9.jpg", 2),
        ("not an image", "2.jpg", 2),
        ("damaged", "3.jpg", 1),
        ("size", "7.jpg", 2),
    ]
    assert "2 of 11 images are missing" in str(problems[0])


def test_opencv_reports_as_before_afterwards(tmp_path: Path, capfd: Any) -> None:
    before = cv2.utils.logging.getLogLevel()
    (tmp_path / "a.bmp").write_bytes(encoded("BMP")[:99])
    assert look(tmp_path, "a.bmp") is not None
    assert cv2.utils.logging.getLogLevel() == before
    assert capfd.readouterr() == ("", "")


# With a subset: refused when it is built, looked at once, and again when a folder has changed.


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were looked at, each time."""
    counts: list[int] = []
    original = image_files.image_problems

    def counting(annotations: Path, image_dir: Path, names: Any, sizes: Any, **more: Any) -> Any:
        counts.append(len(names))
        return original(annotations, image_dir, names, sizes, **more)

    monkeypatch.setattr(image_files, "image_problems", counting)
    return counts


def build(root: Path, cache_dir: Path, **options: Any) -> Any:
    return build_subset(root, train_images=10, val_images=5, seed=0, cache_dir=cache_dir, **options)


def test_images_are_looked_at_once_for_a_subset(
    write_coco: Any, cache_dir: Path, looks: list[int]
) -> None:
    root = write_coco()
    build(root, cache_dir)
    build(root, cache_dir)
    assert looks == [10, 5]
    build(root, cache_dir, verify=True)
    assert looks == [10, 5, 10, 5]


def test_a_refusal_is_one_line_and_not_remembered(write_coco: Any, cache_dir: Path) -> None:
    root = write_coco()
    subset = build(root, cache_dir)
    bad, worse = (root / "train2017" / name for name in subset.train.file_names[2:4])
    content = bad.read_bytes()
    for path, text in ((bad, "<html>"), (worse, "")):
        path.unlink()
        path.write_text(text)
    for _ in range(2):
        with pytest.raises(QatvalError) as caught:
            build(root, cache_dir)
        assert str(caught.value).startswith(
            f"{bad}: is not an image, it begins with '<html>'; 2 of"
        )
        assert "\n" not in str(caught.value)
    bad.write_bytes(content[:-2])
    with pytest.raises(QatvalError, match="'qatval dataset check' lists what else is wrong"):
        build(root, cache_dir)


def below(document: dict[str, Any], *parts: str) -> dict[str, Any]:
    for image in document["images"]:
        image["file_name"] = "/".join([*parts, image["file_name"]])
    return document


@pytest.fixture
def deep(write_coco: Any, documents: Any, tmp_path: Path) -> Path:
    """A dataset whose training images lie in folders below the image folder."""
    (tmp_path / "coco" / "train2017").mkdir(parents=True)
    root: Path = write_coco(root=tmp_path / "flat")
    (root / "train2017").rename(root / "night")
    (root / "train2017" / "city").mkdir(parents=True)
    (root / "night").rename(root / "train2017" / "city" / "night")
    text = json.dumps(below(documents["train"], "city", "night"))
    (root / "annotations" / "instances_train2017.json").write_text(text)
    return root


def test_an_image_gone_from_a_subfolder_is_noticed(
    deep: Path, cache_dir: Path, looks: list[int]
) -> None:
    subset = build(deep, cache_dir)
    build(deep, cache_dir)
    assert looks == [10, 5]
    (deep / "train2017" / subset.train.file_names[0]).unlink()
    with pytest.raises(QatvalError, match="1 of 10 images are missing"):
        build(deep, cache_dir)


def test_a_subfolder_that_is_gone_is_noticed(deep: Path, cache_dir: Path) -> None:
    build(deep, cache_dir)
    shutil.rmtree(deep / "train2017" / "city" / "night")
    with pytest.raises(QatvalError, match="10 of 10 images are missing"):
        build(deep, cache_dir)


def test_an_image_gone_from_behind_its_link_is_noticed(
    write_coco: Any, cache_dir: Path, tmp_path: Path
) -> None:
    root = write_coco()
    store = tmp_path / "store"
    (root / "val2017").rename(store)
    (root / "val2017").mkdir()
    for path in store.iterdir():
        (root / "val2017" / path.name).symlink_to(path)
    subset = build(root, cache_dir)
    (store / subset.val.file_names[1]).unlink()
    with pytest.raises(QatvalError, match=r"is a link to .* where no file is"):
        build(root, cache_dir)


def test_the_embedded_dataset_decodes_whole(tmp_path: Path, cache_dir: Path) -> None:
    from qatval.data.shapes import draw_dataset

    draw_dataset(tmp_path / "shapes", train_images=6, val_images=3)
    build(tmp_path / "shapes", cache_dir, verify=True)

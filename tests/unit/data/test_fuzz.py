"""Mutated annotation files, images and lists: each is read, or refused in one line.

Five thousand in all, the same ones every time.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.data.conftest import odd_document
from tests.unit.data.images import HEIGHT, WIDTH, bmp_of, encoded, jpeg_of, png_of, tiff_of

from qatval.core.errors import QatvalError
from qatval.data.annotation_faults import read_whole_records
from qatval.data.cache import load_index, save_index
from qatval.data.check import check_dataset
from qatval.data.coco import AnnotationIndex, read_annotations, write_annotations
from qatval.data.image_files import image_problems
from qatval.data.labels import (
    one_record_per_file,
    refuse_fractions,
    settled,
    training_labels,
    without_roots,
)
from qatval.data.selection import read_list, take_listed
from qatval.data.subset import build_subset

fuzz = partial(
    settings,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
LONGEST_LINE = 2000

# -- mutations -------------------------------------------------------------------------------------

Mutation = Callable[[bytes], bytes]


def flip(at: float, bit: int, content: bytes) -> bytes:
    place = int(at * len(content))
    flipped = bytes(b ^ 1 << bit for b in content[place : place + 1])
    return content[:place] + flipped + content[place + 1 :]


def cut(at: float, length: int, content: bytes) -> bytes:
    return content[: int(at * len(content))]


def leave_out(at: float, length: int, content: bytes) -> bytes:
    place = int(at * len(content))
    return content[:place] + content[place + length :]


def put_in(at: float, more: bytes, content: bytes) -> bytes:
    place = int(at * len(content))
    return content[:place] + more + content[place:]


def repeat(at: float, length: int, content: bytes) -> bytes:
    place = int(at * len(content))
    return put_in(at, content[place : place + length], content)


def write_over(at: float, more: bytes, content: bytes) -> bytes:
    place = int(at * len(content))
    return content[:place] + more + content[place + len(more) :]


places = st.floats(0, 1, exclude_max=True)
snippets = st.binary(max_size=8) | st.sampled_from(
    [
        *(b"\0", b"\xff", b"\xff\xd9", b"\xef\xbb\xbf", b"\xff\xfe", b"\r", b"\n" * 9, b"\x1b[2J"),
        *(b"[" * 5000, b'{"a":' * 5000, b"9" * 5000, b" " * 5000, b"../", b"/", b"\\", b'"', b","),
    ]
)
mutations = st.lists(
    st.builds(partial, st.just(flip), places, st.integers(0, 7))
    | st.builds(partial, st.sampled_from([cut, leave_out, repeat]), places, st.integers(1, 50))
    | st.builds(partial, st.sampled_from([put_in, write_over]), places, snippets),
    min_size=1,
    max_size=3,
)


def mutated(content: bytes, changes: list[Mutation]) -> bytes:
    for change in changes:
        content = change(content)
    return content


@contextmanager
def one_line(*named: Path) -> Iterator[None]:
    """Let pass what is refused in one line that names one of the files and does no harm."""
    try:
        yield
    except QatvalError as error:
        said = str(error)
        assert any(str(path) in said for path in named), said
        assert not re.search(r"[\0-\x1f\x7f-\x9f]", said), ascii(said)
        assert len(said) < LONGEST_LINE, said


# -- annotation files ------------------------------------------------------------------------------

DOCUMENT = odd_document(3, images=4, first_id=1)
TEXT = json.dumps(DOCUMENT).encode()
HERE = "this is where the odd value goes"
ODD_VALUES = [
    *("null", "true", "[]", "{}", '""', "0", "-1", "1.5", "1e308", "-1e308", "1e999", "NaN"),
    *("-Infinity", "9223372036854775807", "9223372036854775808", "-9223372036854775809"),
    *("9" * 5000, "9" * 4000, "0." + "9" * 5000, "1e-5000", "2147483648", "4294967296"),
    *(r'"\ud800"', r'"a\u0000b"', r'"\u001b[2J"', r'"\u202e"', '"../../x.jpg"', '"/etc/passwd"'),
    *(
        '"x"',
        '"' + "x" * 5000 + '"',
        "[1, 2, 3]",
        "[1, 2, 3, 4, 5]",
        "[1e308, 1e308, 1e308, 1e308]",
    ),
    *("[" * depth + "]" * depth for depth in (100, 900, 2000, 50_000)),
    *('{"a": ' * depth + "1" + "}" * depth for depth in (100, 900, 50_000)),
    *('{"id": 1, "id": 2}', '[{"id": 1}]', '{"\\ud800": 1}', "tru", "", "[1, 2, 3, 4", "1 2"),
]


def with_odd_value(value: str, table: str, place: int, field: str) -> bytes:
    """Write the document with an odd value in a field of a record, or in the place of either."""
    document = json.loads(TEXT)
    if not field:
        document[table] = HERE
    elif field == "record":
        document[table][place % len(document[table])] = HERE
    else:
        document[table][place % len(document[table])][field] = HERE
    return json.dumps(document).replace(f'"{HERE}"', value).encode()


FIELDS = {
    table: ["", "record", "new", *DOCUMENT[table][0]] for table in DOCUMENT if table != "info"
}
odd_values = st.sampled_from(sorted(FIELDS)).flatmap(
    lambda table: st.builds(
        with_odd_value,
        st.sampled_from(ODD_VALUES),
        st.just(table),
        st.integers(0, 99),
        st.sampled_from(FIELDS[table]),
    )
)


def written(path: Path, content: bytes) -> Path:
    path.unlink(missing_ok=True)  # some file systems wait for the disk where a file is emptied
    path.write_bytes(content)
    return path


def read_as_a_run_does(path: Path) -> None:
    """Do with an annotation file what `qatval dataset build` and `check` do before its images."""
    try:
        index, _ = read_annotations(path)
    except QatvalError:
        faults, _ = read_whole_records(path)
        assert all(len(str(fault)) < LONGEST_LINE for fault in faults.items())
        raise
    path.with_suffix(".npz").unlink(missing_ok=True)
    save_index(index, path.with_suffix(".npz"))
    again = load_index(path.with_suffix(".npz"))
    for name, value in vars(index).items():
        np.testing.assert_array_equal(value, vars(again)[name])
    whole = without_roots({"train": again})["train"]
    single, _ = one_record_per_file(whole, path)
    refuse_fractions(single, path)
    left, counts = settled(single, np.arange(len(single.image_ids)))
    labels = training_labels(left)
    assert len(labels.boxes) == counts.boxes
    assert ((labels.boxes >= 0) & (labels.boxes <= 1)).all()
    path.unlink()
    write_annotations(left, path)
    read_annotations(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.filterwarnings("error")
@fuzz(max_examples=1500)
@given(mutations)
def test_annotations_of_altered_bytes(folder: Path, changes: list[Mutation]) -> None:
    path = written(folder / "instances.json", mutated(TEXT, changes))
    with one_line(path):
        read_as_a_run_does(path)


@pytest.mark.filterwarnings("error")
@fuzz(max_examples=1500)
@given(odd_values)
def test_annotations_of_odd_values(folder: Path, content: bytes) -> None:
    path = written(folder / "instances.json", content)
    with one_line(path):
        read_as_a_run_does(path)


@fuzz(max_examples=100)
@given(odd_values)
def test_datasets_of_odd_values(write_coco: Any, cache_dir: Path, content: bytes) -> None:
    root = cache_dir.with_name("coco")
    if not root.exists():
        write_coco(train=DOCUMENT)
    annotations = written(root / "annotations" / "instances_train2017.json", content)
    for finding in check_dataset(root):
        assert len(finding.message) < LONGEST_LINE
    with one_line(annotations, root / "annotations" / "instances_val2017.json", root / "train2017"):
        build_subset(root, train_images=None, val_images=None, seed=0, cache_dir=cache_dir)


# -- lists -----------------------------------------------------------------------------------------

LISTED = ["# mine", *(str(i["id"]) for i in DOCUMENT["images"]), "", "images/\\train2017/x"]
LISTED += [i["file_name"] for i in DOCUMENT["images"]]


@pytest.fixture(scope="module")
def listed(folder: Path) -> dict[str, AnnotationIndex]:
    return {"train": read_annotations(written(folder / "listed.json", TEXT))[0]}


@fuzz(max_examples=1000)
@given(st.permutations(LISTED[:-1]), st.sampled_from(["\n", "\r\n", "\r", "\0", " "]), mutations)
def test_lists(
    folder: Path,
    listed: dict[str, AnnotationIndex],
    lines: list[str],
    ending: str,
    changes: list[Mutation],
) -> None:
    path = written(folder / "list.txt", mutated(ending.join(lines[::2]).encode(), changes))
    with one_line(path):
        for chosen in take_listed(read_list(path), listed).values():
            assert set(chosen.rows) <= set(range(len(DOCUMENT["images"])))


# -- images ----------------------------------------------------------------------------------------

IMAGES: dict[str, bytes] = {
    "a.jpg": encoded("JPEG"),
    "progressive.jpg": encoded("JPEG", progressive=True),
    "turned.jpg": encoded("JPEG", orientation=6),
    "a.png": encoded("PNG"),
    "palette.png": encoded("PNG", "P"),
    "turned.png": encoded("PNG", orientation=6),
    "a.webp": encoded("WEBP"),
    "lossless.webp": encoded("WEBP", lossless=True),
    "a.bmp": encoded("BMP"),
    "a.tif": encoded("TIFF"),
    "packed.tiff": encoded("TIFF", compression="tiff_lzw"),
    "a.gif": encoded("GIF"),
    "a.jp2": encoded("JPEG2000"),
    "a.avif": encoded("AVIF"),
}


def look_at(folder: Path, contents: list[tuple[str, bytes]]) -> list[str]:
    """Look at images in both ways; return the names of those that are decoded and sound."""
    names = [f"{place}-{name}" for place, (name, _) in enumerate(contents)]
    for name, (_, content) in zip(names, contents, strict=True):
        written(folder / name, content)
    sizes = np.array([(HEIGHT, WIDTH)] * len(names))
    look = partial(image_problems, Path("instances.json"), folder)
    for decode in (False, True):
        problems = look(names, sizes, decode=decode)
        for problem in problems:
            assert "\n" not in str(problem)
            assert len(str(problem)) < LONGEST_LINE
    sound = [n for n in names if not look([n], sizes[:1], decode=True)] if problems else names
    assert len(names) - len(sound) == sum(problem.count for problem in problems)
    return sound


@pytest.mark.filterwarnings("error")
@fuzz(max_examples=120)
@given(st.lists(st.tuples(st.sampled_from(sorted(IMAGES)), mutations), min_size=10, max_size=10))
def test_images(folder: Path, changed: list[tuple[str, list[Mutation]]]) -> None:
    from ultralytics.utils.patches import imread

    contents = [(name, mutated(IMAGES[name], changes)) for name, changes in changed]
    for name in look_at(folder, contents):
        assert imread(folder / name).shape[:2] == (HEIGHT, WIDTH)


# -- memory ----------------------------------------------------------------------------------------


def read_the_worst(folder: Path) -> None:
    """Read what asks for the most memory, and as much again of what was mutated at random."""
    path = folder / "instances.json"
    for value in ODD_VALUES:
        for table, fields in FIELDS.items():
            written(path, with_odd_value(value, table, 0, random.choice(fields)))
            with one_line(path):
                read_as_a_run_does(path)
    bombs = [png_of(60_000, 60_000), jpeg_of(60_000, 60_000), bmp_of(50_000, 50_000)]
    bombs += [tiff_of(20_000, 20_000), tiff_of(3_000, 3_000, 40)]
    look_at(folder, [("a.tif", bomb) for bomb in bombs])
    for _ in range(20):
        name, content = random.choice(list(IMAGES.items()))
        # Where the size and the number of channels stand.
        changed = [flip(0.3 * random.random(), random.randrange(8), content) for _ in range(10)]
        look_at(folder, [(name, content) for content in changed])


def test_all_of_it_takes_less_than_a_gigabyte(tmp_path: Path) -> None:
    program = (
        "import random, sys\n"
        "from pathlib import Path\n"
        "from qatval.core.environment import peak_resident_mb, prepare_process\n"
        "prepare_process()\n"
        "from tests.unit.data.test_fuzz import read_the_worst\n"
        "random.seed(0)\n"
        "read_the_worst(Path(sys.argv[1]))\n"
        "print(peak_resident_mb())\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    if done.stdout == "None\n":
        pytest.skip("the system does not tell how much memory a process has had")
    # Not by getrusage: a new process inherits the peak of the one that started it there.
    assert int(done.stdout) < 1024

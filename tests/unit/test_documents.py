"""README and docs/ say what the code does: options, names, links, and the example runs."""

import pkgutil
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPTIONS = ROOT / "docs" / "options.md"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

# Options of pytest's other plugins and of the scripts in benchmarks/.
ELSEWHERE = {"--dist", "--snapshot-update", "--photographs"}

of_every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_the_tables_of_options_are_those_of_the_parsers():
    page = runpy.run_path(str(OPTIONS.with_suffix(".py")))["page"]()
    assert page == OPTIONS.read_text("utf-8"), "an option changed: run 'make docs'"


@of_every_page
def test_a_page_names_only_options_that_exist(page):
    option = r"(?<![\w-])--[a-z][\w-]+"
    tables = [line for line in OPTIONS.read_text("utf-8").splitlines() if line.startswith("| `-")]
    known = ELSEWHERE.union(*(re.findall(option, line) for line in tables))
    assert set(re.findall(option, page.read_text("utf-8"))) <= known | {"--help"}


@of_every_page
def test_what_a_page_names_is_there(page):
    text = page.read_text("utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    files = re.findall(r"(?<![\w/.])(?:src|tests|benchmarks|docs)/[\w./]*\w", text)
    places = [page.parent / link for link in links] + [ROOT / file for file in files]
    assert [str(place) for place in places if not place.exists()] == []
    for name in re.findall(r"`(qatval\.[\w.]+)`", text):
        pkgutil.resolve_name(name)


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, write_run, capsys):
    for method, value in (("ema", 0.60), ("ema+qc", 0.64)):
        for seed in range(3):
            write_run(f"{method}-{seed}", method=method, seed=seed, values=(0.58, value))
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", PAGES[0].read_text("utf-8"), re.S)
    exec(example, {})
    printed = capsys.readouterr().out
    assert "yolo10n/shapes/smoke ema+qc 0.640" in printed
    assert "ema+qc is better than ema on 3 of 3 seeds" in printed

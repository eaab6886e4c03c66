"""The page of a study, read as text; tests/test_pages.py opens it in a browser."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_runs import write_rows
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nlvideo.experiments.page import Study, _identities, write_page
from nlvideo.experiments.readings import read_readings
from nlvideo.experiments.run_folders import read_runs
from nlvideo.runtime.errors import UserError
from nlvideo.training.run_status import write_status


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A study: rows of Table 2c and, stopped, one of 2a; an attention picture."""
    folder = tmp_path_factory.mktemp("study") / "far"
    write_rows(folder, {"c2d_r50": 0.4, "c2d_r50_nl5": 1.0}, (1, 2, 3))
    write_rows(folder, {"c2d_r50_nl10": 0.45, "c2d_r50_nl1_gaussian": 0.5}, (1,))
    write_status(folder / "experiment-c2d_r50_nl1_gaussian+seed-1", "stopped", step=5, num_classes=4)
    told = PngInfo()
    told.add_text("Title", "a.mp4: 8 frames\npredicted: red")
    Image.new("RGB", (1800, 600)).save(folder / "attention_a.png", pnginfo=told)
    return folder


@pytest.fixture(scope="module")
def study(runs) -> Study:
    return Study("far", runs, read_runs(runs))


@pytest.fixture(scope="module")
def page(study, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("page")
    texts = "# Far <b>\n\nIt is *known*: <script>alert(1)</script> ![x](http://x)\n\n## far/2c\n\nThey agree.\n"
    (folder / "readings.md").write_text(texts)
    missing = write_page(folder / "page.html", [study], folder / "readings.md", [])
    assert any(line.startswith("not run: Table 2a") for line in missing) and not any("2c" in line for line in missing)
    return (folder / "page.html").read_text()


def row_of(page: str, label: str) -> str:
    return re.search(rf'<th scope="row">{label}.*?</tr>', page, re.DOTALL)[0]


def test_a_row_has_its_figures_and_bold_means_holms_p(page):
    base, five, ten = (row_of(page, label) for label in ("C2D R50", "5 blocks", "10 blocks"))
    assert '<td class="number">3</td>' in base and '<td class="number">100.00</td>' in five
    assert re.search(r'<td class="number shows">\+\d\d\.\d\d<small>\+\d\d\.\d\d to \+\d\d\.\d\d</small></td>', five)
    assert "shows" not in ten and "shows" not in base  # 0.45 is not told from 0.4 with 40 videos
    assert "1.00×" in base and "73.8 / 91" in five and "+2.0" in five
    assert "<small>not run</small>" in row_of(page, "1 block") and "<small>baseline</small>" in base
    assert "adjusted for the 2 rows compared" in page and "Not run: C2D R101, and the rows below it." in page
    assert "top\u20111</th>" in page and "top\u20115</th>" not in page  # which is 100 % in every run


def test_what_was_run_and_what_was_not_is_said(page):
    facts = page[page.index('<h2 id="far">') :]
    assert "<dt>runs</dt><dd>7 finished, 1 not</dd>" in facts and "<dt>seeds</dt><dd>1, 2, 3</dd>" in facts
    assert "not finished: far/experiment-c2d_r50_nl1_gaussian+seed-1: stopped at step 5" in page
    left_out = page[page.index('<h2 id="not-run">') :]
    assert all(f"Table {name}" in left_out for name in ("2a", "2b", "2e", "2g")) and "GCNet" in left_out
    assert "Table 2c" not in left_out
    assert "8 frames, stride" in page and "C2D R50, 4 channels in the stem. Mean" in page and "1 clip × 1 crop" in page


def test_texts_are_the_readings_without_markup_that_loads_or_runs(page):
    assert "<title>Far &lt;b&gt;</title>" in page and "<em>known</em>" in page and "<p>They agree.</p>" in page
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.findall(r'<(?:img|link)[^>]*(?:src|href)="(?!data:)', page)


class Headings(HTMLParser):
    """Collects the levels of headings and the alternative texts of images."""

    def __init__(self):
        super().__init__()
        self.levels: list[int] = []
        self.alts: list[str | None] = []

    def handle_starttag(self, tag, attrs):
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag == "img":
            self.alts.append(dict(attrs).get("alt"))


def test_headings_are_in_order_and_pictures_have_words(page):
    found = Headings()
    found.feed(page)
    assert found.levels[0] == 1 and found.levels.count(1) == 1
    assert all(below <= above + 1 for above, below in zip(found.levels, found.levels[1:], strict=False))
    assert all(found.alts) and "Attention maps: a.mp4: 8 frames predicted: red" in found.alts
    assert any("5 blocks 100.0 %" in alt for alt in found.alts)


def test_contents_lead_to_sections_that_exist(page):
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("## far/2a\n", "line 1: the page has no section 'far/2a'; its sections are far, far/2c"),
        ("# A\n\n### Deep\n", "line 3: a heading is # or ##"),
        ("# A\n\n# B\n", "line 3: the page has one title, 'A'"),
        ("- ## far\n", "line 1: a heading cannot stand in a list or a quotation"),
        (b"# M\xfcller\n", "is no UTF-8 text"),
        (None, "does not exist"),
    ],
)
def test_readings_that_do_not_fit_are_refused(study, tmp_path, text, message):
    file = tmp_path / "readings.md"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=re.escape(message)):
        write_page(tmp_path / "page.html", [study], file, [])
    assert not (tmp_path / "page.html").exists()


def test_folders_and_pictures_that_cannot_be_used_are_refused(study, tmp_path):
    inner = Study("inner", study.folder, study.runs[:1])
    with pytest.raises(UserError, match="give each run once"):
        write_page(tmp_path / "page.html", [study, inner], None, [])
    (tmp_path / "readings.md").write_text("")
    with pytest.raises(UserError, match="the folder attention has the name of a section"):
        write_page(tmp_path / "page.html", [study._replace(name="attention")], tmp_path / "readings.md", [])
    with pytest.raises(UserError, match="Two of the folders have the same name: far, far"):
        write_page(tmp_path / "page.html", [study, study], None, [])
    (tmp_path / "a.png").write_text("no picture")
    whole = (study.folder / "attention_a.png").read_bytes()
    (tmp_path / "c.png").write_bytes(whole[: len(whole) // 2])
    for name, message in (("a.png", "cannot be read"), ("c.png", "cannot be read"), ("b.png", "does not exist")):
        with pytest.raises(UserError, match=message):
            write_page(tmp_path / "page.html", [study], None, [tmp_path / name])
    (stopped,) = [run for run in study.runs if run.state == "stopped"]
    with pytest.raises(UserError, match="No finished run in"):
        write_page(tmp_path / "page.html", [Study("far", study.folder, [stopped])], None, [])


def test_runs_that_make_no_table_are_shown_as_other_runs_with_the_reason(study, tmp_path):
    runs = [replace(run, settings=dict(run.settings)) for run in study.runs if run.state == "finished"]
    (five,) = [run for run in runs if "nl5" in run.name and run.seed == 2]
    five.settings["optim.lr"] = 7.0
    (line,) = [line for line in write_page(tmp_path / "a.html", [study._replace(runs=runs)], None, []) if "2c" in line]
    assert line.startswith("not filled: Table 2c") and line.endswith("Give the folder of a single sweep.")
    page = (tmp_path / "a.html").read_text()
    assert re.search(r"optim.lr is \S+ and 7.0\.", page)
    assert re.search(r'<th scope="row">c2d_r50_nl5 [^<]*optim.lr=7.0', page[page.index("Other runs") :])


def test_one_seed_does_not_stand_out_however_many_videos_it_has(study, tmp_path):
    runs = [run for run in study.runs if run.state == "finished" and run.seed == 1]
    write_page(tmp_path / "a.html", [study._replace(runs=runs)], None, [])
    five = row_of((tmp_path / "a.html").read_text(), "5 blocks")
    assert "<small>of this seed</small>" in five and "&lt; 0.001" in five and "shows" not in five


def test_ids_differ_and_pictures_given_twice_are_shown_once(study, tmp_path):
    assert _identities(["A b", "a-b", "main", "!", "?"]) == ["a-b", "a-b-", "main-", "study", "study-"]
    picture = study.folder / "attention_a.png"
    write_page(tmp_path / "a.html", [study], None, [picture])
    assert (tmp_path / "a.html").read_text().count("data:image/webp") == 1


def test_wide_parts_of_texts_scroll_by_themselves(tmp_path):
    (tmp_path / "a.md").write_text("# *T* & `c`\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```\ncode\n```\n")
    texts = read_readings(tmp_path / "a.md", [], "")
    assert texts["title"] == "T & c"
    assert re.findall(r'aria-label="([^"]+)"><(table|pre)', texts["introduction"]) == [
        ("Part 1 of the text", "table"),
        ("Part 2 of the text", "pre"),
    ]

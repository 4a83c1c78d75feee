import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from beit.draw import canvas
from beit.draw.curves import curves
from beit.draw.report import (
    Figure,
    Gallery,
    Link,
    Picture,
    Section,
    Table,
    link_to,
    script_hash,
    with_lead,
    write_report,
)

PNG = canvas.png(np.full((4, 6, 3), 9, np.uint8))
NASTY = "<script>alert('1')</script> & \"quoted\""


class Tags(HTMLParser):
    """Collects start tags with attributes, and checks that what opens is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(page)
    assert parser.open == []
    return parser.seen


def whole_report(path: Path, words: str = "plain") -> str:
    records = [{"step": step, words: float(step)} for step in range(3)]
    items = [
        Table(words, [words, "%"], [[words, 48.0], [words, 32.11], [words, None]]),
        Picture(words, words, PNG, "image/png"),
        Gallery(words, [Picture(words, words, PNG, "image/png")]),
        *curves(records, {words: [words]}, words),
    ]
    sections = [Section(words, f"{words}\n\n    {words}\n\n`{words}`", items)] * 3
    figures = {words: Figure(words, words)}
    facts = {words: words, "link": Link(words, "../a/report.html")}
    lead = Gallery(words, [Picture(words, words, PNG, "image/png")])
    written = write_report(path, words, sections, facts, summary=words, lead=lead, figures=figures)
    assert written == path
    return path.read_text("utf-8")


def test_the_page_holds_everything_and_asks_for_nothing(tmp_path: Path) -> None:
    page = whole_report(tmp_path / "report.html")
    assert "width=device-width" in page
    assert "prefers-color-scheme: dark" in page
    assert "default-src 'none'" in page
    for tag, attributes in tags(page):
        assert tag not in {"link", "iframe", "object", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href"}:
                allowed = ("data:image/png;base64,", "#section-", "../a/report.html")
                assert (value or "").startswith(allowed)
            assert name != "xlink:href" or (value or "").startswith("#m")  # a marker
    assert "@import" not in page
    assert "url(" not in page
    (script,) = re.findall("(?s)<script>(.*?)</script>", page)
    assert f"script-src 'sha256-{script_hash(script)}'" in page
    image = r'<img class="picture" width="6" height="4" alt="plain" src="data:[^,]+,([^"]+)">'
    images = re.findall(image, page)
    assert len(images) == 7
    assert all(base64.b64decode(image) == PNG for image in images)
    assert page.count("<svg") == 3


def test_every_text_is_escaped(tmp_path: Path) -> None:
    page = whole_report(tmp_path / "report.html", NASTY)
    assert page.count("<script") == 1  # the page's own
    plain = whole_report(tmp_path / "other.html")
    assert [tag for tag, _ in tags(page)] == [tag for tag, _ in tags(plain)]


def test_text_has_paragraphs_commands_and_code(tmp_path: Path) -> None:
    text = "One\nline, `a<b`.\n\n    beit probe\n      --model x\n\nTwo."
    write_report(tmp_path / "r.html", "CIFAR-10", [Section("S", text)], {})
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "<p>One line, <code>a&lt;b</code>.</p>" in page
    option = '<span class="unbroken">--model</span>'
    assert f"<pre><code>beit probe\n  {option} x</code></pre>" in page
    assert "<p>Two.</p>" in page
    assert "<title>CIFAR-10</title>" in page
    assert '<h1><span class="unbroken">CIFAR-10</span></h1>' in page
    assert "<nav" not in page  # one section needs no contents
    assert "<dl" not in page


def test_columns_of_figures_are_set_right_with_the_same_decimals(tmp_path: Path) -> None:
    table = Table("", ["model", "linear", "epochs"], [["a1", 48.0, 3], ["b", None, 300]])
    more = Table("", ["share", "rate"], [["48.1 ± 0.3 %", "1e-5"], [" 2 min", "0.1"]])
    write_report(tmp_path / "r.html", "T", [Section("S", items=[table, more])], {})
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "<td>a1</td>" in page
    assert '<td class="right">48</td>' in page
    assert '<td class="right">–</td>' in page
    assert '<td class="right">300</td>' in page
    assert '<th scope="col" class="right">rate</th>' in page
    assert '<td class="right">1e-5</td>' in page


def test_options_in_tables_are_not_broken_after_their_dashes(tmp_path: Path) -> None:
    table = Table("", ["advice"], [["give --data.train X, or a--b <c>"]])
    write_report(tmp_path / "r.html", "T", [Section("S", items=[table])], {})
    unbroken = '<td>give <span class="unbroken">--data.train</span> X, or a--b &lt;c&gt;</td>'
    assert unbroken in (tmp_path / "r.html").read_text("utf-8")


def test_an_older_report_survives_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    before = whole_report(path)
    broken = Section("S", items=[Picture("", "a photo", b"GIF89a", "image/png")])
    with pytest.raises(ValueError, match="'a photo' is not the PNG"):
        write_report(path, "T", [broken], {})
    assert path.read_text("utf-8") == before
    assert whole_report(path, "new") != before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path / "nowhere" / "report.html", "T", [], {})


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("<script>1</script>", "<script>"),
        ("<foreignObject/>", "<foreignObject>"),
        ('<path onload="x()"/>', "onload="),
        ('<path ONLOAD="x()"/>', "ONLOAD="),
        ('<path style="fill:url(x)"/>', "style="),
        ('<path href="x"/>', "href="),
        ('<use href=""/>', "href="),
        ('<use xmlns:x="http://www.w3.org/1999/xlink" x:href="//host/a.svg#m"/>', "href="),
        ('<image href="https://host/a.png"/>', "href="),
        ("<style>*{}</style>", "<style>"),
        ("<!-- -->", "no declaration"),
    ],
)
def test_an_svg_that_does_more_than_draw_is_refused(
    tmp_path: Path, body: str, complaint: str
) -> None:
    data = f'<svg xmlns="http://www.w3.org/2000/svg">{body}</svg>'.encode()
    section = Section("S", items=[Picture("", "", data, "image/svg+xml")])
    with pytest.raises(ValueError, match=re.escape(complaint)):
        write_report(tmp_path / "r.html", "T", [section], {})


def test_a_run_is_linked_if_it_has_a_report_here_or_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in ("runs/my tok", "runs/pre"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "report.html").touch()
    page = tmp_path / "runs/pre/report.html"
    link = Link("runs/my tok", "../my%20tok/report.html")
    assert link_to("runs/my tok", page) == link  # named from a folder above the report
    monkeypatch.chdir(tmp_path)
    assert link_to("runs/my tok", Path("runs/pre/report.html")) == link
    assert link_to(str(tmp_path / "runs/my tok"), page) == link._replace(
        words=f"{tmp_path}/runs/my tok"
    )
    for source in ("runs/gone", "", "runs/pre", "published:vqkd"):
        assert link_to(source, page) == source


def test_a_few_pictures_lead_and_are_not_shown_twice() -> None:
    pictures = [Picture("", str(number), PNG, "image/png") for number in range(5)]
    section = Section("S", items=[Gallery("g", pictures), Table("", ["a"], [[1]])])
    lead, (shown, other) = with_lead([section, Section("T")])
    assert lead is not None and lead.caption == "g"
    assert [p.alt for p in lead.pictures] == ["0", "1", "2"]
    assert isinstance(shown.items[0], Gallery)
    assert [p.alt for p in shown.items[0].pictures] == ["3", "4"]
    assert shown.items[1:] == section.items[1:] and other.title == "T"
    few = Section("S", items=[Gallery("g", pictures[:3])])
    assert with_lead([few]) == (None, [few])


def test_a_ragged_table_is_refused() -> None:
    with pytest.raises(ValueError, match="2 cells for 3 columns"):
        Table("probe", ["a", "b", "c"], [[1, 2, 3], [1, 2]])


def test_a_folded_table_or_gallery_is_under_its_caption(tmp_path: Path) -> None:
    tables = [Table("open", ["a"], [[1]]), Table("much", ["a"], [[1]], folded=True)]
    gallery = Gallery("many", [Picture("p", "alt", PNG, "image/png")], folded=True)
    page = write_report(tmp_path / "r.html", "t", [Section("s", items=[*tables, gallery])], {})
    text = page.read_text()
    assert re.findall(r"<details><summary>(.*?)</summary>", text) == ["much", "many"]
    assert text.count("<figcaption>") == 2  # of the open table and of the picture
    assert text.count("<details>") == text.count("</details>") == 2

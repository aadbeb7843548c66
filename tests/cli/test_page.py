"""Reports: one file without scripts, readable in a browser as narrow as a phone."""

import html
import json
import re
import shutil
import subprocess

import pytest
from commands import MLP, assert_refused

from onnx_net2net import load, widen
from onnx_net2net.cli.output import table
from onnx_net2net.cli.page import curves, picture, write_page

pytest.importorskip("jinja2")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

MEASURE = """<!DOCTYPE html><html><body><iframe id="page" style="width:%dpx;height:900px;border:0"></iframe><script>
const frame = document.getElementById("page"), errors = [];
window.onerror = text => { errors.push(String(text)); };
frame.onload = () => {
  const page = frame.contentDocument, width = frame.contentWindow.innerWidth;
  const shown = [...page.body.querySelectorAll("*")].filter(e => e.getBoundingClientRect().width > 0);
  const off = shown.filter(e => e.getBoundingClientRect().right > width + 1 || e.getBoundingClientRect().left < -1);
  const clipped = shown.filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth && !e.closest("svg"));
  document.body.innerHTML = "<pre>" + JSON.stringify({
    errors, width, wide: page.documentElement.scrollWidth, shown: shown.length,
    off: off.map(e => e.outerHTML.slice(0, 200)), clipped: clipped.map(e => e.outerHTML.slice(0, 200)),
  }).replaceAll("<", "&lt;") + "</pre>";
};
frame.srcdoc = %s;
</script></body></html>"""


def looked_at(page, width, folder):
    """What a browser makes of a page in a window of some width."""
    text = json.dumps(page.read_text(encoding="utf-8")).replace("</", "<\\/")
    (folder / "look.html").write_text(MEASURE % (width, text), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom",
               f"--user-data-dir={folder / 'profile'}", (folder / "look.html").as_uri()]  # fmt: skip
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", dumped, re.S)[1]))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with all that a report may have, and long names in it."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    columns = [">trial", *(f">column {k}" for k in range(12)), "what became of it"]
    rows = [
        ([str(k), *("1,234,567.89" for _ in range(12)), "not_a_single_place_to_break_" * 6], k % 2) for k in range(9)
    ]
    lines = {f"trial {k}": [(0.0, 1.0), (100.0, 1 / (k + 1))] for k in range(5)}
    student = widen(MLP, factor=1.5).student
    figures = [*curves("trainings", "step", "val_loss", lines), *picture(load(MLP), student)]
    text = "<script>alert(1)</script> layers.0.attention.self.query.weight_" * 4
    write_page(
        path, "a report of " + "a_long_name" * 20 + ".onnx", [table("candidates", columns, rows), text, *figures]
    )
    return path


def test_a_report_is_one_file_without_scripts(page):
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"""(?:src|href)=["']?https?:|url\(http""", text)
    assert text.count("<svg") == 2


@pytest.mark.skipif(BROWSER is None, reason="needs a browser")
@pytest.mark.parametrize("width", [360, 1400])
def test_nothing_of_a_report_is_cut_off(page, width, tmp_path):
    seen = looked_at(page, width, tmp_path)
    assert seen["width"] == width
    assert seen["shown"] > 100
    assert seen["errors"] == seen["off"] == seen["clipped"] == []
    assert seen["wide"] <= width


def test_commands_write_reports(cli, teacher):
    report = teacher.parent / "report.html"
    told = cli("widen", teacher, "-o", teacher.parent / "s.onnx", "--factor", "1.5", "--html", report)
    assert told.code == 0, told.err
    text = report.read_text(encoding="utf-8")
    assert "fc1" in text
    assert "equivalent in" in text
    assert "<svg" in text
    assert cli("deepen", teacher, "-o", teacher.parent / "d.onnx", "--all", "--html", report).code == 0
    assert "fc2" in report.read_text(encoding="utf-8")
    filled = cli("transfer", teacher, teacher.parent / "s.onnx", "-o", teacher.parent / "t.onnx", "--html", report)
    assert filled.code == 0, filled.err
    assert "exact: the student computes" in report.read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_done(cli, teacher):
    output = teacher.parent / "s.onnx"
    for name, words in (("report.pdf", "a report is a file of HTML"), ("gone/report.html", "does not exist")):
        asked = cli("widen", teacher, "-o", output, "--factor", "1.5", "--html", teacher.parent / name)
        assert_refused(asked, 2, words)
        assert not output.exists()


def test_a_report_of_somebody_else_is_replaced_only_by_force(cli, teacher):
    report, output = teacher.parent / "theirs.html", teacher.parent / "s.onnx"
    report.write_text("<p>A page of somebody's own.</p>")
    asked = ("widen", teacher, "-o", output, "--factor", "1.5", "--html", report)
    assert_refused(cli(*asked), 2, "theirs.html exists and was not made by this tool; --force replaces it")
    assert not output.exists()
    assert cli(*asked, "--force").code == 0
    assert cli(*asked).code == 0  # by now it is a report

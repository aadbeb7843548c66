"""Pictures of networks: sound files, and nothing that overlaps or is cut off in a browser."""

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest
from commands import MLP, MODELS, assert_refused

from onnx_net2net import deepen, widen

pytest.importorskip("drawsvg")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
RESNET = MODELS / "digits_resnet.onnx"
CHECK = """<script>
const boxes = [...document.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
const picture = document.querySelector("svg").getBoundingClientRect();
const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top + 2 || b.bottom <= a.top + 2;
const bad = boxes.filter(([, a]) => a.left < picture.left || a.right > picture.right).map(([t]) => "cut off: " + t);
boxes.forEach(([t, a], i) => boxes.slice(i + 1).forEach(([u, b]) => apart(a, b) || bad.push(t + " on " + u)));
document.body.innerHTML = "<p id=found>" + JSON.stringify(bad) + " " + boxes.length + "</p>";
</script>"""


def draw(cli, folder, model, student=None, name="net.svg"):
    path = folder / name
    arguments = [model, *([student] if student else [])]
    assert cli("draw", *arguments, "-o", path).code == 0
    return path


def texts(path):
    return [element.text for element in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def notes(path):
    return [element.text for element in ET.parse(path).iter("{http://www.w3.org/2000/svg}title")]


@pytest.fixture
def grown(tmp_path):
    widen(RESNET, factor=1.5).student.save(tmp_path / "wide.onnx")
    deepen(tmp_path / "wide.onnx", repeat={"layer1": 2}).student.save(tmp_path / "student.onnx")
    return tmp_path / "student.onnx"


def test_a_picture_says_what_grew_and_what_is_new(cli, tmp_path, grown):
    path = draw(cli, tmp_path, RESNET, grown)
    assert "1 to 18 (was 1 to 12)" in texts(path)
    assert "layer1.0_new0.conv1" in texts(path)
    assert any("layer1.0_new0.conv1 (Conv): a new layer" in note for note in notes(path))
    assert any("conv1.weight: 12 x 1 x 3 x 3 -> 18 x 1 x 3 x 3" in note and "map: replicate" in note
               for note in notes(path))  # fmt: skip


def test_one_model_is_drawn_alone(cli, tmp_path):
    assert "64 to 128" in texts(draw(cli, tmp_path, MLP))


def test_a_page_needs_nothing_else(cli, tmp_path, grown):
    page = draw(cli, tmp_path, RESNET, grown, "net.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert not re.search(r"(?:src|href)\s*=", page)


def test_what_cannot_be_drawn_is_one_line(cli, tmp_path):
    assert_refused(cli("draw", MLP, "-o", tmp_path / "net.png"), 2, "pictures are .svg or .html files")
    (tmp_path / "net.svg").write_text("somebody's picture")
    assert_refused(cli("draw", MLP, "-o", tmp_path / "net.svg"), 2, "was not made by this tool")
    (tmp_path / "net.svg").unlink()
    draw(cli, tmp_path, MLP)
    assert "replaced" in cli("draw", MLP, "-o", tmp_path / "net.svg").out


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [360, 1400])
def test_nothing_overlaps_in_a_browser(cli, tmp_path, grown, width):
    page = draw(cli, tmp_path, RESNET, grown, "net.html")
    page.write_text(page.read_text().replace("</body>", f"{CHECK}</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
    dom = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120).stdout
    bad, _, count = re.search(r"<p id=\"found\">(.*?)</p>", dom)[1].rpartition(" ")
    assert bad == "[]"
    assert int(count) > 30

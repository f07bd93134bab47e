"""The page of a proof: what it says, that it stands alone, that it is safe, and how it looks in a browser."""

import dataclasses
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import converter
from converter import ConversionError, ProofError
from converter.pages.proof import proof_page, save_html, shown
from converter.report import Comparison, Lossless, Numerical, Report
from tests.support import converted
from tests.support.checkpoints import prefixed, save
from tests.support.pairs import registered
from tests.support.running import run_forked
from tests.support.small_sam import decoder_state

EVIL = "a<script>alert('1')</script>\"&\x1b[31m\u202e\n"


class Read(HTMLParser):
    """What a page consists of; a tag that is not closed, or closed by another, is an error."""

    VOID = frozenset({"meta"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.styles = [], [], "", ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        if name not in self.VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.styles += data
        else:
            self.text += f"{data}\n"

    def of(self, name):
        return [attributes for one, attributes in self.tags if one == name]


def comparison(name, ratio, note=""):
    return Comparison(name, error=ratio * 2e-5, allowed=2e-5, torch_error=1e-6, scale=1.5, note=note)


def report(differs=True, name="encoder.layers.{}.a_rather_long_name_of_a_module.attention"):
    """A report of 30 layers with long names, of which the last ten differ."""
    names = [name.format(number) for number in range(30)]
    wrong = [differs and number >= 20 for number in range(30)]
    layers = [comparison(one, 40.0 if bad else 0.2) for one, bad in zip(names, wrong, strict=True)]
    if differs:
        layers[25] = comparison(names[25], 0.0, "its result has another shape")
    between = [comparison(one, 300.0 if bad else 0.01) for one, bad in zip(names[1:], wrong[1:], strict=True)]
    between[3] = comparison(names[4], 0.0)
    numerical = Numerical((comparison("masks", 9.0 if differs else 0.5),), tuple(layers), tuple(between), probes=1)
    return Report(
        "some_model", {"width": 3}, Path("/data/checkpoint.pth"), "0f" * 32, "official", Path("o.weights.h5"), 60, 59,
        10**7, "float32", numerical=numerical, lossless=Lossless(60, 10**7), seconds=1.0,
    )  # fmt: skip


def test_what_it_says_of_a_proof_that_fails():
    given = report()
    page = Read(proof_page(given))
    assert f"The proof failed; nothing was written: {given.failure()}" in page.text
    first = given.numerical.first_difference
    assert first.name in page.text
    assert "8.000e-04, 40 times what is allowed" in page.text
    for number, what in (("20 of 30", "layers agree"), ("19 of 29", "inputs agree"), ("0 of 1", "outputs agree")):
        assert re.search(rf"{number}\n+ {what}", page.text)
    rows = [one for one in page.of("tr") if one.get("id", "").startswith("proof")]
    assert len(rows) == 60 == len(given.numerical.comparisons)
    assert sum(one.get("class") == "bad" for one in rows) == 21
    assert "DIFFERS: its result has another shape" in page.text
    assert "0f" * 32 in page.text
    assert "written in" not in page.text


def test_every_comparison_is_in_the_plot_in_the_order_of_the_network():
    page = Read(proof_page(report()))
    uses = page.of("use")
    assert [one["href"] for one in uses].count("#mark-differs") == 21
    assert len(uses) == 60
    links = [one["href"][1:] for one in page.of("a")]
    assert set(links) == {one["id"] for one in page.of("tr") if "id" in one}, "each leads to its row"
    at = {link: (float(one["x"].rstrip("%")), float(one["y"])) for link, one in zip(links, uses, strict=True)}
    # proof0 is the first layer, proof1 what reaches the second, proof2 that layer, ..., proof59 the output.
    assert at["proof1"][0] == at["proof2"][0] > at["proof0"][0]
    assert max(at.values())[0] == at["proof59"][0]
    (allowed,) = [float(one["y1"]) for one in page.of("line") if one["class"] == "one"]
    assert [y < allowed for _, y in at.values()] == [one["href"] == "#mark-differs" for one in uses]
    ratios = {"proof0": 0.2, "proof1": 0.01, "proof58": 40.0, "proof57": 300.0}
    steps = {link: np.log10(ratio) for link, ratio in ratios.items()}
    scale = (at["proof1"][1] - at["proof0"][1]) / (steps["proof0"] - steps["proof1"])
    for link, step in steps.items():
        assert at[link][1] == pytest.approx(allowed - step * scale, abs=0.2), "the scale is logarithmic"
    assert at["proof7"][1] == max(y for _, y in at.values()), "an error of 0 is at the lower edge"
    assert at["proof50"][1] == min(y for _, y in at.values()), "what cannot be compared is at the upper edge"
    assert len(page.of("title")) == 61, "what one points at is told"


def test_what_it_says_of_proofs_that_pass_or_did_not_run():
    passed = Read(proof_page(report(differs=False)))
    assert "The proof passed: every layer, every output and every variable." in passed.text
    assert "#mark-differs" not in [one["href"] for one in passed.of("use")]
    assert "The first difference" not in passed.text
    assert "o.weights.h5 in 1.0 s" in passed.text
    full = report(differs=False)
    partial = dataclasses.replace(full, numerical=dataclasses.replace(full.numerical, unproven=("a.kernel",)))
    assert "The proof passed, and is not full: some variables are unproven." in Read(proof_page(partial)).text
    lossless = dataclasses.replace(full, numerical=Numerical(ran=False))
    assert "The tensors arrived bit for bit." in Read(proof_page(lossless)).text
    nothing = dataclasses.replace(lossless, lossless=Lossless(ran=False))
    assert "Nothing was proven, as asked." in Read(proof_page(nothing)).text
    assert Read(proof_page(nothing)).of("use") == []


@pytest.mark.parametrize("differs", [True, False])
def test_it_stands_alone_and_nothing_in_it_runs(differs):
    text = proof_page(report(differs))
    page = Read(text)
    assert {name for name, _ in page.tags} <= {
        "html", "head", "meta", "title", "style", "body", "header", "main", "section", "details", "summary", "h1", "h2",
        "p", "ul", "li", "b", "dl", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption",
        "div", "svg", "defs", "path", "line", "use", "text", "a",
    }  # fmt: skip
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "action")]
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in page.styles
    assert "@import" not in page.styles
    assert "default-src 'none'" in text
    assert "//" not in text.replace("/data/", "")


def test_text_from_files_is_text():
    given = report(name=EVIL + "{}")
    given = dataclasses.replace(
        given, model=EVIL, source=Path(f"/{EVIL}"), dialect=EVIL, notes=[EVIL], out_of_scope={EVIL: 3},
        lossless=Lossless(1, 1, differing=(EVIL,)), dropped={EVIL: EVIL}, config={EVIL: EVIL},
    )  # fmt: skip
    text = proof_page(given)
    page = Read(text)
    assert "script" not in {name for name, _ in page.tags}
    assert "<script>alert" in page.text
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "\u202e" not in text


def test_the_plan_is_folded_away(tmp_path):
    with registered(converted.PAIR):
        converted.convert(tmp_path)
        given = converter.convert("stack", tmp_path / "0.pth", tmp_path / "again.weights.h5", "lossless")
    page = Read(proof_page(given))
    assert len(page.of("details")) == 1
    assert "The plan: 8 tensors" in page.text
    assert "dense.1.weight" in page.text
    assert "o i -> i o" in page.text
    assert "plan" not in given.to_dict(), "JSON has it by --dry-run"
    json.dumps(given.to_dict())


def wrong_epsilon():
    """The pair whose TensorFlow side has another epsilon: the tensors arrive, and the networks differ."""

    def build(**config):
        model = converted.build_tf(**config)
        for norm in model.norm:
            norm.epsilon = 0.1
        return model

    return dataclasses.replace(converted.PAIR, build_tf=build)


def test_the_page_of_a_conversion_that_fails_is_written_and_nothing_else(tmp_path):
    with registered(converted.PAIR):
        converted.convert(tmp_path)
    page = tmp_path / "report.html"
    with (
        registered(wrong_epsilon()),
        pytest.raises(ProofError, match=r"^the proof failed, nothing was written: .*report\.html shows it$") as caught,
        shown(page, False) as show,
    ):
        show(converter.convert("stack", tmp_path / "0.pth", tmp_path / "new.weights.h5"))
    assert not (tmp_path / "new.weights.h5").exists()
    read = Read(page.read_text())
    assert caught.value.report.numerical.first_difference.name == "norm.0"
    assert re.search(r"\nin\n+norm\.0\n", read.text)
    assert "#mark-differs" in [one["href"] for one in read.of("use")]
    with pytest.raises(ConversionError, match="exists; --overwrite replaces it"), shown(page, False):
        raise AssertionError("refused before any work")
    with pytest.raises(ConversionError, match=r"must end in \.html"):
        save_html(caught.value.report, tmp_path / "report.pdf")
    assert save_html(caught.value.report, page, overwrite=True) == page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.pth", "0.weights.h5", "report.html"]


def test_the_commands(tmp_path):
    save(prefixed(decoder_state(), "mask_decoder."), tmp_path)
    save(prefixed(decoder_state(seed=1), "mask_decoder."), tmp_path, "other.pth")
    convert = ("convert", "ckpt.pth", "--option", "num_heads=4", "--verify", "lossless", "-o", "o.weights.h5")
    done = run_forked(*convert, "--html", "report.html", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^page +report\.html$", done.stdout, re.M)
    assert "The tensors arrived bit for bit" in (tmp_path / "report.html").read_text()
    verify = ("weightbridge", "verify", "other.pth", "o.weights.h5", "--level", "lossless", "--html", "report.html")
    done = run_forked(*verify, cwd=tmp_path)
    assert done.stderr == "error: the output report.html exists; --overwrite replaces it\n"
    done = run_forked(*verify, "--overwrite", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the proof failed: lossless: 120 tensors differ")
    page = Read((tmp_path / "report.html").read_text())
    assert "The proof failed: lossless: 120 tensors differ" in page.text
    assert "Tensors that differ: mask_decoder.iou_token.weight, " in page.text
    done = run_forked("convert", "ckpt.pth", "--dry-run", "--html", "other.html", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: --html shows a proof, and --dry-run has none\n")
    done = run_forked("convert", "ckpt.pth", "--html", "report.txt", cwd=tmp_path)
    assert "must end in .html" in done.stderr


# --- In a browser ----------------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_a_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium here; `.ci/run` installs it where it can")

# The page in frames as wide as screens are, and what a script outside of them measures there.
MEASURE = """<!doctype html><body><pre id="found"></pre>
<iframe width="390" height="800" srcdoc="{page}"></iframe><iframe width="1200" height="800" srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const seen = frame.contentDocument, box = one => one.getBoundingClientRect();
    const style = one => frame.contentWindow.getComputedStyle(seen.querySelector(one));
    return {{
      width: seen.documentElement.scrollWidth, screen: seen.documentElement.clientWidth,
      beyond: [...seen.querySelectorAll("main *")].filter(one => box(one).right > seen.documentElement.clientWidth + 6)
        .map(one => one.outerHTML.slice(0, 200)),
      head: style("thead").display, row: style("tbody tr").display,
      allowed: box(seen.querySelector("line.one")).top,
      marks: [...seen.querySelectorAll("use")].map(one => [one.getAttribute("href"), box(one).top + box(one).height / 2,
        box(one).width]),
      loaded: frame.contentWindow.performance.getEntriesByType("resource").length,
    }};
  }});
  document.getElementById("found").textContent = JSON.stringify(found);
}});
</script></body>"""


def browse(folder, file, *options):
    done = subprocess.run(
        [
            BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'browser'}", *options,
            (folder / file).as_uri(),
        ],
        cwd=folder, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


@in_a_browser
def test_in_a_browser_nothing_is_wider_than_a_phone_and_marks_are_where_they_belong(tmp_path):
    page = html.escape(proof_page(report(name="encoder.{}." + "a_name_without_an_end" * 9)))
    (tmp_path / "measure.html").write_text(MEASURE.format(page=page))
    dom = browse(tmp_path, "measure.html", "--dump-dom")
    phone, desk = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom)[1]))
    for seen, screen in ((phone, 390), (desk, 1200)):
        assert seen["width"] <= seen["screen"] == screen, "the page is not to be scrolled sideways"
        assert seen["beyond"] == []
        assert len(seen["marks"]) == 60
        for href, y, width in seen["marks"]:
            assert width > 4
            assert (y < seen["allowed"]) == (href == "#mark-differs")
        assert seen["loaded"] == 0
    assert (phone["head"], phone["row"]) == ("none", "block"), "on a phone the table folds"
    assert (desk["head"], desk["row"]) == ("table-header-group", "table-row")


@in_a_browser
@pytest.mark.parametrize("differs", [True, False])
def test_in_a_browser_one_sees_what_differs(tmp_path, differs):
    (tmp_path / "report.html").write_text(proof_page(report(differs)))
    browse(tmp_path, "report.html", "--window-size=1200,1400", f"--screenshot={tmp_path / 'seen.png'}")
    with Image.open(tmp_path / "seen.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)

    def painted(colour):
        return (abs(pixels - colour).max(axis=2) < 12).sum()

    assert painted((0x00, 0x72, 0xB2)) > 20 * 20, "discs of layers"
    assert (painted((0xD5, 0x5E, 0x00)) > 20 * 20) == differs, "crosses"

"""The report of trainings of a few seconds: what it finds, that it needs nothing else, that all can read it.

Three trainings of ``train.py`` on digits, some ten seconds of CPU.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train
from pipeline.data import load_data
from pipeline.report import NoReport, plots, report
from pipeline.report.__main__ import main
from pipeline.samples import NotSamples, Samples

RARE = ["5", "6", "7", "8", "9"]  # of digits-longtail: 11, 7, 5, 3 and 2 samples of 280


@pytest.fixture(autouse=True, scope="module")
def coarse() -> Iterator[None]:
    """Small pictures: to draw them takes longer than all else here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plots, "DPI", 50)
        yield


def trained(folder: Path, *options: str) -> Path:
    assert train.main(["--output", str(folder), "--quiet", *options]) == 0
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A uniform run, and one by importance beside it, named as ``train.py`` does."""
    root = tmp_path_factory.mktemp("runs")
    for sampling in ("uniform", "importance"):
        trained(root / f"digits-longtail-{sampling}-0", "--dataset", "digits-longtail", "--sampling", sampling)
    return root


@pytest.fixture(scope="module")
def longtail(runs: Path) -> Path:
    return runs / "digits-longtail-importance-0"


class Seen(HTMLParser):
    """What of a page is looked at here."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.alts: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if "href" in found else []
        self.sources += [found[name] for name in ("src", "srcset") if name in found]
        self.alts += [found.get("alt", "")] if tag == "img" else []

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


@pytest.fixture(scope="module")
def page(longtail: Path) -> Seen:
    return Seen((longtail / "report.html").read_text())


# --- what it finds --------------------------------------------------------------------------------


def test_rare_classes_are_found_and_were_looked_at_more(longtail: Path, page: Seen) -> None:
    found = re.search(r"Rare are the classes (.*?): each has .*? drawn ([\d.]+) times as often", page.words)
    assert found is not None
    assert re.findall(r"(\d) \(", found[1]) == RARE
    samples = Samples.read(longtail / "samples.npz")
    rare = np.isin(samples.y, [int(name) for name in RARE])
    attention = samples.drawn[rare].sum() / samples.drawn.sum() / rare.mean()
    assert float(found[2]) == pytest.approx(attention, abs=0.006)
    assert attention > 1.5


@pytest.mark.parametrize("sampling", [pytest.param("uniform", marks=pytest.mark.soak), "importance"])
def test_wrong_labels_are_the_first_suspects(sampling: str, tmp_path: Path) -> None:
    """Of 5 % planted wrong labels at least 80 % are within the first tenth of the list."""
    data, rng = load_data("digits"), np.random.default_rng(1)
    wrong, y = rng.permutation(len(data))[: round(0.05 * len(data))], data.y.copy()
    y[wrong] = (y[wrong] + rng.integers(1, 10, wrong.size)) % 10
    np.savez(tmp_path / "noisy.npz", x=data.x, y=y, x_test=data.x_test, y_test=data.y_test)
    options = ("--dataset", f"npz:{tmp_path / 'noisy.npz'}", "--sampling", sampling, "--epochs", "8")
    folder = trained(tmp_path / "run", *options)
    with (folder / "suspects.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["rank"]) for row in rows] == list(range(1, len(data) + 1))
    assert sorted(int(row["index"]) for row in rows) == list(range(len(data)))
    first = {int(row["index"]) for row in rows[: len(data) // 10]}
    assert len(first & set(wrong.tolist())) >= 0.8 * wrong.size
    assert all(int(row["label"]) == y[int(row["index"])] for row in rows)
    same = sum(row["label"] == row["prediction"] for row in rows[:20])
    assert (
        f"the model at the end predicts {same or 'none'} as they are labelled" in (folder / "report.html").read_text()
    )


def test_weights_bring_every_class_back_to_its_share(longtail: Path) -> None:
    """Four standard errors for each of ten classes: a false alarm in 1,500 seeds, and the seed is fixed."""
    samples = Samples.read(longtail / "samples.npz")
    total = samples.weight.sum()
    for k in range(10):
        of_class = samples.y == k
        error = np.sqrt(samples.weight_squares[of_class].sum()) / total
        assert abs(samples.weight[of_class].sum() / total - of_class.mean()) < 4.0 * error
    assert abs(samples.drawn[samples.y == 0].sum() / samples.drawn.sum() - (samples.y == 0).mean()) > 0.05  # unweighted


def test_the_uniform_run_beside_it_is_drawn_too(runs: Path, page: Seen) -> None:
    uniform = json.loads((runs / "digits-longtail-uniform-0" / "summary.json").read_text())["test_loss"]
    assert f"{uniform:.4g} in the uniform run beside it" in page.words
    assert any("uniform from" in alt and "importance from" in alt for alt in page.alts)


def test_a_named_run_is_drawn_beside(runs: Path, longtail: Path, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    shutil.copytree(longtail, folder)
    assert "no uniform run beside it" in Seen(report(folder).read_text()).words
    again = Seen(report(folder, uniform=runs / "digits-longtail-uniform-0").read_text())
    assert "in the uniform run beside it" in again.words


# --- how it is made -------------------------------------------------------------------------------


def test_it_needs_no_other_file(page: Seen) -> None:
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert not {"script", "iframe", "link", "object"} & set(page.tags)


def test_it_can_be_read_by_those_who_do_not_see_it(longtail: Path, page: Seen) -> None:
    assert all(len(alt) > 10 for alt in page.alts)
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("h1") == page.tags.count("main") == 1
    assert page.tags.count("caption") == page.tags.count("table") > 0
    assert '<html lang="en">' in (longtail / "report.html").read_text()


def test_plots_lie_beside_it_for_light_and_dark(longtail: Path) -> None:
    names = {path.stem for path in (longtail / "plots").glob("*.png")}
    light = {name for name in names if not name.endswith("-dark")}
    assert {"test-loss-step", "test-loss-seconds", "losses", "sampling", "data-map", "ages"} <= light
    assert names == light | {f"{name}-dark" for name in light}
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in (longtail / "plots").glob("*.png"))


def test_names_cannot_put_anything_into_the_page(longtail: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(longtail, folder)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "dataset": "<script>alert(1)</script>"}))
    seen = Seen(report(folder).read_text())
    assert "script" not in seen.tags
    assert "<script>alert(1)</script>" in seen.words


def test_of_quantities_too(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "--dataset", "peaks", "--budget", "200steps", "--model", "linear")
    seen = Seen((folder / "report.html").read_text())
    assert "tenth 10" in seen.words
    assert not (folder / "suspects.csv").exists()
    assert "Labels that may be wrong" not in seen.words


def test_of_a_comparison(tmp_path: Path) -> None:
    options = (
        "--dataset",
        "digits",
        "--compare",
        "uniform,importance",
        "--seeds",
        "2",
        "--epochs",
        "2",
        "--model",
        "linear",
    )
    folder = trained(tmp_path / "run", *options)
    seen = Seen((folder / "report.html").read_text())
    verdict = json.loads((folder / "comparison.json").read_text())["verdict"].splitlines()[0]
    assert verdict in seen.words
    assert "dataset digits, model linear, length 2epochs, 2 seeds each" in seen.words
    found = json.loads((folder / "comparison.json").read_text())["summaries"]["importance"]
    assert f"{found['test_loss']['mean']:.4g} ±" in seen.words
    ratio = "{against:.2f} ({low:.2f} to {high:.2f})".format(**found["seconds"])
    assert ratio in seen.words
    assert (folder / "plots" / "test-loss-step.png").exists()


def test_none_is_written_where_it_is_not_wanted(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "--dataset", "digits", "--epochs", "1", "--no-report", "--model", "linear")
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "history.csv", "snapshots", "summary.json"}


@pytest.mark.parametrize("error", [ImportError("No module named 'jinja2'"), OSError(28, "No space left on device")])
def test_a_result_without_a_page_is_a_result(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(folder: Path) -> None:
        raise error

    monkeypatch.setattr("pipeline.report.report", failing)
    options = ["--dataset", "digits-longtail", "--epochs", "1", "--model", "linear"]
    assert train.main(["--output", str(tmp_path), *options]) == 0
    told = capsys.readouterr().out
    assert f"{tmp_path}, without report.html ({error}" in told
    assert "to look at" not in told
    assert ("the extra report has it" in told) == isinstance(error, ImportError)
    assert (tmp_path / "summary.json").exists()


# --- what is no run -------------------------------------------------------------------------------


def test_what_is_no_run_is_said(longtail: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err
    with pytest.raises(NoReport, match="holds neither summary"):
        report(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(NoReport, match="is not finished"):
        report(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(NoReport, match="cannot be read"):
        report(tmp_path)
    shutil.copy(longtail / "summary.json", tmp_path)
    (tmp_path / "history.csv").write_text("step,test_loss\n1,high\n")
    with pytest.raises(NoReport, match="no number"):
        report(tmp_path)


@pytest.fixture
def copied(longtail: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(longtail, tmp_path / "run"))


def changed(path: Path, **values: Any) -> None:
    """Put values into a file of JSON; ... takes one out."""
    found = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not ...}))


@pytest.mark.parametrize("name", ["sampling", "dataset", "model", "parameters", "steps", "seconds"])
@pytest.mark.parametrize("value", [..., None, [1], {}])
def test_a_summary_of_something_else_is_said(name: str, value: Any, copied: Path) -> None:
    changed(copied / "summary.json", **{name: value})
    with pytest.raises(NoReport, match=rf"summary.json holds no result: {name} is "):
        report(copied)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("summary.json", "[" * 100_000, "cannot be read"),
        ("summary.json", "[]", "holds no result"),
        ("summary.json", "\ud800", "cannot be read"),
        ("summary.json", '{"sampler": []}', "holds no result"),
        ("history.csv", "epoch,step\n1\n", "different lengths"),
        ("history.csv", "epoch,step,gain\n1,2,1e308\n", "a number beyond 1e[+]300"),
        ("history.csv", "epoch,step\n1,2,3\n", "different lengths"),
        ("history.csv", "epoch,loss\n1,2\n", "a row without step"),
        ("curve.csv", "step,test_loss\n1,2\n", "a row without seconds"),
        ("losses.csv", "step,mean\n1,2\n", "a row without loss_0.05, "),
        ("losses.csv", "step,mean\n1,\udcff\n", "cannot be read"),
        ("losses.csv", "step,mean\n1," + "1" * 200_000 + "\n", "cannot be read"),
        ("comparison.json", "{}", "holds no result: methods is None"),
        ("comparison.json", '{"methods": [1], "seeds": []}', "no names"),
        ("comparison.json", '{"methods": [], "seeds": []}', "no names"),
        ("comparison.json", '{"methods": ["a"], "seeds": [0], "summaries": []}', "summaries is"),
        ("comparison.json", '{"methods": ["a"], "seeds": [0], "summaries": {"a": [1]}}', r"a is \[1\]"),
        ("comparison.json", '{"methods": ["a"], "seeds": [0], "summaries": {"a": {"steps": 3}}}', "steps is 3"),
        (
            "comparison.json",
            '{"methods": ["a"], "seeds": [0], "summaries": {"a": {"steps": {"mean": 1%s}}}}' % ("0" * 400),
            "mean is 1000",
        ),
    ],
)
def test_damaged_files_are_said(name: str, text: str, said: str, copied: Path) -> None:
    (copied / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(NoReport, match=said):
        report(copied)


@pytest.mark.parametrize("name", ["seconds", "test_loss", "learning_rate"])
def test_numbers_that_are_none_are_said(name: str, copied: Path) -> None:
    changed(copied / "summary.json", **{name: -(10**400)})
    with pytest.raises(NoReport, match=f"{name} is -1000"):
        report(copied)


def test_half_of_a_surrogate_is_shown_as_a_question(copied: Path) -> None:
    changed(copied / "summary.json", dataset="a\udcff")
    assert "on a?" in report(copied).read_text()


def test_a_comparison_without_losses_or_means_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text('{"methods": ["uniform", "other"], "seeds": [0]}')
    (tmp_path / "curves.csv").write_text("method,step,seconds\nuniform,1,2\n")
    assert "other against uniform" in Seen(report(tmp_path).read_text()).words


def test_damaged_curves_of_a_comparison_are_said(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text('{"methods": ["uniform"], "seeds": [0]}')
    (tmp_path / "curves.csv").write_text("method,step,seconds,test_loss\nuniform,1,soon,2\n")
    with pytest.raises(NoReport, match="no number"):
        report(tmp_path)


@pytest.mark.parametrize(
    "arrays",
    [
        {"y": np.zeros((3, 2, 2))},
        {"y": np.array(["a", "b"])},
        {"loss": np.zeros(3, int)},
        {"loss": np.zeros(2)},
        {"num_classes": np.zeros(2, int)},
        {"num_classes": np.array("ten")},
        {"shown": np.array([10**6])},
        {"shown": np.array([-1]), "shown_x": np.zeros((1, 8, 8))},
        {"shown_x": np.array([None])},
        {"prediction": np.zeros((280, 2))},
        {"y": np.full(280, 0.5)},
        dict.fromkeys(("y", "loss", "prediction", "drawn", "mean", "deviation"), np.zeros(0)),
    ],
)
def test_samples_of_something_else_are_said(arrays: dict[str, Any], copied: Path) -> None:
    with np.load(copied / "samples.npz") as found:
        np.savez(copied / "samples.npz", **{**found, **arrays})
    with pytest.raises(NoReport, match=r"samples\.npz holds no samples of a training"):
        report(copied)


def test_samples_with_any_byte_damaged_are_read_or_said(copied: Path) -> None:
    """A thousand damages at random: cut, overwritten, doubled."""
    whole, rng = (copied / "samples.npz").read_bytes(), np.random.default_rng(0)
    read = 0
    for _ in range(1000):
        damaged = bytearray(whole)
        at = int(rng.integers(len(whole)))
        match rng.integers(4):
            case 0:
                del damaged[at:]
            case 1:
                damaged[at] = rng.integers(256)
            case 2:
                damaged[at : at + 8] = rng.bytes(8)
            case _:
                damaged[at:at] = damaged[at : at + 100]
        (copied / "samples.npz").write_bytes(damaged)
        with contextlib.suppress(NotSamples):
            Samples.read(copied / "samples.npz")
            read += 1
    assert 0 < read < 500


def test_an_array_instead_of_samples_is_said(copied: Path) -> None:
    with (copied / "samples.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(NoReport, match="holds no samples of a training"):
        report(copied)


def test_what_a_summary_need_not_have_may_be_missing(copied: Path) -> None:
    """And names may be long, or look like formulas to matplotlib."""
    missing = dict.fromkeys(("test_loss", "test_accuracy", "train_loss", "learning_rate", "sampler"), None)
    changed(copied / "summary.json", **missing, sampling="$\\frac$" + "long" * 30, batch_size=..., seed=...)
    for name in ("history.csv", "losses.csv", "samples.npz", "curve.csv"):
        (copied / name).unlink(missing_ok=True)
    (copied / "curve.csv").write_text("step,seconds,test_loss\n1,1.5,2\n2,2.5,inf\n3,3.5,nan\n")
    other = shutil.copytree(copied, copied.parent / "$a_{")
    assert "$\\frac$long" in Seen(report(copied, uniform=other).read_text()).words


def test_the_command_says_where_the_page_is(longtail: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(longtail)]) == 0
    assert capsys.readouterr().out == f"{longtail / 'report.html'}\n"


# --- in a browser ---------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [360, 1100])
def test_nothing_is_wider_than_the_screen_and_all_pictures_are_drawn(
    longtail: Path, width: int, tmp_path: Path
) -> None:
    """In a frame of that width, as a browser's own window is never narrower than 500."""
    script = (
        "<script>addEventListener('load', () => { const images = [...document.images];"
        "document.title = [document.documentElement.scrollWidth, images.length,"
        "images.filter(one => one.complete && one.naturalWidth > 0).length].join(' ');"
        "parent.postMessage(document.title, '*') })</script>"
    )
    inner = (longtail / "report.html").read_text().replace("</body>", script + "</body>")
    (tmp_path / "inner.html").write_text(inner)
    outer = (
        f"<iframe id=f src=inner.html width={width} height=900 style='border:0'></iframe><p id=out></p>"
        "<script>addEventListener('message', told => { out.textContent = told.data })</script>"
    )
    (tmp_path / "outer.html").write_text(outer)
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=20000", "--dump-dom", (tmp_path / "outer.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
    found = re.search(r'<p id="out">(\d+) (\d+) (\d+)</p>', dom)
    assert found is not None, dom[-500:]
    wide, images, drawn = map(int, found.groups())
    assert wide <= width
    assert images == drawn > 10

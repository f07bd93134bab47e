"""Runs over many pictures on Apache Beam: nothing is lost, nothing done twice, broken pictures are listed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from tests.pictures.elsewhere import SCHEME
from tests.support.many_pictures import MeanColour, break_pictures, pixels, write_pictures
from tests.support.running import ROOT, environment
from tests.support.sam_sides import save_small, small_sides
from tf_models.pictures.listing import in_folder
from tf_models.pictures.reading import PictureError
from tf_models.pictures.results import Results
from tf_models.pictures.running import over


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Weights, which the task only looks for; 200 pictures, 10 of them broken; and the results of a run in one go."""
    home = tmp_path_factory.mktemp("many")
    save_small(small_sides().torch, home / "w.weights.h5")
    names = write_pictures(home / "pictures", 200)
    (home / "reasons.json").write_text(json.dumps(break_pictures(home / "pictures", names[3::20])))
    go(home, "whole")
    return home


def go(home, output, task=None, pictures="pictures", **options):
    task = task or MeanColour()
    options = {"shard_size": 16, "batch_size": 3, **options}
    return over(task, str(home / "w.weights.h5"), str(home / pictures), str(home / output), **options)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def outcomes(folder):
    """How many pictures have an outcome."""
    done = sum(json.loads(path.read_bytes())["pictures"] for path in folder.glob("done/*.json"))
    return done + sum(
        not (folder / "done" / f"{path.parent.name}.json").exists() for path in folder.glob("partial/*/*.json")
    )


def annotations(folder):
    """File name -> its annotations, of all parts."""
    found = {}
    for path in sorted(folder.glob("part-*.json")):
        part = json.loads(path.read_bytes())
        names = {image["id"]: image["file_name"] for image in part["images"]}
        for name in names.values():
            assert name not in found
            found[name] = []
        for one in part["annotations"]:
            found[names[one["image_id"]]].append(one)
    return found


def test_every_picture_has_its_result_and_broken_ones_are_listed(home):
    reasons = json.loads((home / "reasons.json").read_text())
    found = annotations(home / "whole")
    assert len(found) == 190
    for name, (one,) in found.items():
        assert one["mean"] == pixels(int(Path(name).stem)).mean()
    listed = {error["file_name"]: error["reason"] for error in json.loads((home / "whole" / "errors.json").read_text())}
    assert listed.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in listed[name]
        assert listed[name].startswith(name) or reason.startswith("the task")
    assert not (home / "whole" / "partial").exists()


def test_a_part_is_a_coco_dataset(home, capsys):
    numbers = set()
    for path in sorted((home / "whole").glob("part-*.json")):
        coco = COCO(path)
        for image in coco.loadImgs(coco.getImgIds()):
            (one,) = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
            assert coco.annToMask(one).shape == (image["height"], image["width"])
            assert coco.annToMask(one).all()
            numbers |= {image["id"], one["id"]}
    assert len(numbers) == 2 * 190
    capsys.readouterr()


def test_a_second_start_does_nothing_again(home):
    before = {path: path.stat().st_mtime_ns for path in (home / "whole").glob("*art-*")}
    assert len(before) == 13
    summary = go(home, "whole", MeanColour(seen=home / "seen_again"))
    assert not (home / "seen_again").exists()
    assert (summary.pictures, summary.annotations, len(summary.errors)) == (200, 190, 10)
    assert str(summary).splitlines() == ["pictures  200, annotations 190", "broken    10, listed in errors.json"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def started(command):
    environ = {**environment(), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, start_new_session=True)


def killed(command, home, output, enough, wait=0.0):
    """Start a run, kill it when so many pictures have an outcome, after a while; whether it was still running."""
    process = started(command)
    while process.poll() is None and outcomes(home / output) < enough:
        time.sleep(0.01)
    time.sleep(wait)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def test_a_batch_of_which_a_worker_wrote_only_some_is_as_it_was(home):
    """Results may depend, by a rounding, on what is in the network at once."""
    results = Results(str(home / "some"), MeanColour().categories)
    part = json.loads((home / "whole" / "part-00001.json").read_text())
    results.begin(json.loads((home / "whole" / "run.json").read_text()))
    results.plan(in_folder(str(home / "pictures")), 16)
    shard = list(results.shards())[1]
    for image, one in list(zip(part["images"], part["annotations"], strict=True))[:5:2]:
        outcome = {"width": image["width"], "height": image["height"]}
        kept = {key: value for key, value in one.items() if key not in ("id", "image_id")}
        results.record(shard, image["id"] - 1 - shard.first, {**outcome, "annotations": [kept]})
    go(home, "some")
    assert contents(home / "some") == contents(home / "whole")


def test_files_that_a_killed_run_had_half_written_are_gone_at_the_end(few):
    go(few, "whole", shard_size=4)
    (few / "out" / "done").mkdir(parents=True)
    (few / "out" / "run.json").write_bytes((few / "whole" / "run.json").read_bytes())
    for name in (".part-00001.json.845ccd17.partial", "done/.00001.json.845ccd17.partial"):
        (few / "out" / name).write_text('{"images":[')
    (few / "out" / ".mine").write_text("a user's")
    go(few, "out", shard_size=4)
    assert contents(few / "out") == {**contents(few / "whole"), ".mine": b"a user's"}


def mean_colours(home, output, seconds=0.01):
    names = (home / "w.weights.h5", home / "pictures", home / output, home / f"{output}.seen", seconds)
    return [sys.executable, "-m", "tests.support.many_pictures", *map(str, names)]


def test_a_killed_run_goes_on_where_it_was(home):
    assert killed(mean_colours(home, "killed"), home, "killed", 50)
    seen = home / "killed.seen"
    assert 45 <= len(seen.read_text().splitlines()) < 190
    go(home, "killed", MeanColour(seen))
    assert contents(home / "killed") == contents(home / "whole")
    computed = seen.read_text().splitlines()
    assert len(set(computed)) == 190
    assert len(computed) <= 190 + 3, "only the batch that was in the network when it was killed is computed again"


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing(home):
    rng = random.Random(0)
    kills = 0
    while kills < 20:
        target = outcomes(home / "twenty") + rng.randint(0, 8)
        wait = rng.random() * (0.05 if target else 4)
        kills += killed(mean_colours(home, "twenty"), home, "twenty", target, wait)
    assert outcomes(home / "twenty") < 200, "the last kill was before the end"
    seen = home / "twenty.seen"
    go(home, "twenty", MeanColour(seen))
    assert contents(home / "twenty") == contents(home / "whole")
    computed = seen.read_text().splitlines()
    assert len(set(computed)) == 190
    assert len(computed) <= 190 + 3 * kills


def test_ctrl_c_ends_a_run_in_a_line(home):
    process = started(mean_colours(home, "interrupted", seconds=0.05))
    while process.poll() is None and outcomes(home / "interrupted") < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == b"error: interrupted\n"
    assert process.returncode == 130
    assert 5 <= outcomes(home / "interrupted") < 200
    go(home, "interrupted")
    assert contents(home / "interrupted") == contents(home / "whole")


# --- What changed between two starts ---------------------------------------------------------------------------------


@pytest.fixture
def few(home, tmp_path):
    """A home of its own with seven pictures."""
    (tmp_path / "w.weights.h5").write_bytes((home / "w.weights.h5").read_bytes())
    write_pictures(tmp_path / "pictures", 7)
    return tmp_path


def test_pictures_that_came_later_are_done_too(few):
    go(few, "out", shard_size=4)
    before = {name: data for name, data in contents(few / "out").items() if name.startswith("part-")}
    assert len(before) == 2
    write_pictures(few / "pictures", 10)
    (few / "pictures" / "a" / "0000.png").unlink()
    seen = few / "seen"
    assert go(few, "out", MeanColour(seen), shard_size=4).pictures == 10
    assert len(seen.read_text().splitlines()) == 3
    after = contents(few / "out")
    assert {name: after[name] for name in before} == before
    assert len(annotations(few / "out")) == 10


def test_broken_pictures_are_tried_again_when_that_is_asked_for(few):
    broken = few / "pictures" / "a" / "0002.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    (few / "pictures" / "a" / "0004.png").write_bytes(b"")
    assert len(go(few, "out").errors) == 2
    broken.write_bytes(whole)
    assert len(go(few, "out").errors) == 2
    summary = go(few, "out", retry=True)
    assert summary.errors == [
        {"file_name": "a/0004.png", "reason": "a/0004.png is not a picture, or of an unknown format"}
    ]
    assert (summary.pictures, summary.annotations) == (7, 6)
    assert json.loads((few / "out" / "errors.json").read_text()) == summary.errors
    assert annotations(few / "out")["a/0002.png"][0]["mean"] == pixels(2).mean()


def test_results_of_something_else_are_refused(few):
    go(few, "out")
    before = contents(few / "out")
    with pytest.raises(
        PictureError, match=r'out is of a run with another options: it had options \{"factor": 1\}, now'
    ):
        go(few, "out", MeanColour(factor=2))
    write_pictures(few / "others", 2)
    with pytest.raises(
        PictureError, match=r"another pictures: .*pictures\"?, now .*others\"?; give what it had, or name"
    ):
        go(few, "out", pictures="others")
    weights = few / "w.weights.h5"
    weights.write_bytes(weights.read_bytes() + b"\0")
    with pytest.raises(PictureError, match="another weights_sha256"):
        go(few, "out")
    (few / "full").mkdir()
    (few / "full" / "letter.txt").write_text("mine")
    with pytest.raises(PictureError, match=r"full holds other files and no run.json"):
        go(few, "full")
    assert contents(few / "out") == before


def test_two_runs_do_not_fill_one_folder(few):
    import fcntl

    go(few, "out")
    with open(few / "out" / "run.json", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(PictureError, match=r"another run is filling .*out; wait for it, or end it"):
            go(few, "out")


# --- What pictures are named by --------------------------------------------------------------------------------------


def test_a_list_and_prompts(few, monkeypatch):
    monkeypatch.chdir(few)
    (few / "some.txt").write_text("pictures/a/0002.png\n\npictures/b/c/0001.png\npictures/a/0002.png\npictures\n")
    summary = go(few, "listed", pictures="some.txt")
    assert list(annotations(few / "listed")) == ["pictures/a/0002.png", "pictures/b/c/0001.png"]
    assert summary.errors == [{"file_name": "pictures", "reason": "pictures is not a file"}]

    prompts = few / "prompts.jsonl"
    prompts.write_text('{"picture": "a/0002.png", "shift": 1000}\n{"picture": "b/c/0001.png"}\n')
    go(few, "prompted", prompts=str(prompts))
    found = annotations(few / "prompted")
    assert found["a/0002.png"][0]["mean"] == pixels(2).mean() + 1000
    assert found["b/c/0001.png"][0]["mean"] == pixels(1).mean()
    prompts.write_text('{"picture": "a/0002.png", "shift": 5}\n')
    with pytest.raises(PictureError, match=r"a/0002.png has other prompts than in the run of .*prompted; name a new"):
        go(few, "prompted", prompts=str(prompts))
    prompts.write_text('{"picture": "a/0002.png", "shift": 1000}\n{"picture": "nowhere.png", "shift": 1}\n')
    go(few, "prompted", prompts=str(prompts))
    prompts.write_text('{"picture": "a/0002.png", "shift": 1000}\n{"picture": "nowhere.png", "shift": 2}\n')
    with pytest.raises(PictureError, match=r"nowhere.png has other prompts .*; --retry tries it again"):
        go(few, "prompted", prompts=str(prompts))
    go(few, "prompted", prompts=str(prompts), retry=True)
    assert '"shift":2' in (few / "prompted" / "shards.jsonl").read_text().splitlines()[-1]
    with pytest.raises(PictureError, match="give the folder that these are in, not a list"):
        go(few, "prompted", pictures="some.txt", prompts=str(prompts))


# --- How it runs -----------------------------------------------------------------------------------------------------


def test_the_handler_in_a_pipeline_of_ones_own(few):
    import apache_beam as beam
    from apache_beam.ml.inference.base import RunInference
    from apache_beam.testing.util import assert_that

    from tf_models.pictures.handler import Picture, PictureHandler

    pictures = [Picture(pixels(number)) for number in range(6)] + [Picture(np.zeros((9, 40, 3), np.uint8))]

    def check(predictions):
        outcomes = {one.example.pixels.tobytes(): one.inference for one in predictions}
        assert len(outcomes) == 7
        for picture in pictures[:-1]:
            outcome = outcomes[picture.pixels.tobytes()]
            assert (outcome["height"], outcome["width"]) == picture.pixels.shape[:2]
            assert outcome["annotations"][0]["mean"] == picture.pixels.mean()
        refused = {"height": 9, "width": 40, "reason": "the task takes none so wide"}
        assert outcomes[pictures[-1].pixels.tobytes()] == refused

    handler = PictureHandler(MeanColour(), str(few / "w.weights.h5"), batch_size=5)
    with beam.Pipeline(runner="apache_beam.runners.portability.fn_api_runner.FnApiRunner") as pipeline:
        assert_that(pipeline | beam.Create(pictures) | RunInference(handler), check)


def test_batches_are_of_one_size_and_memory_has_an_end(few):
    from tf_models.pictures.pipeline import _Read
    from tf_models.pictures.results import Shard

    names = write_pictures(few / "pictures", 20)
    results = Results(str(few / "out"))
    reader, shard = _Read(results, str(few / "pictures"), 4), Shard(0, 0, names)
    batches = list(reader.process(shard.line()))
    assert sorted(place[1] for batch in batches for place, _ in batch) == list(range(20))
    for batch in batches:
        assert len({picture.pixels.shape for _, picture in batch}) == 1
    assert max(map(len, batches)) == 4
    waiting = most = 0
    handed = {index: number for number, batch in enumerate(batches) for (_, index, _), _ in batch}
    for number, batch in enumerate(batches):
        seen = max(index for (_, index, _), _ in batch) + 1
        waiting = sum(later > number for index, later in handed.items() if index < seen)
        most = max(most, waiting)
    assert most < 8

    def places(batches):
        return [[index for (_, index, _), _ in batch] for batch in batches]

    # Those that have an outcome wait for others as before, whatever it is.
    before = places(batches)
    for index in before[0]:
        results.record(shard, index, {"width": 17, "height": 12, "annotations": []})
    results.record(shard, before[1][0], {"width": 12, "height": 17, "reason": "refused"})
    assert places(reader.process(shard.line())) == before[1:]


@pytest.mark.slow
def test_workers_in_processes_of_their_own(few, home):
    seen = few / "seen"
    options = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    done = subprocess.run(
        [*mean_colours(few, "out", 0), "--", *options],
        cwd=ROOT,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert len(annotations(few / "out")) == 7
    assert not seen.exists()


def test_progress_is_told(few):
    told = []

    class Progress:
        def start(self, stage, total):
            told.append((stage, total))

        def advance(self, count):
            told.append(count)

        def status(self, text):
            told.append(text)

    (few / "pictures" / "a" / "0002.png").write_bytes(b"")
    go(few, "out", progress=Progress())
    assert told[:2] == [("pictures", 7), 0]
    assert sum(each for each in told if isinstance(each, int)) == 7
    texts = [each for each in told if isinstance(each, str)]
    assert texts[-1].startswith("7 of 7 pictures, ")
    assert texts[-1].endswith(" a second, 1 broken")


class NoNetwork(MeanColour):
    def load(self, weights):
        raise PictureError("holds no network\x1b of ours")


def test_what_stops_the_pipeline_is_said_in_a_line(few):
    with pytest.raises(PictureError) as caught:
        go(few, "out", NoNetwork())
    assert str(caught.value).startswith("the run stopped, and can be started again: ")
    assert "holds no network" in str(caught.value)
    assert str(caught.value).isprintable()
    assert go(few, "out").annotations == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runner=Foo"], "--runner Foo: Unexpected pipeline runner: Foo"),
        (["--runner=no.such.Runner"], "--runner no.such.Runner: No module named 'no'"),
        (["--runer=x\x1b"], r"unknown option --runer=x\x1b"),
        (["stray"], "unknown option stray"),
        (["--direct_num_workers=many"], "argument --direct_num_workers: invalid int value: 'many'"),
        (["--runner"], "argument --runner: expected one argument"),
    ],
)
def test_options_that_beam_does_not_take_are_refused_before_anything_is_written(few, capsys, options, message):
    with pytest.raises(PictureError) as caught:
        go(few, "out", options=options)
    assert str(caught.value).startswith(f"Apache Beam refuses its options: {message}")
    assert str(caught.value).isprintable()
    assert not (few / "out").exists()
    assert capsys.readouterr() == ("", "")


def test_a_job_server_may_know_more_options():
    from tf_models.pictures.pipeline import options_of

    options = options_of(["--runner=FlinkRunner", "--parallelism=8", "--of_a_job_server=1"])
    assert options.get_all_options()["parallelism"] == 8


class Picky(MeanColour):
    def check(self, weights):
        raise PictureError("not these")


@pytest.mark.parametrize("scheme", ["", SCHEME])
def test_weights_are_checked_before_anything_is_written(few, scheme):
    with pytest.raises(PictureError, match=r"^not these$"):
        over(Picky(), f"{scheme}{few}/w.weights.h5", str(few / "pictures"), str(few / "out"))
    with pytest.raises(PictureError, match=r"none.weights.h5 cannot be read: "):
        over(MeanColour(), f"{SCHEME}{few}/none.weights.h5", str(few / "pictures"), str(few / "out"))
    assert not (few / "out").exists()


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"pictures": 4, "annotations": 4, "errors": [3]}', "\udcff"])
def test_a_damaged_file_of_a_finished_shard_is_named(few, damage):
    go(few, "out", shard_size=4)
    whole, done = contents(few / "out"), few / "out" / "done" / "00000.json"
    (few / "out" / "done" / "notes.txt").write_text("a stranger's")
    done.write_text(damage, errors="surrogateescape")
    with pytest.raises(PictureError) as caught:
        go(few, "out", shard_size=4)
    told = f"{done} is damaged; remove it and start again, and its pictures are done again"
    assert str(caught.value) == told
    done.unlink()
    (few / "out" / "done" / "notes.txt").unlink()
    go(few, "out", shard_size=4)
    assert contents(few / "out") == whole


@pytest.mark.parametrize("damage", ["{", "3", '{"width": 3, "height": 4}'])
def test_a_damaged_outcome_is_named(few, damage):
    go(few, "out")
    whole = contents(few / "out")
    (few / "out" / "done" / "00000.json").unlink()
    begun = few / "out" / "partial" / "00000"
    begun.mkdir(parents=True)
    (begun / "000001.json").write_text(damage)
    (begun / "notes.txt").write_text("a stranger's")
    with pytest.raises(PictureError) as caught:
        go(few, "out")
    told = f"{begun / '000001.json'} is damaged; remove it and start again, and its picture is done again"
    assert str(caught.value) == told
    (begun / "000001.json").unlink()
    go(few, "out")
    assert contents(few / "out") == whole


def test_a_damaged_list_of_shards_is_named(few):
    go(few, "out", shard_size=4)
    shards = few / "out" / "shards.jsonl"
    for second in (b'{"number": 1', b'{"name": 1}', b"[]", b"\xff"):
        shards.write_bytes(shards.read_bytes().splitlines()[0] + b"\n" + second)
        with pytest.raises(PictureError, match=r"shards.jsonl, line 2 is damaged; name a new folder for the results$"):
            go(few, "out", shard_size=4)


def test_without_apache_beam(few, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        PictureError, match=r"^a folder of pictures needs Apache Beam: pip install 'weightbridge\[beam\]'$"
    ):
        go(few, "out")
    assert not (few / "out").exists()


def test_what_a_command_imports_has_no_apache_beam():
    code = "import sys, cli, tf_models.pictures.running, tf_models.segmenting.task; print('apache_beam' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

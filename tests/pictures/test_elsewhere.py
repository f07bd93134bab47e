"""Pictures, weights and results on a file system of Apache Beam's."""

import os

import pytest

from tests.pictures.elsewhere import SCHEME
from tests.pictures.test_running import annotations
from tests.support.many_pictures import MeanColour, pixels, write_pictures
from tests.support.sam_sides import save_small, small_sides
from tf_models.pictures import listing, storage
from tf_models.pictures.reading import PictureError, read_picture
from tf_models.pictures.running import over


def test_a_run_elsewhere(tmp_path):
    assert not storage.remote(str(tmp_path))
    save_small(small_sides().torch, tmp_path / "w.weights.h5")
    write_pictures(tmp_path / "pictures", 9)
    (tmp_path / "pictures" / "a" / "0004.png").write_bytes(b"")
    home = f"{SCHEME}{tmp_path}"

    def go(output, **options):
        return over(MeanColour(), f"{home}/w.weights.h5", f"{home}/pictures", output, shard_size=4, **options)

    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (f"{home}/there", str(here)):
        summary = go(folder)
        assert summary.errors == [
            {"file_name": "a/0004.png", "reason": "a/0004.png is not a picture, or of an unknown format"}
        ]
    assert len(annotations(there)) == 8
    assert annotations(there)["b/c/0001.png"][0]["mean"] == pixels(1).mean()
    names = sorted(str(path.relative_to(here)) for path in here.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(there)) for path in there.rglob("*") if path.is_file())
    for name in names:
        assert (there / name).read_bytes() == (here / name).read_bytes()
    before = {name: (there / name).stat().st_mtime_ns for name in names if name.startswith("part-")}
    assert go(f"{home}/there", retry=True).pictures == 9
    assert {name: (there / name).stat().st_mtime_ns for name in before} == before
    with pytest.raises(PictureError, match=r"elsewhere://.*/none holds no pictures"):
        over(MeanColour(), f"{home}/w.weights.h5", f"{home}/none", f"{home}/out")


def test_files_elsewhere(tmp_path):
    folder = f"{SCHEME}{tmp_path}/folder"
    storage.write(storage.joined(folder, "inner", "name"), b"text")
    storage.write(storage.joined(folder, "name"), b"more")
    assert storage.read(f"{folder}/inner/name") == b"text"
    assert storage.names_in(folder) == ["name"]
    assert sorted(storage.walk(folder)) == ["inner/name", "name"]
    assert storage.exists(f"{folder}/name")
    storage.remove_folder(folder)
    assert not os.listdir(tmp_path) or not storage.exists(f"{folder}/name")
    storage.remove_folder(folder)
    with pytest.raises(FileNotFoundError):
        storage.read(f"{folder}/name")
    with pytest.raises(PictureError, match=r"elsewhere://.*name: no such file or folder$"):
        read_picture(f"{folder}/name")
    with pytest.raises(PictureError, match=r"list.txt cannot be read: "):
        listing.in_list(f"{folder}/list.txt")

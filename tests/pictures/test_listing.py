"""Which pictures a folder, a list or a file with prompts names."""

import os

import pytest

from tf_models.pictures import storage
from tf_models.pictures.listing import in_folder, in_list, with_prompts
from tf_models.pictures.reading import PictureError


def test_all_pictures_below_a_folder(tmp_path):
    for name in ("b.jpg", "a/x.PNG", "a/b/c.tiff", "notes.txt", "d.jpg/inside.webp", os.fsdecode(b"\xff.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    other = tmp_path.with_name(f"{tmp_path.name}_other")
    other.mkdir()
    (other / "far.bmp").touch()
    (tmp_path / "linked").symlink_to(other)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "broken.gif").symlink_to("nowhere")
    assert in_folder(str(tmp_path)) == [
        "a/b/c.tiff",
        "a/x.PNG",
        "b.jpg",
        "broken.gif",
        "d.jpg/inside.webp",
        "linked/far.bmp",
        os.fsdecode(b"\xff.png"),
    ]
    with pytest.raises(PictureError, match=r"none cannot be read: No such file or directory$"):
        in_folder(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(PictureError, match=r"empty holds no pictures \(.bmp .gif "):
        in_folder(str(tmp_path / "empty"))


def test_a_list(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"b.jpg\n\na b.jpg\r\nb.jpg\n\xff.png\n")
    assert in_list(str(path)) == ["b.jpg", "a b.jpg", os.fsdecode(b"\xff.png")]
    path.write_text("\n \n")
    with pytest.raises(PictureError, match=r"list.txt names no pictures; give one a line$"):
        in_list(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"picture": "a"}\nnonsense', r'prompts.jsonl, line 2 is not {"picture": NAME, ...}$'),
        ('["a"]', "line 1 is not"),
        ('{"picture": 3}', "line 1 is not"),
        ('{"picture": "a", "point": [[1, 2]]}', "line 1 has point; known are picture, points, boxes$"),
        ('{"picture": "a"}\n\n{"picture": "a"}', "line 3 names a a second time$"),
        ("\n", "names no pictures$"),
    ],
)
def test_prompts_that_are_none(tmp_path, text, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(PictureError, match=message):
        with_prompts(str(path), ("points", "boxes"))


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "name"
    storage.write(str(path), b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["name"]
    (path.parent / ".name.00000000.partial").touch()  # of a writer that was killed
    assert storage.names_in(str(path.parent)) == ["name"]

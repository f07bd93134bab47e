"""Sessions on the pages are what a terminal shows now."""

import pytest

from benchmarks.sessions import PAGES, ROOT, commands, run, settled


@pytest.mark.parametrize("name", PAGES)
def test_sessions_print_what_the_page_says(tmp_path, name):
    page = (ROOT / name).read_text()
    assert commands(page)
    assert settled(run(page, tmp_path)) == settled(page)


def test_other_numbers_and_words_are_compared():
    assert settled("written a in 10.7 s\nerror 6.1e-06") == settled("written a in 9.1 s\nerror 2.0e-07")
    assert settled("120 tensors") != settled("121 tensors")
    with pytest.raises(RuntimeError, match="no such file"):
        run("```console\n$ weightbridge inspect nothing.pth\n```\n", ROOT)

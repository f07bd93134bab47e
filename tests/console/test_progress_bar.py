"""The bar as it is on a terminal: what its frames show, that none stands still, and that nothing is left of it."""

import os
import pty
import re
import select
import signal
import subprocess
import sys

import pytest

from tests.support.running import environment

NATIVE = """
import ctypes
from converter.console.progress_bar import progress_for

with progress_for(quiet=False) as progress:
    progress.start("converting [part]", 0)
    # As native code that does not let other threads run: it waits in C for a byte, with Python's lock in its hand.
    ctypes.PyDLL(None).read(0, ctypes.create_string_buffer(1), 1)
    progress.say("said [in between]")
    progress.start("points", 1024)
    progress.advance(64)
    ctypes.PyDLL(None).read(0, ctypes.create_string_buffer(1), 1)
    progress.start("writing", 10**9)
    progress.advance(370_000_000)
    ctypes.PyDLL(None).read(0, ctypes.create_string_buffer(1), 1)
print("done")
"""


class Screen:
    """A program on a terminal, whose frames are read as they come."""

    def __init__(self, program, cwd, columns=100, **more):
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            env={**environment(), "TERM": "xterm-256color", "COLUMNS": str(columns)},
            cwd=cwd,
            stderr=theirs,
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            **more,
        )
        os.close(theirs)
        self.raw = ""

    def until(self, pattern, frames=1):
        """Read on until so many different frames were seen in which the pattern is; they are returned."""
        seen = []
        begin = len(self.raw)
        while len(set(seen)) < frames and select.select([self._ours], [], [], 30)[0]:  # a bar that is dead ends a test
            try:
                chunk = os.read(self._ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            self.raw += chunk.decode()
            text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw[begin:])
            seen = [frame.strip() for frame in re.split(r"[\r\n]+", text) if re.search(pattern, frame)]
        return list(dict.fromkeys(seen))

    def press(self):
        self.process.stdin.write(b"x")
        self.process.stdin.flush()

    def end(self):
        """What is on standard output, when all that was drawn is read."""
        self.until("never to be seen")
        out, _ = self.process.communicate()
        os.close(self._ours)
        return out.decode()


def test_what_the_frames_show_and_that_they_move_whatever_holds_python(tmp_path):
    screen = Screen(NATIVE, tmp_path)
    unknown = screen.until(r"converting \[part\]", frames=4)
    assert not any("%" in frame or "/" in frame[1:] for frame in unknown), "nobody knows how much it is"
    assert len({frame[0] for frame in unknown}) > 1, "something turns"
    screen.until(r"converting \[part\].*0:00:0[1-9]")  # the seconds go on
    screen.press()
    assert screen.until(r"^said") == ["said [in between]"]
    assert all("64/1024 0:00:0" in frame for frame in screen.until("points .*64", frames=4))
    screen.press()
    assert all(" 37% 0:00:0" in frame for frame in screen.until("writing .*37", frames=4))
    screen.press()
    assert screen.end() == "done\n"
    assert screen.process.returncode == 0
    assert screen.raw.endswith(("\x1b[?25h", "\x1b[2K")), "the bar is off the screen, and the cursor on it again"


def test_what_is_said_of_a_stage_while_it_lasts(tmp_path):
    program = NATIVE.replace("progress.advance(64)", 'progress.status("64 of [1024], none broken")')
    screen = Screen(program, tmp_path)
    screen.until(r"converting")
    screen.press()
    assert screen.until(r"^\S+ 64 of \[1024\], none broken ")
    screen.press()
    screen.press()
    assert screen.end() == "done\n"


def test_nothing_is_drawn_where_nothing_is_told(tmp_path):
    program = "from converter.console.progress_bar import progress_for\nwith progress_for(quiet=False): pass"
    screen = Screen(program, tmp_path)
    assert screen.end() == ""
    assert screen.raw == ""


def test_the_bar_ends_with_a_command_that_is_killed(tmp_path):
    screen = Screen(NATIVE, tmp_path)
    screen.until("converting")
    screen.process.kill()
    assert screen.end() == ""  # what ends the reading is that no process has the terminal any more
    assert screen.raw.endswith("\x1b[2K"), "the bar is off the screen"


def test_ctrl_c_is_for_the_command_and_the_bar_goes_on_until_that_ends(tmp_path):
    program = """
import signal, sys
from converter.console.progress_bar import progress_for

signal.signal(signal.SIGINT, lambda *_: None)
with progress_for(quiet=False) as progress:
    progress.start("points", 1024)
    progress.advance(64)
    sys.stdin.read(1)
    progress.advance(64)
    sys.stdin.read(1)
"""
    screen = Screen(program, tmp_path, start_new_session=True)
    assert screen.until("64/1024")
    os.killpg(screen.process.pid, signal.SIGINT)  # as a terminal does, to all that it has begun
    screen.press()
    assert screen.until("128/1024")
    screen.press()
    screen.end()
    assert "KeyboardInterrupt" not in screen.raw


@pytest.mark.parametrize("quiet", [False, True])
def test_a_pipe_gets_what_is_said_and_no_bar(quiet, capsys):
    from converter.console.progress_bar import progress_for

    with progress_for(quiet) as progress:
        assert (progress is None) == quiet
        if progress is not None:
            progress.start("points", 10)
            progress.advance(3)
            progress.say("this takes long")
    assert capsys.readouterr().err == ("" if quiet else "this takes long\n")


def test_a_pipe_gets_a_line_of_long_work_now_and_then(monkeypatch, capsys):
    from converter.console import progress_bar

    with progress_bar.progress_for(quiet=False) as progress:
        progress.start("pictures", 10)
        progress.status("3 of 10 pictures")
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(progress_bar, "_EVERY", 0)
        progress.status("4 of 10 pictures")
        assert capsys.readouterr().err == "4 of 10 pictures\n"


def test_nothing_of_the_current_folder_is_run_for_the_bar(tmp_path):
    for module in ("rich", "json", "converter", "ast"):
        (tmp_path / f"{module}.py").write_text("open('ran', 'w').close()\nraise SystemExit(1)\n")
    screen = Screen("import sys; sys.path.remove('')\n" + NATIVE, tmp_path)
    screen.until("converting", frames=2)
    for _ in range(3):
        screen.press()
    assert screen.end() == "done\n"
    assert not (tmp_path / "ran").exists()

"""Running the commands in a process of their own, as a user does."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent.parent


def environment() -> dict[str, str]:
    """The caller's environment with this interpreter's commands first on the path."""
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def run(*command: object, cwd: Path | str, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run a command (`convert`, `weightbridge`, `python`) in `cwd`; its output is text."""
    return subprocess.run(
        [str(BIN / str(command[0])), *map(str, command[1:])],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def run_forked(*command: object, cwd: Path | str) -> subprocess.CompletedProcess:
    """The same of `convert` or `weightbridge`, in a fork of a process that has imported TensorFlow but not used it.

    What is left out is the import, which takes longer than a small conversion.
    """
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        request = {"command": [*map(str, command)], "cwd": str(cwd), "files": [*map(str, files)]}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        out, err = (file.read_bytes().decode(errors="surrogateescape") for file in files)
    return subprocess.CompletedProcess(command, code, out, err)


@functools.cache
def _server() -> subprocess.Popen:
    server = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; sys.path[0] = sys.argv[1]; from tests.support.running import _serve; _serve()",
            ROOT,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )

    def end() -> None:
        server.stdin.close()
        server.stdout.close()
        server.wait()

    atexit.register(end)
    return server


def _serve() -> None:
    """Fork for each command that is asked for; the child ends as a process of its own does."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import cli

    for module in ("exporting", "restoring", "files.weights_file", "proof.lossless"):
        import_module(f"converter.{module}")  # what commands would import, once for all

    requests, answers = sys.stdin, sys.stdout
    while line := requests.readline():
        request = json.loads(line)
        pid = os.fork()
        if pid:
            answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
            answers.flush()
            continue
        os.chdir(request["cwd"])
        for number, name in enumerate((os.devnull, *request["files"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
        sys.argv = request["command"]
        before = (sys.stdin, sys.stdout, sys.stderr)
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, old.mode, encoding=old.encoding, errors=old.errors, closefd=False)  # noqa: SIM115
            for number, old in enumerate(before)
        )
        sys.exit({"convert": cli.convert, "weightbridge": cli.main}[sys.argv[0]]())

"""Both sides of the numerical proof: false alarms and power.

python -m benchmarks.soundness alarms --proofs 500 [--seed S] [--json FILE]
python -m benchmarks.soundness power [--json FILE]
python -m benchmarks.soundness check

`alarms` proves right networks, in several environments that round differently; every refusal is an alarm. `power`
plants faults; every one that passes is missed. `check` compares outputs by hand, without the proof.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

# What makes the same network round differently: threads, oneDNN, the instructions that each library may use, XLA.
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "as it is": {},
    "2 threads": {"THREADS": "2"},
    "no oneDNN": {"TF_ENABLE_ONEDNN_OPTS": "0"},
    "torch without AVX": {"ATEN_CPU_CAPABILITY": "default"},
    "torch AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "oneDNN SSE4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "jit": {"JIT": "1"},
    "jit, SSE4.2": {"JIT": "1", "XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2"},
    "jit, AVX2, 2 threads": {"JIT": "1", "XLA_FLAGS": "--xla_cpu_max_isa=AVX2", "THREADS": "2"},
    "no oneDNN, AVX2, 2 threads": {"TF_ENABLE_ONEDNN_OPTS": "0", "ATEN_CPU_CAPABILITY": "avx2", "THREADS": "2"},
    "SSE alone": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2",
    },
}
_MOST = 20  # proofs of one process: what TensorFlow compiles stays in memory, with some settings 100 MB a proof


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soundness", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    alarms_ = commands.add_parser("alarms", help="proofs of right networks")
    alarms_.add_argument("--proofs", type=int, default=len(ENVIRONMENTS) * 60)
    alarms_.add_argument("--seed", type=int, default=0, help="of the first; proofs of another seed are other proofs")
    alarms_.add_argument("--environment", action="append", choices=ENVIRONMENTS, help="only these")
    power_ = commands.add_parser("power", help="planted faults")
    power_.add_argument("--start", type=int, default=0, help="leave out so many of the first")
    check_ = commands.add_parser("check", help="outputs by hand, without the proof")
    worker = commands.add_parser("worker")
    worker.add_argument("--proofs", type=int)
    worker.add_argument("--seed", type=int)
    for one in (alarms_, power_, check_, worker):
        one.add_argument("--only", action="append", help="networks, pairs or faults whose name has this in it")
        one.add_argument("--json", type=Path, help="write what was found")
    alarms_.add_argument("--verify", default="full")
    worker.add_argument("--verify", default="full")
    power_.add_argument("--verify", default="full")
    given = parser.parse_args()
    run = {"alarms": alarms, "power": power, "check": check, "worker": work}[given.command]
    sys.exit(run(given))


def _start(threads: int = 1) -> None:
    """Import torch, then TensorFlow, on so many threads."""
    import torch
    import torchvision  # noqa: F401

    torch.set_num_threads(threads)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.get_logger().setLevel("ERROR")


def _chosen(names: Any, only: list[str] | None) -> list[str]:
    return [name for name in names if not only or any(word in name for word in only)]


# --- false alarms -----------------------------------------------------------------------------------------------------


def alarms(given: argparse.Namespace) -> int:
    """Split the proofs over the environments, each in a process of its own, one after another."""
    chosen = given.environment or list(ENVIRONMENTS)
    share, more = divmod(given.proofs, len(chosen))
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        first = given.seed * 100_000
        for index, name in enumerate(chosen):
            count = share + (index < more)
            settings = dict(ENVIRONMENTS[name])
            threads = settings.pop("THREADS", "1")
            environment = {**os.environ, "OMP_NUM_THREADS": threads, "SOUNDNESS_THREADS": threads, **settings}
            results[name] = []
            # Each starts where the one before ended, so that all networks come in all environments by and by.
            for begin in range(0, count, _MOST):
                place = Path(folder, f"{index}-{begin}.json")
                command = [sys.executable, "-m", "benchmarks.soundness", "worker"]
                command += ["--proofs", str(min(_MOST, count - begin))]
                command += ["--seed", str(first + begin), "--json", str(place), "--verify", given.verify]
                command += [part for word in given.only or [] for part in ("--only", word)]
                done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
                if done.returncode or not place.exists():
                    print(f"{name}: the process ended with {done.returncode}: {done.stderr.strip()[-300:]}")
                    return 2
                results[name] += json.loads(place.read_text())
            first += count
            print(f"{name}: {count} proofs, {_refused(results[name])} refused", flush=True)
    print()
    _print_alarms(results)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))
    return int(any(map(_refused, results.values())))


def _refused(outcomes: list[dict[str, Any]]) -> int:
    return sum(not one["passed"] for one in outcomes)


def _print_alarms(results: dict[str, list[dict[str, Any]]]) -> None:
    every = [{**one, "environment": name} for name, outcomes in results.items() for one in outcomes]
    for heading, key in (("pair", "pair"), ("environment", "environment")):
        rows: list[tuple] = [(heading, "proofs", "refused", "largest error/allowed", "where", "seconds")]
        for name in dict.fromkeys(one[key] for one in every):
            mine = [one for one in every if one[key] == name]
            worst = max(mine, key=lambda one: one["worst"] if one["worst"] == one["worst"] else -1)
            seconds = sum(one["seconds"] for one in mine) / len(mine)
            where = worst["where"] if key == "pair" else f"{worst['pair']} {worst['where']}"
            rows.append((name, len(mine), _refused(mine), f"{worst['worst']:.3f}", where, f"{seconds:.1f}"))
        _table(rows)
        print()
    for one in every:
        if not one["passed"]:
            print(f"REFUSED {one['pair']} seed {one['seed']} size {one['size']} in {one['environment']}:")
            print(f"        error/allowed {one['worst']:.3f} at {one['where']}: {one['text'][:400]}")
    print(f"{len(every)} proofs, {_refused(every)} refused")


def work(given: argparse.Namespace) -> int:
    """The proofs of one environment."""
    _start(int(os.environ.get("SOUNDNESS_THREADS", "1")))
    from benchmarks.soundness.proving import Outcome, in_process, prove

    outcomes = []
    with in_process():
        for name, seed, size, pair, state, options in _right(given):
            try:
                result = prove(pair, state, options, given.verify, seed)
            except Exception as error:  # counted as a refusal, and told
                result = (False, f"{type(error).__name__}: {error}", float("nan"), "", 0.0)
            outcomes.append(asdict(Outcome(name, seed, size, *result)))
    given.json.write_text(json.dumps(outcomes))
    return 0


def _right(given: argparse.Namespace) -> Iterator[tuple]:
    """Networks and shipped pairs by turns, each time with another seed, and another size each round.

    Networks of real size, and the whole SAMs, come once for every twenty small ones.
    """
    from benchmarks.soundness.networks import NETWORKS
    from benchmarks.soundness.proving import jitted
    from benchmarks.soundness.shipped import SHIPPED

    every: list[Any] = [*NETWORKS.values(), *SHIPPED.values()]
    small = _chosen((one.name for one in every if not one.real), given.only)
    real = _chosen((one.name for one in every if one.real), given.only)
    rounds: list[str] = []
    for number, name in enumerate(real or [None]):  # the small ones by turns, between those that take long
        again = [small[(20 * number + place) % len(small)] for place in range(20)] if small else []
        rounds += again if name is None else [*again, name]
    jit = os.environ.get("JIT") == "1"
    for number in range(given.proofs):
        seed = given.seed + number
        name, size = rounds[seed % len(rounds)], seed // len(rounds) % 3
        if name in SHIPPED:
            one: Any = SHIPPED[name]
            pair, options = one.pair(f"soundness_{name}", jitted if jit else None), one.options
        else:
            one, options = NETWORKS[name], {}
            pair = one.pair(size=size, **({"build_tf": jitted(one.build_tf)} if jit else {}))
        yield name, seed, size, pair, one.seeded_state(seed), options


# --- power ------------------------------------------------------------------------------------------------------------


def power(given: argparse.Namespace) -> int:
    """Prove each planted fault: it must be refused, and its place named."""
    _start()
    from benchmarks.soundness.faults import FAULTS
    from benchmarks.soundness.networks import NETWORKS
    from benchmarks.soundness.proving import in_process, prove, rightly_named
    from converter import Mapping

    rows: list[tuple] = [("fault", "network", "seen by", "caught", "place", "seconds")]
    found: list[dict[str, Any]] = []
    with in_process():
        for fault in FAULTS[given.start :]:
            if given.only and not any(word in fault.name or word == fault.network for word in given.only):
                continue
            network = NETWORKS[fault.network]
            verify = "train" if fault.seen_by == "train" else given.verify
            try:
                passed, text, *_, seconds = prove(fault.pair("soundness_fault"), network.seeded_state(1), {}, verify)
            except Exception as error:  # the proof broke off: told apart from a refusal
                passed, text, seconds = False, f"BROKE OFF {type(error).__name__}: {error}", 0.0
            known = [
                *dict.fromkeys(path for path, _, _ in Mapping(network.rows).modules() if path),
                *network.outputs,
                "outputs",
            ]
            place = not passed and rightly_named(text, fault.places, known)
            one = {"fault": fault.name, "network": fault.network, "seen_by": fault.seen_by, "caught": not passed}
            found.append({**one, "place": place, "places": fault.places, "text": text, "seconds": round(seconds, 2)})
            if given.json:
                given.json.write_text(json.dumps(found, indent=1))  # each time, because it is long
            words = ("caught" if not passed else "MISSED", "named" if place else "no" if not passed else "")
            rows.append((fault.name, fault.network, fault.seen_by, *words, f"{seconds:.1f}"))
            if passed:
                print(f"MISSED {fault.name} ({fault.network}, seen by {fault.seen_by})", flush=True)
            elif not place:
                print(f"NOT NAMED {fault.name} ({fault.network}): wanted {' | '.join(fault.places)}")
                print(f"          {text[:400]}", flush=True)
    print()
    _table(rows)
    caught = sum(one["caught"] for one in found)
    print(f"{len(found)} faults, {caught} caught, {sum(one['place'] for one in found)} places named right")
    return int(caught < len(found))


# --- by hand ----------------------------------------------------------------------------------------------------------


def check(given: argparse.Namespace) -> int:
    """Right networks agree with torch to rounding, in float64 too; faults do not."""
    _start()
    from benchmarks.soundness.comparing import check_fault, check_network, shows
    from benchmarks.soundness.faults import FAULTS
    from benchmarks.soundness.networks import NETWORKS

    rows: list[tuple] = [("network or fault", "", "float64", "float32", "")]
    wrong, right = 0, {}
    began = time.monotonic()
    for name in _chosen(NETWORKS, given.only):
        one = right[name] = check_network(NETWORKS[name])
        good = one.exact < 1e-7 and one.single < 1e-4
        wrong += not good
        rows.append((name, "", f"{one.exact:.1e}", f"{one.single:.1e}", "" if good else "WRONG"))
    for fault in FAULTS:
        if given.only and not any(word in fault.name or word == fault.network for word in given.only):
            continue
        if fault.network not in right:
            right[fault.network] = check_network(NETWORKS[fault.network])
        found = check_fault(fault)
        good = shows(found, right[fault.network]) or fault.seen_by != "probe"
        wrong += not good
        told = "" if fault.seen_by == "probe" else f"for {fault.seen_by}"
        rows.append(
            (fault.name, fault.network, f"{found.exact:.1e}", f"{found.single:.1e}", told or ("" if good else "HIDDEN"))
        )
    _table(rows)
    print(f"\n{len(rows) - 1} compared in {time.monotonic() - began:.0f} s, {wrong} not as they should be")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))
    return int(wrong > 0)


def _table(rows: list[tuple]) -> None:
    """Columns side by side, numbers to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in texts) for i in range(len(texts[0]))]
    for row in texts:
        cells = [
            cell.rjust(width) if cell.replace(".", "").isdigit() else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    main()

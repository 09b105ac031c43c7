"""The long fuzzing run: ``python -m benchmarks.fuzz --seconds 60 --target all``.

Coverage-guided with atheris where it is installed, else seeded mutations of the same corpus. atheris is optional: it
has wheels for Linux on x86-64 and CPython 3.11 to 3.13 (``pip install atheris``); elsewhere it must be built with
clang, see https://github.com/google/atheris. Every target runs in a process of its own. Findings (anything but an
error of dse, or a run of more than ten seconds) are printed with their input, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
_TOKENS = [
    b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-0.0", b"1e5", b"9" * 4301, b'"\\ud800"', b'\\u0000', b"{}", b"[]", b'""', b",",
    b":", b"[" * 210, b"]" * 210, b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b'{"a":1,"a":2}', b'"$ref":"#/$defs/Node"', b"0" * 16,
    b"../../x", b'"type":"object"', b'"properties":{"a":5}', b'"required":[1]',
]  # fmt: skip


def mutate(rng: random.Random, corpus: Sequence[bytes]) -> bytes:
    """One of the corpus with one to six edits: bits, cuts, copies, tokens, or a part of another one."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : at + rng.choice((1, 1, 2, 8, 64))]
        elif kind == 2:
            data[at:at] = rng.choice(_TOKENS)
        elif kind == 3:
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start : start + rng.randint(1, 40)]
        elif kind == 4:
            token = rng.choice(_TOKENS)
            data[at : at + len(token)] = token
        elif kind == 5:
            other = rng.choice(corpus)
            start = rng.randrange(len(other) + 1)
            data[at : at + rng.randint(0, 40)] = other[start : start + rng.randint(1, 200)]
        else:  # another number, or another word, in place of one
            found = list(re.finditer(rb"-?\d+(?:\.\d+)?|\"[^\"]{0,20}\"", data))
            if found:
                pick = rng.choice(found)
                data[pick.start() : pick.end()] = rng.choice(_TOKENS)
    return bytes(data)


def _mutations(target: str, seconds: float, seed: int) -> None:
    """In a process of its own: prints one line of JSON."""
    from tests.fuzz.targets import EXPECTED, SEEDS, TARGETS

    rng, corpus, run = random.Random(seed), SEEDS(target), TARGETS[target]
    findings: dict[str, str] = {}
    count = took = 0
    end = time.monotonic() + seconds
    while (start := time.monotonic()) < end:
        data = mutate(rng, corpus)
        try:
            run(data)
            took += 1
        except EXPECTED:
            pass
        except Exception as exc:
            place = traceback.extract_tb(exc.__traceback__)[-1]
            findings.setdefault(f"{type(exc).__name__} at {place.filename}:{place.lineno}: {str(exc)[:200]}", data[:4000].hex())
        if time.monotonic() - start > 10:
            findings.setdefault("more than ten seconds", data[:4000].hex())
        count += 1
    print(json.dumps({"executions": count, "accepted": took, "findings": findings}))


def _guided(target: str, arguments: list[str]) -> None:
    """In a process of its own, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["dse"]):
        from tests.fuzz.targets import EXPECTED, TARGETS
    run = TARGETS[target]

    def one(data: bytes) -> None:
        try:
            run(data)
        except EXPECTED:
            pass

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def _child(*arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "true"}
    return subprocess.run([sys.executable, "-m", "benchmarks.fuzz", *arguments], capture_output=True, text=True, cwd=ROOT,
                          errors="replace", env=environment, timeout=timeout)  # fmt: skip


def fuzz(target: str, engine: str, seconds: int, seed: int) -> dict[str, object]:
    """One row of the table."""
    if engine == "mutations":
        done = _child("--child", target, "--engine", engine, "--seconds", str(seconds), "--seed", str(seed), timeout=seconds + 300)
        if done.returncode:
            return {"executions": 0, "coverage": "", "findings": [done.stderr[-2000:]]}
        told = json.loads(done.stdout.splitlines()[-1])
        found = [f"{what}\n  input (hex): {data}" for what, data in told["findings"].items()]
        return {"executions": told["executions"], "coverage": f"{told['accepted']} accepted", "findings": found}
    from tests.fuzz.targets import SEEDS

    with tempfile.TemporaryDirectory(prefix="dse-corpus-") as corpus:
        for number, data in enumerate(SEEDS(target)):
            (Path(corpus) / f"seed{number}").write_bytes(data)
        words = Path(corpus) / "words.dict"
        words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in token[:60]) + '"\n' for token in _TOKENS))
        folder = Path(corpus) / "corpus"
        folder.mkdir()
        for file in Path(corpus).glob("seed*"):
            file.rename(folder / file.name)
        flags = [f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=40000", "-timeout=10", "-rss_limit_mb=1500", "-use_value_profile=0",
                 f"-dict={words}", f"-artifact_prefix={corpus}/", "-print_final_stats=1", str(folder)]  # fmt: skip
        done = _child("--child", target, "--engine", engine, *("--flag=" + flag for flag in flags), timeout=seconds + 300)
        text = done.stderr + done.stdout
        runs = re.findall(r"#(\d+)\s", text)
        covered = re.findall(r"cov: (\d+) ft: (\d+)", text)
        crashes = [*Path(corpus).glob("crash-*"), *Path(corpus).glob("timeout-*"), *Path(corpus).glob("oom-*")]
        found = [f"{_reason(text)}\n  input (hex): {crash.read_bytes()[:4000].hex()}" for crash in crashes]
        if done.returncode and not found:
            found = [text[-2000:]]
        shown = f"{covered[-1][0]} edges, {covered[-1][1]} features" if covered else ""
        return {"executions": max(map(int, runs), default=0), "coverage": shown, "findings": found}


def _reason(text: str) -> str:
    found = re.search(r"=== Uncaught Python exception: ===\n(.*?)\n==\d", text, re.S)
    return found[1] if found else text[-1500:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", default="all", help="a name of tests/fuzz/targets.py, or all")
    parser.add_argument("--engine", choices=["atheris", "mutations"], help="default: atheris where it is installed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--flag", action="append", default=[], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        if given.engine == "atheris":
            _guided(given.child, given.flag)
        else:
            _mutations(given.child, given.seconds, given.seed)
        return 0
    from tests.fuzz.targets import TARGETS  # not before: in a child it must be imported with instrumentation

    if given.target not in ("all", *TARGETS):
        parser.error(f"targets: all, {', '.join(TARGETS)}")
    engine = given.engine or ("atheris" if importlib.util.find_spec("atheris") else "mutations")
    print(f"Fuzzing, {dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC, {given.seconds} s a target, seed {given.seed}\n")
    print("| target | engine | executions | coverage | findings |\n|---|---|---|---|---|")
    findings: list[str] = []
    for target in TARGETS if given.target == "all" else [given.target]:
        row = fuzz(target, engine, given.seconds, given.seed)
        found = row["findings"]
        assert isinstance(found, list)
        findings += [f"{target}: {text}" for text in found]
        print(f"| {target} | {engine} | {row['executions']} | {row['coverage']} | {len(found)} |", flush=True)
    for text in findings:
        print(f"\n{text}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

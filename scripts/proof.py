#!/usr/bin/env python3
"""Writes PROOF.md from the newest run of ./test: which experiment ran how often, with which seeds,
and whether it held. It proves nothing by itself and repeats only what the tests printed.

A test tells its figures in a line `PROOF EXPERIMENT name=number ...`. Reports may be named, oldest
first: of a test that is in several the last one counts, as after a run of the tests that failed.
"""

import os
import pathlib
import platform
import re
import subprocess
import sys
import xml.etree.ElementTree as xml

ROOT = pathlib.Path(__file__).resolve().parent.parent
REPORT = ROOT / "target/nextest/default/junit.xml"

# What is tried, and what must hold after it: the invariants below.
EXPERIMENTS = {
    "E1": ("Config server killed, and jobs cancelled, at every step of every list of every job",
           "I1 I3 I4 I5 I6"),
    "E3": ("Power cut of the replica store at every write, with lost, reordered and torn writes",
           "I1 I2 I3"),
    "E4": ("Every call of the store's back end fails once: error, no space, short write, lost reply",
           "I3 I9"),
    "E6": ("Object stores that fail, answer late, lose acknowledgements, cut bodies short", "I3 I9"),
    "E9": ("Flipped bits, and blobs swapped, lost or rolled back", "I9"),
    "E11": ("Random histories of both sites against a byte-exact oracle", "I1 to I11"),
    "E15": ("Reprotect at several divergences, interrupted", "I1 I3 I11"),
    "E19": ("Parsers fed with changed samples", "no panic, bounded memory"),
}
INVARIANTS = {
    "I1": "Every recovery point is byte for byte what the source's disks were at its cut.",
    "I2": "A point is a prefix of the order of writes over all disks of the machine.",
    "I3": "What was acknowledged survives any single fault.",
    "I4": "At most one machine of an item runs, as far as Leeward started it.",
    "I5": "No step's effect happens twice visibly.",
    "I6": "Every job ends, or waits for a person; none is stuck.",
    "I7": "A test failover changes nothing in replication.",
    "I8": "The reported RPO is never lower than the true one.",
    "I9": "Damage is detected, never served.",
    "I10": "Retention deletes nothing that a listed point or a job needs.",
    "I11": "Failback returns the same bytes.",
}


def tests(report):
    """Name, whether it passed, and what it printed, of every test of a run."""
    for suite in xml.parse(report).getroot():
        for case in suite.findall("testcase"):
            failed = case.find("failure") is not None or case.find("error") is not None
            printed = "".join((part.text or "") for part in case.iter()
                              if part.tag in ("system-out", "system-err"))
            yield f'{case.get("classname")} {case.get("name")}', not failed, printed


def git(*arguments):
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True,
                          check=True).stdout.strip()


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def feature_ids():
    """The ids of behaviours that tests name."""
    listed = git("grep", "-hoE", r"F-[0-9]{3}", "--", "crates/*/tests/*.rs", "crates/*/src/*.rs")
    return sorted(set(listed.split()))


def main():
    reports = [pathlib.Path(name) for name in sys.argv[1:]] or [REPORT]
    if not all(report.exists() for report in reports):
        sys.exit("there is no run of ./test to report: run it first")
    newest = {test[0]: test for report in reports for test in tests(report)}
    ran = list(newest.values())
    passed = sum(ok for _, ok, _ in ran)
    rows = []
    for name, ok, printed in ran:
        for experiment, figures in re.findall(r"^PROOF (E\d+) (.+)$", printed, re.MULTILINE):
            rows.append((experiment, name, ok, figures))
    rows.sort(key=lambda row: (int(row[0][1:]), row[1]))

    long = "LONG=1 ./test" if os.environ.get("LONG") else "./test"
    dirty = " with changes" if git("status", "--porcelain", "--", "crates") else ""
    again = f", then {len(reports) - 1} of tests that had failed or were changed" if len(reports) > 1 else ""
    out = ["# Proof", "",
           "Written by `scripts/proof.py` from a run of the tests; not by hand. Every figure is"
           " what a test printed. A random test prints its seed, and `LEEWARD_SEED=n` replays it.",
           "",
           f"- Run: `{long}`{again}, at commit `{git('rev-parse', '--short=12', 'HEAD')}`{dirty}",
           f"- Machine: {processor()}, {os.cpu_count()} processors, Linux {platform.release()}",
           f"- Tests: {len(ran)} ran, {passed} passed, {len(ran) - passed} failed",
           f"- Behaviours of the specification named by code or tests: {len(feature_ids())}", ""]
    for experiment, (what, holds) in EXPERIMENTS.items():
        mine = [row for row in rows if row[0] == experiment]
        if not mine:
            continue
        out += [f"## {experiment}: {what}", "", f"Must hold: {holds}.", "",
                "| test | held | figures |", "|---|---|---|"]
        for _, name, ok, figures in mine:
            shown = figures.replace("|", "\\|").replace("_", " ")
            out.append(f"| `{name}` | {'yes' if ok else '**no**'} | {shown} |")
        out.append("")
    missing = [name for name in EXPERIMENTS if not any(row[0] == name for row in rows)]
    if missing:
        out += [f"Not in this run: {', '.join(missing)}.", ""]
    out += ["## Invariants", ""]
    out += [f"- **{name}** {text}" for name, text in INVARIANTS.items()]
    (ROOT / "PROOF.md").write_text("\n".join(out) + "\n")


main()

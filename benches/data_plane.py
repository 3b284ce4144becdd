#!/usr/bin/env python3
"""Measures the data plane against peers, in turns, on the same data in the same run.

    benches/data_plane.py [--leeward BIN] [--gib 1] [--rounds 3] [--work FOLDER] [CASE ...]

A case is initial, resync, incremental, restore, export or sparse; all of them without a name. It
prints a table of medians and of ratios (peer / Leeward; processor seconds of the whole process tree
judge, wall time second), and stores it as JSON in benches/results. Peers that are not installed are
left out: libnbd-bin nbdkit zstd openssl restic borgbackup rsync. What is restored or rebuilt is
compared with the disk, outside the measured time. Inputs lie in the page cache.
"""
import argparse, datetime, importlib.util, json, os, shutil, signal, statistics, subprocess, sys, time
import disk_images, nbd_reads

HERE = os.path.dirname(os.path.abspath(__file__))
RESULTS = os.path.join(HERE, "results")


class Measured:
    def __init__(self, wall, cpu, peak, out):
        self.wall, self.cpu, self.peak, self.out = wall, cpu, peak, out


def run(command, environment, servers=()):
    """Runs a shell command beside `servers`; processor time is that of all of them."""
    started = [subprocess.Popen(["sh", "-c", "exec " + server], env=environment,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
               for server in servers]
    wait_for([server.split("--unix ")[1].split()[0] for server in servers])
    begun = time.monotonic()
    child = subprocess.Popen(["sh", "-ec", command], env=environment,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = child.stdout.read(), child.stderr.read()
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - begun
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss
    for server in started:
        server.send_signal(signal.SIGTERM)
        _, _, used = os.wait4(server.pid, 0)
        server.returncode = 0
        cpu, peak = cpu + used.ru_utime + used.ru_stime, max(peak, used.ru_maxrss)
    if child.returncode != 0:
        sys.exit("%s failed:\n%s" % (command, err.decode(errors="replace")))
    return Measured(wall, cpu, peak * 1024, out.decode(errors="replace"))


def wait_for(sockets):
    end = time.monotonic() + 20
    while not all(os.path.exists(socket) for socket in sockets):
        if time.monotonic() > end:
            sys.exit("a server did not open its socket")
        time.sleep(0.005)


def stored(path):
    """Bytes of the files below a folder."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(folder, name))
               for folder, _, names in os.walk(path) for name in names)


class Bench:
    def __init__(self, given):
        self.given, self.work = given, given.work
        self.data = os.path.join(self.work, "data")
        self.v1, self.v2, self.changes = disk_images.make(
            self.data, int(given.gib * (1 << 30)) // 65536 * 65536, largest=given.largest_piece)
        self.rows, self.figures = {}, {}
        cache = os.path.join(self.work, "cache")
        self.environment = dict(
            os.environ, RESTIC_PASSWORD="x", RESTIC_CACHE_DIR=cache + "/restic", BORG_PASSPHRASE="x",
            BORG_BASE_DIR=cache + "/borg", XDG_CACHE_HOME=cache, LEEWARD_LOG="warn",
            BORG_RELOCATED_REPO_ACCESS_IS_OK="yes", BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="yes")
        for path in (self.v1, self.v2):
            with open(path, "rb") as disk:
                while disk.read(1 << 24):
                    pass
        self.allocated = os.stat(self.v1).st_blocks * 512
        self.changed = sum(length for _, length in json.load(open(self.changes)))

    def path(self, name):
        return os.path.join(self.work, name)

    def sh(self, command):
        subprocess.run(["sh", "-ec", command], env=self.environment, check=True,
                       stdout=subprocess.DEVNULL)

    def fresh(self, *names):
        for name in names:
            path = self.path(name)
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.lexists(path):
                os.unlink(path)

    def note(self, case, who, measured, size=None, **more):
        row = {"wall": measured.wall, "cpu": measured.cpu, "peak": measured.peak, "stored": size, **more}
        self.rows.setdefault(case, {}).setdefault(who, []).append(row)
        print("%-12s %-28s wall %7.3f  cpu %7.3f  peak %5.0f MiB  stored %s" % (
            case, who, measured.wall, measured.cpu, measured.peak / 2**20,
            "-" if size is None else "%.1f MiB" % (size / 2**20)), flush=True)

    def have(self, *programs):
        return all(shutil.which(program) for program in programs)

    # What the product is asked for.

    def leeward(self, words):
        return "%s store %s" % (self.given.leeward, words)

    def new_store(self):
        self.fresh("store", "store.recovery-key.txt", "cache/leeward")
        self.sh(self.leeward("init " + self.path("store")))

    def capture(self, disk, words=""):
        command = self.leeward("capture %s --item machine --disk root=%s %s" % (self.path("store"), disk, words))
        measured = run(command, self.environment)
        measured.said = json.loads(measured.out)
        return measured

    def keep(self, name):
        """Puts store and hash files aside, to begin from them again."""
        self.fresh(name)
        os.makedirs(self.path(name))
        self.sh("cp -a --sparse=always %s %s %s/" % (self.path("store"), self.path("cache/leeward"), self.path(name)))

    def again(self, name):
        self.fresh("store", "cache/leeward")
        self.sh("cp -a --sparse=always %s/store %s && cp -a --sparse=always %s/leeward %s/" % (
            self.path(name), self.path("store"), self.path(name), self.path("cache")))
        self.sh("sync -f " + self.work)

    def check_restored(self, disk):
        self.fresh("out.raw")
        self.sh(self.leeward("restore %s --item machine --point latest --disk root %s" % (
            self.path("store"), self.path("out.raw"))))
        self.sh("cmp %s %s" % (self.path("out.raw"), disk))
        self.fresh("out.raw")

    # The cases.

    def initial(self):
        v1, pipe, repo, socket = self.v1, self.path("pipe"), self.path("repo"), self.path("n.sock")
        for level in ("1", "-7", "raw"):
            self.new_store()
            measured = self.capture(v1, "--compression " + level)
            self.note("initial", "leeward " + level, measured, stored(self.path("store")))
            if level != "raw":
                continue
            self.check_restored(v1)
        if self.have("nbdcopy", "zstd", "openssl"):
            self.fresh("pipe")
            command = ("nbdcopy %s - | zstd -1 -q -c | openssl enc -aes-256-ctr -pass pass:x -pbkdf2 -iter 1"
                       " | dd of=%s bs=1M iflag=fullblock conv=fdatasync status=none" % (v1, pipe))
            self.note("initial", "nbdcopy|zstd -1|openssl|dd", run(command, self.environment), stored(pipe))
        if self.have("nbdcopy", "nbdkit"):
            self.fresh("raw.raw", "n.sock")
            self.sh("truncate -s %d %s" % (os.path.getsize(v1), self.path("raw.raw")))
            server = "nbdkit -f --unix %s file %s" % (socket, self.path("raw.raw"))
            command = "nbdcopy --flush %s 'nbd+unix:///?socket=%s'" % (v1, socket)
            self.note("initial", "nbdcopy to nbdkit", run(command, self.environment, [server]))
        self.fresh("pipe", "raw.raw", "n.sock")
        if self.have("restic"):
            self.fresh("repo", "cache/restic")
            self.sh("restic -q init --repository-version 2 -r " + repo)
            measured = run("restic -q -r %s backup %s" % (repo, v1), self.environment)
            self.note("initial", "restic", measured, stored(repo))
        if self.have("borg"):
            self.fresh("repo", "cache/borg")
            self.sh("borg init -e repokey-blake2 %s 2>/dev/null" % repo)
            measured = run("borg create -C zstd,1 %s::v1 %s" % (repo, v1), self.environment)
            self.note("initial", "borg zstd,1", measured, stored(repo))
        self.fresh("repo")

    def base(self):
        """A store that holds v1, put aside."""
        if not os.path.isdir(self.path("base")):
            self.new_store()
            self.capture(self.v1)
            self.keep("base")

    def resync(self):
        self.base()
        self.again("base")
        measured = self.capture(self.v1)
        self.note("resync", "leeward, nothing differs", measured, measured.said["bytes_sent"],
                  read=measured.said["bytes_read"])
        measured = self.capture(self.v2)
        self.note("resync", "leeward", measured, measured.said["bytes_sent"])
        self.check_restored(self.v2)
        if importlib.util.find_spec("blake3"):
            # What reading and hashing alone cost on this processor (the package blake3 of PyPI).
            measured = run("%s %s %s" % (sys.executable, os.path.join(HERE, "hash_floor.py"), self.v1),
                           self.environment)
            self.note("resync", "reading and hashing alone", measured, read=int(measured.out))
        if self.have("rsync"):
            target = self.path("target.raw")
            self.fresh("target.raw")
            self.sh("cp --sparse=always %s %s" % (self.v1, target))
            measured = run("rsync --stats --inplace --no-whole-file %s %s" % (self.v2, target), self.environment)
            sent = [line for line in measured.out.splitlines() if line.startswith("Total bytes sent")]
            self.note("resync", "rsync --inplace", measured, int(sent[0].split()[3].replace(",", "")))
            self.sh("cmp %s %s" % (self.v2, target))
            self.fresh("target.raw")

    def incremental(self):
        self.base()
        self.again("base")
        before = stored(self.path("store"))
        measured = self.capture(self.v2, "--changes root=" + self.changes)
        self.note("incremental", "leeward --changes", measured, stored(self.path("store")) - before,
                  changed=self.changed)
        self.check_restored(self.v2)
        if self.have("restic"):
            repo = self.path("repo")
            self.fresh("repo", "cache/restic")
            self.sh("restic -q init --repository-version 2 -r %s && restic -q -r %s backup %s" % (repo, repo, self.v1))
            before = stored(repo)
            measured = run("restic -q -r %s backup --force %s" % (repo, self.v2), self.environment)
            self.note("incremental", "restic", measured, stored(repo) - before)
            self.fresh("repo")

    def restore(self):
        self.base()
        self.again("base")
        out = self.path("out.raw")
        self.fresh("out.raw")
        command = self.leeward("restore %s --item machine --point latest --disk root %s" % (self.path("store"), out))
        self.note("restore", "leeward", run(command, self.environment), os.stat(out).st_blocks * 512)
        self.sh("cmp %s %s" % (out, self.v1))
        self.fresh("out.raw")
        if self.have("restic"):
            repo = self.path("restic-base")
            if not os.path.isdir(repo):
                self.sh("restic -q init --repository-version 2 -r %s && restic -q -r %s backup %s" % (repo, repo, self.v1))
            self.fresh("out")
            measured = run("restic -q -r %s restore latest --target %s && sync -d %s%s" % (
                repo, self.path("out"), self.path("out"), self.v1), self.environment)
            self.note("restore", "restic", measured)
            self.sh("cmp %s%s %s" % (self.path("out"), self.v1, self.v1))
            self.fresh("out")

    def export(self):
        self.base()
        self.again("base")
        socket = self.path("e.sock")
        self.fresh("e.sock")
        words = [self.given.leeward, "store", "serve", self.path("store"), "--item", "machine", "--point",
                 "latest", "--disk", "root", "--socket", socket]
        begun = time.monotonic()
        server = subprocess.Popen(words, env=self.environment, stdout=subprocess.DEVNULL)
        try:
            client = nbd_reads.connect_patiently(socket)
            client.read(0, 4096)
            first = time.monotonic() - begun
            data = nbd_reads.data_offsets(self.v1)
            decoded, cached = nbd_reads.latencies(client, data, 512)
            begun = time.monotonic()
            second = nbd_reads.Client(socket)
            second.read(data[0], 4096)
            running = time.monotonic() - begun
            second.close()
            client.close()
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
        row = {"first_cold_ms": first * 1e3, "first_running_ms": running * 1e3,
               "random_decode_us": decoded, "random_cached_us": cached}
        self.rows.setdefault("export", {}).setdefault("leeward", []).append(row)
        print("export       leeward  %s" % row, flush=True)
        if self.have("nbdkit"):
            # The floor of this client: a server that only copies.
            server = subprocess.Popen(["nbdkit", "-f", "--unix", socket, "file", self.v1],
                                      stdout=subprocess.DEVNULL)
            try:
                client = nbd_reads.connect_patiently(socket)
                decoded, cached = nbd_reads.latencies(client, data, 512)
                client.close()
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait()
                self.fresh("e.sock")
            row = {"random_decode_us": decoded, "random_cached_us": cached}
            self.rows["export"].setdefault("nbdkit file (no decoding)", []).append(row)
            print("export       nbdkit file %s" % row, flush=True)

    def sparse(self):
        """100 MiB changed on a sparse disk: the disk's size is not to matter."""
        for gib in (10, 10 * 1024):
            disk, changes = self.path("sparse.raw"), self.path("sparse.json")
            self.fresh("sparse.raw")
            size, piece = gib << 30, 64 << 10
            pieces = [[(size // 1600 * number) // piece * piece, piece] for number in range(1600)]
            with open(disk, "wb") as out:
                out.truncate(size)
            self.new_store()
            self.capture(disk)
            with open(disk, "r+b") as out, open(self.v1, "rb") as source:
                for offset, length in pieces:
                    out.seek(offset)
                    out.write(source.read(length).ljust(length, b"x"))
            with open(changes, "w") as out:
                json.dump(pieces, out)
            measured = self.capture(disk, "--changes root=" + changes)
            self.note("sparse", "leeward, %d GiB disk" % gib, measured, measured.said["bytes_sent"])
            self.fresh("sparse.raw")


PAIRS = [
    # what, case, leeward's row, the peer's row, key, bar (peer / leeward at least)
    ("initial, level 1: wall against the pipeline", "initial", "leeward 1", "nbdcopy|zstd -1|openssl|dd", "wall", 2.0),
    ("initial, level 1: processor against the pipeline", "initial", "leeward 1", "nbdcopy|zstd -1|openssl|dd", "cpu", 1.3),
    ("initial, level 1: stored against the pipeline", "initial", "leeward 1", "nbdcopy|zstd -1|openssl|dd", "stored", 1 / 1.05),
    ("initial, level -7: processor against the pipeline", "initial", "leeward -7", "nbdcopy|zstd -1|openssl|dd", "cpu", 1.6),
    ("initial, level -7: stored against the pipeline", "initial", "leeward -7", "nbdcopy|zstd -1|openssl|dd", "stored", 1 / 1.4),
    ("initial, raw: wall against nbdcopy to nbdkit", "initial", "leeward raw", "nbdcopy to nbdkit", "wall", 1 / 1.3),
    ("initial: wall against restic", "initial", "leeward 1", "restic", "wall", 4.5),
    ("initial: processor against restic", "initial", "leeward 1", "restic", "cpu", 4.5),
    ("initial: wall against borg", "initial", "leeward 1", "borg zstd,1", "wall", 4.0),
    ("initial: processor against borg", "initial", "leeward 1", "borg zstd,1", "cpu", 2.0),
    ("resync: wall against rsync", "resync", "leeward", "rsync --inplace", "wall", 12),
    ("resync: processor against rsync", "resync", "leeward", "rsync --inplace", "cpu", 7),
    ("resync: bytes against rsync", "resync", "leeward", "rsync --inplace", "stored", 7),
    ("incremental: stored against restic", "incremental", "leeward --changes", "restic", "stored", 25),
    ("restore: wall against restic", "restore", "leeward", "restic", "wall", 2),
    ("restore: processor against restic", "restore", "leeward", "restic", "cpu", 2),
    ("10 TiB against 10 GiB: wall (small / large)", "sparse", "leeward, 10240 GiB disk", "leeward, 10 GiB disk", "wall", 1 / 1.2),
    ("10 TiB against 10 GiB: processor (small / large)", "sparse", "leeward, 10240 GiB disk", "leeward, 10 GiB disk", "cpu", 1 / 1.2),
]


def judged(bench):
    rows = []
    median = lambda values: statistics.median(values)
    for what, case, ours, theirs, key, bar in PAIRS:
        found = bench.rows.get(case, {})
        if ours in found and theirs in found:
            # The rounds went in turns: each is compared with its own neighbour.
            ratios = [b[key] / a[key] for a, b in zip(found[ours], found[theirs])]
            rows.append((what, median(ratios), bar, median(ratios) >= bar, ratios))
    at_most = lambda what, values, bar: rows.append((what, median(values), bar, median(values) <= bar, values))
    for row in [bench.rows.get("incremental", {}).get("leeward --changes")]:
        if row:
            at_most("incremental: processor seconds a changed GiB (at most)",
                    [one["cpu"] * 2**30 / one["changed"] for one in row], 2.0)
    for row in [bench.rows.get("resync", {}).get("leeward, nothing differs")]:
        if row:
            rate = [one["read"] / 2**30 / one["cpu"] for one in row]
            rows.append(("resync of equal data: GiB a processor second", median(rate), 4.5, median(rate) >= 4.5, rate))
            floor = bench.rows["resync"].get("reading and hashing alone")
            if floor:
                share = [one * other["cpu"] * 2**30 / other["read"] for one, other in zip(rate, floor)]
                rows.append(("  the same, as a share of reading and hashing alone", median(share), 0.8, median(share) >= 0.8, share))
    for row in [bench.rows.get("export", {}).get("leeward")]:
        if row:
            for key, bar in (("first_cold_ms", 30), ("first_running_ms", 10), ("random_decode_us", 70), ("random_cached_us", 20)):
                at_most("export: %s (at most)" % key, [one[key] for one in row], bar)
    peaks = [one["peak"] / 2**20 for rows_ in bench.rows.values() for who, many in rows_.items()
             if who.startswith("leeward") for one in many if "peak" in one]
    if peaks:
        at_most("memory: largest process, MiB (at most)", [max(peaks)], 258)
    return rows


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("cases", nargs="*", metavar="CASE")
    arguments.add_argument("--leeward", default=os.path.join(HERE, "../target/release/leeward"))
    arguments.add_argument("--gib", type=float, default=1)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--largest-piece", type=int, default=65536)
    arguments.add_argument("--work", default=os.path.join(HERE, "../target/bench"))
    given = arguments.parse_args()
    given.leeward, given.work = os.path.abspath(given.leeward), os.path.abspath(given.work)
    cases = given.cases or ["initial", "resync", "incremental", "restore", "export", "sparse"]
    shutil.rmtree(given.work, ignore_errors=True)
    bench = Bench(given)
    load = []
    for number in range(given.rounds):
        for case in cases:
            load.append(os.getloadavg()[0])
            getattr(bench, case)()
    rows = judged(bench)
    print("\n%-58s %9s %9s  met" % ("", "median", "bar"))
    for what, value, bar, met, _ in rows:
        print("%-58s %9.3f %9.3f  %s" % (what, value, bar, "yes" if met else "NO"))
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    result = {
        "at": now, "gib": given.gib, "rounds": given.rounds, "processors": os.cpu_count(),
        "load": [round(min(load), 2), round(max(load), 2)], "allocated": bench.allocated,
        "changed": bench.changed, "rows": bench.rows,
        "bars": [{"what": what, "median": round(value, 3), "bar": round(bar, 3), "met": bool(met),
                  "rounds": [round(one, 3) for one in many]} for what, value, bar, met, many in rows],
    }
    path = os.path.join(RESULTS, "data_plane-%s.json" % now)
    with open(path, "w") as out:
        json.dump(result, out, indent=1)
        out.write("\n")
    print("stored in %s" % os.path.relpath(path))
    shutil.rmtree(given.work, ignore_errors=True)
    return 0 if all(met for _, _, _, met, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Makes the disks that data_plane.py measures with: v1.raw, v2.raw and v1-v2.json.

v1.raw is a sparse disk like that of a small server: 45 % bytes of the files below /usr, 12 % noise
(media, encrypted files), 6 % log lines, 6 % half-empty database pages, 2 % zeros that are written,
the rest holes; all of it in pieces of 64 KiB to 4 MiB, shuffled. v2.raw is v1.raw after a day:
2 % of the data written anew in scattered pieces, 70 % with other bytes of files, 20 % noise, 10 %
zeros. v1-v2.json is the list of changed parts, [offset, length] in bytes, in whole blocks.

The same arguments on the same machine make the same bytes; on another one /usr differs.
"""
import argparse, json, os, random, struct

BLOCK = 4096


class Files:
    """An endless stream of the bytes of regular files below /usr, in the order of their names."""

    def __init__(self):
        self.paths, self.file = [], None
        for folder, folders, names in os.walk("/usr"):
            folders.sort()
            for name in sorted(names):
                path = os.path.join(folder, name)
                if os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) >= 4096:
                    self.paths.append(path)
        self.next = 0

    def take(self, count):
        out = bytearray()
        while len(out) < count:
            if self.file is None:
                self.file = open(self.paths[self.next % len(self.paths)], "rb")
                self.next += 1
            piece = self.file.read(count - len(out))
            if not piece:
                self.file.close()
                self.file = None
                # A file system begins every file at a block.
                out += bytes(min(-len(out) % BLOCK, count - len(out)))
            out += piece
        return bytes(out)


class Logs:
    def __init__(self, draw):
        self.draw, self.second, self.rest = draw, 0, b""

    def take(self, count):
        draw, parts, have = self.draw, [self.rest], len(self.rest)
        while have < count:
            self.second += draw.randrange(3)
            at = "%02d:%02d:%02d" % (self.second // 3600 % 24, self.second // 60 % 60, self.second % 60)
            line = "Nov 21 %s web%d app[%d]: %s /shop/%s?id=%d %d %d bytes in %.1f ms trace %016x\n" % (
                at, draw.randrange(8), draw.randrange(900, 9000), draw.choice(("GET", "GET", "POST")),
                draw.choice(("cart", "item", "search", "login")), draw.randrange(10**6),
                draw.choice((200, 200, 200, 304, 404)), draw.randrange(60000), draw.random() * 90,
                draw.getrandbits(64))
            parts.append(line.encode())
            have += len(line)
        text = b"".join(parts)
        self.rest = text[count:]
        return text[:count]


class Pages:
    """Database pages of 8 KiB, filled to about a half."""

    def __init__(self, draw):
        self.draw, self.number, self.rest = draw, 0, b""

    def take(self, count):
        parts, have = [self.rest], len(self.rest)
        while have < count:
            rows = b"".join(
                struct.pack("<QI", self.draw.getrandbits(63), self.number) +
                b"name-%06d street %04d, city %03d; active;" % (
                    self.draw.randrange(10**6), self.draw.randrange(9999), self.draw.randrange(400))
                for _ in range(self.draw.randrange(50, 80)))
            page = (struct.pack("<QQ", 0x50414745, self.number) + rows)[:8192]
            parts.append(page + bytes(8192 - len(page)))
            self.number, have = self.number + 1, have + 8192
        text = b"".join(parts)
        self.rest = text[count:]
        return text[:count]


class Noise:
    def __init__(self, draw):
        self.draw = draw

    def take(self, count):
        return self.draw.randbytes(count)


class Zeros:
    def take(self, count):
        return bytes(count)


def pieces(draw, total, kind):
    out = []
    while total > 0:
        length = min(total, draw.choice((64, 128, 256, 1024, 4096)) << 10)
        out.append((kind, length))
        total -= length
    return out


def first(path, size, draw):
    """Writes v1 and returns its parts with data."""
    kinds = {"files": Files(), "noise": Noise(draw), "log": Logs(draw), "pages": Pages(draw), "zeros": Zeros()}
    shares = {"files": 0.45, "noise": 0.12, "log": 0.06, "pages": 0.06, "zeros": 0.02}
    plan = []
    for kind, share in shares.items():
        plan += pieces(draw, int(size * share) // BLOCK * BLOCK, kind)
    plan += pieces(draw, size - sum(length for _, length in plan), "hole")
    draw.shuffle(plan)
    data, at = [], 0
    with open(path, "wb") as disk:
        disk.truncate(size)
        for kind, length in plan:
            if kind != "hole":
                disk.seek(at)
                disk.write(kinds[kind].take(length))
                data.append((at, length))
            at += length
    return data, kinds


def second(path, data, kinds, draw, share, largest):
    """Changes `share` of the data in pieces of 4 KiB to `largest`; returns the parts, merged."""
    blocks = [(at + step) for at, length in data for step in range(0, length // BLOCK * BLOCK, BLOCK)]
    wanted = int(len(blocks) * share) * BLOCK
    lengths = [length << 10 for length in (4, 8, 16, 32, 64) if length << 10 <= largest]
    size, changed = os.path.getsize(path), []
    with open(path, "r+b") as disk:
        while wanted > 0:
            at, length = draw.choice(blocks), min(draw.choice(lengths), wanted)
            length = min(length, size - at)
            lot = draw.random()
            kind = "files" if lot < 0.7 else "noise" if lot < 0.9 else "zeros"
            disk.seek(at)
            disk.write(kinds[kind].take(length))
            changed.append((at, length))
            wanted -= length
    merged = []
    for at, length in sorted(changed):
        if merged and at <= merged[-1][0] + merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], at + length - merged[-1][0])
        else:
            merged.append([at, length])
    return merged


def make(folder, size, share=0.02, largest=65536, seed=4):
    draw = random.Random(seed)
    os.makedirs(folder, exist_ok=True)
    one, two, parts = (os.path.join(folder, name) for name in ("v1.raw", "v2.raw", "v1-v2.json"))
    data, kinds = first(one, size, draw)
    with open(one, "rb") as source, open(two, "wb") as copy:
        copy.truncate(size)
        for at, length in data:
            source.seek(at)
            copy.seek(at)
            copy.write(source.read(length))
    changes = second(two, data, kinds, draw, share, largest)
    with open(parts, "w") as out:
        json.dump(changes, out)
    return one, two, parts


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder")
    arguments.add_argument("--gib", type=float, default=1)
    arguments.add_argument("--largest-piece", type=int, default=65536, help="bytes; the smallest is 4096")
    given = arguments.parse_args()
    make(given.folder, int(given.gib * (1 << 30)) // 65536 * 65536, largest=given.largest_piece)

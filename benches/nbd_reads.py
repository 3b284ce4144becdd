"""A small NBD client: one request at a time over a unix socket, and the latencies of its reads. Its
own cost, some 10 microseconds a request, is in every figure: compare with a server that only copies.
"""
import os, random, socket, statistics, struct, time

MAGIC, OPTION, REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x67446698
EXPORT_NAME, READ, DISCONNECT = 1, 0, 2


class Client:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        magic, option, _flags = struct.unpack(">QQH", self.exactly(18))
        if (magic, option) != (MAGIC, OPTION):
            raise ValueError("no NBD server")
        # Fixed newstyle, no zeroes behind the size; the export without a name.
        self.socket.sendall(struct.pack(">IQII", 3, OPTION, EXPORT_NAME, 0))
        self.size, _flags = struct.unpack(">QH", self.exactly(10))
        self.cookie = 0

    def exactly(self, count):
        parts = bytearray()
        while len(parts) < count:
            part = self.socket.recv(count - len(parts))
            if not part:
                raise ConnectionError("the server went away")
            parts += part
        return bytes(parts)

    def read(self, offset, length):
        self.cookie += 1
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, READ, self.cookie, offset, length))
        magic, error, cookie = struct.unpack(">IIQ", self.exactly(16))
        if magic != REPLY or error or cookie != self.cookie:
            raise ValueError("error %d at %d" % (error, offset))
        return self.exactly(length)

    def close(self):
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, DISCONNECT, 0, 0, 0))
        self.socket.close()


def connect_patiently(path, seconds=20):
    end = time.monotonic() + seconds
    while True:
        try:
            return Client(path)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > end:
                raise
            time.sleep(0.0005)


def data_offsets(path):
    """Offsets of the extents of 64 KiB that hold data, shuffled."""
    file, size, at, found = os.open(path, os.O_RDONLY), os.path.getsize(path), 0, []
    while at < size:
        try:
            at = os.lseek(file, at, os.SEEK_DATA)
        except OSError:
            break
        end = os.lseek(file, at, os.SEEK_HOLE)
        found += range(-(-at // 65536) * 65536, end - 65535, 65536)
        at = end
    os.close(file)
    random.Random(7).shuffle(found)
    return found


def latencies(client, offsets, count):
    """Medians in microseconds: of reads that decode an extent, and of reads beside them."""
    decoded, cached = [], []
    for offset in offsets[1:count + 1]:
        for into, at in ((decoded, offset + 8192), (cached, offset + 32768)):
            begun = time.perf_counter()
            client.read(at, 4096)
            into.append((time.perf_counter() - begun) * 1e6)
    return statistics.median(decoded), statistics.median(cached)

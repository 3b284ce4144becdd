#!/usr/bin/env python3
"""Reads what a sparse file holds and hashes it by 64 KiB with keyed BLAKE3 on one thread, nothing
else; prints the bytes. The least that any comparison by such hashes can cost on a processor."""
import blake3, os, sys

PIECE, EXTENT, KEY = 1 << 18, 1 << 16, b"k" * 32
file, at, done, buffer = os.open(sys.argv[1], os.O_RDONLY), 0, 0, memoryview(bytearray(PIECE))
size = os.fstat(file).st_size
while at < size:
    try:
        at = os.lseek(file, at, os.SEEK_DATA)
    except OSError:
        break
    end = os.lseek(file, at, os.SEEK_HOLE)
    while at < end:
        count = os.preadv(file, [buffer[:min(PIECE, end - at)]], at)
        for offset in range(0, count, EXTENT):
            blake3.blake3(buffer[offset:min(offset + EXTENT, count)], key=KEY).digest()
        at, done = at + count, done + count
print(done)

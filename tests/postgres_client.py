#!/usr/bin/env python3
"""Clients of tests/postgres.sh: they speak to the server themselves, so that what the server has answered is known exactly.

    postgres_client.py commit SOCKET FIRST LOG KILLED   rows FIRST, FIRST+1, ..., a transaction each; a number is
                                                        appended to LOG when the server has said COMMIT
    postgres_client.py churn SOCKET KILLED              tables and indexes made, checkpointed and dropped

They run until the server is gone, which is a failure unless the file KILLED is there by then.
"""

import os
import socket
import struct
import sys

# Longest wait for an answer: a server that does not answer is a fault too.
ANSWER_MAX_SECONDS = 120
# A death may have left the table there.
CHURN = """drop table if exists churn; create table churn as select n, repeat('x', 200) as filler from generate_series(1, 2000) n;
create index on churn (n); alter table churn add column more int default 1; update churn set more = n;
checkpoint; truncate churn; insert into churn select n from generate_series(1, 500) n;
vacuum pgbench_branches; vacuum pgbench_tellers""".split(";")


class Server:
    """A connection as the superuser, whom the socket's folder lets in without a password."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(ANSWER_MAX_SECONDS)
        self.socket.connect(path)
        self.stream = self.socket.makefile("rb")
        words = b"user\0postgres\0database\0postgres\0\0"
        self.socket.sendall(struct.pack("!ii", 8 + len(words), 196608) + words)
        for _ in self.answers():
            pass

    def query(self, text):
        """Send it; gives the tag of each command when the server says that it is done."""
        words = text.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!i", 4 + len(words)) + words)
        return (body[:-1].decode() for kind, body in self.answers() if kind == b"C")

    def answers(self):
        """All messages up to the server's being ready for the next query."""
        while True:
            head = self.stream.read(5)
            if len(head) < 5:
                raise ConnectionError("the server has closed the connection")
            kind, (length,) = head[:1], struct.unpack("!i", head[1:])
            body = self.stream.read(length - 4)
            if len(body) < length - 4:
                raise ConnectionError("the server has closed the connection")
            if kind == b"E":
                fields = dict((f[:1], f[1:]) for f in body.split(b"\0") if f)
                raise ConnectionError(" ".join(fields.get(k, b"").decode() for k in (b"S", b"C", b"M")))
            if kind == b"Z":
                return
            yield kind, body


def commit(path, number, log):
    server = Server(path)
    while True:
        done = server.query(f"begin; insert into committed (n) values ({number}); commit")
        for tag in done:
            if tag == "COMMIT":
                # One write each: whole, and there when this process is killed.
                os.write(log, f"{number}\n".encode())
        number += 1


def churn(path):
    server = Server(path)
    while True:
        for text in CHURN:
            for _ in server.query(text):
                pass


def main():
    killed = sys.argv[-1]
    try:
        if sys.argv[1] == "commit":
            log = os.open(sys.argv[4], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            commit(sys.argv[2], int(sys.argv[3]), log)
        else:
            churn(sys.argv[2])
    except OSError as why:
        if not os.path.exists(killed):
            sys.exit(f"{sys.argv[1]}: {why}")


main()

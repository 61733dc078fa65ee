"""The limit: bytes over TCP, as many as each connection asks for (8 bytes, little endian). `raw_tcp [HOST]`."""

import socket
import sys
import threading

CHUNK_BYTES = 2 * 1024**2
CONTENT = memoryview(bytes(range(256)) * (CHUNK_BYTES // 256))


def send(connection: socket.socket) -> None:
    with connection:
        while wanted := connection.recv(8, socket.MSG_WAITALL):
            left = int.from_bytes(wanted, "little")
            while left:
                piece = CONTENT[: min(left, CHUNK_BYTES)]
                connection.sendall(piece)
                left -= len(piece)


def main() -> None:
    host = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1"
    with socket.create_server((host, 0), backlog=64) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=send, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()

"""The limit: bytes over loopback, as many as each connection asks for (8 bytes, little endian, as often as it likes)."""

import socket

CHUNK_BYTES = 2 * 1024**2


def main() -> None:
    content = memoryview(bytes(range(256)) * (CHUNK_BYTES // 256))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            connection, _ = listening.accept()
            with connection:
                while wanted := connection.recv(8, socket.MSG_WAITALL):
                    left = int.from_bytes(wanted, "little")
                    while left:
                        piece = content[: min(left, CHUNK_BYTES)]
                        connection.sendall(piece)
                        left -= len(piece)


if __name__ == "__main__":
    main()

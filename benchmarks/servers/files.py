"""Static files over HTTP/1.1, from the folder given: what holds a WebDataset's shards."""

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def copyfile(self, source, outputfile):  # type: ignore[no-untyped-def]
        """By sendfile, as a web server would."""
        outputfile.flush()
        self.connection.sendfile(source)

    def log_message(self, *_: object) -> None: ...


def main() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=sys.argv[1])) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()

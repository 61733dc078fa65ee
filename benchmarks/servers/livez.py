"""An orchestrator's probe: GET /livez on a new connection every few milliseconds. Says its latencies, in seconds, as JSON."""

import http.client
import json
import sys
import time

EVERY_S = 0.01


def main() -> None:
    host, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    print("ready", flush=True)
    latencies = []
    deadline = time.perf_counter() + seconds
    while (started := time.perf_counter()) < deadline:
        connection = http.client.HTTPConnection(host, port, timeout=30)
        connection.request("GET", "/livez")
        response = connection.getresponse()
        response.read()
        assert response.status == 200
        connection.close()
        took = time.perf_counter() - started
        latencies.append(took)
        time.sleep(max(0.0, EVERY_S - took))
    print(json.dumps(latencies), flush=True)


if __name__ == "__main__":
    main()

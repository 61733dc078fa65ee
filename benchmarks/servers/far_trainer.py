"""A trainer or a raw TCP client at the far end of a link: `far_trainer HOST TCP_PORT URL` answers lines of JSON with lines of JSON.

{"raw": K, "bytes": N}: N bytes over K fresh connections. {"epochs": E, "batch_size": B, "steps": S}: a new dataset's first
epochs, or their first S steps. Answers: seconds from the first connection on, those until the first batch, bytes, samples, CPU.
"""

import json
import socket
import sys
import threading
import time
from typing import Any

RECEIVE_BYTES = 1024**2


def raw(host: str, port: int, connections: int, nbytes: int) -> dict[str, Any]:
    def receive(left: int) -> None:
        with socket.create_connection((host, port)) as sock:
            sock.sendall(left.to_bytes(8, "little"))
            buffer = memoryview(bytearray(RECEIVE_BYTES))
            while left:
                count = sock.recv_into(buffer[: min(left, RECEIVE_BYTES)], 0, socket.MSG_WAITALL)
                assert count, "the sender has gone"
                left -= count

    shares = [nbytes // connections + (number < nbytes % connections) for number in range(connections)]
    threads = [threading.Thread(target=receive, args=(share,)) for share in shares]
    began, began_cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    return {"seconds": took, "first_s": took, "bytes": nbytes, "samples": 0, "cpu_s": time.process_time() - began_cpu}


def ours(url: str, batch_size: int, epochs: int, steps: int | None) -> list[dict[str, Any]]:
    import httpx  # noqa: F401 - what the first request would import, and a training script has long imported

    from cpstream_client.torch import StreamingEmbeddingsDataset

    answers = []
    began, began_cpu = time.perf_counter(), time.process_time()
    dataset = StreamingEmbeddingsDataset(url, "train", batch_size=batch_size, shuffle=True, cache=None)
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        samples = nbytes = 0
        first_s = 0.0
        for step, (embeddings, cps) in enumerate(dataset, 1):
            first_s = first_s or time.perf_counter() - began
            samples += len(cps)
            nbytes += embeddings.nbytes + cps.nbytes
            if step == steps:
                break
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
        answers.append({"seconds": seconds, "first_s": first_s, "bytes": nbytes, "samples": samples, "cpu_s": cpu_s})
        began, began_cpu = time.perf_counter(), time.process_time()
    return answers


def main() -> None:
    import torch

    torch.set_num_threads(1)
    host, port, url = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    print("ready", flush=True)
    for line in sys.stdin:
        wish = json.loads(line)
        if "raw" in wish:
            answer: Any = raw(host, port, wish["raw"], wish["bytes"])
        else:
            answer = ours(url, wish["batch_size"], wish["epochs"], wish.get("steps"))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

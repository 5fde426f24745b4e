"""SSCD, the copy detection model, over pictures that come in by a pipe.

    python dedupe_sscd.py MODEL.onnx OUT.npy THREADS < (N x 288 x 288 x 3 bytes)

Written is (N, D) float32, each row of length 1. The model takes RGB bytes as they are.
"""

# mypy: ignore-errors
# What it imports lies in an environment of its own.

import sys

import numpy as np
import onnxruntime

SIDE, BATCH = 288, 16


def main() -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(sys.argv[3])
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    name, found, size = session.get_inputs()[0].name, [], SIDE * SIDE * 3
    while data := sys.stdin.buffer.read(BATCH * size):
        pictures = np.frombuffer(data, np.uint8).reshape(-1, SIDE, SIDE, 3)
        found.append(np.asarray(session.run(None, {name: pictures})[0], np.float32))
    vectors = np.concatenate(found)
    np.save(sys.argv[2], vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


if __name__ == "__main__":
    main()

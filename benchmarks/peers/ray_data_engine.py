"""The peer of `benchmarks/engine.py`: Ray Data reads the same parquet, keeps all rows by the same test, writes parquet."""

import json
import shutil
import sys
import time

import ray


def main() -> None:
    source, target, blocks = sys.argv[1], sys.argv[2], int(sys.argv[3])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    ray.data.DataContext.get_current().enable_progress_bars = False
    for _ in range(2):  # the first pass starts workers; the second is the one that counts
        shutil.rmtree(target, ignore_errors=True)
        started = time.perf_counter()
        rows = ray.data.read_parquet(source, override_num_blocks=blocks)
        rows.map_batches(lambda batch: {**batch, "kept": batch["score"] >= -1}, batch_format="numpy").write_parquet(target)
        seconds = time.perf_counter() - started
    sys.stdout.write(json.dumps({"seconds": seconds, "version": ray.__version__}) + "\n")


if __name__ == "__main__":
    main()

"""What the stack costs while nobody asks for anything."""

import time

from bench.stack import Bench, memory, processor_seconds

REST_SECONDS = 20
MEBIBYTE = 2**20
UNITS = {"core_percent": "%", "memory_mib": "MiB"}


def idle(bench: Bench) -> dict[str, float]:
    """Per cent of a core at rest; resident memory of the whole is the sum of what the notes say of each process."""
    before, started = processor_seconds(bench), time.monotonic()
    time.sleep(REST_SECONDS)
    share = (processor_seconds(bench) - before) / (time.monotonic() - started)
    resident = memory(bench)
    bench.notes.setdefault("idle", []).append({"memory": resident})
    return {"core_percent": 100 * share, "memory_mib": sum(resident.values()) / MEBIBYTE}

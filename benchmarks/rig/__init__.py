"""What the benchmarks share: servers, the floor, processor time of all processes, one JSON line."""

#!/usr/bin/env bash
# All that is to be measured on a card, in the order of its worth, within some 12 minutes.
#
#   OUT=results benchmarks/gpu_lease.sh            # needs cudf, dask-cuda and the extra dev; no network
#
# Each step has a limit of its own and leaves a file in $OUT, so that a lease that ends early leaves what
# was done. What has to be seen, none of which has run on a card since counting was wired in:
#   1-counting     tests/gpu/test_gpu_counting.py: equal counts, slices, only left rows on the host, spilling
#   2-parity       every text step and whole chains beside pandas, with the kernels in place
#   3-chain        ratio of count and split_count_pack to all cores, `counted`, first_column_s
#   4-chain-again  first_column_s when the kernels come from the cache on disk
#   5-cluster      equal rows, `counting` of run.json, device_bytes, spilling with counted columns
#   6-kernels      GB/s by split rule on device-resident text beside all cores
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:-gpu-results}
PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$OUT"

step() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2
    shift 2
    timeout "$limit" "$@" >"$OUT/$name.txt" 2>&1
    echo "$name: exit $? after ${SECONDS} s; $(tail -n 1 "$OUT/$name.txt" | cut -c -200)"
}

nvidia-smi >"$OUT/0-card.txt" 2>&1
"$PYTHON" -m pip list >>"$OUT/0-card.txt" 2>&1
step 1-counting 120 "$PYTHON" -m pytest -m gpu tests/gpu/test_gpu_counting.py
step 2-parity 150 "$PYTHON" -m pytest -m gpu tests/gpu/test_gpu_parity.py tests/gpu/test_gpu_signatures.py
step 3-chain 150 "$PYTHON" benchmarks/gpu_chain.py --mb 120
step 4-chain-again 60 "$PYTHON" benchmarks/gpu_chain.py --mb 120 --no-cores --no-nfc
step 5-cluster 150 "$PYTHON" benchmarks/gpu_cluster.py --copies 4 --folder "$OUT/run" --only equal spill
step 6-kernels 90 "$PYTHON" benchmarks/gpu_counting.py --size-mb 256 --chunks 64 --threads 128

#!/usr/bin/env bash
# What capture costs on a GPU: tests/bench/on_gpu.sh WHEELS, from the repository's root, on a machine with CUDA's torch
# that need not reach a network. First that all runs and the tests that need a GPU, then the figures, into $OUT.
# WHEELS: what is missing there, made elsewhere by pip download (for its Python) and pip wheel --no-deps .
# LIMIT: seconds in all. SHAPE, BATCH, ROUNDS: of the measurement.
set -u
out=${OUT:?a folder for the figures} limit=${LIMIT:-560}
shape=${SHAPE:-llama-3.1-8b} batch=${BATCH:-32,1,256} rounds=${ROUNDS:-6}
left() { echo $((limit - SECONDS)); }
say() { echo "== $((SECONDS)) s: $*"; }
exec > >(tee -a "$out/log") 2>&1

site=$(mktemp -d)
python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$1"/*.whl || exit
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export COLUMNS=150 NO_COLOR=1 TERM=dumb
engine() { timeout -s INT -k 20 "$1" python3 -m monitor.cli bench engine "${@:2}"; }

say machine
nvidia-smi --query-gpu=name,driver_version,memory.total,memory.used --format=csv,noheader
nproc; free -g | sed -n 2p; df -h /tmp | tail -1
python3 -c 'import sys, torch, transformers, grpc, numpy; from google import protobuf; print(sys.version.split()[0], torch.__version__, torch.cuda.is_available(), "transformers", transformers.__version__, "grpc", grpc.__version__, "protobuf", protobuf.__version__, "numpy", numpy.__version__)' || exit
python3 -m monitor.cli --version || exit

say "does it all run, and the tests that need a GPU"
timeout -k 10 170 python3 -m pytest -p no:cacheprovider -q --timeout 160 tests/capture/test_on_gpu.py > "$out/pytest.log" 2>&1 &
tests=$!
engine 150 --shape tiny --batch 4 --prompt-tokens 16 --new-tokens 8 --rounds 1 --json "$out/tiny.json"
runs=$?
wait $tests; echo "pytest: $?"; tail -60 "$out/pytest.log"
say "the small run ended with $runs"
# One that was merely slow says nothing against the rest.
[ -s "$out/tiny.json" ] || [ $runs -eq 124 ] || exit 1

say "$shape, $batch at once"
(while sleep 20 > /dev/null 2>&1; do echo "-- $(nvidia-smi --query-gpu=memory.used,utilization.gpu --format=csv,noheader), load $(cut -d' ' -f1 /proc/loadavg)"; done) &
watch=$!
engine "$(($(left) - 10))" --shape "$shape" --batch "$batch" --rounds "$rounds" --json "$out/compiled.json"
say "ended with $?"
if [ "$(left)" -ge 160 ]; then
  say "$shape without torch.compile"
  engine "$(($(left) - 10))" --shape "$shape" --batch 32 --rounds "$rounds" --no-compile --json "$out/eager.json"
  say "ended with $?"
fi
kill $watch
# The tables of a run that was cut.
for file in "$out"/{compiled,eager}.json; do
  [ -s "$file" ] && python3 - "$file" <<'P'
import json, sys
from rich.console import Console
from monitor.bench.engine.show import show
print(sys.argv[1])
show(Console(width=150), json.load(open(sys.argv[1])))
P
done
say done

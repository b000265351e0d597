#!/usr/bin/env bash
# Everything that needs a GPU, in one call of less than nine minutes on an H200 machine with 16 cores:
#
#   profiling/gpu_suite.sh FOLDER
#
# Builds for the GPU present with the torch of $PYTHON (default python3; nothing is installed), runs the tests,
# compute-sanitizer, the benchmark and the traces. Every stage has a time limit and writes FOLDER/STAGE.log while it runs;
# a stage that fails or runs out of time stops nothing but what builds on it. FOLDER/summary.txt has a line for each.
set -uo pipefail
out=$(mkdir -p "${1:?usage: profiling/gpu_suite.sh FOLDER}" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
build=build/gpu
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/$build/site:$PWD" MPLCONFIGDIR=/tmp/matplotlib
failed=0
deadline=530
: >"$out/summary.txt"

# stage NAME SECONDS COMMAND...
stage() {
  local name=$1 limit=$2 begin=$SECONDS status
  shift 2
  if [ "$limit" -gt $((deadline - SECONDS)) ]; then limit=$((deadline - SECONDS)); fi
  if [ "$limit" -lt 5 ]; then
    echo "$name: no time left" | tee -a "$out/summary.txt"
    failed=1
    return 1
  fi
  timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
  status=$?
  printf '%-16s exit %3d  %4d s of %d\n' "$name" "$status" $((SECONDS - begin)) "$limit" | tee -a "$out/summary.txt"
  [ "$status" -eq 0 ] || failed=1
  return "$status"
}

build_library() {
  set -e
  local generator=()
  command -v ninja >/dev/null && generator=(-G Ninja)
  cmake -S . -B "$build" "${generator[@]}" -DMY_OPS_CUDA=ON -DMY_OPS_BUILD_TESTS=ON \
    -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')"
  cmake --build "$build" --parallel "$(nproc)"
  rm -rf "$build/site"
  cmake --install "$build" --component python --prefix "$build/site"
  cp -r python/my_ops "$build/site"
}

machine() {
  date -u +%FT%TZ
  git rev-parse HEAD 2>/dev/null
  nvidia-smi
  "$python" -c 'import torch; print(torch.__version__, torch.version.cuda, torch.backends.cudnn.version())
print(torch.cuda.get_device_properties(0))'
}

registers() {
  find "$build" -name '*.cu.o.log' -print0 | xargs -0 "$python" cpp/cmake/ptxas_report.py
}

tests() {
  "$python" -m pytest -q -p no:cacheprovider -n 8 --dist loadfile "$@" 2>"$out/xdist.log" ||
    { grep -q 'unrecognized arguments' "$out/xdist.log" && "$python" -m pytest -q -p no:cacheprovider "$@"; }
}

# One family per process, at odd sizes; each tool looks for something else.
sanitize() {
  local status=0 tool family
  for tool in memcheck racecheck synccheck initcheck; do
    for family in stream cta cluster; do
      echo "== $tool $family"
      MY_OPS_CUDA_FAMILY=$family PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 30 \
        compute-sanitizer --tool "$tool" --error-exitcode 9 --kernel-regex kns=my_ops \
        "$python" profiling/gpu_odd_sizes.py || status=1
    done
  done
  return $status
}

export -f build_library machine registers tests sanitize
export build python out

stage machine 20 bash -c machine
if [ -d .whl ]; then # packages that the machine lacks, carried as wheels
  stage wheels 30 "$python" -m pip install -q --no-index --no-deps --target "$out/../my_ops_wheels" .whl/*.whl
  export PYTHONPATH="$PYTHONPATH:$(cd "$out/../my_ops_wheels" && pwd)"
fi
stage build 150 bash -c build_library || { echo "no library: nothing else can run" >>"$out/summary.txt"; exit 1; }
stage registers 10 bash -c registers
stage cpp_tests 20 ctest --test-dir "$build" --output-on-failure
stage odd_sizes 30 "$python" profiling/gpu_odd_sizes.py
stage gpu_tests 70 bash -c 'tests tests/test_cuda.py'
stage first_figures 60 "$python" profiling/gpu_first_figures.py "$out/first_figures.json"
stage benchmark 60 "$python" -m profiling benchmark --device cuda --seconds 0.02 --output "$out/benchmark.json"
stage tests 100 bash -c 'tests tests -k cuda'
stage sanitizer 90 bash -c sanitize
stage compare 40 "$python" -m profiling compare --device cuda --quick --output "$out/compare"
cat "$out/summary.txt"
exit $failed

#!/usr/bin/env bash
# Everything that needs a GPU, in one call of less than nine minutes on an H200 machine with 16 cores:
#
#   profiling/gpu_suite.sh FOLDER             on the GPU
#   profiling/gpu_suite.sh --dry-run FOLDER   on the CPU, a little of each part: shows that the script itself works
#
# Builds for the GPU present with the torch of $PYTHON (default python3; nothing is downloaded; wheels in .whl/ of packages
# it lacks, such as msgspec, which the traces of compare and capture take, are unpacked under build/), then
# runs the parts below, the most important ones first. Each has a time limit; one that fails or runs out of time stops
# nothing but what builds on it. FOLDER gets three files, made anew after every part: summary.md, summary.json and
# results.tar.gz with all logs, figures and traces. The exit code is 0 if every part passed.
set -uo pipefail
dry=0
if [ "${1:-}" = --dry-run ]; then
  dry=1
  shift
fi
out=$(mkdir -p "${1:?usage: profiling/gpu_suite.sh [--dry-run] FOLDER}" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
build=$PWD/build/gpu
parts=$build/parts
device=cuda
cuda=ON
slack=1
if [ "$dry" = 1 ]; then
  build=$PWD/build/gpu-dry
  parts=$build/parts
  device=cpu
  cuda=OFF
  slack=10 # any machine will do
fi
rm -rf "$parts"
mkdir -p "$parts"
export PATH="$PATH:/usr/local/cuda/bin" PYTHONUNBUFFERED=1 PYTHONPATH="$build/site:$PWD${PYTHONPATH:+:$PYTHONPATH}" MPLCONFIGDIR="$build/matplotlib"
export TORCHINDUCTOR_CACHE_DIR="$build/inductor"
failed=0
deadline=$((530 * slack))

pack() {
  "$python" profiling/gpu_summary.py "$parts" "$out"
  tar -czf "$out/.results.tar.gz" -C "$parts" . && mv "$out/.results.tar.gz" "$out/results.tar.gz"
}

# part NAME SECONDS COMMAND...
part() {
  local name=$1 limit=$(($2 * slack)) begin=$SECONDS status
  shift 2
  if [ "$limit" -gt $((deadline - SECONDS)) ]; then limit=$((deadline - SECONDS)); fi
  if [ "$limit" -ge 5 ]; then
    timeout --kill-after=5 "$limit" "$@" >"$parts/$name.log" 2>&1
    status=$?
  else
    limit=0
    status=124
    echo "no time left" >"$parts/$name.log"
  fi
  [ "$status" -eq 0 ] || failed=1
  printf '%s\t%s\t%s\t%s\n' "$name" "$status" $((SECONDS - begin)) "$limit" >>"$parts/parts.tsv"
  printf '%-20s exit %3d  %4d s of %3d  %s\n' "$name" "$status" $((SECONDS - begin)) "$limit" \
    "$(grep -v '^[[:space:]]*$' "$parts/$name.log" | tail -n 1 | cut -c 1-100)"
  pack
  return "$status"
}

machine() {
  date -u +%FT%TZ
  git rev-parse HEAD 2>/dev/null
  [ "$device" = cpu ] || nvidia-smi
  "$python" -c 'import torch; print(torch.__version__, torch.version.cuda, torch.backends.cudnn.version())
if torch.cuda.is_available(): print(torch.cuda.get_device_properties(0))'
}

build_library() {
  set -e
  local generator=()
  if command -v ninja >/dev/null; then generator=(-G Ninja); fi
  cmake -S . -B "$build" "${generator[@]}" -DMY_OPS_CUDA="$cuda" -DMY_OPS_BUILD_TESTS=ON \
    -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')"
  cmake --build "$build" --parallel "$(nproc)"
  rm -rf "$build/site"
  cmake --install "$build" --component python --prefix "$build/site"
  cp -r python/my_ops "$build/site"
}

registers() {
  find "$build" -name '*.cu.o.log' -print0 | xargs -0 "$python" cpp/cmake/ptxas_report.py
}

# One family per process; every result against float64.
odd_sizes() {
  local status=0 family
  for family in stream cta cluster grid; do
    MY_OPS_CUDA_FAMILY=$family timeout 40 "$python" profiling/gpu_odd_sizes.py "$device" || status=1
  done
  return $status
}

# With several processes where pytest has xdist; with names, for what is left when the time runs out.
tests() {
  local parallel=()
  if "$python" -c 'import xdist' 2>/dev/null; then parallel=(-n 8 --dist worksteal); fi
  "$python" -m pytest -v -p no:cacheprovider --tb=short --maxfail=40 "${parallel[@]}" "$@"
}

# Each family in the whole tests of forward, backward and the phases.
families() {
  local status=0 family
  for family in stream cta cluster grid; do
    echo "== $family"
    MY_OPS_CUDA_FAMILY=$family tests tests/test_forward.py tests/test_backward.py tests/test_phases.py \
      tests/test_act.py -k "$device" || status=1
  done
  return $status
}

facts() {
  "$build/facts" >"$parts/facts.json" && cat "$parts/facts.json"
}

# Odd sizes once more, under a tool that watches memory. Each tool looks for something else.
sanitizer() {
  local status=0 tool family log
  if ! command -v compute-sanitizer >/dev/null; then
    echo "compute-sanitizer is not on this machine"
    return 0
  fi
  for tool in memcheck racecheck synccheck initcheck; do
    for family in cluster grid stream cta; do
      echo "== $tool $family"
      log=$(MY_OPS_CUDA_FAMILY=$family PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 60 \
        compute-sanitizer --tool "$tool" --error-exitcode 9 --kernel-regex kns=my_ops \
        "$python" profiling/gpu_odd_sizes.py "$device" few 2>&1) || status=1
      echo "$log" | tail -n 40
      if grep -q 'Device not supported' <<<"$log"; then
        echo "compute-sanitizer does not run on this machine"
        return 0
      fi
    done
  done
  return $status
}

benchmark() {
  local name=$1
  shift
  "$python" -m profiling benchmark --device "$device" --output "$parts/benchmark$name.json" "$@"
}

# What follows batch norm in one pass, against torch's modules one after the other.
family() {
  "$python" -m profiling family --device "$device" --network none --output "$parts/family.json" "$@"
}

export -f machine build_library registers odd_sizes tests families facts sanitizer benchmark family
export build cuda python device parts

part machine 30 bash -c machine
if compgen -G '.whl/*.whl' >/dev/null; then # packages that the machine lacks, carried as wheels
  part wheels 30 "$python" -m pip install -q --no-index --no-deps --target "$build/wheels" .whl/*.whl
  export PYTHONPATH="$PYTHONPATH:$build/wheels"
fi
if ! part build 170 bash -c build_library; then
  echo "no library: nothing else can run"
  exit 1
fi
part cpp_tests 20 ctest --test-dir "$build" --output-on-failure
if [ "$dry" = 1 ]; then
  part odd_sizes 60 bash -c odd_sizes
  part gpu_tests 60 bash -c 'tests tests/test_cuda.py'
  part families 100 bash -c 'tests tests/test_phases.py'
  part benchmark 60 bash -c 'benchmark "" --seconds 0 --shapes 4x8x6x6'
  part family 120 bash -c 'family --seconds 0.001'
  part benchmark_compiled 60 bash -c 'benchmark _compiled --compiled --seconds 0 --shapes 4x8x6x6 --dtype float32'
  part sanitizer 5 true
  part tests 60 bash -c 'tests tests/test_forward.py -k "cpu and float32"'
  part compare 120 "$python" -m profiling compare --device cpu --quick --output "$parts/compare"
  part capture 60 "$python" -m profiling capture --device cpu --model transformers:resnet-18 --shape 3x32x32 --rounds 1 \
    --steps 1 --report --output "$parts/capture"
else
  part registers 10 bash -c registers
  part odd_sizes 60 bash -c odd_sizes
  part gpu_tests 80 bash -c 'tests tests/test_cuda.py'
  part build_facts 30 nvcc -std=c++17 -O3 -arch=native profiling/gpu_facts.cu -o "$build/facts"
  part facts 30 bash -c facts
  part benchmark 120 bash -c 'benchmark "" --seconds 0.01 --dtype bfloat16 --dtype float32 --dtype float16'
  part family 40 bash -c 'family --dtype bfloat16 --seconds 0.05'
  part tests 90 bash -c 'tests tests -k cuda --ignore=tests/test_cuda.py'
  part sanitizer 60 bash -c sanitizer
  part families 60 bash -c families
  part benchmark_compiled 60 bash -c 'benchmark _compiled --compiled --seconds 0.01 --dtype bfloat16 --layout contiguous \
    --shapes 32x64x112x112 --shapes 32x256x56x56 --shapes 32x1024x14x14 --shapes 32x2048x7x7 --shapes 256x64x112x112'
  part compare 60 "$python" -m profiling compare --device cuda --quick --output "$parts/compare"
  part capture 40 "$python" -m profiling capture --device cuda --model transformers:resnet-18 --batch 64 --steps 3 --report \
    --output "$parts/capture"
fi
cat "$out/summary.md"
exit $failed

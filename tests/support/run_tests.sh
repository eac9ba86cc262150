#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# run_tests.sh TEST...: runs each test program or script in its own process, temporary directory and time limit, reads
# its TAP lines, prints what failed or was skipped, and closes with "N passed, N failed, N skipped".
# A test that ends without a result, crashes or overruns counts as failed. BW_ONLY=pattern runs the matching ones.
set -u
: "${BW_TEST_TIMEOUT:=300}"
[ -n "${BW_LONG:-}" ] && BW_TEST_TIMEOUT=3600
[ -n "${BW_SAN:-}" ] && BW_TEST_TIMEOUT=$((BW_TEST_TIMEOUT * 4))
top=$(pwd)
export BW_TOP="$top" CMOCKA_MESSAGE_OUTPUT=TAP
export ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=1:abort_on_error=0:allocator_may_return_null=1}"
export LSAN_OPTIONS="${LSAN_OPTIONS:-suppressions=$top/tests/support/lsan.supp:print_suppressions=0}"
export TSAN_OPTIONS="${TSAN_OPTIONS:-suppressions=$top/tests/support/tsan.supp:halt_on_error=0:exitcode=66}"
# oneDNN's OpenMP threads spin at barriers, which starves everybody on a busy machine.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
export UBSAN_OPTIONS="${UBSAN_OPTIONS:-print_stacktrace=1}"
passed=0 failed=0 skipped=0
work=$(mktemp -d "${TMPDIR:-/tmp}/bw-tests.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
# Compiled kernels of OpenCL devices: one private cache for all tests, nothing in the user's.
export BW_CACHE_DIR="${BW_CACHE_DIR:-$work/cache}" POCL_CACHE_DIR="${POCL_CACHE_DIR:-$work/pocl}"
mkdir -p "$POCL_CACHE_DIR"
trap 'exit 130' INT TERM
for t in "$@"; do
    case "$t" in *"${BW_ONLY:-}"*) ;; *) continue ;; esac
    name=${t#"${BW_BUILD:-}"/}
    mkdir -p "$work/tmp"
    started=$(date +%s)
    log="$work/log"
    case "$t" in *.sh) runner=sh ;; *) runner= ;; esac
    TMPDIR="$work/tmp" timeout -k 10 "$BW_TEST_TIMEOUT" $runner "$t" >"$log" 2>&1 </dev/null
    code=$?
    took=$(($(date +%s) - started))
    p=$(grep -c -E '^ok ' "$log")
    f=$(grep -E '^not ok ' "$log" | grep -v -c '# SKIP')
    s=$(grep -c -E '^(not )?ok .*# SKIP' "$log") # cmocka says "not ok # SKIP"
    p=$((p - $(grep -c -E '^ok .*# SKIP' "$log")))
    if [ "$code" -ne 0 ] && [ "$f" -eq 0 ]; then
        f=1
        [ "$code" -eq 124 ] && echo "not ok - $name: no end within $BW_TEST_TIMEOUT s" >>"$log"
    fi
    if [ $((p + f + s)) -eq 0 ]; then f=1; echo "not ok - $name: printed no result" >>"$log"; fi
    if [ "$f" -gt 0 ]; then
        echo "FAIL  $name ($took s, exit $code)"
        grep -v -E '^ok ' "$log" | tail -n 60 | sed 's/^/      /'
    else
        echo "ok    $name ($p passed$([ "$s" -gt 0 ] && echo ", $s skipped"), $took s)"
    fi
    grep -E '^(not )?ok .*# SKIP' "$log" | sed -E 's/^(not )?ok [0-9]* *-* */      SKIP: /'
    # cmocka's skips carry no reason: the test printed it before.
    [ "$s" -gt 0 ] && grep -E '^ *#? *SKIP:|^# .*(BW_SHARED|BW_LONG)' "$log" | sort -u | head -n 4 | sed -E 's/^[ #]*/            /'
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    rm -rf "$work/tmp"
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ $((passed + failed)) -gt 0 ]

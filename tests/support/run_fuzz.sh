#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# run_fuzz.sh SECONDS TARGET...: coverage-guided fuzzing from tests/fuzz/corpus/TARGET; new finds go to build/.
set -eu
seconds=$1; shift
passed=0 failed=0
for t in "$@"; do
    work="build/fuzz-work/$t"
    mkdir -p "$work"
    max=$(cat "tests/fuzz/corpus/$t.maxlen" 2>/dev/null || echo 16384)
    echo "fuzz $t: $seconds s"
    if build/fuzz/fuzz_"$t" -max_total_time="$seconds" -max_len="$max" -timeout=10 -rss_limit_mb=4096 -print_final_stats=1 \
        -artifact_prefix="$work/" "$work" "tests/fuzz/corpus/$t" >"$work.log" 2>&1; then
        passed=$((passed + 1))
        grep -E 'stat::number_of_executed_units|cov:' "$work.log" | tail -n 2
    else
        failed=$((failed + 1))
        echo "FAIL fuzz $t: see $work.log"
        tail -n 40 "$work.log"
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]

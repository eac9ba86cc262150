#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# embed.sh OUT.c FILE...: the files one after the other as a C array, and its size, declared in OUT.h. What has not
# changed is not written: `make` runs this each time, as the age of a file that was restored says nothing of its content.
set -eu
out=$1; shift
header=${out%.c}.h
put() { # file: from standard input, if it differs
    cat > "$1.new"
    if cmp -s "$1.new" "$1"; then rm "$1.new"; else mv "$1.new" "$1"; fi
}
put "$header" <<'END'
#include <stddef.h>
extern const char bw_cl_source[];
extern const size_t bw_cl_source_size;
END
{
    echo '#include "kernels/opencl/source.h"'
    echo 'const char bw_cl_source[] = {'
    cat "$@" | od -An -v -tx1 | sed 's/ \([0-9a-f][0-9a-f]\)/0x\1,/g'
    echo '};'
    echo 'const size_t bw_cl_source_size = sizeof bw_cl_source;'
} | put "$out"

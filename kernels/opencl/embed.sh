#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# embed.sh OUT.c FILE...: the files one after the other as a C array, and its size, declared in OUT.h.
set -eu
out=$1; shift
cat > "${out%.c}.h" <<'END'
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
} > "$out"

#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# build.sh CC MODE OUT SHIM.o: links libxrt_MODE.so.2 (MODE: swemu or hwemu) from Debian's static archive with the
# functions of shim.c in front. Exit code 3, with the reason: the archive is not installed.
set -eu
cc=$1 mode=$2 out=$3 object=$4
archive=$($cc -print-file-name="libxrt_$mode.a")
shipped=$($cc -print-file-name="libxrt_$mode.so.2")
for f in "$archive" "$shipped"; do
    [ -f "$f" ] || { echo "$f is not installed (Debian: libxrt-dev, libxrt1)"; exit 3; }
done
# What the shipped one needs; the libraries' development packages are not.
needs=$(readelf -d "$shipped" | sed -n 's/.*(NEEDED).*\[\(.*\)\].*/-l:\1/p' | grep -v 'l:ld-linux')
wraps=
for f in malloc realloc posix_memalign setenv getenv fork exit waitpid kill sigaction sleep system socket connect bind \
    listen select accept read write close usleep _ZNSt18condition_variable10notify_oneEv _ZN6google8protobuf23ShutdownProtobufLibraryEv; do
    wraps="$wraps,--wrap=$f"
done
# shellcheck disable=SC2086
$cc -shared -o "$out" "$object" -Wl,-soname,"libxrt_$mode.so.2" -Wl,-Bsymbolic \
    -Wl,--whole-archive "$archive" -Wl,--no-whole-archive "-Wl$wraps" $needs -pthread

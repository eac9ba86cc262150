#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# build.sh OUT_DIR: builds the C++ echo server there. Exit code 3, with one line, if what it needs is not installed.
set -eu
out=$1
top=$(cd "$(dirname "$0")/../../.." && pwd)
plugin=$(command -v grpc_cpp_plugin || true)
missing=
command -v protoc >/dev/null 2>&1 || missing="$missing protobuf-compiler"
[ -n "$plugin" ] || missing="$missing protobuf-compiler-grpc"
command -v "${CXX:-c++}" >/dev/null 2>&1 || missing="$missing g++"
pkg-config --exists grpc++ 2>/dev/null || missing="$missing libgrpc++-dev"
pkg-config --exists protobuf 2>/dev/null || missing="$missing libprotobuf-dev"
if [ -n "$missing" ]; then
    echo "the C++ echo server is absent: needs$missing (apt-get install$missing)"
    exit 3
fi
mkdir -p "$out"
if [ -x "$out/echo_server" ] && [ "$out/echo_server" -nt "$top/tests/bench/echo/echo_server.cc" ] &&
    [ "$out/echo_server" -nt "$top/service/proto/inference.proto" ]; then
    exit 0
fi
protoc -I "$top/service/proto" --cpp_out="$out" --grpc_out="$out" --plugin=protoc-gen-grpc="$plugin" inference.proto
# shellcheck disable=SC2046
${CXX:-c++} -std=c++17 -O2 -pthread -I"$out" $(pkg-config --cflags grpc++ protobuf) -o "$out/echo_server" \
    "$top/tests/bench/echo/echo_server.cc" "$out/inference.pb.cc" "$out/inference.grpc.pb.cc" \
    -Wl,--as-needed $(pkg-config --libs grpc++ protobuf) -ldl

#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
exec sh "$BW_TOP/tests/service/with_stubs.sh" shared_memory.py

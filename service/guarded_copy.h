/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies out of a mapped file that others may truncate at any time. Touching a page that is gone raises SIGBUS; here
 * that ends the copy instead of the process.
 *
 *     bw_guard_install();
 *     if (!bw_guarded_copy(to, from, size)) use pread: it tells what is wrong;
 *
 * Thread safety: all functions may be called from any thread.
 */
#ifndef BW_SERVICE_GUARDED_COPY_H
#define BW_SERVICE_GUARDED_COPY_H

#include <stddef.h>

/* Takes SIGBUS over, once for the process. One that no guarded copy has raised goes on to who had it before. Whoever
 * takes it over later must do the same, or copies are guarded no more. */
void bw_guard_install(void);
/* memcpy from a mapping. 0: a part of it could not be read; what `to` holds is then of no use. */
int bw_guarded_copy(void *to, const void *from, size_t size);

#endif

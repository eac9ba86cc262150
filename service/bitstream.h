/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bitstreams that the server loads onto its devices before it loads packages.
 *
 * Thread safety: both functions belong to the thread that starts the server.
 */
#ifndef BW_SERVICE_BITSTREAM_H
#define BW_SERVICE_BITSTREAM_H

#include "service/fleet.h"

/* The device of FILE@DEVICE, or NULL for FILE alone; *length: characters of FILE. An '@' with no BACKEND: behind it
 * belongs to the file's name, or to an option of the device. */
const char *bw_bitstream_device(const char *text, size_t *length);

/*
 * Loads the file onto the device that the text names, else onto every device of the part that it is for; a device that
 * holds it already keeps it. Nothing is loaded unless its signature satisfies the rule of bw_signature_check. A reset
 * keeps a loaded bitstream (hal/backend.h), and the fleet has its bytes for a device that has lost it.
 * BW_NOT_FOUND: no file, or no such device in the fleet. BW_INCOMPATIBLE: no device is of its part, or the shell is
 * another. Else as bw_signature_check, bw_bitstream_parse, bw_device_load_bitstream.
 */
bw_status bw_bitstream_load(const char *text, const char *trust_dir, int require_signed, bw_fleet *fleet,
                            bw_error *err);

#endif

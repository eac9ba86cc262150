/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ed25519 signatures (RFC 8032) of files that devices are configured with, and the public keys that are trusted.
 *
 * A signed file is the file, then one entry of 96 bytes for each key, then 16 bytes of footer:
 *     entry   {u8 key_id[32], u8 signature[64]}      key_id: SHA-256 of the raw 32 bytes of the public key
 *     footer  {u32 count, u32 version = 1, char magic[8] = "BWSIGN\r\n"}   little endian, count 1..16
 * What is signed is the 64 bytes "blockwave file signature v1", zeros up to 32, and the SHA-256 of the file without
 * entries and footer. Signing leaves the file's own bytes, and so its UUID, as they are.
 *
 * Keys are PEM files as OpenSSL makes them:
 *     openssl genpkey -algorithm ed25519 -out key.pem        # keep this one
 *     openssl pkey -in key.pem -pubout -out trust/builds.pem # give this one to whoever loads
 *
 * Thread safety: a bw_trust is read only once opened; everything else is pure.
 */
#ifndef BW_HAL_SIGNATURE_H
#define BW_HAL_SIGNATURE_H

#include <stddef.h>

#include "kernels/status.h"

#define BW_SIGNATURES_MAX 16
#define BW_SIGNER_NAME    128

/* Size of the file without its signatures: `size` if there are none. */
size_t bw_signed_content(const void *bytes, size_t size);
/* How many signatures there are; nothing is verified. */
unsigned bw_signature_count(const void *bytes, size_t size);

/*
 * What the file holds, signed with the private key of `key_path`; signatures by other keys stay, one by the same key is
 * replaced. *out is malloc'ed, the caller frees. BW_NOT_FOUND, BW_PERMISSION, BW_IO: the key file. BW_INVALID_ARGUMENT:
 * it holds no Ed25519 private key. BW_EXHAUSTED: 16 signatures already. BW_NO_MEMORY.
 */
bw_status bw_signature_add(const void *bytes, size_t size, const char *key_path, void **out, size_t *out_size,
                           bw_error *err);

typedef struct bw_trust bw_trust; /* a set of public keys */

/* Every file *.pem of the directory. BW_NOT_FOUND: no directory, or no key in it. BW_CORRUPT: a file that holds no
 * Ed25519 public key (the message names it). BW_PERMISSION, BW_IO, BW_NO_MEMORY. */
bw_status bw_trust_open(const char *directory, bw_trust **trust, bw_error *err);
void bw_trust_close(bw_trust *trust); /* NULL is allowed */

/*
 * Whether a trusted key has signed the file; signer: that key's file name without .pem. BW_PERMISSION: no signature, or
 * none by a trusted key (the message says which). BW_CHECKSUM: a signature in a trusted key's name does not fit the
 * content.
 */
bw_status bw_signature_verify(const void *bytes, size_t size, const bw_trust *trust, char signer[BW_SIGNER_NAME],
                              bw_error *err);

/*
 * The rule of whoever loads files: without a directory of keys signatures do not matter, and signer is ""; with one, a
 * signed file must be signed by a key in it, and an unsigned one is refused if `required`. BW_INVALID_ARGUMENT:
 * required without a directory. Else as bw_trust_open and bw_signature_verify.
 */
bw_status bw_signature_check(const void *bytes, size_t size, const char *directory, int required,
                             char signer[BW_SIGNER_NAME], bw_error *err);

#endif

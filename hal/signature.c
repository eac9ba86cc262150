/* SPDX-License-Identifier: Apache-2.0 */
/* Signed files: see hal/signature.h. */
#include "hal/signature.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>

#include "hal/base.h"

#define KEY       32u
#define SIGNATURE 64u
#define ENTRY     (KEY + SIGNATURE)
#define FOOTER    16u
#define VERSION   1u
#define PEM_MAX   (64u << 10)
#define KEYS_MAX  1024u

static const char magic[8] = {'B', 'W', 'S', 'I', 'G', 'N', '\r', '\n'};

static uint32_t get_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put_u32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

/* --- the file ---------------------------------------------------------------------------------------------------- */

unsigned bw_signature_count(const void *bytes, size_t size)
{
    if (size < FOOTER)
        return 0;
    const uint8_t *footer = (const uint8_t *)bytes + size - FOOTER;
    const uint32_t count = get_u32(footer);
    if (memcmp(footer + 8, magic, sizeof magic) != 0 || get_u32(footer + 4) != VERSION || count < 1 ||
        count > BW_SIGNATURES_MAX || count * ENTRY > size - FOOTER)
        return 0;
    return count;
}

size_t bw_signed_content(const void *bytes, size_t size)
{
    const unsigned count = bw_signature_count(bytes, size);
    return count ? size - FOOTER - count * ENTRY : size;
}

static void message_of(const void *content, size_t size, uint8_t message[64])
{
    static const char context[32] = "blockwave file signature v1";
    memcpy(message, context, sizeof context);
    bw_sha256(content, size, message + 32);
}

/* --- keys -------------------------------------------------------------------------------------------------------- */

static bw_status read_key(const char *path, int is_private, EVP_PKEY **key, bw_error *err)
{
    void *text;
    size_t size;
    bw_status status = bw_file_read(path, PEM_MAX, &text, &size, err);
    if (status)
        return status;
    BIO *bio = BIO_new_mem_buf(text, (int)size);
    *key = NULL;
    if (bio) /* a password would be asked for on the terminal: an empty one is tried instead */
        *key = is_private ? PEM_read_bio_PrivateKey(bio, NULL, NULL, (void *)(uintptr_t) "")
                          : PEM_read_bio_PUBKEY(bio, NULL, NULL, (void *)(uintptr_t) "");
    BIO_free(bio);
    OPENSSL_cleanse(text, size);
    free(text);
    if (*key && EVP_PKEY_get_id(*key) == EVP_PKEY_ED25519)
        return BW_OK;
    EVP_PKEY_free(*key);
    *key = NULL;
    if (is_private)
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "%s: no Ed25519 private key without a password: make one with 'openssl genpkey -algorithm "
                       "ed25519 -out FILE'",
                       path);
    return bw_fail(
        err, BW_CORRUPT,
        "%s: no Ed25519 public key: make one with 'openssl pkey -in KEY -pubout -out FILE', or move the file "
        "elsewhere",
        path);
}

static bw_status key_id(EVP_PKEY *key, uint8_t id[KEY], bw_error *err)
{
    uint8_t raw[KEY];
    size_t n = sizeof raw;
    if (EVP_PKEY_get_raw_public_key(key, raw, &n) != 1 || n != sizeof raw)
        return bw_fail(err, BW_NO_MEMORY, "OpenSSL gives no public key");
    bw_sha256(raw, sizeof raw, id);
    return BW_OK;
}

/* --- signing ----------------------------------------------------------------------------------------------------- */

bw_status bw_signature_add(const void *bytes, size_t size, const char *key_path, void **out, size_t *out_size,
                           bw_error *err)
{
    EVP_PKEY *key;
    bw_status status = read_key(key_path, 1, &key, err);
    if (status)
        return status;
    const size_t content = bw_signed_content(bytes, size);
    const unsigned old = bw_signature_count(bytes, size);
    uint8_t *file = malloc(content + (old + 1) * ENTRY + FOOTER), *own = file ? file + content : NULL;
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    uint8_t message[64];
    size_t n = SIGNATURE;
    if (!file || !ctx) {
        status = bw_fail(err, BW_NO_MEMORY, "no memory to sign %zu bytes", content);
        goto out;
    }
    memcpy(file, bytes, content);
    status = key_id(key, own, err);
    message_of(bytes, content, message);
    if (!status && (EVP_DigestSignInit(ctx, NULL, NULL, NULL, key) != 1 ||
                    EVP_DigestSign(ctx, own + KEY, &n, message, sizeof message) != 1 || n != SIGNATURE))
        status = bw_fail(err, BW_NO_MEMORY, "OpenSSL cannot sign with the key of %s", key_path);
    if (status)
        goto out;
    unsigned count = 1;
    for (unsigned i = 0; i < old; i++) {
        const uint8_t *entry = (const uint8_t *)bytes + content + i * ENTRY;
        if (memcmp(entry, own, KEY) == 0)
            continue;
        memcpy(own + count++ * ENTRY, entry, ENTRY);
    }
    if (count > BW_SIGNATURES_MAX) {
        status = bw_fail(err, BW_EXHAUSTED, "the file has %d signatures already, at most: sign the unsigned file",
                         BW_SIGNATURES_MAX);
        goto out;
    }
    uint8_t *footer = own + count * ENTRY;
    put_u32(footer, count);
    put_u32(footer + 4, VERSION);
    memcpy(footer + 8, magic, sizeof magic);
    *out = file;
    *out_size = content + count * ENTRY + FOOTER;
    file = NULL;
out:
    free(file);
    EVP_MD_CTX_free(ctx);
    EVP_PKEY_free(key);
    return status;
}

/* --- trust ------------------------------------------------------------------------------------------------------- */

typedef struct trusted {
    EVP_PKEY *key;
    uint8_t id[KEY];
    char name[BW_SIGNER_NAME];
} trusted;

struct bw_trust {
    char directory[256];
    trusted *keys;
    size_t count;
};

static bw_status add_trusted(bw_trust *trust, const char *directory, const char *name, bw_error *err)
{
    char path[4096];
    if (snprintf(path, sizeof path, "%s/%s", directory, name) >= (int)sizeof path)
        return bw_fail(err, BW_INVALID_ARGUMENT, "%.100s/%.100s: the path is too long", directory, name);
    if (trust->count == KEYS_MAX)
        return bw_fail(err, BW_EXHAUSTED, "%s: more than %u keys", directory, KEYS_MAX);
    trusted *keys = realloc(trust->keys, (trust->count + 1) * sizeof *keys);
    if (!keys)
        return bw_fail(err, BW_NO_MEMORY, "no memory for the keys of %s", directory);
    trust->keys = keys;
    trusted *t = &keys[trust->count];
    bw_status status = read_key(path, 0, &t->key, err);
    if (status)
        return status;
    trust->count++;
    snprintf(t->name, sizeof t->name, "%.*s", (int)(strlen(name) - 4), name);
    return key_id(t->key, t->id, err);
}

bw_status bw_trust_open(const char *directory, bw_trust **out, bw_error *err)
{
    DIR *dir = opendir(directory);
    if (!dir)
        return bw_fail_errno(err, "open", directory, errno);
    bw_trust *trust = calloc(1, sizeof *trust);
    bw_status status = trust ? BW_OK : bw_fail(err, BW_NO_MEMORY, "no memory for the keys of %s", directory);
    for (struct dirent *e; !status && (e = readdir(dir));) {
        const size_t n = strlen(e->d_name);
        if (n > 4 && e->d_name[0] != '.' && strcmp(e->d_name + n - 4, ".pem") == 0)
            status = add_trusted(trust, directory, e->d_name, err);
    }
    closedir(dir);
    if (!status && trust->count == 0)
        status = bw_fail(err, BW_NOT_FOUND, "%s: holds no public key (*.pem): nothing would be trusted", directory);
    if (status) {
        bw_trust_close(trust);
        return status;
    }
    snprintf(trust->directory, sizeof trust->directory, "%s", directory);
    *out = trust;
    return BW_OK;
}

void bw_trust_close(bw_trust *trust)
{
    if (!trust)
        return;
    for (size_t i = 0; i < trust->count; i++)
        EVP_PKEY_free(trust->keys[i].key);
    free(trust->keys);
    free(trust);
}

static int fits(EVP_PKEY *key, const uint8_t *signature, const uint8_t message[64])
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    const int ok = ctx && EVP_DigestVerifyInit(ctx, NULL, NULL, NULL, key) == 1 &&
                   EVP_DigestVerify(ctx, signature, SIGNATURE, message, 64) == 1;
    EVP_MD_CTX_free(ctx);
    return ok;
}

bw_status bw_signature_verify(const void *bytes, size_t size, const bw_trust *trust, char signer[BW_SIGNER_NAME],
                              bw_error *err)
{
    const unsigned count = bw_signature_count(bytes, size);
    const size_t content = bw_signed_content(bytes, size);
    if (!count)
        return bw_fail(err, BW_PERMISSION,
                       "the file is not signed: sign it with 'blockwave sign', or load it without "
                       "--require-signed");
    uint8_t message[64];
    message_of(bytes, content, message);
    for (unsigned i = 0; i < count; i++) {
        const uint8_t *entry = (const uint8_t *)bytes + content + i * ENTRY;
        for (size_t k = 0; k < trust->count; k++) {
            const trusted *t = &trust->keys[k];
            if (memcmp(t->id, entry, KEY) != 0)
                continue;
            if (!fits(t->key, entry + KEY, message))
                return bw_fail(
                    err, BW_CHECKSUM,
                    "the signature by '%s' does not fit the content: the file is damaged or was changed after "
                    "it was signed",
                    t->name);
            snprintf(signer, BW_SIGNER_NAME, "%s", t->name);
            return BW_OK;
        }
    }
    const uint8_t *id = (const uint8_t *)bytes + content;
    return bw_fail(
        err, BW_PERMISSION,
        "signed by key %02x%02x%02x%02x%02x%02x%02x%02x%s, none of the %zu keys in %s: add its public key there "
        "if you trust it",
        id[0], id[1], id[2], id[3], id[4], id[5], id[6], id[7], count > 1 ? " and others" : "", trust->count,
        trust->directory);
}

bw_status bw_signature_check(const void *bytes, size_t size, const char *directory, int required,
                             char signer[BW_SIGNER_NAME], bw_error *err)
{
    bw_trust *trust = NULL;
    *signer = 0;
    if (!directory && required)
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "--require-signed needs keys to trust: give --trust DIR, or set BW_TRUST_DIR");
    if (!directory)
        return BW_OK;
    bw_status status = bw_trust_open(directory, &trust, err);
    if (!status && (required || bw_signature_count(bytes, size)))
        status = bw_signature_verify(bytes, size, trust, signer, err);
    bw_trust_close(trust);
    return status;
}

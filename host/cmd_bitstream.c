/* SPDX-License-Identifier: Apache-2.0 */
/* blockwave load, blockwave bitstream, blockwave sign */
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "hal/bitstream.h"
#include "hal/signature.h"
#include "host/cmd.h"
#include "sim/sim.h"

static const char load_help[] =
    "usage: blockwave load FILE.bwbit --device URI [--trust DIR] [--require-signed]\n"
    "\n"
    "Loads a bitstream onto a device, unless the device already holds it.\n"
    "\n"
    "  --device URI       which device, see 'blockwave devices'\n"
    "  --trust DIR        public keys (*.pem) that may sign bitstreams; default: the environment BW_TRUST_DIR. A\n"
    "                     signed file must then be signed by one of them\n"
    "  --require-signed   refuse a file that is not signed\n"
    "  -h, --help\n";

int bw_cmd_load(int argc, char **argv)
{
    static const struct option options[] = {{"device", required_argument, NULL, 'd'},
                                            {"trust", required_argument, NULL, 't'},
                                            {"require-signed", no_argument, NULL, 'r'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    const char *uri = NULL, *trust = getenv("BW_TRUST_DIR");
    int required = 0;
    trust = trust && *trust ? trust : NULL;
    for (int c; (c = bw_cmd_option(argc, argv, options, load_help)) != BW_CMD_END;) {
        if (c < 0)
            return c == BW_CMD_HELP ? BW_EXIT_OK : BW_EXIT_USAGE;
        if (c == 'd')
            uri = optarg;
        else if (c == 't')
            trust = optarg;
        else
            required = 1;
    }
    if (optind + 1 != argc)
        return bw_cli_usage("load", "expected one bitstream file, got %d", argc - optind);
    if (!uri)
        return bw_cli_usage("load", "--device is missing");
    const char *path = argv[optind];
    void *bytes = NULL;
    size_t size = 0;
    char signer[BW_SIGNER_NAME] = "";
    bw_error err;
    bw_bitstream *b = calloc(1, sizeof *b);
    bw_device *device = NULL;
    bw_device_info before, after;
    bw_status status =
        b ? bw_file_read(path, BW_BITSTREAM_FILE_MAX, &bytes, &size, &err) : bw_fail(&err, BW_NO_MEMORY, "no memory");
    if (!status) {
        status = bw_signature_check(bytes, size, trust, required, signer, &err);
        if (!status)
            status = bw_bitstream_parse(bytes, size, b, &err);
        if (status)
            (void)bw_fail_context(&err, status, "%s", path);
    }
    if (!status)
        status = bw_cmd_open_device(uri, &device, &err);
    if (!status)
        status = bw_device_info_get(device, &before, &err);
    if (!status)
        status = bw_device_load_bitstream(device, bytes, size, &err);
    if (!status)
        status = bw_device_info_get(device, &after, &err);
    if (!status)
        printf("%s %s (%s) on %s%s%s\n", strcmp(before.bitstream, after.bitstream) == 0 ? "already holds" : "loaded",
               b->name, after.bitstream, after.uri, *signer ? ", signed by " : "", signer);
    if (device)
        bw_device_close(device);
    free(bytes);
    free(b);
    return status ? bw_cli_fail("load", &err) : BW_EXIT_OK;
}

static const char bitstream_help[] =
    "usage: blockwave bitstream TARGET|FILE -o FILE.bwbit [--device URI]\n"
    "\n"
    "Writes a bitstream for 'blockwave load'. TARGET: a simulated configuration: sim, u250, u250-msfp or u250-mx.\n"
    "FILE (with a dot or a slash in its name): an xclbin; kernels in OpenCL C; a program binary of the OpenCL cache.\n"
    "\n"
    "  -o, --output FILE   where to; required\n"
    "  --device URI        OpenCL device that the kernels are for (opencl:0)\n"
    "  -h, --help\n";

/* What lies in the file, and for what. BW_CORRUPT: none of the known kinds. */
static bw_status describe_file(const void *bytes, size_t size, const char *uri, bw_bitstream *b, bw_error *err)
{
    static const char abi[] = "#define BW_CL_ABI ";
    if (size >= 7 && memcmp(bytes, "xclbin2", 7) == 0)
        return bw_bitstream_of_xclbin(bytes, size, b, err);
    if (!(size >= 8 && memcmp(bytes, "BWCLBIN1", 8) == 0) && !memmem(bytes, size, abi, sizeof abi - 1))
        return bw_fail(err, BW_CORRUPT,
                       "it is no xclbin, no program binary of the OpenCL cache, and no kernels in OpenCL C that define "
                       "BW_CL_ABI: give one of these");
    bw_device *device;
    bw_device_info info;
    bw_status status = bw_cmd_open_device(uri, &device, err);
    if (status)
        return status;
    status = bw_device_info_get(device, &info, err);
    bw_device_close(device);
    if (!status && strcmp(info.part, "opencl") != 0)
        status = bw_fail(err, BW_INCOMPATIBLE, "kernels for OpenCL are not for %s, part '%s': give --device opencl:N",
                         uri, info.part);
    if (status)
        return status;
    snprintf(b->payloads[0].kind, sizeof b->payloads[0].kind, "opencl-source");
    snprintf(b->part, sizeof b->part, "%s", info.part);
    snprintf(b->interface_id, sizeof b->interface_id, "%s", info.interface_id);
    snprintf(b->name, sizeof b->name, "OpenCL kernels");
    b->offers = info.offers;
    b->payload_count = 1;
    b->payloads[0].bytes = bytes;
    b->payloads[0].size = size;
    return BW_OK;
}

static bw_status wrap_file(const char *path, const char *uri, const char *output, bw_error *err)
{
    const void *bytes = NULL;
    void *out = NULL;
    size_t size = 0, out_size = 0;
    bw_bitstream *b = calloc(1, sizeof *b);
    bw_status status = b ? bw_file_map(path, &bytes, &size, err) : bw_fail(err, BW_NO_MEMORY, "no memory");
    if (!status) {
        status = describe_file(bytes, size, uri, b, err);
        if (status)
            (void)bw_fail_context(err, status, "%s", path);
    }
    if (!status)
        status = bw_bitstream_write(b, &out, &out_size, err);
    if (!status)
        status = bw_file_write_atomic(output, &(bw_slice){out, out_size}, 1, err);
    bw_file_unmap(bytes, size);
    free(out);
    free(b);
    return status;
}

int bw_cmd_bitstream(int argc, char **argv)
{
    static const struct option options[] = {{"output", required_argument, NULL, 'o'},
                                            {"device", required_argument, NULL, 'd'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    const char *output = NULL, *uri = "opencl:0";
    for (int c; (c = bw_cmd_option(argc, argv, options, bitstream_help)) != BW_CMD_END;) {
        if (c < 0)
            return c == BW_CMD_HELP ? BW_EXIT_OK : BW_EXIT_USAGE;
        if (c == 'd')
            uri = optarg;
        else
            output = optarg;
    }
    if (optind + 1 != argc)
        return bw_cli_usage("bitstream", "expected one target or file, got %d", argc - optind);
    if (!output)
        return bw_cli_usage("bitstream", "--output is missing");
    bw_error err;
    const char *what = argv[optind];
    bw_status status =
        strpbrk(what, "./") ? wrap_file(what, uri, output, &err) : bw_sim_write_bitstream(what, output, &err);
    if (status)
        return bw_cli_fail("bitstream", &err);
    printf("%s: bitstream of %s\n", output, what);
    return BW_EXIT_OK;
}

static const char sign_help[] = "usage: blockwave sign FILE.bwbit --key KEY.pem [-o FILE]\n"
                                "\n"
                                "Adds an Ed25519 signature to a bitstream, beside those of other keys.\n"
                                "\n"
                                "  --key KEY.pem       private key, as 'openssl genpkey -algorithm ed25519' makes it\n"
                                "  -o, --output FILE   default: in place\n"
                                "  -h, --help\n";

int bw_cmd_sign(int argc, char **argv)
{
    static const struct option options[] = {{"key", required_argument, NULL, 'k'},
                                            {"output", required_argument, NULL, 'o'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    const char *key = NULL, *output = NULL;
    for (int c; (c = bw_cmd_option(argc, argv, options, sign_help)) != BW_CMD_END;) {
        if (c < 0)
            return c == BW_CMD_HELP ? BW_EXIT_OK : BW_EXIT_USAGE;
        if (c == 'k')
            key = optarg;
        else
            output = optarg;
    }
    if (optind + 1 != argc)
        return bw_cli_usage("sign", "expected one bitstream file, got %d", argc - optind);
    if (!key)
        return bw_cli_usage("sign", "--key is missing");
    const char *path = argv[optind];
    output = output ? output : path;
    const void *bytes = NULL;
    void *with = NULL;
    size_t size = 0, with_size = 0;
    bw_error err;
    bw_bitstream *b = calloc(1, sizeof *b);
    bw_status status = b ? bw_file_map(path, &bytes, &size, &err) : bw_fail(&err, BW_NO_MEMORY, "no memory");
    if (!status && bw_bitstream_parse(bytes, size, b, &err)) /* nobody signs a damaged file */
        status = bw_fail_context(&err, err.status, "%s", path);
    if (!status)
        status = bw_signature_add(bytes, size, key, &with, &with_size, &err);
    if (!status)
        status = bw_file_write_atomic(output, &(bw_slice){with, with_size}, 1, &err);
    if (!status)
        printf("%s: %s (%s), %u signature%s\n", output, b->name, b->uuid, bw_signature_count(with, with_size),
               bw_signature_count(with, with_size) == 1 ? "" : "s");
    bw_file_unmap(bytes, size);
    free(with);
    free(b);
    return status ? bw_cli_fail("sign", &err) : BW_EXIT_OK;
}

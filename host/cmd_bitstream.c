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
    const void *bytes = NULL;
    size_t size = 0;
    char signer[BW_SIGNER_NAME] = "";
    bw_error err;
    bw_bitstream *b = calloc(1, sizeof *b);
    bw_device *device = NULL;
    bw_device_info before, after;
    bw_status status = b ? bw_file_map(path, &bytes, &size, &err) : bw_fail(&err, BW_NO_MEMORY, "no memory");
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
    bw_file_unmap(bytes, size);
    free(b);
    return status ? bw_cli_fail("load", &err) : BW_EXIT_OK;
}

static const char bitstream_help[] =
    "usage: blockwave bitstream TARGET -o FILE.bwbit\n"
    "\n"
    "Writes the bitstream of a simulated configuration, for 'blockwave load': sim, u250, u250-msfp or u250-mx.\n"
    "\n"
    "  -o, --output FILE   where to; required\n"
    "  -h, --help\n";

int bw_cmd_bitstream(int argc, char **argv)
{
    static const struct option options[] = {
        {"output", required_argument, NULL, 'o'}, {"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    const char *output = NULL;
    for (int c; (c = bw_cmd_option(argc, argv, options, bitstream_help)) != BW_CMD_END;) {
        if (c < 0)
            return c == BW_CMD_HELP ? BW_EXIT_OK : BW_EXIT_USAGE;
        output = optarg;
    }
    if (optind + 1 != argc)
        return bw_cli_usage("bitstream", "expected one target, got %d", argc - optind);
    if (!output)
        return bw_cli_usage("bitstream", "--output is missing");
    bw_error err;
    bw_status status = bw_sim_write_bitstream(argv[optind], output, &err);
    if (status)
        return bw_cli_fail("bitstream", &err);
    printf("%s: bitstream of %s\n", output, argv[optind]);
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

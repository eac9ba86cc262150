/* SPDX-License-Identifier: Apache-2.0 */
/* PNG and JPEG from hostile bytes, through the whole pre-processing. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "host/picture.h"
#include "host/preprocess.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const bw_preprocess p = {.resize = BW_RESIZE_SHORT_SIDE,
                                    .resize_height = 9,
                                    .height = 8,
                                    .width = 8,
                                    .channels = BW_CHANNELS_BGR,
                                    .scale = 1,
                                    .std = {1, 1, 1}};
    /* Large but legal pictures only cost time here: the sizes in the headers are bounded before decoding. */
    bw_picture picture;
    bw_error err;
    if (size >= 24 && data[0] == 0x89 && (data[16] || data[17] || data[20] || data[21]))
        return 0;
    for (size_t i = 0; size >= 9 && data[0] == 0xff && i < size - 8; i++) {
        if (data[i] == 0xff && data[i + 1] >= 0xc0 && data[i + 1] <= 0xc2 && (data[i + 5] > 3 || data[i + 7] > 3))
            return 0;
    }
    if (!bw_picture_decode(data, size, &picture, &err))
        bw_picture_free(&picture);
    float out[3 * 8 * 8];
    if (!bw_preprocess_picture(&p, data, size, out, &err)) {
        for (size_t i = 0; i < 3 * 8 * 8; i++) {
            if (!(out[i] >= 0 && out[i] <= 255))
                abort();
        }
    }
    return 0;
}

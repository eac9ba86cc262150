/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/status.h"

#include <stdio.h>
#include <string.h>

const char *bw_status_name(bw_status status)
{
    switch (status) {
#define BW_STATUS_NAME(name, number, text)                                                                             \
    case name:                                                                                                         \
        return #name;
        BW_STATUS_LIST(BW_STATUS_NAME)
#undef BW_STATUS_NAME
    }
    return "BW_?";
}

const char *bw_status_text(bw_status status)
{
    switch (status) {
#define BW_STATUS_TEXT(name, number, text)                                                                             \
    case name:                                                                                                         \
        return text;
        BW_STATUS_LIST(BW_STATUS_TEXT)
#undef BW_STATUS_TEXT
    }
    return "unknown status";
}

/* One line, no control characters, cut at a UTF-8 character boundary. `text` is terminated within `size` bytes;
 * `cut` says that it lost its tail. */
static void make_one_line(char *text, size_t size, int cut)
{
    size_t length = strnlen(text, size);
    if (cut) {
        /* Drop an incomplete last character: continuation bytes back to its lead byte. */
        size_t lead = length;
        while (lead > 0 && length - lead < 3 && ((unsigned char)text[lead - 1] & 0xC0) == 0x80)
            lead--;
        if (lead > 0 && (unsigned char)text[lead - 1] >= 0xC0) {
            unsigned char c = (unsigned char)text[lead - 1];
            size_t want = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : 2;
            if (length - (lead - 1) < want)
                length = lead - 1;
        }
        text[length] = '\0';
    }
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < 0x20 || c == 0x7F)
            text[i] = '?';
    }
}

bw_status bw_fail(bw_error *err, bw_status status, const char *format, ...)
{
    if (!err)
        return status;
    /* A buffer apart, because the arguments may point into err->message. */
    char text[BW_ERROR_MESSAGE_MAX];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n < 0)
        snprintf(text, sizeof text, "%s", bw_status_text(status));
    make_one_line(text, sizeof text, n >= (int)sizeof text);
    err->status = status;
    memcpy(err->message, text, sizeof text);
    return status;
}

bw_status bw_fail_context(bw_error *err, bw_status status, const char *format, ...)
{
    if (!err)
        return status;
    char text[2 * BW_ERROR_MESSAGE_MAX];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, BW_ERROR_MESSAGE_MAX, format, args);
    va_end(args);
    size_t length = n < 0 ? 0 : strlen(text);
    text[length] = '\0';
    int total = snprintf(text + length, sizeof text - length, ": %s", err->message) + (int)length;
    text[BW_ERROR_MESSAGE_MAX - 1] = '\0';
    make_one_line(text, BW_ERROR_MESSAGE_MAX, total >= BW_ERROR_MESSAGE_MAX || n >= BW_ERROR_MESSAGE_MAX);
    err->status = status;
    memcpy(err->message, text, BW_ERROR_MESSAGE_MAX);
    return status;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of host/dataset: a directory of pictures and their labels. */
#ifndef BW_HOST_DATASET_DIR_H
#define BW_HOST_DATASET_DIR_H

#include <stdint.h>

#include "kernels/status.h"

#define BW_DATASET_PICTURES_MAX 20000000

typedef struct bw_dir_entry {
    char *name;       /* relative to the directory: "a.png", "cat/b.jpg" */
    char *label_text; /* NULL if unknown */
    int64_t label;    /* -1 if unknown, or text that is no number */
} bw_dir_entry;

typedef struct bw_dir_list {
    bw_dir_entry *entries; /* in name order */
    int64_t count, capacity;
} bw_dir_list;

/* BW_NOT_FOUND: no pictures, or labels.csv names a picture that is not there; BW_CORRUPT: labels.csv; BW_IO. */
bw_status bw_dir_scan(const char *path, bw_dir_list *list, bw_error *err);
void bw_dir_free(bw_dir_list *list);

/* A whole number from 0 on; -1 for anything else. */
int64_t bw_label_number(const char *text);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Data sets for calibration and evaluation, read batch by batch (bounded memory):
 * - FILE.npy: one array, first axis = samples; no labels
 * - FILE.npz: arrays "x", "images", "data" or the input's name (any numeric dtype), labels "y" or "labels"; stored or
 * deflated
 * - DIRECTORY of *.png, *.jpg, *.jpeg in name order; labels from DIRECTORY/labels.csv ("file,label" lines, label =
 * class index), or from sub-directories named by class index or label Arrays go to the network as they are (converted
 * to fp32); pictures through the pre-processing.
 *
 * Thread safety: one data set is used by one thread at a time.
 */
#ifndef BW_HOST_DATASET_H
#define BW_HOST_DATASET_H

#include "host/graph.h"
#include "host/preprocess.h"

typedef struct bw_dataset bw_dataset;

/* preprocess: needed for pictures only, else NULL. input_name, rank, dims: the network input; dims[0] is the batch.
 * BW_NOT_FOUND, BW_INVALID_ARGUMENT (shape that does not fit, names both), BW_CORRUPT. */
bw_status bw_dataset_open(const char *path, const bw_preprocess *preprocess, const char *input_name, int rank,
                          const int64_t *dims, bw_dataset **ds, bw_error *err);
void bw_dataset_close(bw_dataset *ds);
int64_t bw_dataset_count(const bw_dataset *ds);
int bw_dataset_has_labels(const bw_dataset *ds);
/* Gives names to the classes: labels that stand in the data set as text (sub-directories, labels.csv) become the index
 * of the equal name; without this call, only whole numbers are labels. BW_NOT_FOUND names a text that is no class. */
bw_status bw_dataset_set_classes(bw_dataset *ds, const char *const *names, int64_t count, bw_error *err);
/* Name of a sample: picture file name, or "FILE[index]". Valid until the next call. */
const char *bw_dataset_name(bw_dataset *ds, int64_t index);
/* Samples first..first+count-1 into a freshly allocated fp32 array; labels (may be NULL): count entries, -1 where
 * unknown. BW_NOT_FINITE names sample and index. */
bw_status bw_dataset_read(bw_dataset *ds, int64_t first, int64_t count, bw_array *batch, int64_t *labels,
                          bw_error *err);

#endif

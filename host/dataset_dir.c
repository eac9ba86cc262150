/* SPDX-License-Identifier: Apache-2.0 */
/* Pictures of a directory and of its sub-directories, one level deep, with labels. */
#include "host/dataset_dir.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "hal/base.h"

#define CSV_MAX (256u << 20)

void bw_dir_free(bw_dir_list *list)
{
    for (int64_t i = 0; i < list->count; i++) {
        free(list->entries[i].name);
        free(list->entries[i].label_text);
    }
    free(list->entries);
    memset(list, 0, sizeof *list);
}

int64_t bw_label_number(const char *text)
{
    if (!*text || strspn(text, "0123456789") != strlen(text) || strlen(text) > 18)
        return -1;
    return strtoll(text, NULL, 10);
}

static int is_picture(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot && name[0] != '.' &&
           (strcasecmp(dot, ".png") == 0 || strcasecmp(dot, ".jpg") == 0 || strcasecmp(dot, ".jpeg") == 0);
}

static bw_status add(bw_dir_list *list, const char *folder, const char *file, bw_error *err)
{
    if (list->count == BW_DATASET_PICTURES_MAX)
        return bw_fail(err, BW_OUT_OF_RANGE, "more than %d pictures", BW_DATASET_PICTURES_MAX);
    if (list->count == list->capacity) {
        int64_t capacity = list->capacity ? 2 * list->capacity : 256;
        bw_dir_entry *grown = realloc(list->entries, (size_t)capacity * sizeof *grown);
        if (!grown)
            return bw_fail(err, BW_NO_MEMORY, "no memory for %lld picture names", (long long)capacity);
        list->entries = grown;
        list->capacity = capacity;
    }
    bw_dir_entry *e = &list->entries[list->count];
    size_t size = strlen(folder) + strlen(file) + 2;
    e->label = -1;
    e->name = malloc(size);
    e->label_text = folder[0] ? strdup(folder) : NULL;
    list->count++;
    if (!e->name || (folder[0] && !e->label_text))
        return bw_fail(err, BW_NO_MEMORY, "no memory for a picture name");
    snprintf(e->name, size, folder[0] ? "%s/%s" : "%s%s", folder, file);
    if (e->label_text)
        e->label = bw_label_number(e->label_text);
    return BW_OK;
}

static int is_directory(const char *path, const char *name)
{
    char full[4096];
    struct stat st;
    int n = snprintf(full, sizeof full, "%s/%s", path, name);
    return n < (int)sizeof full && name[0] != '.' && stat(full, &st) == 0 && S_ISDIR(st.st_mode);
}

/* folder: "" for the directory itself. */
static bw_status scan(const char *path, const char *folder, bw_dir_list *list, bw_error *err)
{
    char full[4096];
    int n = snprintf(full, sizeof full, folder[0] ? "%s/%s" : "%s%s", path, folder);
    DIR *dir = n < (int)sizeof full ? opendir(full) : NULL;
    if (!dir)
        return bw_fail(err, errno == EACCES ? BW_PERMISSION : BW_IO, "%s: cannot list: %s", full, strerror(errno));
    bw_status status = BW_OK;
    struct dirent *d;
    while (!status && (errno = 0, d = readdir(dir))) {
        if (is_picture(d->d_name))
            status = add(list, folder, d->d_name, err);
        else if (!folder[0] && is_directory(full, d->d_name))
            status = scan(path, d->d_name, list, err);
    }
    if (!status && errno)
        status = bw_fail(err, BW_IO, "%s: cannot list: %s", full, strerror(errno));
    closedir(dir);
    return status;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const bw_dir_entry *)a)->name, ((const bw_dir_entry *)b)->name);
}

/* One CSV field, quoted or not, unescaped in place; *at moves behind its comma. NULL: a quote without its end. */
static char *csv_field(char **at)
{
    char *p = *at, *out = p, *field = p;
    if (*p == '"') {
        for (p++; *p && !(*p == '"' && p[1] != '"'); p++) {
            if (*p == '"')
                p++;
            *out++ = *p;
        }
        if (!*p)
            return NULL;
        p++;
        if (*p && *p != ',')
            return NULL;
    } else {
        while (*p && *p != ',')
            p++;
        out = p;
    }
    *at = *p ? p + 1 : p;
    *out = 0;
    return field;
}

static bw_status label_line(bw_dir_list *list, const char *path, int line, char *text, bw_error *err)
{
    char *at = text;
    char *file = csv_field(&at), *label = file ? csv_field(&at) : NULL;
    if (!label || !*label)
        return bw_fail(err, BW_CORRUPT, "%s/labels.csv line %d: expected 'file,label'", path, line);
    if (line == 1 && strcmp(label, "label") == 0)
        return BW_OK;
    bw_dir_entry key = {.name = file};
    bw_dir_entry *e =
        list->count ? bsearch(&key, list->entries, (size_t)list->count, sizeof *list->entries, by_name) : NULL;
    if (!e)
        return bw_fail(err, BW_NOT_FOUND, "%s/labels.csv line %d: no picture '%s' in the directory", path, line, file);
    free(e->label_text);
    e->label_text = strdup(label);
    if (!e->label_text)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a label");
    e->label = bw_label_number(label);
    return BW_OK;
}

static bw_status read_labels(bw_dir_list *list, const char *path, bw_error *err)
{
    char full[4096];
    struct stat st;
    if (snprintf(full, sizeof full, "%s/labels.csv", path) >= (int)sizeof full || stat(full, &st))
        return BW_OK;
    void *bytes;
    size_t size;
    bw_status status = bw_file_read(full, CSV_MAX, &bytes, &size, err);
    if (status)
        return status;
    char *line = bytes;
    if (strlen(line) != size)
        status = bw_fail(err, BW_CORRUPT, "%s is not a text file", full);
    for (int number = 1; !status && *line; number++) {
        char *end = line + strcspn(line, "\n"), *next = *end ? end + 1 : end;
        *end = 0;
        if (end > line && end[-1] == '\r')
            end[-1] = 0;
        if (*line)
            status = label_line(list, path, number, line, err);
        line = next;
    }
    free(bytes);
    return status;
}

bw_status bw_dir_scan(const char *path, bw_dir_list *list, bw_error *err)
{
    memset(list, 0, sizeof *list);
    bw_status status = scan(path, "", list, err);
    if (!status && list->count == 0)
        status = bw_fail(err, BW_NOT_FOUND, "%s: no *.png, *.jpg or *.jpeg in this directory", path);
    if (!status) {
        qsort(list->entries, (size_t)list->count, sizeof *list->entries, by_name);
        status = read_labels(list, path, err);
    }
    if (status)
        bw_dir_free(list);
    return status;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Replays a fuzz corpus without a fuzzer: each file of tests/fuzz/corpus/NAME (or those given) goes once through the
 * target, then once truncated and once with a flipped bit. Prints TAP. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return -1;
    struct stat st;
    if (fstat(fileno(f), &st) || !S_ISREG(st.st_mode)) {
        fclose(f);
        return -1;
    }
    size_t size = (size_t)st.st_size;
    /* Exactly sized, so that a sanitizer sees one byte too many. */
    uint8_t *data = malloc(size ? size : 1);
    if (!data || fread(data, 1, size, f) != size)
        abort();
    fclose(f);
    LLVMFuzzerTestOneInput(data, size);
    if (size > 1) {
        uint8_t *half = malloc(size / 2);
        if (!half)
            abort();
        memcpy(half, data, size / 2);
        LLVMFuzzerTestOneInput(half, size / 2);
        free(half);
        for (int k = 1; k <= 7; k++) {
            size_t at = size * (size_t)k / 8;
            data[at] ^= (uint8_t)(1 << k);
            LLVMFuzzerTestOneInput(data, size);
            data[at] ^= (uint8_t)(1 << k);
        }
    }
    free(data);
    return 0;
}

int main(int argc, char **argv)
{
    int count = 0;
    if (argc > 1) {
        for (int i = 1; i < argc; i++)
            count += replay(argv[i]) == 0;
    } else {
        const char *name = strrchr(argv[0], '/');
        name = name ? name + 1 : argv[0];
        char dir[512];
        snprintf(dir, sizeof dir, "tests/fuzz/corpus/%s", strncmp(name, "replay_", 7) ? name : name + 7);
        DIR *d = opendir(dir);
        if (!d) {
            printf("not ok 1 - %s: no corpus\n", dir);
            return 1;
        }
        for (struct dirent *e; (e = readdir(d));) {
            char path[1024];
            snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
            count += replay(path) == 0;
        }
        closedir(d);
    }
    printf("%s 1 - %d inputs replayed\n1..1\n", count ? "ok" : "not ok", count);
    return count ? 0 : 1;
}

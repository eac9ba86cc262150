/* SPDX-License-Identifier: Apache-2.0 */
/* hal/base.h: files, atomic writing, hashes, log. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "hal/base.h"

static char dir[256];

static const char *in_dir(const char *name)
{
    static _Thread_local char path[4][512];
    static _Thread_local int next;
    char *p = path[next++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", dir, name);
    return p;
}

static int make_dir(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/bw-base-%ld", tmp ? tmp : "/tmp", (long)getpid());
    return mkdir(dir, 0700);
}

static int remove_dir(void **state)
{
    (void)state;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.' || strlen(e->d_name) > 2)
            unlink(in_dir(e->d_name));
    if (d)
        closedir(d);
    return rmdir(dir);
}

static int files_in_dir(void)
{
    int n = -2; /* . and .. */
    DIR *d = opendir(dir);
    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static void write_text(const char *path, const char *text)
{
    bw_error err = {BW_OK, ""};
    bw_slice slice = {text, strlen(text)};
    assert_int_equal(bw_file_write_atomic(path, &slice, 1, &err), BW_OK);
}

static void assert_text(const char *path, const char *text)
{
    void *bytes;
    size_t size;
    assert_int_equal(bw_file_read(path, 1 << 20, &bytes, &size, NULL), BW_OK);
    assert_string_equal(bytes, text);
    assert_int_equal(size, strlen(text));
    free(bytes);
}

static void sha256_answers(void **state)
{
    (void)state;
    char hex[65];
    bw_sha256_hex(NULL, 0, hex); /* FIPS 180-4 examples */
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    bw_sha256_hex("abc", 3, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    uint8_t digest[32];
    bw_sha256("abc", 3, digest);
    assert_int_equal(digest[0], 0xba);
    assert_int_equal(digest[31], 0xad);
}

static void aligned_memory(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 63, 64, 65, 100000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        unsigned char *p = bw_aligned_zalloc(sizes[i]);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        for (size_t k = 0; k < sizes[i]; k++)
            assert_int_equal(p[k], 0);
        free(p);
    }
    assert_null(bw_aligned_zalloc(SIZE_MAX));
    assert_null(bw_aligned_zalloc((size_t)PTRDIFF_MAX));
}

static void clock_goes_on(void **state)
{
    (void)state;
    uint64_t a = bw_now_ns();
    usleep(2000);
    uint64_t b = bw_now_ns();
    assert_true(b - a >= 2000000 && b - a < 10000000000u);
}

static void maps_files(void **state)
{
    (void)state;
    const void *bytes;
    size_t size;
    bw_error err;
    write_text(in_dir("a"), "hello");
    assert_int_equal(bw_file_map(in_dir("a"), &bytes, &size, &err), BW_OK);
    assert_int_equal(size, 5);
    assert_memory_equal(bytes, "hello", 5);
    bw_file_unmap(bytes, size);
    write_text(in_dir("empty"), "");
    assert_int_equal(bw_file_map(in_dir("empty"), &bytes, &size, &err), BW_OK);
    assert_null(bytes);
    assert_int_equal(size, 0);
    bw_file_unmap(bytes, size);
    assert_int_equal(bw_file_map(in_dir("none"), &bytes, &size, &err), BW_NOT_FOUND);
    assert_non_null(strstr(err.message, in_dir("none")));
    assert_int_equal(bw_file_map(dir, &bytes, &size, &err), BW_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "a directory"));
    /* A FIFO that nobody writes must not hang. */
    assert_int_equal(mkfifo(in_dir("fifo"), 0600), 0);
    assert_int_equal(bw_file_map(in_dir("fifo"), &bytes, &size, &err), BW_INVALID_ARGUMENT);
    assert_int_equal(bw_file_map(NULL, &bytes, &size, &err), BW_INVALID_ARGUMENT);
}

static void reads_up_to_a_limit(void **state)
{
    (void)state;
    void *bytes;
    size_t size;
    bw_error err;
    write_text(in_dir("a"), "hello");
    assert_text(in_dir("a"), "hello");
    assert_int_equal(bw_file_read(in_dir("a"), 5, &bytes, &size, &err), BW_OK);
    free(bytes);
    assert_int_equal(bw_file_read(in_dir("a"), 4, &bytes, &size, &err), BW_OUT_OF_RANGE);
    assert_null(bytes);
    /* No size in advance, more than the first buffer. */
    assert_int_equal(bw_file_read("/proc/self/smaps", 64 << 20, &bytes, &size, &err), BW_OK);
    assert_true(size > 5000);
    assert_int_equal(strlen(bytes), size);
    free(bytes);
    assert_int_equal(bw_file_read("/dev/zero", 100000, &bytes, &size, &err), BW_OUT_OF_RANGE);
    assert_int_equal(bw_file_read(dir, 100, &bytes, &size, &err), BW_INVALID_ARGUMENT);
    assert_int_equal(bw_file_read(in_dir("none"), 100, &bytes, &size, &err), BW_NOT_FOUND);
}

static void writes_whole_files(void **state)
{
    (void)state;
    bw_slice slices[] = {{"one ", 4}, {NULL, 0}, {"two", 3}};
    bw_error err;
    assert_int_equal(bw_file_write_atomic(in_dir("f"), slices, 3, &err), BW_OK);
    assert_text(in_dir("f"), "one two");
    assert_int_equal(chmod(in_dir("f"), 0640), 0);
    write_text(in_dir("f"), "new");
    assert_text(in_dir("f"), "new");
    struct stat st;
    assert_int_equal(stat(in_dir("f"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640); /* an old file keeps its mode */
    /* A symbolic link stays one. */
    assert_int_equal(symlink("f", in_dir("link")), 0);
    write_text(in_dir("link"), "through");
    assert_text(in_dir("f"), "through");
    assert_int_equal(lstat(in_dir("link"), &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    assert_int_equal(files_in_dir(), 2);
    assert_int_equal(bw_file_write_atomic(dir, slices, 1, &err), BW_INVALID_ARGUMENT);
    assert_int_equal(bw_file_write_atomic(in_dir("no/such"), slices, 1, &err), BW_NOT_FOUND);
    assert_int_equal(bw_file_write_atomic("", slices, 1, &err), BW_INVALID_ARGUMENT);
    /* A device is written to, not replaced. */
    assert_int_equal(bw_file_write_atomic("/dev/null", slices, 3, &err), BW_OK);
    assert_int_equal(stat("/dev/null", &st), 0);
    assert_true(S_ISCHR(st.st_mode));
}

/* The file system ends in the middle of the write: the old file stays, nothing else is left. */
static void failure_leaves_nothing(void **state)
{
    (void)state;
    write_text(in_dir("f"), "old");
    struct rlimit old, low;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    low = old;
    low.rlim_cur = 1000;
    void *big = calloc(1, 100000);
    assert_non_null(big);
    bw_slice slice = {big, 100000};
    bw_error err = {BW_OK, ""};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    bw_status status = bw_file_write_atomic(in_dir("f"), &slice, 1, &err);
    bw_status fresh = bw_file_write_atomic(in_dir("g"), &slice, 1, NULL);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, SIG_DFL);
    free(big);
    assert_int_equal(status, BW_IO);
    assert_int_equal(fresh, BW_IO);
    assert_non_null(strstr(err.message, "cannot write"));
    assert_text(in_dir("f"), "old");
    assert_int_equal(files_in_dir(), 1);
}

static void *write_often(void *user)
{
    for (int i = 0; i < 30; i++)
        write_text(in_dir("shared"), user);
    return NULL;
}

static void concurrent_writers_never_mix(void **state)
{
    (void)state;
    static char texts[3][2001];
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) {
        memset(texts[i], 'a' + i, 2000);
        assert_int_equal(pthread_create(&threads[i], NULL, write_often, texts[i]), 0);
    }
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    void *bytes;
    size_t size;
    assert_int_equal(bw_file_read(in_dir("shared"), 1 << 20, &bytes, &size, NULL), BW_OK);
    assert_int_equal(size, 2000);
    for (size_t i = 1; i < size; i++)
        assert_int_equal(((char *)bytes)[i], ((char *)bytes)[0]);
    free(bytes);
    assert_int_equal(files_in_dir(), 1);
}

static void *log_lines(void *user)
{
    for (int i = 0; i < 50; i++)
        bw_log(BW_LOG_WARN, "test", "line %d of %s", i, (const char *)user);
    return NULL;
}

static void log_is_lines(void **state)
{
    (void)state;
    int saved = dup(2), fd = open(in_dir("log"), O_RDWR | O_CREAT | O_TRUNC | O_APPEND, 0600);
    assert_true(saved >= 0 && fd >= 0);
    fflush(stderr);
    dup2(fd, 2);
    bw_log_set_level(BW_LOG_WARN);
    bw_log(BW_LOG_INFO, "test", "not shown");
    bw_log(BW_LOG_ERROR, "test", "two\nlines\x1b[31m");
    char *longer = malloc(5000);
    assert_non_null(longer);
    memset(longer, 'x', 4999);
    longer[4999] = 0;
    bw_log(BW_LOG_WARN, "test", "%s", longer);
    free(longer);
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, log_lines, "a thread");
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    dup2(saved, 2);
    close(saved);
    close(fd);
    void *bytes;
    size_t size;
    assert_int_equal(bw_file_read(in_dir("log"), 1 << 20, &bytes, &size, NULL), BW_OK);
    int lines = 0;
    for (char *line = strtok(bytes, "\n"); line; line = strtok(NULL, "\n"), lines++) {
        /* 2026-01-31T12:00:00.123Z warn test: ... */
        assert_true(strlen(line) > 30 && strlen(line) < 1024);
        assert_int_equal(line[10], 'T');
        assert_int_equal(line[23], 'Z');
        assert_non_null(strstr(line, " test: "));
        assert_null(strchr(line, 0x1b));
        if (lines == 0)
            assert_non_null(strstr(line, "error test: two?lines?[31m"));
    }
    assert_int_equal(lines, 152);
    free(bytes);
}

#define IN_DIR(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sha256_answers),
        cmocka_unit_test(aligned_memory),
        cmocka_unit_test(clock_goes_on),
        IN_DIR(maps_files),
        IN_DIR(reads_up_to_a_limit),
        IN_DIR(writes_whole_files),
        IN_DIR(failure_leaves_nothing),
        IN_DIR(concurrent_writers_never_mix),
        IN_DIR(log_is_lines),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}

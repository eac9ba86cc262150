/* SPDX-License-Identifier: Apache-2.0 */
/* Claims of hal/claim.h between two processes: taken, seen, named, given back, also by a process that is killed. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "hal/claim.h"

static bw_error err;
static char dir[256];

/* A process that takes the claim, says how that went and waits for its end. */
typedef struct other {
    pid_t pid;
    int to, from;
} other;

static other start(const char *name)
{
    int to[2], from[2];
    assert_int_equal(pipe(to), 0);
    assert_int_equal(pipe(from), 0);
    other o = {fork(), to[1], from[0]};
    assert_true(o.pid >= 0);
    if (o.pid == 0) {
        bw_claim *claim;
        bw_holder holder;
        close(to[1]);
        char answer = (char)bw_claim_take(dir, name, &claim, &holder, NULL);
        if (write(from[1], &answer, 1) != 1 || read(to[0], &answer, 1) != 1)
            _exit(0);
        bw_claim_release(claim);
        if (write(from[1], &answer, 1) == 1 && read(to[0], &answer, 1) < 0)
            _exit(1);
        _exit(0);
    }
    close(to[0]);
    close(from[1]);
    return o;
}

static int answer(const other *o)
{
    char c;
    assert_int_equal(read(o->from, &c, 1), 1);
    return c;
}

static void finish(const other *o)
{
    close(o->to);
    close(o->from);
    assert_int_equal(waitpid(o->pid, NULL, 0), o->pid);
}

static void one_process_has_it(void **state)
{
    (void)state;
    bw_claim *claim;
    bw_holder holder;
    char text[BW_HOLDER_TEXT], expected[BW_HOLDER_TEXT];
    assert_int_equal(bw_claim_look(dir, "card", &holder), 0); /* no file */
    other o = start("card");
    assert_int_equal(answer(&o), BW_OK);
    assert_int_equal(bw_claim_look(dir, "card", &holder), 1);
    assert_int_equal(holder.pid, o.pid);
    assert_int_equal(bw_claim_take(dir, "card", &claim, &holder, &err), BW_BUSY);
    assert_null(claim);
    assert_int_equal(holder.pid, o.pid);
    snprintf(expected, sizeof expected, "process %d (test_claim)", (int)o.pid);
    assert_string_equal(bw_holder_text(&holder, text), expected);
    assert_non_null(strstr(err.message, expected));
    assert_int_equal(bw_claim_take(dir, "another", &claim, &holder, &err), BW_OK);
    bw_claim_release(claim);
    /* It gives it back, and lives on. */
    assert_int_equal(write(o.to, "r", 1), 1);
    answer(&o);
    assert_int_equal(bw_claim_look(dir, "card", &holder), 0);
    assert_int_equal(bw_claim_take(dir, "card", &claim, &holder, &err), BW_OK);
    bw_claim_release(claim);
    finish(&o);
}

static void a_killed_process_gives_it_back(void **state)
{
    (void)state;
    bw_claim *claim;
    bw_holder holder;
    for (int i = 0; i < 20; i++) {
        other o = start("card");
        assert_int_equal(answer(&o), BW_OK);
        assert_int_equal(bw_claim_take(dir, "card", &claim, &holder, &err), BW_BUSY);
        kill(o.pid, SIGKILL);
        finish(&o);
        assert_int_equal(bw_claim_take(dir, "card", &claim, &holder, &err), BW_OK);
        bw_claim_release(claim);
    }
}

/* Looking, and asking again, must not give this process's own claim back. */
static void ones_own(void **state)
{
    (void)state;
    bw_claim *claim, *again;
    bw_holder holder;
    char text[BW_HOLDER_TEXT];
    assert_int_equal(bw_claim_take(dir, "card", &claim, &holder, &err), BW_OK);
    assert_int_equal(bw_claim_look(dir, "card", &holder), 1);
    assert_string_equal(bw_holder_text(&holder, text), "this process");
    assert_int_equal(bw_claim_take(dir, "card", &again, &holder, &err), BW_BUSY);
    assert_null(again);
    other o = start("card");
    assert_int_equal(answer(&o), BW_BUSY);
    finish(&o);
    bw_claim_release(claim);
    bw_claim_release(NULL);
    o = start("card");
    assert_int_equal(answer(&o), BW_OK);
    finish(&o);
}

static void where_claims_lie(void **state)
{
    (void)state;
    bw_claim *claim;
    bw_holder holder = {0, ""};
    char path[300], text[BW_HOLDER_TEXT];
    assert_int_equal(bw_claim_take("/nowhere", "card", &claim, &holder, &err), BW_NOT_FOUND);
    assert_non_null(strstr(err.message, "/nowhere/card: cannot lock"));
    assert_int_equal(bw_claim_look("/nowhere", "card", &holder), 0);
    assert_string_equal(bw_holder_text(&holder, text), "another process");
    /* A link is not followed: whoever may write to the directory could have this process open any file. */
    snprintf(path, sizeof path, "%s/link", dir);
    assert_int_equal(symlink("/etc/hostname", path), 0);
    assert_int_not_equal(bw_claim_take(dir, "link", &claim, &holder, &err), BW_OK);
    setenv("BW_LOCK_DIR", dir, 1);
    const mode_t mask = umask(077);
    assert_int_equal(bw_claim_take(NULL, "by-variable", &claim, &holder, &err), BW_OK);
    umask(mask);
    unsetenv("BW_LOCK_DIR");
    snprintf(path, sizeof path, "%s/by-variable", dir);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0666); /* other users share the card */
    bw_claim_release(claim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_process_has_it),
        cmocka_unit_test(a_killed_process_gives_it_back),
        cmocka_unit_test(ones_own),
        cmocka_unit_test(where_claims_lie),
    };
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%.200s/bw-claims.%d", tmp ? tmp : "/tmp", (int)getpid());
    if (mkdir(dir, 0700))
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    static const char *const names[] = {"card", "another", "by-variable", "link"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[300];
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
    return failed;
}

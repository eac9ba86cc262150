/* SPDX-License-Identifier: Apache-2.0 */
/* The scheduler: order, bounds, removal, and that every job is run or removed exactly once under load. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>
#include <pthread.h>
#include <semaphore.h>

#include "service/scheduler.h"

typedef struct test_job {
    bw_job job;
    sem_t *started, *go; /* NULL: does not wait */
    atomic_int *counter;
    int order;
    atomic_int runs;
} test_job;

static void run_job(bw_job *job)
{
    test_job *t = (test_job *)job;
    if (t->started)
        sem_post(t->started);
    if (t->go)
        sem_wait(t->go);
    if (t->counter)
        t->order = atomic_fetch_add(t->counter, 1);
    atomic_fetch_add(&t->runs, 1);
}

typedef struct gate {
    sem_t started, go;
    atomic_int counter;
} gate;

static void open_gate(gate *g)
{
    sem_init(&g->started, 0, 0);
    sem_init(&g->go, 0, 0);
    atomic_store(&g->counter, 0);
}

static test_job blocking(gate *g)
{
    return (test_job){.job = {.run = run_job}, .started = &g->started, .go = &g->go, .counter = &g->counter};
}

static test_job quick(gate *g)
{
    return (test_job){.job = {.run = run_job}, .counter = &g->counter};
}

static void queue_is_bounded_and_in_order(void **state)
{
    (void)state;
    gate g;
    open_gate(&g);
    bw_scheduler *s;
    bw_error err;
    assert_int_equal(bw_scheduler_create(1, 3, 1000, &s, &err), BW_OK);
    test_job first = blocking(&g), rest[4];
    assert_int_equal(bw_scheduler_submit(s, &first.job, &err), BW_OK);
    sem_wait(&g.started);
    for (int i = 0; i < 4; i++) {
        rest[i] = quick(&g);
        bw_status status = bw_scheduler_submit(s, &rest[i].job, &err);
        assert_int_equal(status, i < 3 ? BW_OK : BW_EXHAUSTED);
    }
    assert_non_null(strstr(err.message, "3 requests wait and 1 run"));
    assert_int_equal(bw_scheduler_has_room(s, 0, &err), BW_EXHAUSTED);
    unsigned waiting, running;
    bw_scheduler_load(s, &waiting, &running);
    assert_int_equal(waiting, 3);
    assert_int_equal(running, 1);
    assert_in_range(bw_scheduler_wait_ms(s), 1, 60000);
    /* The one in the middle gives up its place. */
    assert_int_equal(bw_scheduler_remove(s, &rest[1].job), 1);
    assert_int_equal(bw_scheduler_remove(s, &rest[1].job), 0);
    assert_int_equal(bw_scheduler_remove(s, &first.job), 0);
    assert_int_equal(bw_scheduler_submit(s, &rest[3].job, &err), BW_OK);
    sem_post(&g.go);
    bw_scheduler_destroy(s);
    assert_int_equal(first.order, 0);
    assert_int_equal(rest[0].order, 1);
    assert_int_equal(atomic_load(&rest[1].runs), 0);
    assert_int_equal(rest[2].order, 2);
    assert_int_equal(rest[3].order, 3);
}

static void memory_is_bounded(void **state)
{
    (void)state;
    gate g;
    open_gate(&g);
    bw_scheduler *s;
    bw_error err;
    assert_int_equal(bw_scheduler_create(1, 100, 1000, &s, NULL), BW_OK);
    test_job first = blocking(&g), big = quick(&g), small = quick(&g), other = quick(&g);
    assert_int_equal(bw_scheduler_submit(s, &first.job, NULL), BW_OK);
    sem_wait(&g.started);
    /* A single one may be larger than the bound, or it could never be served. */
    big.job.bytes = 5000;
    small.job.bytes = other.job.bytes = 600;
    assert_int_equal(bw_scheduler_submit(s, &big.job, NULL), BW_OK);
    assert_int_equal(bw_scheduler_submit(s, &small.job, &err), BW_EXHAUSTED);
    assert_non_null(strstr(err.message, "--max-message-mb"));
    assert_int_equal(bw_scheduler_remove(s, &big.job), 1);
    assert_int_equal(bw_scheduler_submit(s, &small.job, NULL), BW_OK);
    assert_int_equal(bw_scheduler_submit(s, &other.job, NULL), BW_EXHAUSTED);
    sem_post(&g.go);
    bw_scheduler_destroy(s);
    assert_int_equal(atomic_load(&small.runs), 1);
}

/* No queue at all still serves as many as there are workers. */
static void no_queue(void **state)
{
    (void)state;
    gate g;
    open_gate(&g);
    bw_scheduler *s;
    assert_int_equal(bw_scheduler_create(2, 0, 1000, &s, NULL), BW_OK);
    test_job jobs[3] = {blocking(&g), blocking(&g), quick(&g)};
    assert_int_equal(bw_scheduler_submit(s, &jobs[0].job, NULL), BW_OK);
    assert_int_equal(bw_scheduler_submit(s, &jobs[1].job, NULL), BW_OK);
    assert_int_equal(bw_scheduler_submit(s, &jobs[2].job, NULL), BW_EXHAUSTED);
    sem_post(&g.go);
    sem_post(&g.go);
    bw_scheduler_destroy(s);
}

/* A thread that does its job itself takes a worker's place, and only one that is free. */
static void guests_sit_in_workers_places(void **state)
{
    (void)state;
    gate g;
    open_gate(&g);
    bw_scheduler *s;
    unsigned waiting, running;
    assert_int_equal(bw_scheduler_create(2, 4, 1000, &s, NULL), BW_OK);
    int guest = bw_scheduler_enter(s);
    assert_in_range(guest, 0, 1);
    test_job first = blocking(&g), second = quick(&g);
    assert_int_equal(bw_scheduler_submit(s, &first.job, NULL), BW_OK);
    sem_wait(&g.started);
    assert_int_equal(bw_scheduler_enter(s), -1); /* both are taken */
    assert_int_equal(bw_scheduler_submit(s, &second.job, NULL), BW_OK);
    bw_scheduler_load(s, &waiting, &running);
    assert_int_equal(waiting, 1);
    assert_int_equal(running, 2);
    bw_scheduler_leave(s, guest, 1); /* its place is the second's now */
    for (int i = 0; i < 5000 && !atomic_load(&second.runs); i++)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    assert_int_equal(atomic_load(&second.runs), 1);
    sem_post(&g.go);
    bw_scheduler_destroy(s);
    assert_int_equal(atomic_load(&first.runs), 1);
}

#define PRODUCERS 4
#define EACH      500

typedef struct producer {
    bw_scheduler *s;
    gate *g;
    test_job jobs[EACH];
    int refused, removed;
} producer;

static void *produce(void *arg)
{
    producer *p = arg;
    for (int i = 0; i < EACH; i++) {
        p->jobs[i] = quick(p->g);
        if (bw_scheduler_submit(p->s, &p->jobs[i].job, NULL))
            p->refused++;
        else if (i % 3 == 0)
            p->removed += bw_scheduler_remove(p->s, &p->jobs[i].job);
    }
    return NULL;
}

static void each_job_once(void **state)
{
    (void)state;
    gate g;
    open_gate(&g);
    bw_scheduler *s;
    assert_int_equal(bw_scheduler_create(3, 16, 1000, &s, NULL), BW_OK);
    producer *all = calloc(PRODUCERS, sizeof *all);
    pthread_t threads[PRODUCERS];
    for (int i = 0; i < PRODUCERS; i++) {
        all[i].s = s;
        all[i].g = &g;
        assert_int_equal(pthread_create(&threads[i], NULL, produce, &all[i]), 0);
    }
    int refused = 0, removed = 0, ran = 0;
    for (int i = 0; i < PRODUCERS; i++) {
        pthread_join(threads[i], NULL);
        refused += all[i].refused;
        removed += all[i].removed;
    }
    bw_scheduler_destroy(s);
    for (int i = 0; i < PRODUCERS; i++) {
        for (int k = 0; k < EACH; k++) {
            int runs = atomic_load(&all[i].jobs[k].runs);
            assert_in_range(runs, 0, 1);
            ran += runs;
        }
    }
    assert_int_equal(ran + refused + removed, PRODUCERS * EACH);
    assert_int_equal(ran, atomic_load(&g.counter));
    free(all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(queue_is_bounded_and_in_order),
        cmocka_unit_test(memory_is_bounded),
        cmocka_unit_test(no_queue),
        cmocka_unit_test(guests_sit_in_workers_places),
        cmocka_unit_test(each_job_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

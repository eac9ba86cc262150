/* SPDX-License-Identifier: Apache-2.0 */
/* The bounded queue and its workers: see service/scheduler.h. */
#include "service/scheduler.h"

#include <pthread.h>
#include <stdlib.h>

#include "hal/base.h"

typedef struct worker {
    pthread_t thread;
    uint64_t
        started_ns; /* of the job in this place; 0: free. A guest may sit in it, and the thread in another one's. */
} worker;

struct bw_scheduler {
    pthread_mutex_t mutex;
    pthread_cond_t work;
    bw_job *first, *last;
    unsigned waiting, running, queue_limit;
    size_t bytes, bytes_limit;
    uint64_t pace_ns; /* smoothed time of one job */
    int stopping;
    unsigned worker_count, thread_count;
    worker workers[];
};

static void unlink_job(bw_scheduler *s, bw_job *job)
{
    if (job->previous)
        job->previous->next = job->next;
    else
        s->first = job->next;
    if (job->next)
        job->next->previous = job->previous;
    else
        s->last = job->previous;
    job->previous = job->next = NULL;
    job->queued = 0;
    s->waiting--;
    s->bytes -= job->bytes;
}

/* There is a free one. */
static worker *take_place(bw_scheduler *s)
{
    worker *w = s->workers;
    while (w->started_ns)
        w++;
    s->running++;
    w->started_ns = bw_now_ns();
    return w;
}

static void give_place(bw_scheduler *s, worker *w)
{
    uint64_t took = bw_now_ns() - w->started_ns;
    w->started_ns = 0;
    s->running--;
    s->pace_ns = s->pace_ns ? s->pace_ns - s->pace_ns / 8 + took / 8 : took;
}

static void *work(void *arg)
{
    bw_scheduler *s = arg;
    pthread_mutex_lock(&s->mutex);
    for (;;) {
        while (s->first ? s->running == s->worker_count : !s->stopping)
            pthread_cond_wait(&s->work, &s->mutex);
        if (!s->first)
            break;
        bw_job *job = s->first;
        unlink_job(s, job);
        worker *w = take_place(s);
        pthread_mutex_unlock(&s->mutex);
        job->run(job);
        pthread_mutex_lock(&s->mutex);
        give_place(s, w);
    }
    pthread_mutex_unlock(&s->mutex);
    return NULL;
}

bw_status bw_scheduler_create(unsigned workers, unsigned queue, size_t bytes, bw_scheduler **scheduler, bw_error *err)
{
    *scheduler = NULL;
    bw_scheduler *s = calloc(1, sizeof *s + workers * sizeof s->workers[0]);
    if (!s)
        return bw_fail(err, BW_NO_MEMORY, "out of memory for %u workers", workers);
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->work, NULL);
    s->queue_limit = queue;
    s->bytes_limit = bytes;
    s->worker_count = workers;
    while (s->thread_count < workers) {
        if (pthread_create(&s->workers[s->thread_count].thread, NULL, work, s)) {
            unsigned got = s->thread_count;
            bw_scheduler_destroy(s);
            return bw_fail(err, BW_NO_MEMORY, "could start only %u of %u workers: use fewer with --workers", got,
                           workers);
        }
        s->thread_count++;
    }
    *scheduler = s;
    return BW_OK;
}

void bw_scheduler_destroy(bw_scheduler *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->mutex);
    s->stopping = 1;
    pthread_cond_broadcast(&s->work);
    pthread_mutex_unlock(&s->mutex);
    for (unsigned i = 0; i < s->thread_count; i++)
        pthread_join(s->workers[i].thread, NULL);
    pthread_cond_destroy(&s->work);
    pthread_mutex_destroy(&s->mutex);
    free(s);
}

/* An idle worker does not count as queue: with --queue 0 a job is taken if somebody is free to do it. */
static bw_status check_room(const bw_scheduler *s, size_t bytes, bw_error *err)
{
    unsigned idle = s->worker_count - s->running;
    if (s->waiting >= s->queue_limit + idle)
        return bw_fail(err, BW_EXHAUSTED,
                       "the queue is full: %u requests wait and %u run: try again later, or raise --queue", s->waiting,
                       s->running);
    if (s->waiting && s->bytes + bytes > s->bytes_limit)
        return bw_fail(err, BW_EXHAUSTED,
                       "waiting requests hold %zu MB of at most %zu: try again later, or raise --max-message-mb",
                       s->bytes >> 20, s->bytes_limit >> 20);
    return BW_OK;
}

bw_status bw_scheduler_submit(bw_scheduler *s, bw_job *job, bw_error *err)
{
    pthread_mutex_lock(&s->mutex);
    bw_status status = check_room(s, job->bytes, err);
    if (!status) {
        job->next = NULL;
        job->previous = s->last;
        if (s->last)
            s->last->next = job;
        else
            s->first = job;
        s->last = job;
        job->queued = 1;
        s->waiting++;
        s->bytes += job->bytes;
        pthread_cond_signal(&s->work);
    }
    pthread_mutex_unlock(&s->mutex);
    return status;
}

int bw_scheduler_enter(bw_scheduler *s)
{
    pthread_mutex_lock(&s->mutex);
    int place = s->first || s->running == s->worker_count ? -1 : (int)(take_place(s) - s->workers);
    pthread_mutex_unlock(&s->mutex);
    return place;
}

void bw_scheduler_leave(bw_scheduler *s, int place, int worked)
{
    pthread_mutex_lock(&s->mutex);
    uint64_t pace_ns = s->pace_ns;
    give_place(s, &s->workers[place]);
    if (!worked)
        s->pace_ns = pace_ns;
    if (s->first)
        pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->mutex);
}

bw_status bw_scheduler_has_room(bw_scheduler *s, size_t bytes, bw_error *err)
{
    pthread_mutex_lock(&s->mutex);
    bw_status status = check_room(s, bytes, err);
    pthread_mutex_unlock(&s->mutex);
    return status;
}

int bw_scheduler_remove(bw_scheduler *s, bw_job *job)
{
    pthread_mutex_lock(&s->mutex);
    int queued = job->queued;
    if (queued)
        unlink_job(s, job);
    pthread_mutex_unlock(&s->mutex);
    return queued;
}

unsigned bw_scheduler_wait_ms(bw_scheduler *s)
{
    pthread_mutex_lock(&s->mutex);
    uint64_t pace = s->pace_ns, now = bw_now_ns();
    /* A job that has run longer than usual already says more than the past does. */
    for (unsigned i = 0; i < s->worker_count; i++) {
        uint64_t started = s->workers[i].started_ns;
        if (started && now - started > pace)
            pace = now - started;
    }
    uint64_t ns = pace * (s->waiting + 1) / s->worker_count;
    pthread_mutex_unlock(&s->mutex);
    uint64_t ms = ns / 1000000;
    return ms < 1 ? 1 : ms > 60000 ? 60000 : (unsigned)ms;
}

void bw_scheduler_load(bw_scheduler *s, unsigned *waiting, unsigned *running)
{
    pthread_mutex_lock(&s->mutex);
    *waiting = s->waiting;
    *running = s->running;
    pthread_mutex_unlock(&s->mutex);
}

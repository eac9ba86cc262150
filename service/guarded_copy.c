/* SPDX-License-Identifier: Apache-2.0 */
/* Copies out of mappings that may go away: see service/guarded_copy.h. */
#include "service/guarded_copy.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#define PAGE 4096u

/* What this thread is copying from; size 0: nothing. */
static _Thread_local struct {
    volatile uintptr_t begin;
    volatile size_t size;
    sigjmp_buf back;
} guard;

static struct sigaction before;

/* A SIGBUS of this kind belongs to the access that raised it, on its own thread, which holds no lock meanwhile: leaving
 * that access with a jump is safe. */
static void on_sigbus(int number, siginfo_t *info, void *context)
{
    const ucontext_t *met = context;
    uintptr_t at = (uintptr_t)info->si_addr, begin = guard.begin / PAGE * PAGE;
    if (info->si_code > 0 && guard.size && at >= begin && at < guard.begin + guard.size) {
        /* As it was: the jump leaves out what the return from a handler would do. */
        pthread_sigmask(SIG_SETMASK, &met->uc_sigmask, NULL);
        siglongjmp(guard.back, 1);
    }
    /* Not ours: with the earlier action back the access is repeated and meets that. */
    sigaction(number, &before, NULL);
    if (info->si_code <= 0)
        raise(number); /* was sent, there is nothing to repeat */
}

static void install(void)
{
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &before);
}

void bw_guard_install(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install);
}

int bw_guarded_copy(void *to, const void *from, size_t size)
{
    /* Without the signal mask, which would take a system call: the handler sees to it. */
    if (sigsetjmp(guard.back, 0)) {
        guard.size = 0;
        return 0;
    }
    guard.begin = (uintptr_t)from;
    guard.size = size;
    /* The copy must lie between the two. */
    __asm__ volatile("" ::: "memory");
    memcpy(to, from, size);
    __asm__ volatile("" ::: "memory");
    guard.size = 0;
    return 1;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/fault.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>

/*
 * One guarded range. The handler reads entries without a lock: len is stored last when an entry is
 * filled and cleared first when it is released, and nobody releases a range that is still being
 * accessed.
 */
struct range {
    _Atomic uintptr_t base;
    _Atomic size_t len; /* 0: free */
    _Atomic size_t page;
    _Atomic(atomic_bool *) hit;
};

/* Mutable globals: a signal handler has nothing else to find its data by. */
static struct range ranges[QV_FAULT_RANGES_MAX];
static _Atomic unsigned ranges_used; /* entries below this may be in use */
static pthread_mutex_t ranges_lock = PTHREAD_MUTEX_INITIALIZER;

/* Puts a zero page under @addr; true when it belonged to a guarded range. */
static bool repair(uintptr_t addr)
{
    unsigned used = atomic_load(&ranges_used);

    for (unsigned i = 0; i < used; i++) {
        size_t len = atomic_load(&ranges[i].len);
        uintptr_t base = atomic_load(&ranges[i].base);
        size_t page = atomic_load(&ranges[i].page);

        if (len == 0 || addr < base || addr - base >= len) {
            continue;
        }
        atomic_store(atomic_load(&ranges[i].hit), true);
        /* A system call, so safe in a handler although POSIX does not list it. */
        return mmap((char *)base + ((addr - base) & ~(page - 1)), page, PROT_READ | PROT_WRITE,
                    MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED;
    }
    return false;
}

static void on_sigbus(int signo, siginfo_t *info, void *context)
{
    int saved = errno;

    if (!repair((uintptr_t)info->si_addr)) {
        /* Not ours: the access is repeated after return and then ends the process. */
        signal(signo, SIG_DFL);
    }
    errno = saved;
}

/* Each time anew: mapping is rare, and a library may have taken the signal since the last. */
static bool install_handler(void)
{
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};

    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, NULL) == 0;
}

int qv_fault_guard(void *base, size_t len, size_t page, atomic_bool *hit)
{
    int handle = -1;

    pthread_mutex_lock(&ranges_lock);
    if (install_handler()) {
        for (unsigned i = 0; i < QV_FAULT_RANGES_MAX; i++) {
            if (atomic_load(&ranges[i].len) != 0) {
                continue;
            }
            atomic_store(&ranges[i].base, (uintptr_t)base);
            atomic_store(&ranges[i].page, page);
            atomic_store(&ranges[i].hit, hit);
            atomic_store(&ranges[i].len, len);
            if (i >= atomic_load(&ranges_used)) {
                atomic_store(&ranges_used, i + 1);
            }
            handle = (int)i;
            break;
        }
    }
    pthread_mutex_unlock(&ranges_lock);
    return handle;
}

void qv_fault_unguard(int handle)
{
    if (handle >= 0) {
        pthread_mutex_lock(&ranges_lock);
        atomic_store(&ranges[handle].len, 0);
        pthread_mutex_unlock(&ranges_lock);
    }
}

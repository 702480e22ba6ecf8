/* SPDX-License-Identifier: Apache-2.0 */
/* Scoped clean-up of owned things that GLib's g_auto* does not know. */
#ifndef QV_BASE_CLEANUP_H
#define QV_BASE_CLEANUP_H

#include <errno.h>
#include <glib.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

/** Calls @fn with the variable's address when the variable leaves scope. */
#define QV_CLEANUP(fn) __attribute__((cleanup(fn)))

#define QV_PRINTF(fmt_index, args_index) __attribute__((format(printf, fmt_index, args_index)))

/** The struct that embeds @member at @ptr. */
#define qv_container_of(ptr, type, member) ((type *)((uintptr_t)(ptr)-offsetof(type, member)))

/** qv_close_fd - for QV_CLEANUP: closes *@fd unless it is negative. Keeps errno. */
static inline void qv_close_fd(int *fd)
{
    int saved = errno;

    if (*fd >= 0) {
        close(*fd);
    }
    errno = saved;
}

/** qv_freep - for QV_CLEANUP: frees memory of malloc/posix_memalign. */
static inline void qv_freep(void *ptr)
{
    void *mem;

    __builtin_memcpy(&mem, ptr, sizeof(mem));
    free(mem);
}

/** qv_steal_fd - hands over a descriptor: returns it and leaves -1 behind. */
static inline int qv_steal_fd(int *fd)
{
    int taken = *fd;

    *fd = -1;
    return taken;
}

#endif

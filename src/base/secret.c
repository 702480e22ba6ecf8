/* SPDX-License-Identifier: Apache-2.0 */
#include "base/secret.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/log.h"
#include "base/maths.h"

#define SECRET_MAX (UINT64_C(16) << 20)

struct qv_secret *qv_secret_new(size_t len)
{
    static atomic_flag warned = ATOMIC_FLAG_INIT;
    struct qv_secret *secret;
    size_t mapped;
    void *data;

    if (len == 0 || len > SECRET_MAX) {
        return NULL;
    }
    mapped = (size_t)qv_align_up(len, 4096);
    data = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        return NULL;
    }
    if (mlock(data, mapped) != 0 && !atomic_flag_test_and_set(&warned)) {
        qv_warn("cannot lock memory for secrets (RLIMIT_MEMLOCK): they might reach swap space");
    }
    /* Both are hardening: a kernel without them still gives memory that works. */
    (void)madvise(data, mapped, MADV_DONTDUMP);
    (void)madvise(data, mapped, MADV_WIPEONFORK);
    secret = g_new0(struct qv_secret, 1);
    secret->data = data;
    secret->len = len;
    secret->mapped = mapped;
    return secret;
}

void qv_secret_free(struct qv_secret *secret)
{
    if (secret != NULL) {
        qv_secret_wipe(secret->data, secret->mapped);
        munmap(secret->data, secret->mapped);
        g_free(secret);
    }
}

void qv_secret_freep(struct qv_secret **secret)
{
    qv_secret_free(*secret);
    *secret = NULL;
}

/* Which kinds of memory a core file has; core(5). Debuggers keep to it. */
static bool empty_cores(void)
{
    QV_CLEANUP(qv_close_fd) int fd = open("/proc/self/coredump_filter", O_WRONLY | O_CLOEXEC);

    return fd >= 0 && write(fd, "0", 1) == 1;
}

void qv_secret_forbid_dumps(void)
{
    const struct rlimit none = {0, 0};

    /* The filter first: the file is root's once the process cannot be dumped. */
    if (!empty_cores() || setrlimit(RLIMIT_CORE, &none) < 0 ||
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) {
        qv_warn("memory can be dumped: %s", g_strerror(errno));
    }
}

void qv_secret_wipe(void *data, size_t len)
{
    if (len > 0) { /* else data may be NULL */
        explicit_bzero(data, len);
    }
}

bool qv_secret_equal(const void *a, const void *b, size_t len)
{
    const volatile uint8_t *x = a;
    const volatile uint8_t *y = b;
    uint8_t differ = 0;

    for (size_t i = 0; i < len; i++) {
        differ = (uint8_t)(differ | (x[i] ^ y[i]));
    }
    return differ == 0;
}

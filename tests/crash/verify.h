/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a file is an image that lost nothing: opened, checked, read, used, and checked again. */
#ifndef QV_TESTS_CRASH_VERIFY_H
#define QV_TESTS_CRASH_VERIFY_H

#include <stdbool.h>
#include <stdint.h>

#include "workload.h"

struct verify_opts {
    bool qemu;     /* let qemu-img check it as well */
    bool use;      /* write to it, close it, check and read it again */
    uint32_t seed; /* of the writing */
};

/**
 * verify_co_image - @file as power was lost at event @when, or the program ended. It is changed.
 * False: not as it must be; run->failure says why. Coroutine; blocks while qemu-img runs.
 */
bool verify_co_image(struct run *run, struct mem_file *file, uint64_t when,
                     const struct verify_opts *opts);

/** verify_qemu_runs - how often qemu-img has looked at an image. */
unsigned verify_qemu_runs(void);

#endif

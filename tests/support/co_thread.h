/* SPDX-License-Identifier: Apache-2.0 */
/* The I/O thread that runs the coroutines of a test. */
#ifndef TESTS_SUPPORT_CO_THREAD_H
#define TESTS_SUPPORT_CO_THREAD_H

#include "io/coroutine.h"
#include "io/thread.h"

/** For qv_thread_run_co(); between the two below. */
extern struct qv_thread *co_thread;

/** co_thread_start, co_thread_stop - for cmocka_run_group_tests(). */
int co_thread_start(void **state);
int co_thread_stop(void **state);

#endif

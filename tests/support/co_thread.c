/* SPDX-License-Identifier: Apache-2.0 */
#include "co_thread.h"

struct qv_thread *co_thread;

int co_thread_start(void **state)
{
    (void)state;
    co_thread = qv_thread_new("test", NULL);
    return co_thread == NULL;
}

int co_thread_stop(void **state)
{
    (void)state;
    qv_thread_free(co_thread);
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Timers: a binary heap per thread, ordered by deadline. heap_pos holds the index in it. */
#include <string.h>

#include "io/thread_int.h"

static unsigned position(const struct qv_timer *timer)
{
    return (unsigned)(uintptr_t)timer->heap_pos;
}

static void place(struct qv_timer_heap *heap, struct qv_timer *timer, unsigned i)
{
    heap->entry[i] = timer;
    timer->heap_pos = (void *)(uintptr_t)i;
}

/* Puts @timer at @i or above, where its deadline belongs. */
static void sift_up(struct qv_timer_heap *heap, struct qv_timer *timer, unsigned i)
{
    while (i > 0) {
        unsigned parent = (i - 1) / 2;

        if (heap->entry[parent]->deadline_ns <= timer->deadline_ns) {
            break;
        }
        place(heap, heap->entry[parent], i);
        i = parent;
    }
    place(heap, timer, i);
}

/* Puts @timer at @i or below. */
static void sift_down(struct qv_timer_heap *heap, struct qv_timer *timer, unsigned i)
{
    for (;;) {
        unsigned child = 2 * i + 1;

        if (child >= heap->count) {
            break;
        }
        if (child + 1 < heap->count &&
            heap->entry[child + 1]->deadline_ns < heap->entry[child]->deadline_ns) {
            child++;
        }
        if (timer->deadline_ns <= heap->entry[child]->deadline_ns) {
            break;
        }
        place(heap, heap->entry[child], i);
        i = child;
    }
    place(heap, timer, i);
}

static void heap_remove(struct qv_timer_heap *heap, struct qv_timer *timer)
{
    unsigned i = position(timer);
    struct qv_timer *last = heap->entry[--heap->count];

    timer->armed = false;
    if (last == timer) {
        return;
    }
    if (i > 0 && last->deadline_ns < heap->entry[(i - 1) / 2]->deadline_ns) {
        sift_up(heap, last, i);
    } else {
        sift_down(heap, last, i);
    }
}

void qv_timer_arm(struct qv_timer *timer, int64_t delay_ns)
{
    struct qv_timer_heap *heap = &qv_thread_current->timers;
    int64_t now = qv_now_ns();

    if (timer->armed) {
        heap_remove(heap, timer);
    }
    if (delay_ns < 0) {
        delay_ns = 0;
    }
    if (__builtin_add_overflow(now, delay_ns, &timer->deadline_ns)) {
        timer->deadline_ns = INT64_MAX;
    }
    if (heap->count == heap->capacity) {
        heap->capacity = heap->capacity ? heap->capacity * 2 : 16;
        heap->entry = g_renew(struct qv_timer *, heap->entry, heap->capacity);
    }
    timer->armed = true;
    sift_up(heap, timer, heap->count++);
}

void qv_timer_cancel(struct qv_timer *timer)
{
    if (timer->armed) {
        heap_remove(&qv_thread_current->timers, timer);
    }
}

int64_t qv_timers_timeout_ns(const struct qv_timer_heap *heap)
{
    int64_t left;

    if (heap->count == 0) {
        return -1;
    }
    left = heap->entry[0]->deadline_ns - qv_now_ns();
    return left > 0 ? left : 0;
}

void qv_timers_run(struct qv_timer_heap *heap)
{
    int64_t now;

    if (heap->count == 0) {
        return;
    }
    now = qv_now_ns();
    /* A callback that re-arms with no delay gets a later deadline than @now, so this ends. */
    for (unsigned left = heap->count; left > 0 && heap->count > 0; left--) {
        struct qv_timer *timer = heap->entry[0];

        if (timer->deadline_ns > now) {
            break;
        }
        heap_remove(heap, timer);
        timer->fn(timer);
    }
}

void qv_timers_fini(struct qv_timer_heap *heap)
{
    g_free(heap->entry);
    memset(heap, 0, sizeof(*heap));
}

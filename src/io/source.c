/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sources, and the choice between looking and sleeping.
 *
 * To sleep until a notification costs several microseconds: the system call, the switch, for whom
 * notifies another system call and, on another CPU, an interrupt; and what follows finds the caches
 * cold. When the next request is only some microseconds away, looking for it costs less, and
 * answers sooner. When it is not, looking is waste. So the thread measures: an epoch is some number
 * of waits; the CPU time and the time per request of an epoch of looking is compared with those of
 * one of sleeping, and the cheaper way is kept, if it is not the slower one. Both are measured
 * again now and then, ever more seldom while looking does not pay. Where waits are long, looking is
 * never tried.
 *
 * Where somebody stands still for each request (an eager source), being quicker counts for more:
 * there looking may cost a multiple of the CPU that sleeping takes.
 *
 * While it looks, the thread yields its CPU to whoever wants it: on a shared CPU the next request
 * comes from there. A CPU that somebody else keeps computing on does not come back soon; then
 * sleeping is right, since who is woken is soon run.
 */
#include "io/source.h"

#include <errno.h>
#include <sched.h>
#include <time.h>

#include "io/thread_int.h"

/* Waits of an epoch. */
#define EPOCH_WAITS 64u
/* Longest look for one request. */
#define LOOK_NS 30000
/* ... with an eager source open: who stands still for an answer has to be woken before he can ask
 * again, and on another CPU that alone takes long. */
#define EAGER_LOOK_NS 100000
/* What looking may cost then, in units of what sleeping does, if it is quicker by an eighth. */
#define EAGER_CPU 4u
/* Waits that are longer on average are not worth a trial. */
#define TRIAL_NS 100000
/* A yield that gives the CPU away for so long ends the epoch. */
#define STALL_NS 500000
/* Looks in vain that end the epoch. */
#define MISSES_MAX (EPOCH_WAITS / 4)
/* Epochs of a trial, after which it is judged, and of sleep before the first one. */
#define TRIAL_EPOCHS 4u
/* Epochs of sleep after a trial that failed, at first and at most. */
#define BACKOFF_MIN 8u
#define BACKOFF_MAX 2048u
/* ... and with an eager source, whose requests come in spells that differ. */
#define EAGER_BACKOFF_MAX 64u
/* Epochs of looking until sleep is measured again. */
#define LOOK_EPOCHS 256u

/* ---- open sources ---- */

void qv_source_open(struct qv_source *source)
{
    struct qv_waiting *w = &qv_thread_current->waiting;

    if (source->open) {
        return;
    }
    source->open = true;
    source->next = w->open;
    source->where = &w->open;
    if (source->next != NULL) {
        source->next->where = &source->next;
    }
    w->open = source;
}

void qv_source_close(struct qv_source *source)
{
    if (!source->open) {
        return;
    }
    source->open = false;
    *source->where = source->next;
    if (source->next != NULL) {
        source->next->where = source->where;
    }
}

void qv_source_served(unsigned count)
{
    qv_thread_current->waiting.served += count;
}

bool qv_sources_ready(const struct qv_waiting *w)
{
    for (const struct qv_source *s = w->open; s != NULL; s = s->next) {
        if (s->ready(s)) {
            return true;
        }
    }
    return false;
}

void qv_sources_run(struct qv_waiting *w)
{
    struct qv_source *next;

    for (struct qv_source *s = w->open; s != NULL; s = next) {
        next = s->next;
        if (s->ready(s)) {
            s->run(s);
        }
    }
}

bool qv_sources_arm(struct qv_waiting *w)
{
    bool found = false;

    while (w->open != NULL && !found) {
        struct qv_source *s = w->open;

        found = s->arm(s);
        if (!found) {
            qv_source_close(s);
        }
    }
    return found;
}

/* ---- looking or sleeping ---- */

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec ts;

    clock_gettime(clock, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* Follows a value whose single measurements may be far off (another program had the CPU): moves
 * towards each by an eighth at most, and so ends near their median. */
static void follow(uint64_t *value, uint64_t measured)
{
    uint64_t step = *value / 8 + 1;

    if (*value == 0) {
        *value = measured;
    } else if (measured > *value) {
        *value += MIN(step, measured - *value);
    } else {
        *value -= MIN(step, *value - measured);
    }
}

static void epoch_begin(struct qv_waiting *w, bool look)
{
    w->look = look;
    w->waits = w->misses = w->eager = 0;
    w->served = 0;
    w->begun_ns = clock_ns(CLOCK_MONOTONIC);
    w->begun_cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

/* Looking is given up for @epochs of sleep. */
static void sleep_for(struct qv_waiting *w, unsigned epochs)
{
    w->until_trial = epochs;
    w->look_epochs = 0;
    epoch_begin(w, false);
}

static void looking_failed(struct qv_waiting *w)
{
    unsigned max = w->eager > w->waits / 2 ? EAGER_BACKOFF_MAX : BACKOFF_MAX;

    w->backoff = MIN(w->backoff, max);
    sleep_for(w, w->backoff);
    w->backoff = MIN(w->backoff * 2, max);
}

static void sleep_epoch_end(struct qv_waiting *w, uint64_t wall, uint64_t cpu)
{
    bool near = wall / w->waits <= TRIAL_NS;

    follow(&w->sleeping.ns, wall / w->served);
    follow(&w->sleeping.cpu_ns, cpu / w->served);
    if (w->until_trial > 0) {
        w->until_trial--;
    }
    epoch_begin(w, near && w->until_trial == 0);
}

/* Cheaper and no slower; or, where somebody stands still, clearly quicker at a fair price. */
static bool looking_pays(const struct qv_waiting *w)
{
    if (w->looking.cpu_ns <= w->sleeping.cpu_ns) {
        return w->looking.ns <= w->sleeping.ns;
    }
    return w->eager > w->waits / 2 && w->looking.cpu_ns <= w->sleeping.cpu_ns * EAGER_CPU &&
           w->looking.ns + w->looking.ns / 8 <= w->sleeping.ns;
}

static void look_epoch_end(struct qv_waiting *w, uint64_t wall, uint64_t cpu)
{
    if (w->look_epochs++ == 0) {
        w->looking = (struct qv_waiting_cost){0};
    }
    follow(&w->looking.ns, wall / w->served);
    follow(&w->looking.cpu_ns, cpu / w->served);
    if (w->look_epochs >= TRIAL_EPOCHS && !looking_pays(w)) {
        looking_failed(w);
    } else if (w->look_epochs == LOOK_EPOCHS) {
        w->backoff = BACKOFF_MIN;
        sleep_for(w, TRIAL_EPOCHS);
    } else {
        epoch_begin(w, true);
    }
}

static void epoch_end(struct qv_waiting *w)
{
    uint64_t wall = clock_ns(CLOCK_MONOTONIC) - w->begun_ns;
    uint64_t cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID) - w->begun_cpu_ns;

    if (w->served == 0) {
        epoch_begin(w, false); /* nothing to weigh */
    } else if (w->look) {
        look_epoch_end(w, wall, cpu);
    } else {
        sleep_epoch_end(w, wall, cpu);
    }
}

void qv_waiting_init(struct qv_waiting *w)
{
    /* The clocks are the thread's own: the first epoch begins with its first wait. */
    *w = (struct qv_waiting){.backoff = BACKOFF_MIN, .until_trial = TRIAL_EPOCHS};
}

static bool is_eager(const struct qv_waiting *w)
{
    for (const struct qv_source *s = w->open; s != NULL; s = s->next) {
        if (s->eager) {
            return true;
        }
    }
    return false;
}

bool qv_waiting_begin(struct qv_waiting *w)
{
    if (w->open == NULL) {
        return false; /* a thread without sources has nothing to choose */
    }
    w->eager += is_eager(w);
    if (w->begun_ns == 0) {
        epoch_begin(w, false); /* this thread's first */
    } else if (++w->waits >= EPOCH_WAITS) {
        epoch_end(w);
    }
    return w->look;
}

bool qv_waiting_look(struct qv_thread *thread, int64_t limit_ns)
{
    struct qv_waiting *w = &thread->waiting;
    int64_t now = qv_now_ns();
    int64_t look_ns = is_eager(w) ? EAGER_LOOK_NS : LOOK_NS;
    int64_t end = now + (limit_ns < 0 ? look_ns : MIN(limit_ns, look_ns));

    thread->ops->wait(thread, 0); /* hands over what has been collected */
    while (now < end) {
        int64_t before = now;

        if (qv_thread_found(thread)) {
            return true;
        }
        sched_yield();
        now = qv_now_ns();
        if (now - before > STALL_NS) {
            looking_failed(w);
            return qv_thread_found(thread);
        }
    }
    if (qv_thread_found(thread)) {
        return true;
    }
    if (++w->misses > MISSES_MAX) {
        looking_failed(w);
    }
    return false;
}

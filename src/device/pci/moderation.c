/* SPDX-License-Identifier: Apache-2.0 */
#include "device/pci/moderation.h"

#include <glib.h>

#define BATCH_MIN 4u
#define BATCH_MAX 16u
/* So many full batches in a row: one more completion is tried. */
#define FULL_TO_GROW 16u
/* How long nothing may arrive before a held interrupt is sent: a try, and from then on. */
#define TRY_NS      INT64_C(300000)
#define WAIT_MIN_NS INT64_C(10000)
#define WAIT_MAX_NS INT64_C(2000000)
/* Commands that a model which looks by itself lets gather, and how rarely that is. */
#define LOOK_GAPS   INT64_C(3)
#define LOOK_MIN_NS INT64_C(50000)
/* The longest that any completion waits. */
#define HOLD_MAX_NS INT64_C(3000000)
/* Between tries that were in vain. */
#define PAUSE_MIN_NS INT64_C(10000000)
#define PAUSE_MAX_NS INT64_C(1000000000)

/* After an interrupt the guest is busy with what it was told of, before it brings commands again;
 * only one that it was about to bring may come first. */
static int64_t busy_ns(const struct qv_moderation *m)
{
    return m->since < 2 ? (int64_t)m->told * m->gap_ns : 0;
}

static void tell(struct qv_moderation *m, unsigned pending)
{
    m->holding = false;
    m->told = pending;
    m->since = 0;
}

/* As long as almost every arrival takes. */
static int64_t wait_ns(const struct qv_moderation *m)
{
    if (!m->pays) {
        return TRY_NS;
    }
    return CLAMP(busy_ns(m) + MAX(m->gap_ns + 4 * m->deviation_ns, 2 * LOOK_GAPS * m->gap_ns),
                 WAIT_MIN_NS, WAIT_MAX_NS);
}

static void give_up(struct qv_moderation *m, int64_t now)
{
    m->pays = m->proven = false;
    m->batch = BATCH_MAX;
    m->pause_ns = CLAMP(m->pause_ns * 2, PAUSE_MIN_NS, PAUSE_MAX_NS);
    m->until_ns = now + m->pause_ns;
}

/* The guest ran out of commands before the batch was full, or only just not. */
static void ran_out(struct qv_moderation *m, unsigned pending, int64_t now)
{
    m->full = 0;
    m->pays |= m->arrived;
    m->batch = m->proven ? m->batch * 3 / 4 : MIN(pending, BATCH_MAX) * 3 / 4;
    if (m->batch < BATCH_MIN) {
        give_up(m, now);
    }
}

static void filled(struct qv_moderation *m, unsigned pending, int64_t now)
{
    if (m->pays && now - m->moved_ns > busy_ns(m) + m->gap_ns + 2 * m->deviation_ns) {
        ran_out(m, pending, now); /* the next one is late: the guest waits */
        return;
    }
    m->pays |= m->arrived;
    if (++m->full >= FULL_TO_GROW && m->arrived) {
        m->proven = true;
        m->pause_ns = 0;
        m->batch = MIN(m->batch + 1, BATCH_MAX);
        m->full = 0;
    }
}

/* Of the hold: ns until the interrupt; not above 0: now. */
static int64_t left_ns(const struct qv_moderation *m, int64_t now)
{
    return MIN(m->moved_ns + wait_ns(m), m->began_ns + HOLD_MAX_NS) - now;
}

int64_t qv_moderation_ended(struct qv_moderation *m, unsigned pending, unsigned running,
                            int64_t now)
{
    if (!m->holding) {
        if ((!m->pays && now < m->until_ns) || running > pending) {
            tell(m, pending);
            return 0; /* with much to do, the disk is slower than the guest */
        }
        if (m->batch == 0) {
            m->batch = BATCH_MAX;
        }
        m->holding = true;
        m->arrived = false;
        m->began_ns = m->moved_ns = now;
    }
    if (pending >= m->batch || now - m->began_ns >= HOLD_MAX_NS) {
        filled(m, pending, now);
        tell(m, pending);
        return 0;
    }
    return MAX(left_ns(m, now), 1);
}

void qv_moderation_arrived(struct qv_moderation *m, unsigned n, int64_t now)
{
    int64_t gap = (now - m->last_ns) / n;

    m->last_ns = now;
    if (gap < WAIT_MAX_NS) {
        m->deviation_ns += (ABS(gap - m->gap_ns) - m->deviation_ns) / 8;
        m->gap_ns += (gap - m->gap_ns) / 8;
    }
    m->since += n;
    if (m->holding) {
        m->arrived = true;
        m->moved_ns = now;
    }
}

int64_t qv_moderation_look(const struct qv_moderation *m)
{
    int64_t interval = LOOK_GAPS * m->gap_ns;

    return m->holding && m->pays && interval >= LOOK_MIN_NS ? interval : 0;
}

int64_t qv_moderation_expired(struct qv_moderation *m, unsigned pending, int64_t now)
{
    int64_t left = m->holding ? left_ns(m, now) : 0;

    if (m->holding && left <= 0) {
        ran_out(m, pending, now);
        tell(m, pending);
    }
    return MAX(left, 0);
}

void qv_moderation_stop(struct qv_moderation *m)
{
    m->holding = false;
}

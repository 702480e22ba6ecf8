/* SPDX-License-Identifier: Apache-2.0 */
/* Interrupt moderation, against a guest and a disk that are played in virtual time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <glib.h>

#include "device/pci/moderation.h"

#define US   1000
#define SLOT 64u

/* A guest with one processor and a load of so many commands in flight. Times in us. */
struct play {
    unsigned depth;
    int submit, interrupt, reap; /* processor time for a command; for an interrupt; a completion */
    int disk;                    /* from a command's arrival to its end, side by side */
    bool moderated;
    /* Running. */
    struct qv_moderation m;
    unsigned ready;          /* commands to submit */
    bool submitting, raised; /* the processor's work; an interrupt waits for it */
    int64_t now, busy, timer;
    int64_t due[SLOT];
    unsigned running, pending, told;
    /* Counted. */
    unsigned ios, interrupts;
    int64_t longest; /* us from a command's end to its interrupt, while anything was held */
    int64_t first_pending;
};

static void raise_interrupt(struct play *p)
{
    qv_moderation_stop(&p->m);
    p->longest = MAX(p->longest, p->now - p->first_pending);
    p->told += p->pending;
    p->pending = 0;
    p->timer = 0;
    if (!p->raised) {
        p->raised = true;
        p->interrupts++;
    }
}

static void disk_step(struct play *p)
{
    bool any = false;
    int64_t wait;

    for (unsigned i = 0; i < SLOT; i++) {
        if (p->due[i] != 0 && p->due[i] <= p->now) {
            p->due[i] = 0;
            p->running--;
            if (p->pending++ == 0) {
                p->first_pending = p->now;
            }
            any = true;
        }
    }
    if (any) {
        wait = p->moderated ? qv_moderation_ended(&p->m, p->pending, p->running, p->now * US) : 0;
        if (wait == 0) {
            raise_interrupt(p);
        } else if (p->timer == 0) {
            p->timer = p->now + wait / US + 1;
        }
    }
    if (p->timer != 0 && p->timer <= p->now) {
        wait = qv_moderation_expired(&p->m, p->pending, p->now * US);
        p->timer = wait > 0 ? p->now + wait / US + 1 : 0;
        if (wait == 0) {
            raise_interrupt(p);
        }
    }
}

static void arrives(struct play *p)
{
    unsigned i = 0;

    while (p->due[i] != 0) {
        i++;
    }
    p->due[i] = p->now + p->disk;
    p->running++;
    qv_moderation_arrived(&p->m, 1, p->now * US);
}

static void guest_step(struct play *p)
{
    if (p->busy > p->now) {
        return;
    }
    if (p->submitting) {
        p->submitting = false;
        arrives(p);
    }
    if (p->raised) {
        p->raised = false;
        p->busy = p->now + p->interrupt + (int64_t)p->told * p->reap;
        p->ready += p->told;
        p->ios += p->told;
        p->told = 0;
    } else if (p->ready > 0) {
        p->ready--;
        p->submitting = true;
        p->busy = p->now + p->submit;
    }
}

static void play_on(struct play *p, int64_t us)
{
    p->ios = p->interrupts = 0;
    for (int64_t end = p->now + us; p->now < end; p->now++) {
        disk_step(p);
        guest_step(p);
    }
}

static struct play played(struct play p, bool moderated)
{
    p.moderated = moderated;
    p.ready = p.depth;
    p.now = 1;
    play_on(&p, 100000); /* it may learn */
    p.longest = 0;
    play_on(&p, 300000);
    return p;
}

/* With one command in flight each end has its interrupt, at once; with few there is nothing to gain
 * either. In between nothing much may be lost, whoever is the quicker one. */
static void test_nothing_much_is_lost(void **state)
{
    for (int speed = 1; speed <= 20; speed *= 20) {
        for (int disk = 3; disk <= 375; disk *= 5) {
            for (unsigned depth = 1; depth <= 32; depth = depth < 8 ? depth + 1 : depth * 2) {
                const struct play p = {.depth = depth,
                                       .submit = 3 * speed,
                                       .interrupt = 4 * speed,
                                       .reap = speed,
                                       .disk = disk};
                struct play with = played(p, true), without = played(p, false);
                unsigned percent = depth <= 4 ? 99 : 90;

                if (with.ios < (uint64_t)without.ios * percent / 100) {
                    fail_msg("speed %d, disk %d, depth %u: %u, not %u", speed, disk, depth,
                             with.ios, without.ios);
                }
                assert_true(depth > 1 || with.interrupts + 1 >= with.ios);
            }
        }
    }
}

/* Many in flight and a disk quicker than the guest: one interrupt for many, and more done. */
static void test_a_busy_guest_is_spared_interrupts(void **state)
{
    for (int speed = 1; speed <= 20; speed *= 20) {
        const struct play p = {
            .depth = 32, .submit = 3 * speed, .interrupt = 4 * speed, .reap = speed, .disk = 3};
        struct play with = played(p, true), without = played(p, false);

        assert_true(with.interrupts * 5 < with.ios);
        assert_true(with.ios > without.ios);
        assert_true(with.longest <= 3000);
    }
}

/* A disk slower than the guest: it decides, and what ends is told at once. */
static void test_a_slow_disk_is_kept_busy(void **state)
{
    for (int disk = 200; disk <= 5000; disk *= 5) {
        const struct play p = {.depth = 32, .submit = 2, .interrupt = 2, .reap = 1, .disk = disk};
        struct play with = played(p, true), without = played(p, false);

        assert_true(with.ios >= without.ios - without.ios / 100);
    }
}

/* What was learned of a busy guest does not harm it when it begins to wait for each command. */
static void test_it_unlearns_soon(void **state)
{
    struct play p = played(
        (struct play){.depth = 32, .submit = 60, .interrupt = 60, .reap = 20, .disk = 5}, true);

    do { /* everything ends, and nothing is submitted */
        p.ready = 0;
        play_on(&p, 1);
    } while (p.running + p.pending + p.told + p.submitting > 0);
    p.ready = 1;
    p.depth = 1;
    play_on(&p, 20000); /* 20 ms */
    p.longest = 0;
    play_on(&p, 100000);
    assert_true(p.interrupts == p.ios);
    assert_true(p.ios >= 100000 / (60 + 60 + 20 + 5 + 2) * 95 / 100);
}

/* While it pays, a model that looks by itself looks more seldom than commands come, and sooner
 * than the interrupt does. */
static void test_looking(void **state)
{
    struct play p = played(
        (struct play){.depth = 32, .submit = 60, .interrupt = 60, .reap = 20, .disk = 5}, true);

    assert_true(p.m.pays);
    while (!p.m.holding) {
        play_on(&p, 1);
    }
    assert_in_range(qv_moderation_look(&p.m), 60 * US, 3000 * US);
    qv_moderation_stop(&p.m);
    assert_int_equal(qv_moderation_look(&p.m), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_much_is_lost),
        cmocka_unit_test(test_a_busy_guest_is_spared_interrupts),
        cmocka_unit_test(test_a_slow_disk_is_kept_busy),
        cmocka_unit_test(test_it_unlearns_soon),
        cmocka_unit_test(test_looking),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

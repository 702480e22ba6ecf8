/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Interrupt moderation that learns: whether a completion is worth an interrupt of its own.
 *
 * An interrupt costs a guest much: the driver reads and writes registers, each an exit. Where the
 * guest keeps many commands in flight and the disk is quicker than the guest, every command ends
 * before the next one is there, and each gets an interrupt although the guest is about to bring
 * more work anyway. Holding the interrupt back for a moment spares most of them. With one command
 * in flight it would only cost time: the guest waits for just this one.
 *
 * Nothing tells the two apart but trying: now and then one interrupt is held. When commands arrive
 * meanwhile, holding pays, and is kept up; when none does, it is given up for a while that doubles,
 * up to a second. How many completions one interrupt tells of is learned, too: fewer when the guest
 * ran out of commands meanwhile, down to none; more as long as it does not.
 *
 * Only the rule is here, without clock and timer: a model asks when commands have ended, tells of
 * those that arrive, and owns the timer. One of these for each interrupt; on its thread.
 */
#ifndef QV_DEVICE_PCI_MODERATION_H
#define QV_DEVICE_PCI_MODERATION_H

#include <stdbool.h>
#include <stdint.h>

/** All zero at first. Members are private. */
struct qv_moderation {
    bool holding;
    bool pays;            /* so far: commands came while one was held */
    bool proven;          /* for long enough to forgive exceptions */
    bool arrived;         /* while holding: commands came */
    unsigned batch;       /* completions to wait for */
    unsigned told;        /* completions that the last interrupt told of */
    unsigned since;       /* commands that came after it */
    unsigned full;        /* batches in a row that filled */
    int64_t gap_ns;       /* between arrivals, on average */
    int64_t deviation_ns; /* from that, on average */
    int64_t last_ns;      /* of the last arrival */
    int64_t began_ns;     /* of the hold */
    int64_t moved_ns;     /* of the last arrival in it, or of its begin */
    int64_t until_ns;     /* nothing is tried before */
    int64_t pause_ns;     /* the last pause between tries */
};

/**
 * qv_moderation_ended - commands have ended. @pending: completions the guest has not been told of,
 * at least 1. @running: commands that the disk works on. @now: ns, never going back.
 * Returns 0: interrupt now; else ns after which to ask qv_moderation_expired: the timer may stay as
 * it is when it is armed already.
 */
int64_t qv_moderation_ended(struct qv_moderation *m, unsigned pending, unsigned running,
                            int64_t now);

/** qv_moderation_arrived - @n new commands have come, at least 1. */
void qv_moderation_arrived(struct qv_moderation *m, unsigned n, int64_t now);

/** qv_moderation_expired - the timer has fired. Returns 0: interrupt now; else ns after which to
 * ask again. */
int64_t qv_moderation_expired(struct qv_moderation *m, unsigned pending, int64_t now);

/** qv_moderation_look - while an interrupt is held: ns after which a model that can look for
 * commands finds a few, so that it need not ask the guest to tell of each. 0: it should ask. */
int64_t qv_moderation_look(const struct qv_moderation *m);

/** qv_moderation_stop - what was held is told for another reason, or forgotten. */
void qv_moderation_stop(struct qv_moderation *m);

#endif

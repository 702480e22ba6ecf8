/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that power loss could leave, rebuilt from a recorder's log.
 *
 * What a flush covers is there. Everything else that had begun may be there, may be missing, or be
 * there in some of its sectors (of @tear bytes); a write past the end of the file that is missing
 * may still have made the file longer. Missing bytes are zeros. So it is with requests that failed.
 */
#ifndef QV_TESTS_CRASH_STATES_H
#define QV_TESTS_CRASH_STATES_H

#include <glib.h>
#include <stdint.h>

#include "filter/recorder/recorder.h"
#include "mem_node.h"

enum state_kind {
    STATE_ALL,     /* all that had begun: the plain prefix of the log */
    STATE_NONE,    /* only what flushes cover */
    STATE_RANDOM,  /* each of the rest with some probability */
    STATE_TORN,    /* the same, and torn */
    STATE_BUT_ONE, /* all but one */
    STATE_ONLY_ONE,
    STATE_KINDS
};

/** A finished log, made ready. */
struct states {
    const struct mem_file *base;     /* the file when recording began; not owned */
    const struct qv_record_log *log; /* not owned */
    uint64_t tear;                   /* bytes written whole, a power of two */
    uint64_t *durable_at; /* by record: event at which it was surely on the medium; 0: never */
};

void states_init(struct states *s, const struct mem_file *base, const struct qv_record_log *log,
                 uint64_t tear);
void states_clear(struct states *s);

/** state_kind_name - for messages. */
const char *state_kind_name(enum state_kind kind);

/**
 * state_build - the file after power loss at event @when.
 * @rng: chooses, for all kinds but the first two
 */
void state_build(struct mem_file *out, const struct states *s, uint64_t when, enum state_kind kind,
                 GRand *rng);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* What guests do to images while the recorder listens. Add a workload: a row in workloads.c. */
#ifndef QV_TESTS_CRASH_WORKLOAD_H
#define QV_TESTS_CRASH_WORKLOAD_H

#include <glib.h>
#include <stdbool.h>

#include "filter/faults/faults.h"
#include "filter/recorder/recorder.h"
#include "format/encrypted/encrypted.h"
#include "format/qcow2/qcow2.h"
#include "history.h"
#include "keys.h"
#include "mem_node.h"

struct workload {
    const char *name;
    bool raw;
    struct qcow2_create_opts create; /* of the image at the start */
    bool backing;     /* a raw backing image full of marks; as large as half the disk */
    bool compressed;  /* half the disk is full of marks at the start, stored compressed */
    bool compact;     /* the image is compacted while the guests are at work */
    bool snapshots;   /* beside the guests, snapshots are made, restored and deleted */
    bool flatten;     /* in the end the image takes over what the backing image shows */
    bool grow;        /* between rounds the disk grows */
    bool reopen;      /* between rounds the image is closed and opened */
    bool churn;       /* more discards: space is freed and taken again */
    bool no_zero;     /* the medium can zero by writing only, and not discard */
    bool every_fault; /* each of its requests is made to fail in turn */
    unsigned share;   /* one of so many of the states that --states asks for; 0: all */
    unsigned rounds;  /* of guests at work */
    unsigned guests;  /* coroutines at once */
    unsigned ops;     /* of each, a round */
    uint64_t longest; /* bytes of a request */
    /* format/encrypted: how its log is to be. Where it is told that blocks are not torn, states
     * are torn at 4 KiB. */
    bool encrypted;
    enum qv_enc_torn torn;
    uint64_t log_size, buffer; /* bytes; 0: default */
    bool two_steps;            /* no data through the log to save a sync */
    bool rekey;                /* beside the guests, key slots come and go */
    bool reencrypt; /* while it is closed, the image gets another data key; needs reopen */
    bool live;      /* ... beside the guests instead */
    uint64_t cache; /* qcow2: bytes of L2 tables in memory; 0: default */
};

extern const struct workload workloads[];
extern const unsigned nb_workloads;

/** One run of a workload. */
struct run {
    const struct workload *load;
    GRand *rng;
    struct mem_file backing; /* workload.backing */
    struct mem_file base;    /* the file before the first request */
    struct mem_file file;    /* ... and at the end */
    struct qv_record_log log;
    struct history history;
    GArray *snapshots;        /* of uint32_t, numbers of their ops: those that are surely there */
    struct keys keys;         /* of an encrypted image */
    struct qv_faults *faults; /* NULL: none. With faults requests may fail, else they must not */
    struct qv_faults *liar;   /* NULL; or completes flushes without passing them on */
    char *failure;            /* what should not have happened; NULL: nothing */
};

/** run_init - makes the image at the start. run_clear frees all. Coroutine. */
void run_co_init(struct run *run, const struct workload *load, uint32_t seed);
void run_clear(struct run *run);

/** run_co_make - the image at the start, into the empty @file, which stays the caller's. Coroutine.
 */
bool run_co_make(struct run *run, struct qv_node *file, GError **error);

/** run_co - the workload from the start to the image's close. Coroutine. */
void run_co(struct run *run);

/** run_co_open - opens @file as the workload's format, with its backing image. Coroutine. */
struct qv_node *run_co_open(struct run *run, struct qv_node *file, bool readonly, GError **error);

/** run_co_open_snapshot - shows a snapshot, for reading only. */
struct qv_node *run_co_open_snapshot(struct run *run, struct qv_node *file, const char *name,
                                     GError **error);

/** run_changes_keys - whether the image's data key must be got by way of its slots. */
bool run_changes_keys(const struct run *run);

/* ---- for owner.c: coroutines, the recorder listens ---- */

/** run_co_file - the file, on which requests fail if they are to. */
struct qv_node *run_co_file(struct run *run);
/** run_co_open_recorded - the image over it; NULL: it does not open, which only faults excuse. */
struct qv_node *run_co_open_recorded(struct run *run);
void run_co_close(struct run *run, struct qv_node *node);

/** run_fail - notes the first thing that should not have happened. */
void run_fail(struct run *run, const char *format, ...) QV_PRINTF(2, 3);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest did to a disk, and what a sector may hold after power loss.
 *
 * Begins and ends are event numbers of the recorder's log (qv_record_log_mark), so that guest
 * requests and file requests have one order.
 *
 * Written sectors carry the request's number and their own: a sector that holds anything but zeros
 * or its own mark is mixed up.
 *
 * A snapshot shows the disk as of some moment while it was taken: all that had ended by its begin,
 * and nothing that began after its end.
 */
#ifndef QV_TESTS_CRASH_HISTORY_H
#define QV_TESTS_CRASH_HISTORY_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/* Those before OP_FLUSH say what sectors hold. */
enum op_kind {
    OP_WRITE,
    OP_ZERO,
    OP_DISCARD,
    OP_RESTORE, /* of all the disk, from a snapshot */
    OP_FLUSH,
    OP_GROW,
    OP_SNAPSHOT, /* its number is the snapshot's name */
    OP_DROP,     /* of a snapshot */
};

struct op {
    enum op_kind kind;
    uint64_t offset, len; /* bytes; GROW: len is the new size */
    uint32_t snapshot;    /* RESTORE, DROP: number of its OP_SNAPSHOT */
    bool fua;
    uint64_t began;
    uint64_t ended; /* 0: never, or with an error: it may have done anything that it could do */
    uint64_t durable_at; /* event at which it was surely durable; 0: never; set by history_index */
};

struct history {
    GPtrArray *ops;       /* of struct op *; the number of an op is its index + 1 */
    uint64_t start_size;  /* bytes */
    uint64_t marked_size; /* bytes that hold the mark 0xffffffff at the start; the rest is zeros */
    GPtrArray *by_sector; /* of GArray of uint32_t, op indices; made by history_index */
};

#define START_MARK UINT32_C(0xffffffff)

void history_init(struct history *h, uint64_t size, uint64_t marked_size);
void history_clear(struct history *h);

/** history_begin - a new op; its number is returned. @now: event number. */
uint32_t history_begin(struct history *h, enum op_kind kind, uint64_t offset, uint64_t len,
                       bool fua, uint64_t now);
void history_end(struct history *h, uint32_t number, uint64_t now);

/** history_begin_snapshot - @kind: OP_SNAPSHOT, or OP_RESTORE or OP_DROP of snapshot @snapshot.
 * Durable when it has ended. */
uint32_t history_begin_snapshot(struct history *h, enum op_kind kind, uint32_t snapshot,
                                uint64_t now);

/** history_lost - the image was closed with an error: what ended and no flush made durable may have
 * gone with its buffers, and a flush of the image opened again says nothing of it. */
void history_lost(struct history *h);

/** history_fill - the marks of op @number for [@offset, @offset + @len). */
void history_fill(void *buf, uint32_t number, uint64_t offset, uint64_t len);

/** history_index - after the last op, before history_check. */
void history_index(struct history *h);

/**
 * history_check - whether sector @sector may hold @bytes (512) after power was lost at event @when.
 * On false, *@why says what is wrong (free it).
 */
bool history_check(const struct history *h, uint64_t sector, const void *bytes, uint64_t when,
                   char **why);

/** history_check_snapshot - the same of snapshot @number. */
bool history_check_snapshot(const struct history *h, uint32_t number, uint64_t sector,
                            const void *bytes, uint64_t when, char **why);

/** history_snapshot_may - whether snapshot @number may be there after power loss at @when; or may
 * be missing. */
bool history_snapshot_may_exist(const struct history *h, uint32_t number, uint64_t when);
bool history_snapshot_may_miss(const struct history *h, uint32_t number, uint64_t when);

/** history_sizes - the sizes that the disk may have after power loss at @when: one of *@min..*@max.
 */
void history_sizes(const struct history *h, uint64_t when, uint64_t *min, uint64_t *max);

#endif

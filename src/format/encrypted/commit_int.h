/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the committer (commit.c), a round of it (round.c) and a part of a round (part.c). All of
 * it runs in the committer's coroutine.
 */
#ifndef QV_FORMAT_ENCRYPTED_COMMIT_INT_H
#define QV_FORMAT_ENCRYPTED_COMMIT_INT_H

#include "format/encrypted/enc_int.h"

/** Everything that was dirty at one moment. */
struct enc_round {
    struct enc_image *enc;
    bool flush; /* somebody waits for durability */
    struct enc_waiter *waiters;
    GPtrArray *all;      /* owns v */
    struct enc_slot **v; /* ascending by host */
    size_t n;
    GArray *cleared; /* goes into the first record */
    uint64_t mark;   /* of cleared: see enc_share_mark */
    int result;
    bool failed; /* some sector of it is not in its place */
};

/** A part of a round: what one record holds. */
struct enc_part {
    struct enc_round *r;
    struct enc_slot **v;
    size_t n, over; /* overwritten ones among them */
    bool log_data;
    uint8_t *buf;
    uint32_t at, blocks;
    struct enc_record_disk head;
    /* writes in flight */
    struct qv_co *co;
    bool sleeping;
    unsigned in_flight;
    struct enc_run *spare; /* part.c's */
    int record_result;
};

/* ---- commit.c ---- */

/** enc_round_wake - ends the wait of those whom @result tells all they want to know: a flush, or
 * anybody on an error. The others wait until nothing of the round is in flight. */
void enc_round_wake(struct enc_round *r, int result);

/* ---- round.c ---- */

/** enc_co_round - takes all that is dirty and commits it. 0, or the first error; what failed is
 * dirty again. */
int enc_co_round(struct enc_round *r);

/* ---- part.c ---- */

/** enc_record_head_bytes - of a record's head and @items items, padded to blocks. */
size_t enc_record_head_bytes(size_t items);
/** enc_part_apply - after all writes: entries in memory, and the slots are free; those whose write
 * failed stay dirty. @failed: what failed for all of them, or 0. Returns the first error. */
int enc_part_apply(struct enc_part *p, int failed);
/** enc_co_part - logs the part, writes its data and applies it. @last: of the round. */
int enc_co_part(struct enc_part *p, bool last);

#endif

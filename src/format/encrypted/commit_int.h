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

/** A part of a round: what one record holds. Outlives its round while its data is written. */
struct enc_part {
    struct enc_image *enc;
    struct enc_round *r; /* until it is logged */
    GPtrArray *all;      /* a reference; owns v */
    struct enc_slot **v;
    size_t n, over; /* overwritten ones among them */
    bool log_data;
    uint8_t *buf;
    uint32_t at, blocks;
    struct enc_record_disk head;
    /* writes in flight */
    struct qv_co *co;
    bool sleeping; /* until no more than most are in flight */
    unsigned in_flight, most;
    struct enc_run *spare; /* part.c's */
    int record_result;
    uint64_t seq; /* of its record */
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
/** enc_part_new - slots [@first, @first + @n) of the round. */
struct enc_part *enc_part_new(struct enc_round *r, size_t first, size_t n, bool log_data);
/** enc_co_part - logs the part and begins to write its data in place, while that of the part before
 * may still be under way; then ends that one (enc_co_place_end). @last: of the round. Takes over
 * @p. */
int enc_co_part(struct enc_part *p, bool last);
/** enc_part_fail - instead of enc_co_part: all its slots are dirty again. Takes over @p. */
void enc_part_fail(struct enc_part *p, int error);
/** enc_co_place_end - waits until the data of enc->placing is in its place: entries in memory, and
 * the slots are free; those whose write failed are dirty again, the error in enc->placing_error. */
void enc_co_place_end(struct enc_image *enc);
/** enc_co_place_nap - sleeps until enc_co_place_end has nothing to wait for, or a poke. */
void enc_co_place_nap(struct enc_image *enc);
/** enc_place_poke - wakes who naps. Home thread. */
void enc_place_poke(struct enc_image *enc);

#endif

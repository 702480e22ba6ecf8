/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What each 512-byte sector of a disk may read as, while many requests overlap.
 *
 * Every write carries a number; a sector holds that number and its own, repeated, or zeros. While
 * requests overlap on a sector (an epoch), each of them may turn out to be the last: when the epoch
 * ends the sector may hold what any of them wrote. A discard may also leave things as they were.
 */
#ifndef QV_TESTS_MODEL_H
#define QV_TESTS_MODEL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define MODEL_SECTOR     512u
#define MODEL_CANDIDATES 8u

enum model_op { MODEL_WRITE, MODEL_ZERO, MODEL_DISCARD };

struct model_sector {
    uint32_t may[MODEL_CANDIDATES]; /* before the epoch, or now; 0: zeros */
    uint32_t now[MODEL_CANDIDATES]; /* by the requests of the epoch */
    uint8_t n_may, n_now;           /* past MODEL_CANDIDATES: anything */
    bool only_discards;             /* in this epoch */
    uint16_t in_flight;
    uint32_t epoch;
};

struct model {
    pthread_mutex_t lock;
    struct model_sector *sectors;
    uint64_t n;
    uint32_t next_id;
    struct model_sector *recording; /* n of them: a snapshot in the making; NULL: none */
};

void model_init(struct model *m, uint64_t bytes);
void model_clear(struct model *m);
void model_grow(struct model *m, uint64_t bytes);

/** model_set_all - each sector holds @id (0: zeros). Nothing is in flight. */
void model_set(struct model *m, uint64_t offset, uint64_t len, uint32_t id);

/** model_begin - a request starts; returns the number a write is to carry. */
uint32_t model_begin(struct model *m, enum model_op op, uint64_t offset, uint64_t len);
void model_end(struct model *m, enum model_op op, uint64_t offset, uint64_t len);

/** model_fill - the bytes of a write. */
void model_fill(void *buf, uint64_t offset, uint64_t len, uint32_t id);

/** model_epochs - to be taken before a read, one for each sector, and given to model_check. */
void model_epochs(struct model *m, uint64_t offset, uint64_t len, uint32_t *epochs);

/** model_check - whether a read may have given @buf; says on stderr what is wrong. */
bool model_check(struct model *m, uint64_t offset, uint64_t len, const void *buf,
                 const uint32_t *epochs);

/**
 * model_record_begin / _end - what a snapshot made between the two may hold. _end gives the
 * sectors, to be freed; @size: bytes.
 */
void model_record_begin(struct model *m);
struct model_sector *model_record_end(struct model *m, uint64_t *size);

/** model_restore_begin, _end - every sector becomes what @sectors say, of the disk's size, while
 * other requests are under way. */
void model_restore_begin(struct model *m, const struct model_sector *sectors);
void model_restore_end(struct model *m);

/** model_restore - the disk holds what was recorded. Nothing is in flight. */
void model_restore(struct model *m, const struct model_sector *sectors, uint64_t size);

#endif

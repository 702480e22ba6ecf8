/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by qcow2_crash.c (the work on an image) and crash_judge.c (what power loss leaves of it).
 */
#ifndef TESTS_STRESS_CRASH_H
#define TESTS_STRESS_CRASH_H

#include <glib.h>
#include <stdint.h>

#include "mem_node.h"
#include "trace_node.h"

#define LEN_MAX (128u * 1024u)
#define NEVER   UINT64_MAX

struct crash_opt {
    int seed, runs, states, cluster_bits, refcount_bits, version, cache, faults;
    gint64 size;
    gboolean backing, device, snapshots, extended_l2, data_file, bitmap, compressed, compact,
        leftover;
    char *qemu_img;
};

/* A request that changes sectors. */
struct op {
    uint32_t id; /* 0: zeros */
    bool discard;
    const struct snap *restored; /* not NULL: the sector becomes what this snapshot has */
    uint64_t begin, end;         /* moments of the trace; end NEVER: failed or still going on */
};

/* The disk grew. */
struct resize {
    uint64_t size, begin, end;
};

/* A snapshot; moments as above. */
struct snap {
    char name[16];
    uint64_t made_begin, made_end, gone_begin, gone_end;
    uint64_t size; /* of the disk when it began, at least */
};

/* The program's options, and what it knows of the image. */
extern struct crash_opt opt;
extern GPtrArray *snaps; /* of struct snap * */
extern struct trace trace, data_trace;
extern struct mem_file backing_bytes;
extern GArray **history; /* of struct op *, by sector */
extern GPtrArray *ops;
extern GArray *flushes; /* of struct op */
extern GArray *resizes; /* of struct resize */
extern GRand *top;

/** die - says what is wrong, with the seed that repeats it, and aborts. */
_Noreturn void die(const char *what, const GError *error);

/** co_backing - a node over the backing image; NULL: there is none. */
struct qv_node *co_backing(void);

/** co_open - the image in @file. @data: its data file, taken over; NULL: none. */
struct qv_node *co_open(struct qv_node *file, struct qv_node *data, bool readonly);

/* ---- crash_judge.c ---- */

/** compressed_bytes - how much of an image holds the sectors' first content, compressed. */
uint64_t compressed_bytes(void);

/** co_explore - makes up states that power loss since @from could have left, and judges each.
 * @base: the file when the trace began */
void co_explore(const uint8_t *base, uint64_t base_size, uint64_t from);

/** What has been judged. */
extern unsigned states_seen, leaky, bitmaps_told;

#endif

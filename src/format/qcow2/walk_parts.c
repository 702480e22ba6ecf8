/* SPDX-License-Identifier: Apache-2.0 */
#include "format/qcow2/walk_parts.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/coroutine.h"

#define PART_BYTES  (UINT64_C(256) << 10) /* or one item */
#define LANES_MAX   16u
#define PARTS_ASKED 12u
#define LANES_BYTES (UINT64_C(16) << 20) /* of all parts in memory */

struct crew;

/* A coroutine that takes every so-many-th part. */
struct lane {
    struct crew *crew;
    struct qv_co *waits; /* for its turn; NULL: it does not */
    struct qcow2_walk view;
    struct qcow2_check found;
    struct qcow2_part part;
    GError *error;
};

struct crew {
    struct qcow2_walk *w;
    const struct qcow2_part_ops *ops;
    uint64_t items, per_part, parts;
    uint64_t turn; /* the part whose findings come next */
    bool failed, here;
    unsigned n_lanes, running;
    struct lane *lanes;
    struct qv_co *boss;
    GError **error;
};

/* ---- one part ---- */

/* Items next to each other in the file are read at once. */
static bool co_read_part(struct lane *lane, GError **error)
{
    const struct qcow2_part_ops *ops = lane->crew->ops;
    struct qcow2_walk *w = lane->crew->w;
    const struct qcow2_part *p = &lane->part;
    uint64_t cs = qcow2_cluster_size(&w->header), n;

    for (uint64_t i = 0; i < p->n; i += n) {
        uint64_t at = ops->place(w, p->first + i);

        for (n = 1; at != 0 && i + n < p->n && ops->place(w, p->first + i + n) == at + n * cs;) {
            n++;
        }
        if (at == 0) {
            memset(p->buf + i * cs, 0, cs);
        } else if (!qcow2_co_walk_read(w, at, p->buf + i * cs, n * cs, ops->what, error)) {
            return false;
        }
    }
    return true;
}

static int look(void *arg)
{
    struct lane *lane = arg;

    lane->crew->ops->look(&lane->view, &lane->part, &lane->error);
    return 0;
}

static void co_part(struct lane *lane, uint64_t i)
{
    struct crew *crew = lane->crew;

    lane->part.first = i * crew->per_part;
    lane->part.n = qv_min_u64(crew->per_part, crew->items - lane->part.first);
    qcow2_check_init(&lane->found);
    lane->view = *crew->w;
    lane->view.out = &lane->found;
    lane->view.structure = 0;
    lane->view.shared = !crew->here;
    if (!co_read_part(lane, &lane->error)) {
        return;
    }
    if (crew->here) {
        look(lane);
    } else {
        (void)qv_co_blocking(look, lane);
    }
}

/* ---- in order ---- */

static void wake_lane(struct lane *lane)
{
    struct qv_co *co = lane->waits;

    lane->waits = NULL;
    if (co != NULL) {
        qv_co_wake(co);
    }
}

/* Adds what the part was found to have. */
static void finish_part(struct lane *lane, uint64_t i)
{
    struct crew *crew = lane->crew;
    struct qcow2_walk *w = crew->w;

    if (lane->error != NULL) {
        g_propagate_error(crew->error, g_steal_pointer(&lane->error));
        crew->failed = true;
    }
    qcow2_check_add(w->out, &lane->found);
    w->structure += lane->view.structure;
    w->doubtful |= lane->view.doubtful;
    crew->failed |= w->doubtful && !crew->here; /* it is done again in another way */
    qcow2_walk_progress(w, crew->ops->from + (crew->ops->to - crew->ops->from) * (double)(i + 1) /
                                                 (double)crew->parts);
    crew->turn = i + 1;
    wake_lane(&crew->lanes[(i + 1) % crew->n_lanes]);
    for (unsigned k = 0; crew->failed && k < crew->n_lanes; k++) {
        wake_lane(&crew->lanes[k]);
    }
}

static void lane_entry(void *arg)
{
    struct lane *lane = arg;
    struct crew *crew = lane->crew;

    for (uint64_t i = (uint64_t)(lane - crew->lanes); i < crew->parts && !crew->failed;
         i += crew->n_lanes) {
        co_part(lane, i);
        while (crew->turn != i && !crew->failed) {
            lane->waits = qv_co_self();
            qv_co_yield();
        }
        if (!crew->failed) {
            finish_part(lane, i);
        }
        g_clear_error(&lane->error);
        qcow2_check_clear(&lane->found);
    }
    if (--crew->running == 0 && crew->boss != NULL) {
        qv_co_wake(crew->boss);
    }
}

/* ---- all of them ---- */

static bool co_run(struct crew *crew)
{
    uint64_t cs = qcow2_cluster_size(&crew->w->header);

    crew->lanes = g_new0(struct lane, crew->n_lanes);
    crew->running = crew->n_lanes + 1;
    for (unsigned i = 0; i < crew->n_lanes; i++) {
        crew->lanes[i].crew = crew;
        crew->lanes[i].part.buf = qv_node_mem_alloc(crew->per_part * cs);
    }
    for (unsigned i = 0; i < crew->n_lanes; i++) {
        qv_co_spawn(lane_entry, &crew->lanes[i]);
    }
    if (--crew->running > 0) {
        crew->boss = qv_co_self();
        qv_co_yield();
    }
    for (unsigned i = 0; i < crew->n_lanes; i++) {
        free(crew->lanes[i].part.buf);
    }
    g_free(crew->lanes);
    return !crew->failed || crew->w->doubtful;
}

static struct crew crew_of(struct qcow2_walk *w, const struct qcow2_part_ops *ops, uint64_t n,
                           GError **error)
{
    struct crew crew = {.w = w, .ops = ops, .items = n, .here = true, .n_lanes = 1, .error = error};

    crew.per_part = qv_max_u64(PART_BYTES / qcow2_cluster_size(&w->header), 1);
    crew.parts = qv_div_up(n, crew.per_part);
    return crew;
}

bool qcow2_parts_co_run_alone(struct qcow2_walk *w, const struct qcow2_part_ops *ops, uint64_t n,
                              GError **error)
{
    struct crew crew = crew_of(w, ops, n, error);

    return n == 0 || co_run(&crew);
}

bool qcow2_parts_co_run(struct qcow2_walk *w, const struct qcow2_part_ops *ops, uint64_t n,
                        GError **error)
{
    struct crew crew = crew_of(w, ops, n, error);
    unsigned threads = w->threads != 0 ? w->threads : g_get_num_processors();

    if (w->threads > 1) { /* asked for, by a test: a few parts, however little there is in all */
        crew.per_part = qv_min_u64(crew.per_part, qv_div_up(n, PARTS_ASKED));
        crew.parts = n > 0 ? qv_div_up(n, crew.per_part) : 0;
    }
    if (threads > 1 && crew.parts > 1) {
        uint64_t most = LANES_BYTES / (crew.per_part * qcow2_cluster_size(&w->header));

        crew.here = false;
        /* Some of them read meanwhile. */
        crew.n_lanes = MIN(2 * threads, LANES_MAX);
        crew.n_lanes = (unsigned)qv_min_u64(crew.n_lanes, qv_min_u64(most, crew.parts));
    }
    return n == 0 || co_run(&crew);
}

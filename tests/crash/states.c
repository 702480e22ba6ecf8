/* SPDX-License-Identifier: Apache-2.0 */
#include "states.h"

#include <string.h>

#include "base/maths.h"

const char *state_kind_name(enum state_kind kind)
{
    static const char *const names[STATE_KINDS] = {"all",  "flushed only", "some",
                                                   "torn", "all but one",  "only one"};

    return names[kind];
}

static const struct qv_record *record(const struct qv_record_log *log, guint i)
{
    return g_ptr_array_index(log->records, i);
}

/* The first end of a flush that began after the end of @r. */
static uint64_t durable_at(const struct qv_record_log *log, const struct qv_record *r)
{
    uint64_t at = 0;

    if (r->ended == 0 || r->result != 0) {
        return 0;
    }
    if ((r->flags & QV_IO_FUA) != 0) {
        return r->ended;
    }
    for (guint i = 0; i < log->records->len; i++) {
        const struct qv_record *f = record(log, i);

        if (f->kind == QV_RECORD_FLUSH && f->began > r->ended && f->ended != 0 && f->result == 0 &&
            (at == 0 || f->ended < at)) {
            at = f->ended;
        }
    }
    return at;
}

void states_init(struct states *s, const struct mem_file *base, const struct qv_record_log *log,
                 uint64_t tear)
{
    *s = (struct states){base, log, tear, g_new0(uint64_t, log->records->len + 1)};
    for (guint i = 0; i < log->records->len; i++) {
        s->durable_at[i] = durable_at(log, record(log, i));
    }
}

void states_clear(struct states *s)
{
    g_free(s->durable_at);
    *s = (struct states){0};
}

static bool durable(const struct states *s, guint i, uint64_t when)
{
    return s->durable_at[i] != 0 && s->durable_at[i] <= when;
}

/* Makes [@offset, @offset + @len) what @r says. */
static void apply_part(struct mem_file *out, const struct qv_record *r, uint64_t offset,
                       uint64_t len)
{
    if (r->kind == QV_RECORD_WRITE) {
        if (offset + len > out->size) {
            mem_file_resize(out, offset + len);
        }
        memcpy(out->data + offset, r->data + (offset - r->offset), len);
    } else if (offset < out->size) {
        memset(out->data + offset, 0, qv_min_u64(len, out->size - offset));
    }
}

static void apply_torn(struct mem_file *out, const struct qv_record *r, uint64_t tear, GRand *rng)
{
    uint64_t end = r->offset + r->len;
    bool prefix = g_rand_boolean(rng); /* a prefix, or any sectors */
    bool on = true;

    for (uint64_t at = r->offset, next; at < end; at = next) {
        next = qv_min_u64(end, qv_align_down(at, tear) + tear);
        on = prefix ? on && g_rand_int_range(rng, 0, 8) != 0 : g_rand_boolean(rng);
        if (on) {
            apply_part(out, r, at, next - at);
        }
    }
}

static void apply(struct mem_file *out, const struct qv_record *r)
{
    if (r->kind == QV_RECORD_TRUNCATE) {
        mem_file_resize(out, r->offset);
    } else if (r->kind != QV_RECORD_FLUSH && r->len > 0) {
        apply_part(out, r, r->offset, r->len);
    }
}

/* How one request that no flush covers turned out. */
enum fate { FATE_THERE, FATE_MISSING, FATE_TORN };

static enum fate fate_of(enum state_kind kind, bool chosen, double share, GRand *rng)
{
    switch (kind) {
    case STATE_ALL:
        return FATE_THERE;
    case STATE_BUT_ONE:
        return chosen ? FATE_MISSING : FATE_THERE;
    case STATE_ONLY_ONE:
        return chosen ? FATE_THERE : FATE_MISSING;
    case STATE_RANDOM:
        return g_rand_double(rng) < share ? FATE_THERE : FATE_MISSING;
    case STATE_TORN:
        return g_rand_double(rng) >= share ? FATE_MISSING
               : g_rand_boolean(rng)       ? FATE_TORN
                                           : FATE_THERE;
    case STATE_NONE:
    case STATE_KINDS:
    default:
        return FATE_MISSING;
    }
}

void state_build(struct mem_file *out, const struct states *s, uint64_t when, enum state_kind kind,
                 GRand *rng)
{
    static const double shares[] = {0.1, 0.5, 0.9};
    double share = kind >= STATE_RANDOM ? shares[g_rand_int_range(rng, 0, 3)] : 0;
    guint n = 0, open = 0, chosen;

    for (; n < s->log->records->len && record(s->log, n)->began <= when; n++) {
        open += !durable(s, n, when) && record(s->log, n)->kind != QV_RECORD_FLUSH;
    }
    chosen = kind >= STATE_RANDOM && open > 0 ? (guint)g_rand_int_range(rng, 0, (gint32)open) : 0;
    open = 0;
    mem_file_set(out, s->base->data, s->base->size);
    for (guint i = 0; i < n; i++) {
        const struct qv_record *r = record(s->log, i);
        enum fate fate;

        if (r->kind == QV_RECORD_FLUSH) {
            continue;
        }
        fate = durable(s, i, when) ? FATE_THERE : fate_of(kind, open++ == chosen, share, rng);
        if (fate == FATE_TORN && r->kind != QV_RECORD_TRUNCATE) {
            apply_torn(out, r, s->tear, rng);
        } else if (fate != FATE_MISSING) {
            apply(out, r);
        } else if (kind >= STATE_RANDOM && r->kind == QV_RECORD_WRITE &&
                   r->offset + r->len > out->size && g_rand_boolean(rng)) {
            mem_file_resize(out, r->offset + r->len);
        }
    }
}

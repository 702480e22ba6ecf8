/* SPDX-License-Identifier: Apache-2.0 */
#include "format/qcow2/tally.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/maths.h"

bool qcow2_tally_init(struct qcow2_tally *tally, uint64_t nb, GError **error)
{
    *tally = (struct qcow2_tally){.nb = nb};
    if (nb > QCOW2_TALLY_MAX) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED,
                       "the file has %" PRIu64 " clusters; at most %" PRIu64 " can be checked", nb,
                       QCOW2_TALLY_MAX);
    }
    tally->counts = calloc(nb > 0 ? nb : 1, sizeof(tally->counts[0]));
    if (tally->counts == NULL) {
        return qv_fail_errno(error, ENOMEM, "reference counters of %" PRIu64 " clusters", nb);
    }
    return true;
}

void qcow2_tally_clear(struct qcow2_tally *tally)
{
    free(tally->counts);
    if (tally->big != NULL) {
        g_hash_table_destroy(tally->big);
    }
    *tally = (struct qcow2_tally){0};
}

uint64_t qcow2_tally_get(const struct qcow2_tally *tally, uint64_t cluster)
{
    if (tally->counts[cluster] < UINT16_MAX) {
        return tally->counts[cluster];
    }
    return *(uint64_t *)g_hash_table_lookup(tally->big, &cluster);
}

static void set_big(struct qcow2_tally *tally, uint64_t cluster, uint64_t count)
{
    uint64_t *value;

    if (tally->big == NULL) {
        tally->big = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
    }
    value = g_hash_table_lookup(tally->big, &cluster);
    if (value == NULL) {
        value = g_new(uint64_t, 1);
        g_hash_table_insert(tally->big, g_memdup2(&cluster, sizeof(cluster)), value);
        tally->counts[cluster] = UINT16_MAX;
    }
    *value = count;
}

uint64_t qcow2_tally_add(struct qcow2_tally *tally, uint64_t cluster, uint64_t n, uint64_t max)
{
    uint64_t old = qcow2_tally_get(tally, cluster);
    uint64_t room = max > old ? max - old : 0;
    uint64_t take = qv_min_u64(n, room);

    if (old + take < UINT16_MAX) {
        tally->counts[cluster] = (uint16_t)(old + take);
    } else {
        set_big(tally, cluster, old + take);
    }
    return n - take;
}

bool qcow2_tally_add_shared(struct qcow2_tally *tally, uint64_t cluster, uint64_t n, uint64_t max)
{
    uint16_t *count = &tally->counts[cluster], old = __atomic_load_n(count, __ATOMIC_RELAXED);

    do {
        if (n >= UINT16_MAX || old + n >= UINT16_MAX || old + n > max) {
            return false;
        }
    } while (!__atomic_compare_exchange_n(count, &old, (uint16_t)(old + n), true, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    return true;
}

void qcow2_tally_sub(struct qcow2_tally *tally, uint64_t cluster, uint64_t n)
{
    if (tally->counts[cluster] < UINT16_MAX) {
        tally->counts[cluster] = (uint16_t)(tally->counts[cluster] - n);
    } else {
        set_big(tally, cluster, qcow2_tally_get(tally, cluster) - n);
    }
}

uint64_t qcow2_tally_end(const struct qcow2_tally *tally)
{
    uint64_t i = tally->nb;

    while (i > 0 && tally->counts[i - 1] == 0) {
        i--;
    }
    return i;
}

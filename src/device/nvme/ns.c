/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Namespaces. Workers look them up in a table of atomic pointers and count their commands
 * (ns_users); a namespace leaves the table first, then every worker is asked to report when it has
 * no command of it any more (NS_DRAIN), then it is freed.
 * Source: NVMe 1.4, 6.1.
 */
#include <string.h>

#include "base/error.h"
#include "device/nvme/nvme_int.h"

/* A guest that has read the list without a namespace has let go of it when it sent nothing for this
 * long: time to write back what it had cached. */
#define QUIET_MS       INT64_C(200)
#define QUIET_CHECK_NS INT64_C(50000000)

struct nvme_ns *nvme_ns_get(struct nvme_ctrl *c, uint32_t nsid)
{
    return nsid < NVME_NSIDS ? atomic_load_explicit(&c->shared.ns[nsid], memory_order_acquire)
                             : NULL;
}

struct nvme_ns *nvme_ns_active(struct nvme_ctrl *c, uint32_t nsid)
{
    struct nvme_ns *ns = nvme_ns_get(c, nsid);

    return ns != NULL && !atomic_load(&ns->leaving) ? ns : NULL;
}

/*
 * Identifiers that are the same each time and differ between disks: parts of a hash. EUI-64 and
 * NGUID say by their U/L bit that they are locally administered (of no manufacturer), the UUID is
 * one of version 8 (RFC 9562, 5.8).
 */
void nvme_derive_ids(const char *identity, uint8_t nguid[16], uint8_t eui64[8], uint8_t uuid[16])
{
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    uint8_t digest[32];
    gsize len = sizeof(digest);

    g_checksum_update(sum, (const guchar *)"quantavirt-nvme:", -1);
    g_checksum_update(sum, (const guchar *)identity, -1);
    g_checksum_get_digest(sum, digest, &len);
    memcpy(uuid, digest, 16);
    uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x80);
    uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
    memcpy(nguid, digest + 16, 16);
    nguid[8] = (uint8_t)((nguid[8] & 0xfc) | 0x02); /* its OUI is in bytes 8 to 10 */
    memcpy(eui64, nguid + 8, 8);
}

/* ---- the end of a namespace ---- */

static void drained(struct nvme_group *g)
{
    struct nvme_ns *ns = g->arg;

    g->ctrl->draining[ns->nsid] = false;
    nvme_totals_add(&g->ctrl->gone, ns->disk);
    if (ns->removed != NULL) {
        ns->removed(ns->removed_arg);
    }
    g_free(ns);
}

static void drain(struct nvme_ns *ns)
{
    struct nvme_ctrl *c = ns->ctrl;
    struct nvme_group *g = nvme_group_new(c, drained);

    qv_timer_cancel(&ns->timer);
    c->draining[ns->nsid] = true;
    atomic_store(&c->shared.ns[ns->nsid], NULL);
    g->arg = ns;
    for (unsigned i = 0; i < c->worker_count; i++) {
        struct nvme_order *o = nvme_order_new(g, c->workers[i], NVME_ORDER_NS_DRAIN);

        o->nsid = ns->nsid;
        o->ns = ns;
        nvme_order_give(o);
    }
}

static void look_whether_quiet(struct qv_timer *timer)
{
    struct nvme_ns *ns = qv_container_of(timer, struct nvme_ns, timer);
    struct qv_disk_stats stats;

    qv_disk_stats(ns->disk, &stats);
    if (stats.in_flight == 0 &&
        qv_now_ns() / 1000000 - atomic_load(&ns->last_used_ms) >= QUIET_MS) {
        drain(ns);
    } else {
        qv_timer_arm(timer, QUIET_CHECK_NS);
    }
}

void nvme_ns_list_read(struct nvme_ctrl *c)
{
    for (uint32_t i = 1; i < NVME_NSIDS; i++) {
        struct nvme_ns *ns = nvme_ns_get(c, i);

        if (ns != NULL && atomic_load(&ns->leaving) && !ns->seen) {
            ns->seen = true;
            atomic_store(&ns->last_used_ms, qv_now_ns() / 1000000);
            qv_timer_arm(&ns->timer, QUIET_CHECK_NS);
        }
    }
}

void nvme_ns_guest_gone(struct nvme_ctrl *c)
{
    for (uint32_t i = 1; i < NVME_NSIDS; i++) {
        struct nvme_ns *ns = nvme_ns_get(c, i);

        if (ns != NULL && atomic_load(&ns->leaving)) {
            drain(ns);
        }
    }
}

void nvme_ns_destroy(struct nvme_ctrl *c)
{
    for (uint32_t i = 1; i < NVME_NSIDS; i++) {
        g_free(nvme_ns_get(c, i));
    }
}

/* ---- the interface ---- */

static bool in_use(struct nvme_ctrl *c, uint32_t nsid)
{
    return nvme_ns_get(c, nsid) != NULL || c->draining[nsid];
}

static uint32_t free_nsid(struct nvme_ctrl *c)
{
    uint32_t nsid = 1;

    while (nsid < NVME_NSIDS && in_use(c, nsid)) {
        nsid++;
    }
    return nsid;
}

static void set_ids(struct nvme_ctrl *c, struct nvme_ns *ns, const char *identity)
{
    g_autofree char *own = NULL;

    if (identity == NULL) {
        own = g_strdup_printf("%.*s/%u", (int)sizeof(c->serial), c->serial, ns->nsid);
        identity = own;
    }
    nvme_derive_ids(identity, ns->nguid, ns->eui64, ns->uuid);
}

bool qv_nvme_add(struct qv_pci_function *fn, const struct qv_nvme_ns_opts *opts, uint32_t *nsid,
                 GError **error)
{
    struct nvme_ctrl *c = nvme_of(fn);
    uint32_t id = opts->nsid != 0 ? opts->nsid : free_nsid(c);
    unsigned block = opts->block_size != 0 ? opts->block_size : 512;
    struct nvme_ns *ns;

    if (opts->nsid == 0 && id == NVME_NSIDS) {
        return qv_fail(error, QV_ERROR_FAILED, "%s: all %u namespaces are in use", c->name,
                       QV_NVME_NAMESPACES_MAX);
    }
    if (id >= NVME_NSIDS) {
        return qv_fail(error, QV_ERROR_USAGE, "%s: namespace %u is not one of 1 to %u", c->name, id,
                       QV_NVME_NAMESPACES_MAX);
    }
    if (in_use(c, id)) {
        return qv_fail(error, QV_ERROR_EXISTS, "%s: namespace %u exists", c->name, id);
    }
    if (block != 512 && block != 4096) {
        return qv_fail(error, QV_ERROR_USAGE, "%s: blocks of %u bytes, must be 512 or 4096",
                       c->name, block);
    }
    ns = g_new0(struct nvme_ns, 1);
    ns->ctrl = c;
    ns->nsid = id;
    ns->disk = opts->disk;
    ns->shift = block == 512 ? 9 : 12;
    ns->timer.fn = look_whether_quiet;
    set_ids(c, ns, opts->identity);
    atomic_store_explicit(&c->shared.ns[id], ns, memory_order_release);
    if (nsid != NULL) {
        *nsid = id;
    }
    nvme_ns_changed(c, id);
    return true;
}

void qv_nvme_resized(struct qv_pci_function *fn, uint32_t nsid)
{
    struct nvme_ctrl *c = nvme_of(fn);

    if (nvme_ns_active(c, nsid) != NULL) {
        nvme_ns_changed(c, nsid);
    }
}

void qv_nvme_remove(struct qv_pci_function *fn, uint32_t nsid, void (*done)(void *arg), void *arg)
{
    struct nvme_ctrl *c = nvme_of(fn);
    struct nvme_ns *ns = nvme_ns_get(c, nsid);

    if (ns == NULL) {
        done(arg);
        return;
    }
    ns->removed = done;
    ns->removed_arg = arg;
    if (atomic_load(&ns->leaving)) {
        return; /* under way */
    }
    ns->seen = false;
    atomic_store(&ns->leaving, true);
    if (c->state != NVME_ENABLED || c->csts >> NVME_CSTS_SHST_SHIFT == NVME_SHST_COMPLETE) {
        drain(ns);
        return;
    }
    nvme_ns_changed(c, nsid);
}

void qv_nvme_remove_force(struct qv_pci_function *fn, uint32_t nsid)
{
    struct nvme_ns *ns = nvme_ns_get(nvme_of(fn), nsid);

    if (ns != NULL && atomic_load(&ns->leaving)) {
        drain(ns);
    }
}

bool qv_nvme_remove_cancel(struct qv_pci_function *fn, uint32_t nsid)
{
    struct nvme_ctrl *c = nvme_of(fn);
    struct nvme_ns *ns = nvme_ns_get(c, nsid);

    if (ns == NULL || !atomic_load(&ns->leaving)) {
        return false;
    }
    qv_timer_cancel(&ns->timer);
    ns->removed = NULL;
    atomic_store(&ns->leaving, false);
    nvme_ns_changed(c, nsid);
    return true;
}

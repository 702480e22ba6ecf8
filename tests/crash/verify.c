/* SPDX-License-Identifier: Apache-2.0 */
#include "verify.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/maths.h"
#include "format/encrypted/encrypted.h"
#include "format/qcow2/header.h"
#include "format/qcow2/snapshot.h"
#include "format/qcow2/walk.h"
#include "owner.h"

#define SECTOR      512u
#define FEATURES_AT 72 /* the first byte of the incompatible features: bit 56 is its lowest */

static unsigned qemu_runs;

unsigned verify_qemu_runs(void)
{
    return qemu_runs;
}

/* qemu-img on a copy: no corruption, leaks allowed. Of an encrypted image it sees the container:
 * the feature bit for which it would refuse it is taken away; what only the seal refers to are
 * leaks. */
static bool qemu_check(struct run *run, const struct mem_file *file, const char *moment)
{
    const char *program = getenv("QEMU_IMG");
    char path[] = "/dev/shm/qv-crash-XXXXXX";
    uint8_t features = run->load->encrypted ? 0 : file->data[FEATURES_AT];
    int fd = mkstemp(path), status = 0;
    g_autofree char *name = NULL, *out = NULL;
    g_autoptr(GError) error = NULL;
    gboolean ran;

    if (fd < 0 || write(fd, file->data, file->size) != (ssize_t)file->size ||
        pwrite(fd, &features, 1, FEATURES_AT) != 1) {
        run_fail(run, "cannot write %s", path);
        qv_close_fd(&fd);
        return false;
    }
    close(fd);
    name = g_strdup_printf("json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":"
                           "\"%s\"},\"backing\":null}",
                           path);
    const char *argv[] = {program != NULL ? program : "qemu-img", "check", name, NULL};
    ran = g_spawn_sync(NULL, (char **)(uintptr_t)argv, NULL,
                       G_SPAWN_SEARCH_PATH | G_SPAWN_STDERR_TO_DEV_NULL, NULL, NULL, &out, NULL,
                       &status, &error);
    unlink(path);
    if (!ran) {
        run_fail(run, "cannot run qemu-img: %s", error->message);
        return false;
    }
    qemu_runs++;
    if (!WIFEXITED(status) || (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 3)) {
        run_fail(run, "%s: qemu-img check: %s", moment, out);
        return false;
    }
    return true;
}

/* Our check: no corruption, at most @leaks; the number of leaks is returned, or -1. */
static int64_t co_check(struct run *run, struct mem_file *file, uint64_t leaks, const char *moment)
{
    struct qv_node *node = mem_node_new(file, true);
    g_autoptr(GError) error = NULL;
    struct qcow2_check found;
    int64_t result = -1;

    if (!qcow2_co_check_file(node, &found, NULL, NULL, &error)) {
        run_fail(run, "%s: check failed: %s", moment, error->message);
        qv_node_co_close_tree(node);
        return -1;
    }
    if (found.corruptions > 0 || found.leaks > leaks) {
        run_fail(run, "%s: %" PRIu64 " corruptions, %" PRIu64 " leaks (at most %" PRIu64 "): %s",
                 moment, found.corruptions, found.leaks, leaks,
                 (const char *)g_ptr_array_index(found.details, 0));
    } else {
        result = (int64_t)found.leaks;
    }
    qcow2_check_clear(&found);
    qv_node_co_close_tree(node);
    return result;
}

/* Leaks, with those past the end of the file, which count once the file is longer: as far as
 * clusters are reserved ahead. */
static int64_t co_count_leaks(struct run *run, const struct mem_file *file)
{
    uint64_t cluster = run->load->create.cluster_size;
    struct mem_file longer = {.size = file->size + qv_max_u64(8 * QV_MIB, 4096 * cluster)};
    int64_t leaks;

    longer.data = g_malloc0(longer.size); /* no page of which is there before it is used */
    longer.cap = longer.size;
    memcpy(longer.data, file->data, file->size);
    leaks = co_check(run, &longer, UINT64_MAX, "before opening");
    mem_file_clear(&longer);
    return leaks;
}

static bool is_dirty(const struct mem_file *file)
{
    struct qcow2_header h = {0};
    bool dirty;

    if (!qcow2_header_parse(file->data, file->size, &h, NULL)) {
        return false; /* opening it will say so */
    }
    dirty = (h.incompatible_features & QCOW2_INCOMPAT_DIRTY) != 0;
    qcow2_header_clear(&h);
    return dirty;
}

/* The whole disk; NULL on failure. */
static uint8_t *co_read_all(struct run *run, struct qv_node *node)
{
    uint64_t size = atomic_load(&node->size);
    uint8_t *content = g_malloc(size);
    int rc = qv_co_pread(node, 0, content, size);

    if (rc < 0) {
        run_fail(run, "reading the disk: %s", qv_strerror(rc));
        g_clear_pointer(&content, g_free);
    }
    return content;
}

static bool co_check_content(struct run *run, struct qv_node *node, uint64_t when)
{
    uint64_t size = atomic_load(&node->size), min, max;
    g_autofree uint8_t *content = co_read_all(run, node);
    g_autofree char *why = NULL;

    history_sizes(&run->history, when, &min, &max);
    if (size < min || size > max) {
        run_fail(run, "the disk has %" PRIu64 " bytes, must have %" PRIu64 "..%" PRIu64, size, min,
                 max);
        return false;
    }
    for (uint64_t s = 0; content != NULL && s < size / SECTOR; s++) {
        if (!history_check(&run->history, s, content + s * SECTOR, when, &why)) {
            run_fail(run, "%s", why);
            return false;
        }
    }
    return content != NULL;
}

/* ---- snapshots ---- */

/* One sector after the other, as @number shows them. */
static bool co_check_snapshot(struct run *run, struct mem_file *file, const char *name,
                              uint64_t when)
{
    uint32_t number = (uint32_t)g_ascii_strtoull(name, NULL, 10);
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *content = NULL;
    g_autofree char *why = NULL;
    struct qv_node *node = run_co_open_snapshot(run, mem_node_new(file, true), name, &error);

    if (node == NULL) {
        run_fail(run, "opening snapshot %s: %s", name, error->message);
        return false;
    }
    content = co_read_all(run, node);
    for (uint64_t s = 0; content != NULL && s < atomic_load(&node->size) / SECTOR; s++) {
        if (!history_check_snapshot(&run->history, number, s, content + s * SECTOR, when, &why)) {
            run_fail(run, "snapshot %s: %s", name, why);
            g_clear_pointer(&content, g_free);
        }
    }
    qv_node_co_close_tree(node);
    return content != NULL;
}

static bool co_check_snapshots(struct run *run, struct qv_node *node, struct mem_file *file,
                               uint64_t when)
{
    g_autoptr(GPtrArray) list = NULL;
    g_autoptr(GError) error = NULL;
    bool ok = true;

    if (!run->load->snapshots) {
        return true;
    }
    if (!qcow2_co_snapshot_list(node, &list, &error)) {
        run_fail(run, "listing snapshots: %s", error->message);
        return false;
    }
    for (guint i = 0; ok && i < list->len; i++) {
        const struct qcow2_snapshot *s = list->pdata[i];
        uint32_t number = (uint32_t)g_ascii_strtoull(s->name, NULL, 10);

        ok = history_snapshot_may_exist(&run->history, number, when);
        if (!ok) {
            run_fail(run, "snapshot %s is there", s->name);
        }
        ok = ok && co_check_snapshot(run, file, s->name, when);
    }
    for (uint32_t n = 1; ok && n <= run->history.ops->len; n++) {
        g_autofree char *name = g_strdup_printf("%" PRIu32, n);

        ok = history_snapshot_may_miss(&run->history, n, when) ||
             qcow2_snapshot_find(list, name) != NULL;
        if (!ok) {
            run_fail(run, "snapshot %s is not there", name);
        }
    }
    return ok;
}

/* ---- keys ---- */

static bool co_check_keys(struct run *run, struct mem_file *file, uint64_t when)
{
    g_autofree char *why = NULL;

    if (!run_changes_keys(run) || keys_co_check(&run->keys, file, when, &why)) {
        return true;
    }
    run_fail(run, "key area: %s", why);
    return false;
}

/* Where the data key is being replaced that goes on to its end, now and then. Nobody has @file
 * open. */
static bool co_end_reencryption(struct run *run, struct mem_file *file, uint32_t seed)
{
    struct qv_node *node = mem_node_new(file, true);
    struct qv_enc_info info = {0};
    g_autoptr(GError) error = NULL;
    bool ok = qv_enc_co_probe(node, &info, &error), old_key = false, wanted = info.reencrypting;

    qv_node_co_close_tree(node);
    qv_enc_info_clear(&info);
    if (ok && wanted && seed % 2 == 0) {
        ok = owner_co_reseal(run, file, &old_key, &error); /* leaks may keep the old key */
    }
    if (!ok) {
        run_fail(run, "going on with re-encryption: %s", error->message);
    }
    return ok;
}

/* ---- using the image once more ---- */

static int co_use_once(struct qv_node *node, uint8_t *content, GRand *rng)
{
    uint64_t sectors = atomic_load(&node->size) / SECTOR;
    uint64_t n = (uint64_t)g_rand_int_range(rng, 1, (gint32)qv_min_u64(sectors, 64) + 1);
    uint64_t at = (uint64_t)g_rand_int_range(rng, 0, (gint32)(sectors - n + 1)) * SECTOR;
    uint64_t len = n * SECTOR;
    int rc;

    switch (g_rand_int_range(rng, 0, 5)) {
    case 0:
        memset(content + at, 0, len);
        return qv_co_zero(node, at, len, QV_IO_MAY_UNMAP);
    case 1:
        rc = qv_co_discard(node, at, len); /* what it leaves is what stays */
        return rc == 0 ? qv_co_pread(node, at, content + at, len) : rc;
    case 2:
        return qv_co_flush(node);
    default:
        memset(content + at, g_rand_int_range(rng, 1, 256), len);
        return qv_co_pwrite(node, at, content + at, len);
    }
}

/* Takes over @node. @content: the disk as it is; becomes what it shall be. */
static bool co_use(struct run *run, struct qv_node *node, uint8_t *content, uint32_t seed)
{
    GRand *rng = g_rand_new_with_seed(seed);
    int rc = 0, closed;

    for (int i = 0; i < 12 && rc == 0; i++) {
        rc = co_use_once(node, content, rng);
    }
    g_rand_free(rng);
    closed = qv_node_co_close_tree(node);
    if (rc < 0 || closed < 0) {
        run_fail(run, "using the image again: %s", qv_strerror(rc < 0 ? rc : closed));
    }
    return rc == 0 && closed == 0;
}

static bool co_reopen(struct run *run, struct mem_file *file, const uint8_t *content, uint64_t when)
{
    g_autoptr(GError) error = NULL;
    struct qv_node *node = run_co_open(run, mem_node_new(file, true), true, &error);
    g_autofree uint8_t *again = NULL;
    bool same = false;

    if (node == NULL) {
        run_fail(run, "opening after use: %s", error->message);
        return false;
    }
    again = co_read_all(run, node);
    if (again != NULL) {
        same = memcmp(again, content, atomic_load(&node->size)) == 0;
        if (!same) {
            run_fail(run, "the disk reads differently after use");
        }
    }
    same = same && co_check_snapshots(run, node, file, when);
    qv_node_co_close_tree(node);
    return same;
}

/* @leaks: before it was opened. */
static bool co_use_and_check(struct run *run, struct qv_node *node, struct mem_file *file,
                             uint64_t leaks, uint64_t when, const struct verify_opts *opts)
{
    g_autofree uint8_t *content = co_read_all(run, node);

    if (content == NULL) {
        qv_node_co_close_tree(node);
        return false;
    }
    if (!co_use(run, node, content, opts->seed) || !co_reopen(run, file, content, when)) {
        return false;
    }
    return run->load->raw || (co_check(run, file, leaks, "after use") >= 0 &&
                              (!opts->qemu || qemu_check(run, file, "after use")));
}

/* What @file shows must be right. The open node, or NULL. */
static struct qv_node *co_open_and_check(struct run *run, struct mem_file *file, uint64_t when)
{
    g_autoptr(GError) error = NULL;
    struct qv_node *node = run_co_open(run, mem_node_new(file, false), false, &error);

    if (node == NULL) {
        run_fail(run, "opening: %s", error->message);
        return NULL;
    }
    if (!co_check_content(run, node, when) || !co_check_snapshots(run, node, file, when)) {
        qv_node_co_close_tree(node);
        return NULL;
    }
    return node;
}

bool verify_co_image(struct run *run, struct mem_file *file, uint64_t when,
                     const struct verify_opts *opts)
{
    bool dirty = !run->load->raw && is_dirty(file);
    struct qv_node *node;
    int64_t leaks = 0;

    if (!run->load->raw && !dirty) {
        leaks = co_count_leaks(run, file);
        if (leaks < 0 || (opts->qemu && !qemu_check(run, file, "before opening"))) {
            return false;
        }
    }
    node = co_check_keys(run, file, when) ? co_open_and_check(run, file, when) : NULL;
    if (node != NULL && run->load->reencrypt) {
        bool closed = qv_node_co_close_tree(node) == 0;

        node = closed && co_end_reencryption(run, file, opts->seed)
                   ? co_open_and_check(run, file, when)
                   : NULL;
    }
    if (node == NULL || !opts->use) {
        return node != NULL && qv_node_co_close_tree(node) == 0;
    }
    return co_use_and_check(run, node, file, (uint64_t)leaks, when, opts);
}

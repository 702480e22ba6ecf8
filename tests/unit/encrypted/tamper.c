/* SPDX-License-Identifier: Apache-2.0 */
#include "tamper.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/maths.h"
#include "enc_image.h"
#include "format/qcow2/snapshot.h"
#include "format/qcow2/tables.h"
#include "format/qcow2/walk.h"
#include "io/thread.h"

static struct qv_thread *thread;

bool tamper_start(void)
{
    thread = qv_thread_new("tamper", NULL);
    return thread != NULL;
}

void tamper_end(void)
{
    qv_thread_free(thread);
}

/* ---- sectors that say what they are ---- */

struct mark {
    uint32_t sector, version;
};

static void fill(void *buf, unsigned sector, unsigned version)
{
    struct mark m = {sector + 1000, version}, *p = buf;

    for (size_t i = 0; i < ENC_SECTOR / sizeof(m); i++) {
        p[i] = m;
    }
}

/* The version of sector @sector in @buf, 0 for zeros, INT32_MAX for anything else. */
static int version_of(const void *buf, unsigned sector)
{
    static const uint8_t zeros[ENC_SECTOR];
    uint8_t want[ENC_SECTOR];
    struct mark m;

    memcpy(&m, buf, sizeof(m));
    if (memcmp(buf, zeros, ENC_SECTOR) == 0) {
        return 0;
    }
    fill(want, sector, m.version);
    return m.version >= 1 && m.version <= TAMPER_MENDED && memcmp(buf, want, ENC_SECTOR) == 0
               ? (int)m.version
               : INT32_MAX;
}

/* ---- the image ---- */

static struct qv_node *co_open(struct mem_file *file, uint8_t dek_byte, const char *snapshot,
                               bool readonly, GError **error)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret(dek_byte);
    struct qv_enc_open_opts opts = {
        .qcow2 = {.name = "tampered", .readonly = readonly, .snapshot = snapshot},
        .dek = dek,
        .buffer = (uint64_t)64 * ENC_SECTOR,
        .entry_cache = 64 * QV_KIB};
    struct qv_node *node = NULL;

    return qv_enc_co_open(mem_node_new(file, readonly), &opts, &node, error) ? node : NULL;
}

static int co_write(struct qv_node *node, unsigned first, unsigned n, unsigned version)
{
    uint8_t buf[ENC_SECTOR];
    int ret = 0;

    for (unsigned i = first; i < first + n && ret == 0; i++) {
        fill(buf, i, version);
        ret = qv_co_pwrite(node, (uint64_t)i * ENC_SECTOR, buf, ENC_SECTOR);
    }
    return ret != 0 ? ret : qv_co_flush(node);
}

struct make {
    struct mem_file *file;
    enum tamper_what what;
    uint8_t dek;
    const uint8_t *uuid;
};

static void co_create(const struct make *m, struct mem_file *file)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret(m->dek);
    QV_CLEANUP(qv_secret_freep) struct qv_secret *shared = enc_test_secret('s');
    g_autofree struct qv_enc_slot *slot = g_new0(struct qv_enc_slot, 1);
    struct qv_enc_create_opts opts = {
        .qcow2 = {.size = TAMPER_SIZE, .cluster_size = TAMPER_CLUSTER},
        .aead = QV_AEAD_AES_256_GCM,
        .torn = m->what == TAMPER_CRASHED ? QV_ENC_TORN_ON : QV_ENC_TORN_OFF,
        .log_size = 64 * QV_KIB,
        .dek = dek,
        .slots = slot,
        .nb_slots = 1};
    struct qv_node *node = mem_node_new(file, false);
    g_autoptr(GError) error = NULL;

    enc_test_slot(slot, "test", m->uuid, shared, dek);
    memcpy(opts.uuid, m->uuid, sizeof(opts.uuid));
    if (!qv_enc_co_create(node, &opts, &error)) {
        g_error("%s", error->message);
    }
    qv_node_co_close_tree(node);
}

static void co_make(void *arg)
{
    const struct make *m = arg;
    struct qcow2_snapshot_opts snapshot = {.name = "snap"};
    struct mem_file file = {0};
    g_autoptr(GError) error = NULL;
    struct qv_node *node;
    bool ok;

    co_create(m, &file);
    node = co_open(&file, m->dek, NULL, false, &error);
    ok = node != NULL && co_write(node, 0, TAMPER_FULL, 1) == 0 &&
         qcow2_co_snapshot_create(node, &snapshot, NULL, &error) &&
         co_write(node, 0, TAMPER_NEW, 2) == 0 && co_write(node, 0, TAMPER_NEW, 3) == 0;
    if (!ok) {
        g_error("making an image: %s", error != NULL ? error->message : "I/O");
    }
    if (m->what == TAMPER_CRASHED) {
        mem_file_set(m->file, file.data, file.size);
    }
    if (qv_node_co_close_tree(node) != 0) {
        g_error("closing an image");
    }
    if (m->what == TAMPER_CLOSED) {
        mem_file_set(m->file, file.data, file.size);
    }
    mem_file_clear(&file);
}

void tamper_make(struct mem_file *file, enum tamper_what what, uint8_t dek, const uint8_t *uuid)
{
    struct make m = {file, what, dek, uuid};

    qv_thread_run_co(thread, co_make, &m);
}

struct write_more {
    struct mem_file *file;
    uint8_t dek;
    unsigned sectors, version;
};

static void co_write_more(void *arg)
{
    const struct write_more *w = arg;
    g_autoptr(GError) error = NULL;
    struct qv_node *node = co_open(w->file, w->dek, NULL, false, &error);

    if (node == NULL || co_write(node, 0, w->sectors, w->version) != 0 ||
        qv_node_co_close_tree(node) != 0) {
        g_error("writing to an image: %s", error != NULL ? error->message : "I/O");
    }
}

void tamper_write(struct mem_file *file, uint8_t dek, unsigned sectors, unsigned version)
{
    struct write_more w = {file, dek, sectors, version};

    qv_thread_run_co(thread, co_write_more, &w);
}

/* ---- where things are ---- */

static uint64_t get64(const struct mem_file *file, uint64_t at)
{
    qv_be64 v;

    memcpy(&v, file->data + at, sizeof(v));
    return qv_be64_get(v);
}

static void add(struct tamper_parts *p, const char *name, uint64_t at, uint64_t len)
{
    struct tamper_part part = {name, at, len};

    if (at != 0 || len > 0) {
        g_array_append_val(p->meta, part);
    }
}

static void add_l1(struct tamper_parts *p, const struct mem_file *file, uint64_t at, uint64_t n,
                   const char *l1_name, const char *l2_name)
{
    add(p, l1_name, at, n * 8);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t l2 = get64(file, at + i * 8) & QCOW2_L1_OFFSET_MASK;

        if (l2 != 0) {
            add(p, l2_name, l2, TAMPER_CLUSTER);
        }
    }
}

static uint64_t snapshot_l1(const struct mem_file *file, const struct qcow2_header *h,
                            uint64_t *entries)
{
    struct qcow2_snapshot_disk d;

    memcpy(&d, file->data + h->snapshots_offset, sizeof(d));
    *entries = qv_be32_get(d.l1_size);
    return qv_be64_get(d.l1_table_offset);
}

static void root_of(const struct mem_file *file, const struct qcow2_header *h,
                    struct qcow2_seal_root *root)
{
    if (!qcow2_seal_root_parse(file->data + h->seal.log_offset, h->cluster_bits, root, NULL)) {
        g_error("no root");
    }
}

/* Heads and items of records; their data is ciphertext. */
static void add_log(struct tamper_parts *p, const struct mem_file *file)
{
    uint64_t end = p->h.seal.log_offset + p->h.seal.log_size;

    for (uint64_t at = p->h.seal.log_offset + QCOW2_SEAL_RING_AT; at < end; at += ENC_LOG_BLOCK) {
        struct enc_record_disk r;

        memcpy(&r, file->data + at, sizeof(r));
        if (memcmp(r.magic, ENC_LOG_MAGIC, sizeof(r.magic)) == 0) {
            add(p, "record of the log", at,
                sizeof(r) + qv_be32_get(r.items) * sizeof(struct enc_item_disk));
        }
    }
}

void tamper_parts(const struct mem_file *file, struct tamper_parts *out)
{
    struct qcow2_seal_root root;
    uint64_t entries, l1;

    *out = (struct tamper_parts){.meta = g_array_new(FALSE, FALSE, sizeof(struct tamper_part))};
    if (!qcow2_header_parse(file->data, file->size, &out->h, NULL)) {
        g_error("no header");
    }
    add(out, "header", 0, 1024);
    add(out, "refcount table", out->h.refcount_table_offset, 512);
    for (uint64_t i = 0; i < 64; i++) {
        uint64_t block = get64(file, out->h.refcount_table_offset + i * 8) & QCOW2_RT_OFFSET_MASK;

        if (block != 0) {
            add(out, "refcount block", block, 2 * (file->size / TAMPER_CLUSTER + 8));
        }
    }
    add_l1(out, file, out->h.l1_table_offset, out->h.l1_size, "L1 table", "L2 table");
    add(out, "snapshot table", out->h.snapshots_offset, 128);
    l1 = snapshot_l1(file, &out->h, &entries);
    add_l1(out, file, l1, entries, "snapshot's L1 table", "snapshot's L2 table");
    root_of(file, &out->h, &root);
    add(out, "root", out->h.seal.log_offset, 64);
    add(out, "root", out->h.seal.log_offset + QCOW2_SEAL_ROOT_SIZE, 64);
    add(out, "table of entry blocks", root.table_offset, root.table_entries * 8);
    for (uint64_t i = 0; i < root.table_entries; i++) {
        uint64_t block = get64(file, root.table_offset + i * 8);

        if (block != 0) {
            add(out, "entry block", block, TAMPER_CLUSTER);
        }
    }
    add_log(out, file);
}

void tamper_parts_clear(struct tamper_parts *p)
{
    qcow2_header_clear(&p->h);
    g_array_unref(p->meta);
}

uint64_t tamper_host(const struct mem_file *file, unsigned guest, bool snapshot)
{
    struct qcow2_header h = {0};
    uint64_t l1, l2, entries, at = (uint64_t)guest * ENC_SECTOR;

    if (!qcow2_header_parse(file->data, file->size, &h, NULL)) {
        g_error("no header");
    }
    l1 = snapshot ? snapshot_l1(file, &h, &entries) : h.l1_table_offset;
    l2 = get64(file, l1) & QCOW2_L1_OFFSET_MASK;
    qcow2_header_clear(&h);
    return (get64(file, l2 + at / TAMPER_CLUSTER * 8) & QCOW2_L2_OFFSET_MASK) + at % TAMPER_CLUSTER;
}

uint64_t tamper_entry(const struct mem_file *file, uint64_t host)
{
    struct qcow2_seal_root root;
    struct qcow2_header h = {0};
    uint64_t sector = host / ENC_SECTOR, in_block = TAMPER_CLUSTER / sizeof(struct enc_entry);

    if (!qcow2_header_parse(file->data, file->size, &h, NULL)) {
        g_error("no header");
    }
    root_of(file, &h, &root);
    qcow2_header_clear(&h);
    return get64(file, root.table_offset + sector / in_block * 8) +
           sector % in_block * sizeof(struct enc_entry);
}

/* ---- looking ---- */

struct look_call {
    struct mem_file *file;
    uint8_t dek;
    const char *snapshot;
    struct tamper_look *out;
};

void tamper_look_clear(struct tamper_look *look)
{
    g_free(look->error);
    *look = (struct tamper_look){0};
}

static void co_read_all(struct qv_node *node, struct tamper_look *out)
{
    uint8_t buf[ENC_SECTOR];
    uint64_t size = atomic_load(&node->size);

    for (unsigned i = 0; i < TAMPER_SECTORS; i++) {
        uint64_t at = (uint64_t)i * ENC_SECTOR;
        int ret = at + ENC_SECTOR <= size ? qv_co_pread(node, at, buf, ENC_SECTOR) : -EINVAL;

        out->version[i] = ret != 0 ? ret : version_of(buf, i);
        out->foreign |= out->version[i] == INT32_MAX;
    }
    /* A disk that has become longer shows nothing there. */
    if (size >= TAMPER_SIZE + ENC_SECTOR &&
        qv_co_pread(node, qv_align_down(size, ENC_SECTOR) - ENC_SECTOR, buf, ENC_SECTOR) == 0) {
        out->foreign |= version_of(buf, TAMPER_SECTORS) != 0;
    }
}

static void co_look_once(struct mem_file *file, uint8_t dek, const char *snapshot,
                         struct tamper_look *out)
{
    g_autoptr(GError) error = NULL;
    struct qv_node *node = co_open(file, dek, snapshot, true, &error);
    struct qv_enc_info info = {0};

    out->opened = node != NULL;
    if (node == NULL) {
        out->error = g_strdup(error->message);
        return;
    }
    if (qv_enc_get_info(node, &info)) {
        out->one_copy_damaged = info.one_copy_damaged;
        qv_enc_info_clear(&info);
    }
    co_read_all(node, out);
    qv_node_co_close_tree(node);
}

static void co_look(void *arg)
{
    const struct look_call *c = arg;

    *c->out = (struct tamper_look){0};
    co_look_once(c->file, c->dek, c->snapshot, c->out);
}

void tamper_look(struct mem_file *file, uint8_t dek, const char *snapshot, struct tamper_look *out)
{
    struct look_call c = {file, dek, snapshot, out};

    qv_thread_run_co(thread, co_look, &c);
}

static void co_look_writing(void *arg)
{
    const struct look_call *c = arg;
    struct tamper_look first = {0};
    g_autoptr(GError) error = NULL;
    struct qv_node *node = co_open(c->file, c->dek, NULL, false, &error);
    bool told;

    *c->out = (struct tamper_look){0};
    if (node == NULL) {
        c->out->error = g_strdup(error->message);
        return;
    }
    co_read_all(node, &first);
    told = co_write(node, 1, 1, TAMPER_MENDED) == 0;
    co_read_all(node, &first);
    told = qv_node_co_close_tree(node) == 0 && told;
    co_look_once(c->file, c->dek, NULL, c->out);
    c->out->foreign |= first.foreign;
    /* Whoever can write to the file can erase it; an older version must not stand there. */
    c->out->lost =
        told && c->out->opened && c->out->version[1] > 0 && c->out->version[1] != TAMPER_MENDED;
}

void tamper_look_writing(struct mem_file *file, uint8_t dek, struct tamper_look *out)
{
    struct look_call c = {file, dek, NULL, out};

    qv_thread_run_co(thread, co_look_writing, &c);
}

static void co_check(void *arg)
{
    struct qv_node *node = mem_node_new(arg, true);
    struct qcow2_check check;

    if (qcow2_co_check_file(node, &check, NULL, NULL, NULL)) {
        qcow2_check_clear(&check);
    }
    qv_node_co_close_tree(node);
}

void tamper_check(struct mem_file *file)
{
    qv_thread_run_co(thread, co_check, file);
}

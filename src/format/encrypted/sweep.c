/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dropping epochs that no sector uses any more. Every opening for writing begins one and the key
 * area has room for so many; so this happens when few are left, and when a data key is replaced.
 *
 * Entries are counted in the table, after a checkpoint: then no record of the log is needed, and a
 * record of the current epoch says so. The rest of the ring is zeroed first: an old record whose
 * epoch is gone could not be told from none, and one before it must not pass for the newest.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/encrypted/enc_int.h"

struct use {
    struct enc_image *enc;
    bool *used; /* by place in area.epochs */
};

static void note(struct use *u, const struct enc_entry *e)
{
    const struct enc_area *area = &u->enc->area;
    uint32_t number = qv_be32_get(e->epoch), low = 0, high = area->nb_epochs;

    while (low < high) {
        uint32_t mid = low + (high - low) / 2;

        if (area->epochs[mid].number == number) {
            u->used[mid] = true;
            return;
        }
        if (area->epochs[mid].number < number) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
}

static int co_note_all(struct use *u)
{
    struct enc_image *enc = u->enc;
    uint64_t pages = enc_pages_count(enc);
    int ret = 0;

    for (uint64_t n = 0; n < pages && ret == 0; n++) {
        struct enc_page *p;

        if (!enc_page_has_block(enc, n)) {
            continue;
        }
        ret = enc_co_page_lock(enc, n, &p);
        for (unsigned i = 0; ret == 0 && i < ENC_PAGE_ENTRIES; i++) {
            note(u, &p->e[i]);
            if (p->slot[i] != NULL) {
                note(u, &p->slot[i]->entry);
            }
        }
        if (ret == 0) {
            pthread_mutex_unlock(&enc_shard_of(enc, n)->lock);
        }
    }
    return ret;
}

/* Under area_lock. The epochs stay in memory: keys of them may be in use. */
static bool co_drop(struct enc_image *enc, const bool *used, bool *old_key, GError **error)
{
    struct enc_area next = enc->area;
    uint32_t current = atomic_load(&enc->current)->number, n = 0;
    bool ok;

    next.epochs = g_new0(struct enc_epoch_info, enc->area.nb_epochs + 1);
    *old_key = false;
    for (uint32_t i = 0; i < enc->area.nb_epochs; i++) {
        if (used[i] || enc->area.epochs[i].number >= current) {
            next.epochs[n++] = enc->area.epochs[i];
            *old_key |= enc->area.epochs[i].dek != enc->area.dek;
        }
    }
    next.nb_epochs = n;
    if (!*old_key) {
        next.previous_dek = 0;
        memset(next.wrap_nonce, 0, sizeof(next.wrap_nonce));
        memset(next.wrapped, 0, sizeof(next.wrapped));
        memset(next.wrap_tag, 0, sizeof(next.wrap_tag));
    }
    /* Twice: a key that is given up must be in no copy. */
    ok = enc_area_co_write_both(enc->file, &enc->ext, &next, enc->dek, error);
    if (ok) {
        g_free(enc->area.epochs);
        enc->area = next;
    } else {
        enc->area.generation = next.generation;
        enc->area.copy = next.copy;
        g_free(next.epochs);
    }
    return ok;
}

/* Whether [@at, @at + @n) is not the newest record. */
static bool is_old(const struct enc_log *log, uint32_t at, uint32_t n)
{
    return at + n <= log->last || log->last + log->last_blocks <= at;
}

/* Alone with the log: nothing of it is needed. The newest record, which says so, goes last. */
static int co_renew_log(struct enc_image *enc)
{
    struct enc_log *log = &enc->log;
    QV_CLEANUP(qv_freep) void *zeros = qv_node_mem_alloc(ENC_LOG_BLOCK);
    int ret = 0;

    memset(zeros, 0, ENC_LOG_BLOCK);
    for (uint32_t at = 0; at < log->blocks && ret == 0; at++) {
        if (is_old(log, at, 1)) {
            ret = qv_co_pwrite(enc->file, log->at + (uint64_t)at * ENC_LOG_BLOCK, zeros,
                               ENC_LOG_BLOCK);
        }
    }
    ret = ret != 0 ? ret : enc_co_sync(enc);
    ret = ret != 0 ? ret : enc_log_co_end(enc);
    ret = ret != 0 ? ret : enc_co_sync(enc);
    g_array_set_size(log->live, 0);
    return ret;
}

bool enc_co_epochs_drop(struct enc_image *enc, bool *old_key, GError **error)
{
    struct use u = {.enc = enc};
    int ret = enc_co_epoch_begin(enc); /* what is written from here on */
    bool ok;

    ret = ret != 0 ? ret : enc_co_settle(enc);
    ret = ret != 0 ? ret : co_renew_log(enc);
    u.used = g_new0(bool, enc->area.nb_epochs + 1);
    ret = ret != 0 ? ret : co_note_all(&u);
    qv_co_mutex_lock(&enc->area_lock);
    ok = ret == 0 ? co_drop(enc, u.used, old_key, error)
                  : qv_fail_errno(error, ret, "cannot look through the table of sectors");
    qv_co_mutex_unlock(&enc->area_lock);
    g_free(u.used);
    return ok;
}

/* ---- giving up the old data key beside a guest ---- */

#define PAGES_AT_ONCE 64u

static bool page_has_old(struct enc_image *enc, const struct enc_page *p)
{
    for (unsigned i = 0; i < ENC_PAGE_ENTRIES; i++) {
        const struct enc_entry *e = &p->e[i];

        if (!enc_entry_empty(e) && enc_epoch_is_old(enc, qv_be32_get(e->epoch))) {
            return true;
        }
    }
    return false;
}

int enc_co_old_key_used(struct enc_image *enc, int (*co_between)(void *arg), void *arg, bool *used)
{
    uint64_t pages = enc_pages_count(enc);
    unsigned looked = 0;
    int ret = 0;

    *used = false;
    for (uint64_t n = 0; n < pages && ret == 0 && !*used; n++) {
        struct enc_page *p;

        if (!enc_page_has_block(enc, n)) {
            continue;
        }
        ret = enc_co_page_lock(enc, n, &p);
        if (ret == 0) {
            *used = page_has_old(enc, p);
            pthread_mutex_unlock(&enc_shard_of(enc, n)->lock);
        }
        if (ret == 0 && ++looked % PAGES_AT_ONCE == 0) {
            ret = co_between(arg);
        }
    }
    return ret;
}

/* Under area_lock: which epochs stay. */
static bool *of_present_key(const struct enc_area *area)
{
    bool *stays = g_new0(bool, area->nb_epochs + 1);

    for (uint32_t i = 0; i < area->nb_epochs; i++) {
        stays[i] = area->epochs[i].dek == area->dek;
    }
    return stays;
}

bool enc_co_previous_drop(struct enc_image *enc, GError **error)
{
    g_autofree bool *stays = NULL;
    int ret = enc_co_epoch_begin(enc);
    bool old_key, ok;

    ret = ret != 0 ? ret : enc_co_settle(enc);
    ret = ret != 0 ? ret : co_renew_log(enc);
    if (ret != 0) {
        return qv_fail_errno(error, ret, "cannot begin the log again");
    }
    qv_co_mutex_lock(&enc->area_lock);
    stays = of_present_key(&enc->area);
    ok = co_drop(enc, stays, &old_key, error);
    if (ok) {
        qv_secret_free(enc->previous);
        enc->previous = NULL;
    }
    qv_co_mutex_unlock(&enc->area_lock);
    return ok;
}

bool qv_enc_co_epochs_drop(struct qv_node *node, bool *old_key, GError **error)
{
    struct qcow2_seal *seal = qcow2_node_seal(node);

    return (seal != NULL && !node->readonly)
               ? enc_co_epochs_drop(enc_image_of(seal), old_key, error)
               : qv_fail(error, QV_ERROR_USAGE, "not an encrypted image open for writing");
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The committer: one coroutine on the home thread, from the buffer to the file. Specification:
 * docs/encrypted-image.md, "Writing".
 *
 * One round (round.c) takes every dirty slot, and logs and writes them in parts (part.c). Where
 * somebody waits for durability, it ends with a sync, unless all data was in the log. The table is
 * written (a checkpoint, log.c) when the ring is full or many pages are dirty.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/encrypted/commit_int.h"

/* ---- the committer ---- */

void enc_round_wake(struct enc_round *r, int result)
{
    struct enc_waiter *w = r->waiters;

    r->waiters = NULL;
    while (w != NULL) {
        struct enc_waiter *next = w->next;

        if (w->flush || result != 0) {
            w->result = result;
            qv_co_wake(w->co); /* last use */
        } else {               /* waits until nothing of the round is in flight */
            w->next = r->waiters;
            r->waiters = w;
        }
        w = next;
    }
}

static void end_round(struct enc_round *r, int result)
{
    struct enc_image *enc = r->enc;
    struct enc_waiter *w;

    enc_round_wake(r, result);
    for (w = r->waiters; w != NULL;) {
        struct enc_waiter *next = w->next;

        w->result = result;
        qv_co_wake(w->co);
        w = next;
    }
    pthread_mutex_lock(&enc->pool_lock);
    enc->pool_error = result;
    if (result != 0) {
        qv_co_queue_wake_all(&enc->pool_waiters);
    }
    pthread_mutex_unlock(&enc->pool_lock);
}

/* commit.lock held at the beginning and at the end. */
static void co_one_round(struct enc_image *enc)
{
    struct enc_round r = {.enc = enc, .waiters = enc->commit.waiters};
    int ret;

    enc->commit.kicked = false;
    enc->commit.waiters = NULL;
    for (const struct enc_waiter *w = r.waiters; w != NULL; w = w->next) {
        r.flush |= w->flush;
    }
    pthread_mutex_unlock(&enc->commit.lock);
    ret = enc_co_round(&r);
    end_round(&r, ret);
    pthread_mutex_lock(&enc->commit.lock);
}

/* The last round's data is still on its way: until it is there, or another round begins. */
static void co_nap(struct enc_image *enc)
{
    enc->commit.napping = true;
    pthread_mutex_unlock(&enc->commit.lock);
    enc_co_place_nap(enc);
    pthread_mutex_lock(&enc->commit.lock);
    enc->commit.napping = false;
    if (!enc->commit.kicked) {
        struct enc_round r = {.enc = enc};
        int ret;

        pthread_mutex_unlock(&enc->commit.lock);
        enc_co_place_end(enc);
        ret = enc->placing_error;
        enc->placing_error = 0;
        end_round(&r, ret);
        pthread_mutex_lock(&enc->commit.lock);
    }
}

static void committer(void *arg)
{
    struct enc_image *enc = arg;

    enc->commit.alive = true;
    pthread_mutex_lock(&enc->commit.lock);
    while (enc->commit.kicked || enc->placing != NULL) {
        if (enc->commit.kicked) {
            co_one_round(enc);
        } else {
            co_nap(enc);
        }
    }
    enc->commit.alive = false;
    enc->commit.running = enc->commit.posted;
    if (!enc->commit.running) {
        qv_co_queue_wake_all(&enc->commit.idle);
    }
    pthread_mutex_unlock(&enc->commit.lock);
}

static void committer_start(struct qv_work *work)
{
    struct enc_image *enc = qv_container_of(work, struct enc_image, commit.work);

    pthread_mutex_lock(&enc->commit.lock);
    enc->commit.posted = false;
    pthread_mutex_unlock(&enc->commit.lock);
    if (enc->commit.alive) {
        enc_place_poke(enc);
    } else {
        qv_co_spawn(committer, enc);
    }
}

/* commit.lock held. */
static void kick(struct enc_image *enc)
{
    enc->commit.kicked = true;
    if (!enc->commit.posted && (!enc->commit.running || enc->commit.napping)) {
        enc->commit.posted = enc->commit.running = true;
        enc->commit.work.fn = committer_start;
        qv_thread_post(enc->home, &enc->commit.work);
    }
}

void enc_commit_kick(struct enc_image *enc)
{
    pthread_mutex_lock(&enc->commit.lock);
    kick(enc);
    pthread_mutex_unlock(&enc->commit.lock);
}

int enc_co_commit(struct enc_image *enc, bool flush)
{
    struct enc_waiter w = {.co = qv_co_self(), .flush = flush};

    pthread_mutex_lock(&enc->commit.lock);
    w.next = enc->commit.waiters;
    enc->commit.waiters = &w;
    kick(enc);
    pthread_mutex_unlock(&enc->commit.lock);
    qv_co_yield(); /* ended by the round alone */
    return w.result;
}

/* ---- by age ---- */

static void timer_fired(struct qv_timer *timer)
{
    struct enc_image *enc = qv_container_of(timer, struct enc_image, commit.timer);

    atomic_store(&enc->commit.timer_wanted, false);
    if (atomic_load(&enc->n_dirty) > 0) {
        enc_commit_kick(enc);
    }
}

static void timer_arm(struct qv_work *work)
{
    struct enc_image *enc = qv_container_of(work, struct enc_image, commit.timer_work);

    qv_timer_arm(&enc->commit.timer, ENC_COMMIT_NS);
}

void enc_written(struct enc_image *enc)
{
    if (atomic_load_explicit(&enc->n_dirty, memory_order_relaxed) > enc->kick_at) {
        pthread_mutex_lock(&enc->commit.lock);
        if (!enc->commit.kicked) {
            kick(enc);
        }
        pthread_mutex_unlock(&enc->commit.lock);
    }
    if (!atomic_load_explicit(&enc->commit.timer_wanted, memory_order_relaxed) &&
        !atomic_exchange(&enc->commit.timer_wanted, true)) {
        qv_thread_post(enc->home, &enc->commit.timer_work);
    }
}

/* ---- quiet ---- */

static void co_wait_idle(struct enc_image *enc)
{
    pthread_mutex_lock(&enc->commit.lock);
    while (enc->commit.running) {
        qv_co_queue_wait(&enc->commit.idle, &enc->commit.lock);
    }
    pthread_mutex_unlock(&enc->commit.lock);
}

int enc_seal_co_drain(struct qcow2_seal *seal)
{
    struct enc_image *enc = enc_image_of(seal);
    int ret = 0;

    if (enc->readonly || enc->check_only) {
        return 0;
    }
    do {
        ret = enc_co_commit(enc, true);
        co_wait_idle(enc);
    } while (ret == 0 && atomic_load(&enc->n_dirty) > 0);
    return ret;
}

int enc_co_settle(struct enc_image *enc)
{
    int ret = enc_seal_co_drain(&enc->seal);

    if (ret == 0 && (enc->log.live->len > 0 || enc_pages_dirty(enc) > 0 || enc->log.unended)) {
        ret = enc_co_checkpoint(enc);
        ret = ret != 0 ? ret : enc_log_co_end(enc);
        ret = ret != 0 ? ret : enc_co_sync(enc);
        if (ret == 0) {
            g_array_set_size(enc->log.live, 0);
        }
    }
    return ret;
}

void enc_commit_init(struct enc_image *enc)
{
    pthread_mutex_init(&enc->commit.lock, NULL);
    enc->commit.cleared = g_array_new(false, false, sizeof(struct enc_cleared));
    enc->commit.timer.fn = timer_fired;
    enc->commit.timer_work.fn = timer_arm;
    enc->log.live = g_array_new(false, false, sizeof(struct enc_live));
    enc_behind_init(enc);
}

void enc_commit_free(struct enc_image *enc)
{
    g_array_unref(enc->commit.cleared);
    g_array_unref(enc->log.live);
    pthread_mutex_destroy(&enc->commit.lock);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORDS         (MODEL_SECTOR / sizeof(uint64_t))
#define EPOCH_IN_FLUX UINT32_MAX

void model_init(struct model *m, uint64_t bytes)
{
    memset(m, 0, sizeof(*m));
    pthread_mutex_init(&m->lock, NULL);
    m->next_id = 2; /* 1 is the backing image's */
    model_grow(m, bytes);
}

void model_clear(struct model *m)
{
    free(m->sectors);
    pthread_mutex_destroy(&m->lock);
}

void model_grow(struct model *m, uint64_t bytes)
{
    uint64_t n = bytes / MODEL_SECTOR;

    m->sectors = realloc(m->sectors, n * sizeof(m->sectors[0]));
    if (m->sectors == NULL) {
        abort();
    }
    memset(m->sectors + m->n, 0, (n - m->n) * sizeof(m->sectors[0]));
    for (uint64_t i = m->n; i < n; i++) {
        m->sectors[i].n_may = 1;
    }
    m->n = n;
}

void model_set(struct model *m, uint64_t offset, uint64_t len, uint32_t id)
{
    for (uint64_t i = offset / MODEL_SECTOR; i < (offset + len) / MODEL_SECTOR; i++) {
        m->sectors[i].n_may = 1;
        m->sectors[i].may[0] = id;
    }
}

static void add(uint32_t *set, uint8_t *n, uint32_t id)
{
    for (uint8_t i = 0; i < *n && i < MODEL_CANDIDATES; i++) {
        if (set[i] == id) {
            return;
        }
    }
    if (*n < MODEL_CANDIDATES) {
        set[*n] = id;
    }
    if (*n <= MODEL_CANDIDATES) {
        (*n)++;
    }
}

static bool has(const uint32_t *set, uint8_t n, uint32_t id)
{
    for (uint8_t i = 0; i < n && i < MODEL_CANDIDATES; i++) {
        if (set[i] == id) {
            return true;
        }
    }
    return n > MODEL_CANDIDATES;
}

uint32_t model_begin(struct model *m, enum model_op op, uint64_t offset, uint64_t len)
{
    uint32_t id;

    pthread_mutex_lock(&m->lock);
    id = op == MODEL_WRITE ? m->next_id++ : 0;
    for (uint64_t i = offset / MODEL_SECTOR; i < (offset + len) / MODEL_SECTOR; i++) {
        struct model_sector *s = &m->sectors[i];

        if (s->in_flight == 0) {
            s->n_now = 0;
            s->only_discards = true;
        }
        s->only_discards = s->only_discards && op == MODEL_DISCARD;
        s->in_flight++;
        s->epoch++;
        add(s->now, &s->n_now, id);
        if (m->recording != NULL) {
            add(m->recording[i].may, &m->recording[i].n_may, id);
        }
    }
    pthread_mutex_unlock(&m->lock);
    return id;
}

void model_end(struct model *m, enum model_op op, uint64_t offset, uint64_t len)
{
    (void)op;
    pthread_mutex_lock(&m->lock);
    for (uint64_t i = offset / MODEL_SECTOR; i < (offset + len) / MODEL_SECTOR; i++) {
        struct model_sector *s = &m->sectors[i];

        s->epoch++;
        if (--s->in_flight > 0) {
            continue;
        }
        if (!s->only_discards) {
            memcpy(s->may, s->now, sizeof(s->may));
            s->n_may = s->n_now;
            continue;
        }
        add(s->may, &s->n_may, 0);
    }
    pthread_mutex_unlock(&m->lock);
}

void model_fill(void *buf, uint64_t offset, uint64_t len, uint32_t id)
{
    uint64_t *words = buf;

    for (uint64_t i = 0; i < len / sizeof(uint64_t); i++) {
        words[i] = (offset / MODEL_SECTOR + i / WORDS) << 32 | id;
    }
}

void model_epochs(struct model *m, uint64_t offset, uint64_t len, uint32_t *epochs)
{
    pthread_mutex_lock(&m->lock);
    for (uint64_t i = 0; i < len / MODEL_SECTOR; i++) {
        const struct model_sector *s = &m->sectors[offset / MODEL_SECTOR + i];

        epochs[i] = s->in_flight > 0 ? EPOCH_IN_FLUX : s->epoch;
    }
    pthread_mutex_unlock(&m->lock);
}

static bool check_sector(struct model *m, uint64_t sector, const uint64_t *words, uint32_t epoch)
{
    struct model_sector *s = &m->sectors[sector];
    uint32_t id = (uint32_t)words[0];

    for (size_t w = 1; w < WORDS; w++) {
        if (words[w] != words[0] && epoch == s->epoch) {
            fprintf(stderr, "sector %" PRIu64 ": word %zu is %" PRIx64 ", word 0 %" PRIx64 "\n",
                    sector, w, words[w], words[0]);
            return false;
        }
    }
    if (words[0] != 0 && (words[0] >> 32 != sector || id == 0 || id >= m->next_id)) {
        fprintf(stderr, "sector %" PRIu64 ": foreign content %" PRIx64 "\n", sector, words[0]);
        return false;
    }
    if (epoch != s->epoch) {
        return true; /* something was going on */
    }
    if (!has(s->may, s->n_may, id)) {
        fprintf(stderr, "sector %" PRIu64 ": holds %" PRIu32 ", may hold", sector, id);
        for (uint8_t i = 0; i < s->n_may; i++) {
            fprintf(stderr, " %" PRIu32, s->may[i]);
        }
        fprintf(stderr, "\n");
        return false;
    }
    s->may[0] = id; /* now we know */
    s->n_may = 1;
    return true;
}

bool model_check(struct model *m, uint64_t offset, uint64_t len, const void *buf,
                 const uint32_t *epochs)
{
    const uint64_t *words = buf;
    bool ok = true;

    pthread_mutex_lock(&m->lock);
    for (uint64_t i = 0; i < len / MODEL_SECTOR && ok; i++) {
        ok = check_sector(m, offset / MODEL_SECTOR + i, words + i * WORDS, epochs[i]);
    }
    pthread_mutex_unlock(&m->lock);
    return ok;
}

void model_record_begin(struct model *m)
{
    pthread_mutex_lock(&m->lock);
    m->recording = calloc(m->n, sizeof(m->recording[0]));
    if (m->recording == NULL) {
        abort();
    }
    for (uint64_t i = 0; i < m->n; i++) {
        const struct model_sector *s = &m->sectors[i];
        struct model_sector *r = &m->recording[i];

        memcpy(r->may, s->may, sizeof(r->may));
        r->n_may = s->n_may;
        for (uint8_t k = 0; s->in_flight > 0 && k < s->n_now && k < MODEL_CANDIDATES; k++) {
            add(r->may, &r->n_may, s->now[k]);
        }
        if (s->in_flight > 0 && s->n_now > MODEL_CANDIDATES) {
            r->n_may = MODEL_CANDIDATES + 1;
        }
    }
    pthread_mutex_unlock(&m->lock);
}

struct model_sector *model_record_end(struct model *m, uint64_t *size)
{
    struct model_sector *r;

    pthread_mutex_lock(&m->lock);
    r = m->recording;
    m->recording = NULL;
    *size = m->n * MODEL_SECTOR;
    pthread_mutex_unlock(&m->lock);
    return r;
}

void model_restore_begin(struct model *m, const struct model_sector *sectors)
{
    pthread_mutex_lock(&m->lock);
    for (uint64_t i = 0; i < m->n; i++) {
        struct model_sector *s = &m->sectors[i];

        if (s->in_flight == 0) {
            s->n_now = 0;
        }
        s->only_discards = false;
        s->in_flight++;
        s->epoch++;
        for (uint8_t k = 0; k < sectors[i].n_may && k < MODEL_CANDIDATES; k++) {
            add(s->now, &s->n_now, sectors[i].may[k]);
        }
        if (sectors[i].n_may > MODEL_CANDIDATES) {
            s->n_now = MODEL_CANDIDATES + 1; /* anything */
        }
    }
    pthread_mutex_unlock(&m->lock);
}

void model_restore_end(struct model *m)
{
    model_end(m, MODEL_WRITE, 0, m->n * MODEL_SECTOR);
}

void model_restore(struct model *m, const struct model_sector *sectors, uint64_t size)
{
    uint64_t n = size / MODEL_SECTOR;

    pthread_mutex_lock(&m->lock);
    m->sectors = realloc(m->sectors, n * sizeof(m->sectors[0]));
    if (m->sectors == NULL) {
        abort();
    }
    for (uint64_t i = 0; i < n; i++) {
        uint32_t epoch = i < m->n ? m->sectors[i].epoch + 1 : 0;

        m->sectors[i] = sectors[i];
        m->sectors[i].epoch = epoch;
    }
    m->n = n;
    pthread_mutex_unlock(&m->lock);
}

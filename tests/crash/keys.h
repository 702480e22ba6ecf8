/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the owner of an encrypted image did to its keys, and what its key area may hold after power
 * loss. Events are numbered as in history.h.
 *
 * A key is one byte, which is the name of its slots, too; a data key is one byte.
 */
#ifndef QV_TESTS_CRASH_KEYS_H
#define QV_TESTS_CRASH_KEYS_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "format/encrypted/encrypted.h"
#include "mem_node.h"

struct key_event {
    enum {
        KEY_ADD,    /* a slot for @key */
        KEY_REMOVE, /* ... is gone */
        KEY_DATA,   /* @key is the data key, in all slots */
        KEY_FORGET, /* the data key before is gone */
    } what;
    uint8_t key;
    uint64_t began;
    uint64_t ended; /* 0: never, or with an error: it may have happened */
};

struct keys {
    GArray *events; /* of struct key_event */
    uint8_t data;   /* the data key */
    uint8_t next, next_data;
};

/** keys_init - an image as enc_test_co_create makes it. */
void keys_init(struct keys *k);
void keys_clear(struct keys *k);

/** keys_begin - the index of a new event, for keys_end. @now: event number. */
guint keys_begin(struct keys *k, int what, uint8_t key, uint64_t now);
void keys_end(struct keys *k, guint event, uint64_t now);

/** keys_slot - a slot for @key. */
void keys_slot(struct qv_enc_slot *slot, uint8_t key, const struct qv_secret *dek);
/** keys_of_slot - the key that @slot is for. */
uint8_t keys_of_slot(const struct qv_enc_slot *slot);

/** keys_co_unlock - the data key by way of the slots of the image in @file: each of them must open,
 * and give the same. The caller frees it. Coroutine. */
struct qv_secret *keys_co_unlock(struct qv_node *file, GError **error);

/**
 * keys_co_check - whether @file's key area may be as it is after power loss at @when: slots that
 * were made are there, those that were removed are in neither copy, and no copy has a data key that
 * was replaced. On false *@why says what is wrong (free it). Coroutine.
 */
bool keys_co_check(const struct keys *k, struct mem_file *file, uint64_t when, char **why);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libcrypto's memory. It keeps expanded keys and intermediate values in ordinary allocations; here
 * all of them come from pages that are locked, left out of core dumps and of children, and each
 * block is wiped when it is given back. One lock: libcrypto allocates when contexts are made, not
 * while sectors are sealed.
 *
 * Blocks are powers of two, 32 bytes and up, cut from chunks that are never returned; a block
 * above BLOCK_MAX gets a mapping of its own, returned when freed.
 */
#include <assert.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "base/log.h"
#include "base/secret.h"
#include "crypto/crypto_int.h"

#define CHUNK_SIZE  ((size_t)256 << 10)
#define BLOCK_MIN   ((size_t)32)
#define BLOCK_MAX   ((size_t)64 << 10)
#define N_CLASSES   12 /* 32 << 11 is BLOCK_MAX */
#define REQUEST_MAX (SIZE_MAX / 4)

/* Stands before every block. */
struct block {
    size_t size; /* of the block with this head; bytes */
    union {
        size_t used;        /* bytes asked for, while in use */
        struct block *next; /* while free */
    } u;
};
static_assert(sizeof(struct block) == 16, "what is handed out stays aligned to 16 bytes");

static struct {
    pthread_mutex_t lock;
    struct block *free[N_CLASSES];
    uint8_t *chunk; /* what is left of the newest chunk */
    size_t chunk_left;
} arena = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void *map_pages(size_t len)
{
    void *data = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (data == MAP_FAILED) {
        return NULL;
    }
    /* All three are hardening: without them the memory still works. The base library warns about
     * an exhausted limit of locked memory. Children keep their copy: libcrypto's state has
     * to make sense there until they exec. */
    (void)mlock(data, len);
    (void)madvise(data, len, MADV_DONTDUMP);
    return data;
}

static unsigned class_of(size_t size)
{
    unsigned class = 0;

    while ((BLOCK_MIN << class) < size) {
        class ++;
    }
    return class;
}

static struct block *take_block(size_t size)
{
    unsigned class = class_of(size);
    struct block *b = arena.free[class];

    size = BLOCK_MIN << class;
    if (b != NULL) {
        arena.free[class] = b->u.next;
        return b;
    }
    if (arena.chunk_left < size) { /* the rest of the old chunk is lost: at most one block's size */
        arena.chunk = map_pages(CHUNK_SIZE);
        arena.chunk_left = arena.chunk != NULL ? CHUNK_SIZE : 0;
        if (arena.chunk == NULL) {
            return NULL;
        }
    }
    b = (struct block *)(void *)arena.chunk;
    arena.chunk += size;
    arena.chunk_left -= size;
    b->size = size;
    return b;
}

static void *guarded_malloc(size_t len, const char *file, int line)
{
    struct block *b;
    size_t size;

    (void)file;
    (void)line;
    if (len == 0 || len > REQUEST_MAX) {
        return NULL;
    }
    size = len + sizeof(*b);
    if (size > BLOCK_MAX) {
        size = (size + 4095) & ~(size_t)4095;
        b = map_pages(size);
        if (b != NULL) {
            b->size = size;
        }
    } else {
        pthread_mutex_lock(&arena.lock);
        b = take_block(size);
        pthread_mutex_unlock(&arena.lock);
    }
    if (b == NULL) {
        return NULL;
    }
    b->u.used = len;
    return b + 1;
}

static void guarded_free(void *data, const char *file, int line)
{
    struct block *b;
    unsigned class;

    (void)file;
    (void)line;
    if (data == NULL) {
        return;
    }
    b = (struct block *)data - 1;
    if (b->size > BLOCK_MAX) {
        qv_secret_wipe(data, b->size - sizeof(*b));
        munmap(b, b->size);
        return;
    }
    qv_secret_wipe(data, b->u.used);
    class = class_of(b->size);
    pthread_mutex_lock(&arena.lock);
    b->u.next = arena.free[class];
    arena.free[class] = b;
    pthread_mutex_unlock(&arena.lock);
}

static void *guarded_realloc(void *data, size_t len, const char *file, int line)
{
    struct block *b;
    void *copy;

    if (data == NULL) {
        return guarded_malloc(len, file, line);
    }
    if (len == 0) {
        guarded_free(data, file, line);
        return NULL;
    }
    b = (struct block *)data - 1;
    if (len <= b->size - sizeof(*b)) {
        if (len < b->u.used) {
            qv_secret_wipe((uint8_t *)data + len, b->u.used - len);
        }
        b->u.used = len;
        return data;
    }
    copy = guarded_malloc(len, file, line);
    if (copy != NULL) {
        memcpy(copy, data, b->u.used);
        guarded_free(data, file, line);
    }
    return copy;
}

/* The address sanitizer watches the heap better than an arena lets it. */
#if defined(__SANITIZE_ADDRESS__)
#define UNDER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UNDER_ASAN 1
#endif
#endif
#ifndef UNDER_ASAN
#define UNDER_ASAN 0
#endif

bool qv_crypto_memory_install(void)
{
    return !UNDER_ASAN &&
           CRYPTO_set_mem_functions(guarded_malloc, guarded_realloc, guarded_free) == 1;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A driver inside the process, for each controller model: what they share, and what main.c asks of
 * them. A driver's queue has turns on one I/O thread, in which it takes what has completed and
 * issues the next requests; between them the model has its turns on the same thread, or, for what
 * it does on its home thread, beside it.
 */
#ifndef BENCH_DEVICE_BENCH_H
#define BENCH_DEVICE_BENCH_H

#include <semaphore.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/disk.h"
#include "device/pci/function.h"
#include "guest/fake_vm.h"
#include "io/thread.h"

#define BENCH_QUEUES_MAX 16u
#define BENCH_BLOCK      4096u /* bytes of a request */
#define BENCH_SECTORS    (BENCH_BLOCK / 512)
#define BENCH_DEPTH_MAX  1023u

struct bench;

/** Stands first in a driver's queue. Filled in by main.c before set_up. */
struct bench_queue {
    struct bench *bench;
    struct qv_thread *thread;
    unsigned in_flight;
    uint64_t ops, errors;
    uint64_t accesses;   /* to registers: each would leave the guest */
    uint64_t interrupts; /* 0: the driver looks at memory */
    /* main.c's */
    uint64_t seed;
    struct qv_work work;
    sem_t ended;
};

struct bench_driver {
    const char *name;
    unsigned queues_max, depth_max;
    bool own_threads;  /* queues run on threads of their own, else on the home thread */
    size_t queue_size; /* of its struct that begins with a bench_queue */
    /** set_up - makes the device and its rings. Main thread; exits when that fails. */
    void (*set_up)(struct bench *b);
    /** start - issues the first requests of a queue: bench->depth. On the queue's thread. */
    void (*start)(struct bench_queue *q);
    /** turn - takes what has completed; issues as many again, unless @ending. */
    void (*turn)(struct bench_queue *q, bool ending);
    /** tear_down - frees the device, with nothing in flight. Main thread. */
    void (*tear_down)(struct bench *b);
};

struct bench {
    const struct bench_driver *driver;
    struct qv_fake_vm vm;
    struct qv_disk *disk;
    struct qv_thread *home, *threads[BENCH_QUEUES_MAX];
    struct bench_queue *queue[BENCH_QUEUES_MAX];
    unsigned queues, depth;
    uint64_t blocks; /* of the disk, in units of BENCH_BLOCK */
    int64_t end_ns;
    struct qv_pci_function *fn; /* the driver's, if it is one */
    sem_t done;                 /* for bench_wait() */
};

extern const struct bench_driver bench_nvme, bench_ahci, bench_ide, bench_virtio_blk;

/** bench_next_lba - the next random place, in sectors of 512 bytes. */
uint64_t bench_next_lba(struct bench_queue *q);

/** bench_done - wakes bench_wait(), once. Any thread. */
void bench_done(void *bench);
void bench_wait(struct bench *b);

/** bench_on_home - runs @fn(@b) on the home thread and waits. */
void bench_on_home(struct bench *b, void (*fn)(void *bench));

/** bench_free_function - the end of b->fn: reset, then freed. Main thread. */
void bench_free_function(struct bench *b);

#endif

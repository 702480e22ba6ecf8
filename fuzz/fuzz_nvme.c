/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any registers, doorbells, commands and guest memory. Promised: whatever the guest does, the
 * controller stays one (it can be disabled, reset and freed), each command completes at most once,
 * and nothing outside of guest memory is touched (the sanitizers watch).
 *
 * Input: a flags byte, then steps: a byte that says which, and what it needs. All of the model runs
 * on one thread, so that an input does the same each time.
 */
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "device/nvme/nvme.h"
#include "hold_node.h"

#define GUEST_SIZE 0x40000u /* from address 0, which fuzzers find */
#define DISK_SIZE  0x100000u
#define QUEUES     3u
#define STEPS_MAX  200u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *at;
    size_t left;
};

static struct {
    struct qv_thread *thread;
    struct qv_guest_map *map;
    uint8_t *host;
    struct hold_ctl ctl[2];
    struct qv_disk *disk[2];
    struct qv_pci_function *fn;
    struct input in;
    bool removing;
    unsigned events; /* calls we wait for */
} f;

static uint64_t take(unsigned size)
{
    uint64_t value = 0;

    if (f.in.left < size) {
        f.in.left = 0;
        return 0;
    }
    memcpy(&value, f.in.at, size);
    f.in.at += size;
    f.in.left -= size;
    return value;
}

static void came(void *arg)
{
    f.events--;
}

static void removed(void *arg)
{
    f.removing = false;
}

/* ---- steps ---- */

static void reg_write(uint64_t offset, uint64_t value, unsigned size)
{
    qv_pci_bar_write(f.fn, 0, offset, &value, size);
}

/* The admin queue at page 1, its completions at page 2. */
static void enable(void)
{
    uint16_t command = 6;

    qv_pci_config_write(f.fn, 4, &command, 2);
    reg_write(0x14, 0, 4);
    reg_write(0x24, 0x003f003f, 4);
    reg_write(0x28, 0x1000, 8);
    reg_write(0x30, 0x2000, 8);
    reg_write(0x14, 0x00460001, 4);
}

/* A command into slot @slot of the queue at page @page; most of it from the input. */
static void put_command(uint64_t page, unsigned slot)
{
    uint8_t *to = f.host + (page % (GUEST_SIZE / 4096)) * 4096 + slot % 64 * 64;
    uint8_t shape = (uint8_t)take(1);

    to[0] = (uint8_t)take(1);
    to[1] = shape & 0x80 ? (uint8_t)take(1) : 0;
    to[2] = (uint8_t)slot;
    memset(to + 4, 0, 60);
    to[4] = (uint8_t)take(1); /* nsid */
    for (unsigned i = 0; i < 5; i++) {
        uint32_t dw = (uint32_t)take(i == 0 ? 4 : 3);

        memcpy(to + 40 + 4 * i, &dw, 4);
    }
    for (unsigned i = 0; i < 2; i++) {
        uint64_t prp = shape & (1u << i) ? take(8) : take(1) << 12;

        memcpy(to + 24 + 8 * i, &prp, 8);
    }
}

static void create_queues(unsigned qid, unsigned slot)
{
    uint32_t *to = (uint32_t *)(void *)(f.host + 0x1000 + slot % 60 * 64);

    memset(to, 0, 128);
    to[0] = 5;
    to[6] = 0x4000 + qid * 0x2000;
    to[10] = 31 << 16 | qid;
    to[11] = qid << 16 | 3;
    to[16] = 1;
    to[16 + 6] = 0x3000 + qid * 0x2000;
    to[16 + 10] = 31 << 16 | qid;
    to[16 + 11] = qid << 16 | 1;
}

static void change_memory(void)
{
    f.events++;
    qv_pci_change_memory(f.fn, f.map, NULL, came, NULL);
}

static void remove_or_add(void)
{
    struct qv_nvme_ns_opts ns = {.nsid = 2, .disk = f.disk[1], .block_size = 4096};

    if (!f.removing && !qv_nvme_add(f.fn, &ns, NULL, NULL)) {
        f.removing = true;
        qv_nvme_remove(f.fn, 2, removed, NULL);
    } else {
        qv_nvme_remove_force(f.fn, 2);
    }
}

static void step(void *arg)
{
    uint8_t what = (uint8_t)take(1);
    uint64_t offset, value;

    switch (what % 12) {
    case 0:
        offset = take(1) * 4u;
        reg_write(offset, take(4), 4);
        break;
    case 1:
        offset = take(2) % 0x4000;
        value = take(8);
        reg_write(offset & ~UINT64_C(7), value, 8);
        break;
    case 2:
        offset = take(2) % 0x4000;
        (void)qv_pci_bar_read(f.fn, 0, offset, &value, MIN(8, 0x4000 - offset));
        break;
    case 3:
    case 4: { /* a command, and its doorbell */
        unsigned qid = (unsigned)take(1) % (QUEUES + 1), slot = (unsigned)take(1) % 32;

        put_command(qid == 0 ? 1 : 3 + 2 * qid, slot);
        reg_write(0x1000 + 8 * qid, slot + 1u, 4);
        break;
    }
    case 5: { /* any doorbell */
        unsigned index = (unsigned)take(1) % 16;

        reg_write(0x1000 + 4 * index, take(2), 4);
        break;
    }
    case 6: { /* any memory */
        uint64_t at = take(3) % GUEST_SIZE;
        size_t len = take(1);

        len = MIN(MIN(len, f.in.left), GUEST_SIZE - at);
        memcpy(f.host + at, f.in.at, len);
        f.in.at += len;
        f.in.left -= len;
        break;
    }
    case 7:
        enable();
        break;
    case 8:
        for (unsigned i = 1; i <= QUEUES; i++) {
            create_queues(i, 2 * i - 2);
        }
        reg_write(0x1000, 2 * QUEUES, 4);
        break;
    case 9:
        remove_or_add();
        break;
    case 10:
        atomic_store(&f.ctl[0].hold, take(1) & 1);
        atomic_store(&f.ctl[0].fail, (int)take(1) % 2 * 5);
        hold_release(&f.ctl[0]);
        break;
    case 11:
        change_memory();
        break;
    default:
        break;
    }
}

/* Turns of the loop until what was asked for has come. */
static void nothing(void *arg)
{
}

static void settle(void)
{
    for (unsigned i = 0; i < 3; i++) {
        qv_thread_call(f.thread, nothing, NULL);
    }
}

static void await(void)
{
    for (unsigned i = 0; i < 100000 && f.events > 0; i++) {
        qv_thread_call(f.thread, nothing, NULL);
    }
    if (f.events > 0) {
        abort(); /* it hangs */
    }
}

static void release(void *arg)
{
    atomic_store(&f.ctl[0].hold, false);
    atomic_store(&f.ctl[0].fail, 0);
    hold_release(&f.ctl[0]);
}

static void reset(void *arg)
{
    release(NULL);
    f.events++;
    qv_pci_reset(f.fn, came, NULL);
}

static void begin_quiesce(void *arg)
{
    release(NULL);
    f.events++;
    qv_pci_quiesce(f.fn, came, NULL);
}

static void save(void *arg)
{
    qv_pci_save(f.fn, arg);
}

static void load(void *arg)
{
    GByteArray *bytes = arg;
    uint16_t command = 6;

    if (qv_pci_load(f.fn, bytes->data, bytes->len, NULL)) {
        qv_pci_config_write(f.fn, 4, &command, 2);
    }
    qv_pci_resume(f.fn);
}

/* To another host, on the way to which some bytes change. */
static void move(void)
{
    GByteArray *bytes = g_byte_array_new();

    qv_thread_call(f.thread, begin_quiesce, NULL);
    await();
    qv_thread_call(f.thread, save, bytes);
    qv_thread_call(f.thread, reset, NULL);
    await();
    while (f.in.left > 2) {
        uint64_t at = take(2) % bytes->len;

        bytes->data[at] ^= (uint8_t)take(1);
    }
    qv_thread_call(f.thread, load, bytes);
    settle();
    g_byte_array_unref(bytes);
}

static void make(void *arg)
{
    const uint8_t *flags = arg;
    struct qv_nvme_opts opts = {.name = "fuzz",
                                .serial = "fuzz",
                                .queues = QUEUES,
                                .doorbells =
                                    *flags & 1 ? QV_NVME_DOORBELLS_PAGE : QV_NVME_DOORBELLS_MMIO,
                                .threads = &f.thread,
                                .nthreads = 1};
    struct qv_nvme_ns_opts ns = {.nsid = 1, .disk = f.disk[0]};

    f.fn = qv_nvme_new(&opts, NULL);
    if (f.fn == NULL || !qv_nvme_add(f.fn, &ns, NULL, NULL)) {
        abort();
    }
    f.removing = false;
    change_memory();
    enable();
}

static void free_function(void *arg)
{
    qv_pci_function_free(f.fn);
}

static void set_up(void)
{
    struct qv_guest_region_spec spec = {.size = GUEST_SIZE};
    struct qv_guest_region *region;
    struct qv_disk_opts opts = {.name = "fuzz", .discard = true};

    qv_log_init("fuzz", QV_LOG_SILENT);
    f.thread = qv_thread_new("fuzz", NULL);
    spec.fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (spec.fd < 0 || ftruncate(spec.fd, GUEST_SIZE) < 0 ||
        !qv_guest_region_new(&spec, &region, NULL) || !qv_guest_map_new(&region, 1, &f.map, NULL)) {
        abort();
    }
    f.host = region->host;
    for (unsigned i = 0; i < 2; i++) {
        hold_ctl_init(&f.ctl[i], DISK_SIZE);
        f.disk[i] = qv_disk_new(hold_node_new(&f.ctl[i]), &opts);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t flags;

    if (size < 2) {
        return 0;
    }
    if (f.thread == NULL) {
        set_up();
    }
    flags = data[0];
    f.in = (struct input){data + 1, size - 1};
    memset(f.host, 0, GUEST_SIZE);
    qv_thread_call(f.thread, make, &flags);
    await();
    for (unsigned i = 0; i < STEPS_MAX && f.in.left > (flags & 2 ? 16 : 0); i++) {
        qv_thread_call(f.thread, step, NULL);
        settle();
        if (f.events > 0) {
            qv_thread_call(f.thread, release, NULL); /* memory changes behind a held request */
            await();
        }
    }
    if (flags & 2) {
        move();
    }
    qv_thread_call(f.thread, reset, NULL);
    await();
    if (f.removing) {
        abort(); /* a reset lets go of namespaces */
    }
    qv_thread_call(f.thread, free_function, NULL);
    return 0;
}

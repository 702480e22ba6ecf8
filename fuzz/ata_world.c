/* SPDX-License-Identifier: Apache-2.0 */
#include "ata_world.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "io/thread.h"

#define DISK_SIZE (UINT64_C(1) << 20)
#define STEPS_MAX 200

enum { STEP_ACCESS_MAX = 0xbf, STEP_POKE = 0xc0, STEP_OTHER = 0xe0 };

struct run {
    struct ata_world *w;
    struct ata_step step;
    uint8_t switches;
    struct qv_pci_function *(*make)(struct ata_world *w, uint8_t switches);
    void (*begin)(struct ata_world *w);
    void (*touch)(struct ata_world *w, const struct ata_step *step);
};

static void start(void *arg)
{
    struct ata_world *w = arg;
    struct qv_disk_opts opts = {.name = "fuzz", .discard = true, .on_enospc = QV_DISK_STOP};

    for (unsigned i = 0; i < ATA_WORLD_DISKS; i++) {
        hold_ctl_init(&w->ctl[i], DISK_SIZE);
        w->disk[i] = qv_disk_new(hold_node_new(&w->ctl[i]), &opts);
    }
}

struct ata_world *ata_world_get(void)
{
    static struct ata_world w;
    struct qv_guest_region *region;
    struct qv_guest_region_spec spec = {.gpa = 0, .size = ATA_WORLD_MEMORY};

    if (w.thread != NULL) {
        return &w;
    }
    qv_log_init("fuzz", QV_LOG_SILENT);
    spec.fd = memfd_create("fuzz", 0);
    w.thread = qv_thread_new("fuzz", NULL);
    if (w.thread == NULL || ftruncate(spec.fd, ATA_WORLD_MEMORY) < 0 ||
        !qv_guest_region_new(&spec, &region, NULL) || !qv_guest_map_new(&region, 1, &w.map, NULL)) {
        abort();
    }
    w.memory = region->host;
    qv_thread_call(w.thread, start, &w);
    return &w;
}

static void ended(void *arg)
{
    ((struct ata_world *)arg)->waiting--;
}

static void begin(void *arg)
{
    struct run *r = arg;
    uint16_t command = 7;

    r->w->fn = r->make(r->w, r->switches);
    r->w->waiting = 1;
    r->w->quiet = false;
    qv_pci_change_memory(r->w->fn, r->w->map, NULL, ended, r->w);
    qv_pci_config_write(r->w->fn, 4, &command, sizeof(command));
    if (r->switches & 1) {
        r->begin(r->w);
    }
}

/* Its own state back into it, with a few bits changed. */
static void save_and_load(struct ata_world *w, uint32_t value)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();

    qv_pci_save(w->fn, bytes);
    bytes->data[value % bytes->len] ^= (uint8_t)(value >> 16);
    qv_pci_load(w->fn, bytes->data, bytes->len - (value >> 24) % 3, NULL);
}

static void other(struct ata_world *w, const struct ata_step *s)
{
    uint16_t command = s->value & 1 ? 7 : 3;

    switch (s->where % 8) {
    case 0:
    case 1:
        atomic_store(&w->ctl[s->where % 2].hold, s->value & 1);
        atomic_store(&w->ctl[s->where % 2].fail, s->value & 2 ? EIO : s->value & 4 ? ENOSPC : 0);
        atomic_store(&w->ctl[s->where % 2].fail_read, s->value & 8 ? EIO : 0);
        break;
    case 2:
        hold_release(&w->ctl[s->value % 2]);
        break;
    case 3:
        qv_pci_config_write(w->fn, 4, &command, sizeof(command));
        break;
    case 4:
        if (w->waiting == 0 && !w->quiet) {
            w->waiting++;
            qv_pci_reset(w->fn, ended, w);
        }
        break;
    case 5:
        if (w->waiting == 0 && !w->quiet) {
            w->waiting++;
            qv_pci_change_memory(w->fn, w->map, NULL, ended, w);
        }
        break;
    case 6:
        if (w->quiet) {
            w->quiet = false;
            qv_pci_resume(w->fn);
        } else if (w->waiting == 0) {
            w->quiet = true;
            w->waiting++;
            qv_pci_quiesce(w->fn, ended, w);
        }
        break;
    default:
        if (w->quiet && w->waiting == 0) {
            save_and_load(w, s->value);
        }
        break;
    }
}

static void step(void *arg)
{
    struct run *r = arg;
    const struct ata_step *s = &r->step;

    if (s->what <= STEP_ACCESS_MAX) {
        r->touch(r->w, s);
    } else if (s->what < STEP_OTHER) {
        memcpy(r->w->memory + (s->where * 16u + (s->what & 0x1f) * 4096u) % (ATA_WORLD_MEMORY - 4),
               &s->value, 4);
    } else if (r->w->waiting == 0 || s->where % 8 < 4) {
        other(r->w, s);
    }
}

static void let_go(void *arg)
{
    struct ata_world *w = arg;

    for (unsigned i = 0; i < ATA_WORLD_DISKS; i++) {
        atomic_store(&w->ctl[i].hold, false);
        atomic_store(&w->ctl[i].fail, 0);
        atomic_store(&w->ctl[i].fail_read, 0);
        hold_release(&w->ctl[i]);
        qv_disk_retry(w->disk[i]);
    }
}

static void reset(void *arg)
{
    struct ata_world *w = arg;

    if (w->quiet) {
        w->quiet = false;
        qv_pci_resume(w->fn);
    }
    w->waiting++;
    qv_pci_reset(w->fn, ended, w);
}

static void look(void *arg)
{
}

static void wait_ended(struct ata_world *w)
{
    for (int i = 0; i < 50000; i++) {
        unsigned waiting;

        qv_thread_call(w->thread, look, NULL);
        waiting = *(volatile unsigned *)&w->waiting;
        if (waiting == 0) {
            return;
        }
        if (i > 10) {
            usleep(100);
        }
    }
    abort(); /* something is never given back */
}

static void end(void *arg)
{
    struct ata_world *w = arg;

    qv_pci_function_free(w->fn);
}

void ata_world_run(const uint8_t *data, size_t size,
                   struct qv_pci_function *(*make)(struct ata_world *w, uint8_t switches),
                   void (*begin_fn)(struct ata_world *w),
                   void (*touch)(struct ata_world *w, const struct ata_step *step))
{
    struct ata_world *w = ata_world_get();
    struct run r = {.w = w, .make = make, .begin = begin_fn, .touch = touch};
    unsigned steps;

    if (size < 2) {
        return;
    }
    r.switches = data[0];
    steps = MIN(data[1], STEPS_MAX);
    data += 2;
    size -= 2;
    steps = (unsigned)MIN(steps, size / 6);
    memset(w->memory, 0, ATA_WORLD_MEMORY);
    memcpy(w->memory, data + steps * 6, MIN(size - steps * 6, ATA_WORLD_MEMORY));
    qv_thread_call(w->thread, begin, &r);
    wait_ended(w);
    for (unsigned i = 0; i < steps; i++, data += 6) {
        r.step.what = data[0];
        r.step.where = data[1];
        memcpy(&r.step.value, data + 2, 4);
        qv_thread_call(w->thread, step, &r);
    }
    qv_thread_call(w->thread, let_go, w);
    wait_ended(w);
    qv_thread_call(w->thread, reset, w);
    qv_thread_call(w->thread, let_go, w);
    wait_ended(w);
    qv_thread_call(w->thread, end, w);
}

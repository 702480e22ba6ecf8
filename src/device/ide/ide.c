/* SPDX-License-Identifier: Apache-2.0 */
/* The controller as a whole: BARs, configuration registers, the interrupt, coming to rest. Source:
 * "PCI IDE Controller Specification" 1.0; timing registers: Intel 82801DB data sheet, 9.1. */
#include <assert.h>

#include "device/ide/ide_int.h"

static struct qv_ide *ide_of(const struct qv_pci_function *fn)
{
    return qv_pci_model(fn);
}

/* ---- interrupt ---- */

/* In native mode the pin is the "or" of what the selected devices say. */
void ide_irq_update(struct qv_ide *ide)
{
    bool level = false;

    for (unsigned i = 0; i < 2; i++) {
        const struct ide_channel *c = &ide->channels[i];

        level = level || (c->regs[c->selected].irq && !(c->control & CONTROL_NIEN));
    }
    if (level != ide->pin) {
        ide->pin = level;
        qv_pci_intx_set(ide->fn, level);
    }
}

/* ---- coming to rest ---- */

static bool is_running(const struct qv_ide *ide)
{
    return ide->channels[0].running || ide->channels[1].running || ide->drives_busy > 0;
}

static void take_back(struct qv_timer *timer)
{
    struct qv_ide *ide = qv_container_of(timer, struct qv_ide, cancel_timer);
    bool more = false;

    for (unsigned i = 0; i < 4; i++) {
        const struct ide_channel *c = &ide->channels[i / 2];

        if (c->drive[i % 2] != NULL && (ide->hold != 0 || c->dropped)) {
            qv_ata_cancel_kept(c->drive[i % 2]);
            more = true;
        }
    }
    if (more && is_running(ide)) {
        qv_timer_arm(timer, IDE_CANCEL_NS);
    }
}

void ide_rest(struct qv_ide *ide)
{
    if (is_running(ide) && !ide->cancel_timer.armed) {
        /* Not at once: the caller may be inside of the request that would be taken back. */
        qv_timer_arm(&ide->cancel_timer, 0);
    }
}

static void drive_idle(void *arg)
{
    struct qv_ide *ide = arg;

    ide->drives_busy--;
    ide_settle_later(ide);
}

static void pause_drives(struct qv_ide *ide)
{
    for (unsigned i = 0; i < 4 && !ide->paused; i++) {
        struct qv_ata_drive *d = ide->channels[i / 2].drive[i % 2];

        if (d != NULL && !qv_ata_pause(d, drive_idle, ide)) {
            ide->drives_busy++;
        }
    }
    ide->paused = true;
}

static void unpause_drives(struct qv_ide *ide)
{
    for (unsigned i = 0; i < 4 && ide->paused; i++) {
        struct qv_ata_drive *d = ide->channels[i / 2].drive[i % 2];

        if (d != NULL) {
            qv_ata_go_on(d);
        }
    }
    ide->paused = false;
}

static void new_memory(struct qv_ide *ide)
{
    struct qv_dirty_log *log = qv_pci_dirty_log(ide->fn);

    qv_guest_view_retire(ide->view);
    ide->view = qv_guest_view_new(qv_pci_memory(ide->fn));
    qv_dirty_log_unref(ide->log);
    ide->log = log != NULL ? qv_dirty_log_ref(log) : NULL;
}

/* Nothing is in flight: does what waited for that. Callers are told last; they may free us. */
static void settle_all(struct qv_ide *ide)
{
    unsigned over = ide->hold;
    bool tell = (over & IDE_HOLD_QUIESCE) && !ide->quiet_told;

    if (over & IDE_HOLD_RESET) {
        ide_channel_reset(&ide->channels[0]);
        ide_channel_reset(&ide->channels[1]);
        ide_irq_update(ide);
    }
    if (over & IDE_HOLD_MEMORY) {
        new_memory(ide);
    }
    ide->hold &= IDE_HOLD_QUIESCE;
    ide->quiet_told = ide->hold != 0;
    if (ide->hold == 0) {
        unpause_drives(ide);
        ide_channel_settle(&ide->channels[0]);
        ide_channel_settle(&ide->channels[1]);
    }
    if (tell) {
        qv_pci_quiesced(ide->fn);
    }
    if (over & IDE_HOLD_RESET) {
        qv_pci_reset_done(ide->fn);
    } else if (over & IDE_HOLD_MEMORY) {
        qv_pci_memory_done(ide->fn);
    }
}

static void settle(struct qv_ide *ide)
{
    bool asked = ide->hold & ~(unsigned)IDE_HOLD_QUIESCE || (ide->hold != 0 && !ide->quiet_told);

    ide_channel_settle(&ide->channels[0]);
    ide_channel_settle(&ide->channels[1]);
    if (asked && !is_running(ide) && !ide->settle_queued) {
        settle_all(ide);
    }
}

static void settle_work(struct qv_work *work)
{
    struct qv_ide *ide = qv_container_of(work, struct qv_ide, settle_work);

    ide->settle_queued = false;
    settle(ide);
}

void ide_settle_later(struct qv_ide *ide)
{
    if (!ide->settle_queued) {
        ide->settle_queued = true;
        qv_thread_defer(&ide->settle_work);
    }
}

static void hold(struct qv_ide *ide, unsigned why)
{
    ide->hold |= why;
    for (unsigned i = 0; i < 2 && (why & IDE_HOLD_RESET); i++) {
        ide_channel_drop(&ide->channels[i]);
    }
    pause_drives(ide);
    ide_rest(ide);
    settle(ide);
}

/* ---- BARs ---- */

/* BAR 0 and 1: command and control block of the primary channel; 2 and 3: of the secondary one; 4:
 * bus master. */
static uint64_t bar_read(struct qv_pci_function *fn, unsigned bar, uint64_t offset, unsigned size)
{
    struct qv_ide *ide = ide_of(fn);

    if (bar == 4) {
        return ide_bm_read(&ide->channels[offset / BM_SIZE], offset % BM_SIZE, size);
    }
    if (bar % 2 == 0) {
        return ide_channel_read(&ide->channels[bar / 2], (unsigned)offset, size);
    }
    if (offset <= REG_CONTROL && offset + size > REG_CONTROL) {
        return (uint64_t)ide_channel_status(&ide->channels[bar / 2])
               << (8 * (REG_CONTROL - offset));
    }
    return 0;
}

static void bar_write(struct qv_pci_function *fn, unsigned bar, uint64_t offset, uint64_t value,
                      unsigned size)
{
    struct qv_ide *ide = ide_of(fn);

    if (bar == 4) {
        ide_bm_write(&ide->channels[offset / BM_SIZE], offset % BM_SIZE, (uint32_t)value, size);
    } else if (bar % 2 == 0) {
        ide_channel_write(&ide->channels[bar / 2], (unsigned)offset, (uint32_t)value, size);
    } else if (offset <= REG_CONTROL && offset + size > REG_CONTROL) {
        ide_channel_control(&ide->channels[bar / 2],
                            (uint8_t)(value >> (8 * (REG_CONTROL - offset))));
    }
}

/* ---- the function ---- */

static void command_changed(struct qv_pci_function *fn)
{
    settle(ide_of(fn)); /* transfers that waited for bus mastering */
}

static void reset(struct qv_pci_function *fn)
{
    hold(ide_of(fn), IDE_HOLD_RESET);
}

static void memory_changed(struct qv_pci_function *fn)
{
    hold(ide_of(fn), IDE_HOLD_MEMORY);
}

static void quiesce(struct qv_pci_function *fn)
{
    ide_of(fn)->quiet_told = false;
    hold(ide_of(fn), IDE_HOLD_QUIESCE);
}

static void resume(struct qv_pci_function *fn)
{
    struct qv_ide *ide = ide_of(fn);

    ide->hold &= ~(unsigned)IDE_HOLD_QUIESCE;
    if (ide->hold == 0) {
        unpause_drives(ide);
    }
    settle(ide);
}

static void destroy(struct qv_pci_function *fn)
{
    struct qv_ide *ide = ide_of(fn);

    qv_timer_cancel(&ide->cancel_timer);
    for (unsigned i = 0; i < 4; i++) {
        qv_ata_drive_free(ide->channels[i / 2].drive[i % 2]);
    }
    qv_guest_view_retire(ide->view);
    qv_dirty_log_unref(ide->log);
    g_free(ide->name);
    g_free(ide);
}

static const struct qv_pci_model_ops model_ops = {
    .name = "ide",
    .bar_read = bar_read,
    .bar_write = bar_write,
    .command_changed = command_changed,
    .reset = reset,
    .memory_changed = memory_changed,
    .quiesce = quiesce,
    .resume = resume,
    .save = ide_save,
    .load = ide_load,
    .destroy = destroy,
};

#define NO_SHARE .shared = {.fd = -1}

/* An ICH4 (82801DB) that can do native mode only: drivers for it set up UDMA/100, and Linux's
 * (ata_piix) takes the addresses from the BARs when the programming interface says so. */
static const struct qv_pci_identity identity = {
    .vendor = 0x8086,
    .device = 0x24cb,
    .subsystem_vendor = 0x8086,
    .subsystem = 0x24cb,
    .class_code = 0x01,
    .subclass = 0x01,
    .prog_if = 0x85, /* bus master; both channels native, and fixed so */
    .revision = 0x02,
    .bars = {{.kind = QV_PCI_BAR_IO, .size = 8, NO_SHARE},
             {.kind = QV_PCI_BAR_IO, .size = 4, NO_SHARE},
             {.kind = QV_PCI_BAR_IO, .size = 8, NO_SHARE},
             {.kind = QV_PCI_BAR_IO, .size = 4, NO_SHARE},
             {.kind = QV_PCI_BAR_IO, .size = 16, NO_SHARE},
             {.shared = {.fd = -1}}},
    .intx = true,
};

/* Registers of the ICH4 that drivers set and nobody else reads, with what its firmware leaves. */
static void config_init(struct qv_ide *ide)
{
    /* IDETIM of both channels: decoding is on. */
    qv_pci_config_set(ide->fn, 0x40, 4, 0x80008000, 0xffffffff);
    qv_pci_config_set(ide->fn, 0x44, 1, 0, 0xff);                /* timings of devices 1 */
    qv_pci_config_set(ide->fn, 0x48, 1, 0, 0x0f);                /* UDMA on */
    qv_pci_config_set(ide->fn, 0x4a, 2, 0, 0x3333);              /* UDMA timings */
    qv_pci_config_set(ide->fn, 0x54, 4, 0x000000f0, 0xffffffff); /* cables of 80 wires */
}

struct qv_pci_function *qv_ide_new(const struct qv_ide_opts *opts)
{
    struct qv_ide *ide = g_new0(struct qv_ide, 1);

    ide->name = g_strdup(opts->name);
    ide->settle_work.fn = settle_work;
    ide->cancel_timer.fn = take_back;
    ide->fn = qv_pci_function_new(&model_ops, &identity, ide);
    ide->view = qv_guest_view_new(qv_pci_memory(ide->fn));
    config_init(ide);
    for (unsigned i = 0; i < 2; i++) {
        struct ide_channel *c = &ide->channels[i];

        c->ide = ide;
        c->index = i;
        for (unsigned j = 0; j < 2; j++) {
            const struct qv_ata_drive_opts *o = &opts->drives[2 * i + j];

            if (o->disk != NULL) {
                c->drive[j] = qv_ata_drive_new(ide->name, o, false, 2 * i + j);
            }
        }
        ide_channel_reset(c);
    }
    return ide->fn;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The adapter as a whole: global registers, interrupts, coming to rest, plugging. Source:
 * AHCI 1.3.1, 3.1, 10.3, 10.4 and 11. */
#include <assert.h>

#include "base/error.h"
#include "device/ahci/ahci_int.h"

#define CAP_CCCS 0x00000080u /* coalescing */
#define CAP_FIXED                                                                                  \
    (0x80000000u /* 64-bit addresses */ | 0x40000000u /* native command queueing */ |              \
     0x01000000u /* command list override */ | 0x00300000u /* 6 Gbit/s */ |                        \
     0x00040000u /* AHCI only */ | 0x00008000u /* PIO in blocks of several sectors */ |            \
     0x00001f00u /* 32 slots */)
#define VERSION   0x00010301u
#define NS_PER_MS INT64_C(1000000)

static struct qv_ahci *hba_of(const struct qv_pci_function *fn)
{
    return qv_pci_model(fn);
}

bool ahci_dma_ok(const struct qv_ahci *hba)
{
    return qv_pci_bus_master(hba->fn);
}

/* ---- interrupts ---- */

static void pin_update(struct qv_ahci *hba)
{
    bool level = (hba->ghc & GHC_IE) && hba->is != 0;

    if (level != hba->pin) {
        hba->pin = level;
        qv_pci_intx_set(hba->fn, level);
    }
}

/* A bit of IS that was not set: one message; the pin follows IS. AHCI 1.3.1, 10.7 */
static void raise_bits(struct qv_ahci *hba, uint32_t bits)
{
    uint32_t fresh = bits & ~hba->is;

    hba->is |= bits;
    if (fresh != 0 && (hba->ghc & GHC_IE)) {
        qv_pci_notify(hba->fn, 0);
    }
    pin_update(hba);
}

void ahci_irq_update(struct qv_ahci *hba)
{
    uint32_t bits = 0;

    for (unsigned i = 0; i < hba->port_count; i++) {
        if (ahci_port_is(&hba->ports[i]) & hba->ports[i].ie) {
            bits |= 1u << i;
        }
    }
    raise_bits(hba, bits);
}

void ahci_port_event(struct ahci_port *p, uint32_t bits)
{
    p->is |= bits;
    if (ahci_port_is(p) & p->ie) {
        raise_bits(p->hba, 1u << p->index);
    }
}

/* ---- command completion coalescing: AHCI 1.3.1, 11 ---- */

static void ccc_fire(struct qv_ahci *hba)
{
    hba->ccc_count = 0;
    qv_timer_cancel(&hba->ccc_timer);
    raise_bits(hba, 1u << hba->port_count);
}

static void ccc_timer_fired(struct qv_timer *timer)
{
    struct qv_ahci *hba = qv_container_of(timer, struct qv_ahci, ccc_timer);

    if (hba->ccc_count > 0) {
        ccc_fire(hba);
    }
}

void ahci_completed(struct ahci_port *p, unsigned n)
{
    struct qv_ahci *hba = p->hba;
    unsigned threshold = (hba->ccc_ctl >> 8) & 0xff;

    if (!(hba->ccc_ctl & CCC_EN) || !(hba->ccc_ports & 1u << p->index)) {
        return;
    }
    hba->ccc_count += n;
    if (threshold != 0 && hba->ccc_count >= threshold) {
        ccc_fire(hba);
    } else if (!hba->ccc_timer.armed) {
        qv_timer_arm(&hba->ccc_timer, (hba->ccc_ctl >> 16) * NS_PER_MS);
    }
}

static uint32_t ccc_read(const struct qv_ahci *hba)
{
    return hba->ccc_ctl | (hba->port_count < QV_AHCI_PORTS_MAX ? hba->port_count << 3 : 0);
}

static void ccc_write(struct qv_ahci *hba, uint32_t v)
{
    if (hba->port_count == QV_AHCI_PORTS_MAX) {
        return; /* there is no bit of IS left for it */
    }
    /* Count and time can be changed while it is off only; a time of 0 is reserved. */
    if (!(hba->ccc_ctl & CCC_EN)) {
        hba->ccc_ctl = v & 0xffffff00u;
    }
    hba->ccc_ctl &= ~CCC_EN;
    hba->ccc_ctl |= hba->ccc_ctl >> 16 != 0 ? v & CCC_EN : 0;
    hba->ccc_count = 0;
    qv_timer_cancel(&hba->ccc_timer);
}

/* ---- coming to rest ---- */

static bool wants_rest(const struct ahci_port *p)
{
    return (p->hba->hold != 0 || p->dropped != 0 || p->detach == DETACH_DRAIN) &&
           (p->running != 0 || p->busy);
}

static void take_back(struct qv_ahci *hba)
{
    bool more = false;

    for (unsigned i = 0; i < hba->port_count; i++) {
        if (wants_rest(&hba->ports[i])) {
            qv_ata_cancel_kept(hba->ports[i].drive);
            more = true;
        }
    }
    if (more && !hba->cancel_timer.armed) {
        qv_timer_arm(&hba->cancel_timer, AHCI_CANCEL_NS);
    }
}

static void cancel_timer_fired(struct qv_timer *timer)
{
    take_back(qv_container_of(timer, struct qv_ahci, cancel_timer));
}

static void drive_idle(void *arg)
{
    struct ahci_port *p = arg;

    p->busy = false;
    ahci_settle(p->hba);
}

void ahci_rest(struct ahci_port *p)
{
    if (p->drive != NULL && !p->paused && (p->hba->hold != 0 || p->detach != DETACH_NONE)) {
        p->paused = true;
        p->busy = !qv_ata_pause(p->drive, drive_idle, p);
    }
    ahci_port_report(p);
    if (wants_rest(p) && !p->hba->cancel_timer.armed) {
        /* Not at once: the caller may be inside of the request that would be taken back. */
        qv_timer_arm(&p->hba->cancel_timer, 0);
    }
}

static bool all_quiet(const struct qv_ahci *hba)
{
    for (unsigned i = 0; i < hba->port_count; i++) {
        if (!ahci_port_quiet(&hba->ports[i])) {
            return false;
        }
    }
    return true;
}

static void hba_reset(struct qv_ahci *hba, bool power_on)
{
    hba->ghc = GHC_AE;
    hba->is = 0;
    hba->ccc_ctl = hba->ccc_ports = 0;
    hba->ccc_count = 0;
    qv_timer_cancel(&hba->ccc_timer);
    for (unsigned i = 0; i < hba->port_count; i++) {
        ahci_port_reset(&hba->ports[i], power_on);
    }
    ahci_irq_update(hba);
}

static void new_memory(struct qv_ahci *hba)
{
    struct qv_dirty_log *log = qv_pci_dirty_log(hba->fn);

    qv_guest_view_retire(hba->view);
    hba->view = qv_guest_view_new(qv_pci_memory(hba->fn));
    qv_dirty_log_unref(hba->log);
    hba->log = log != NULL ? qv_dirty_log_ref(log) : NULL;
    for (unsigned i = 0; i < hba->port_count; i++) {
        ahci_port_remap(&hba->ports[i]);
    }
}

/* What waited for the whole adapter; its callers are told last, since they may free it. */
static void settle_all(struct qv_ahci *hba)
{
    unsigned over = hba->hold;
    bool tell = (over & HOLD_QUIESCE) && !hba->quiet_told;

    if (over & (HOLD_HBA_RESET | HOLD_RESET)) {
        hba_reset(hba, over & HOLD_RESET);
    }
    if (over & HOLD_MEMORY) {
        new_memory(hba);
    }
    hba->hold &= HOLD_QUIESCE;
    hba->quiet_told = hba->hold != 0;
    for (unsigned i = 0; hba->hold == 0 && i < hba->port_count; i++) {
        ahci_port_settle(&hba->ports[i]);
    }
    if (tell) {
        qv_pci_quiesced(hba->fn);
    }
    if (over & HOLD_RESET) {
        qv_pci_reset_done(hba->fn);
    } else if (over & HOLD_MEMORY) {
        qv_pci_memory_done(hba->fn);
    }
}

void ahci_settle(struct qv_ahci *hba)
{
    for (unsigned i = 0; i < hba->port_count; i++) {
        ahci_port_settle(&hba->ports[i]);
    }
    if ((hba->hold & ~HOLD_QUIESCE || (hba->hold != 0 && !hba->quiet_told)) && all_quiet(hba)) {
        settle_all(hba);
    }
}

static void hold(struct qv_ahci *hba, unsigned why)
{
    hba->hold |= why;
    for (unsigned i = 0; i < hba->port_count; i++) {
        if (why & (HOLD_RESET | HOLD_HBA_RESET)) {
            ahci_port_drop(&hba->ports[i]);
        }
        ahci_rest(&hba->ports[i]);
    }
    ahci_settle(hba);
}

/* ---- registers ---- */

static uint32_t hba_read(struct qv_ahci *hba, uint64_t reg)
{
    if (reg >= HBA_PORTS) {
        unsigned i = (unsigned)(reg - HBA_PORTS) / HBA_PORT_SIZE;

        return i < hba->port_count ? ahci_port_read(&hba->ports[i], reg % HBA_PORT_SIZE) : 0;
    }
    switch (reg) {
    case HBA_CAP:
        return CAP_FIXED | (hba->port_count < QV_AHCI_PORTS_MAX ? CAP_CCCS : 0) |
               (hba->port_count - 1);
    case HBA_GHC:
        return hba->ghc | (hba->hold & HOLD_HBA_RESET ? GHC_HR : 0);
    case HBA_IS:
        return hba->is;
    case HBA_PI:
        return UINT32_MAX >> (QV_AHCI_PORTS_MAX - hba->port_count);
    case HBA_VS:
        return VERSION;
    case HBA_CCC_CTL:
        return ccc_read(hba);
    case HBA_CCC_PORTS:
        return hba->ccc_ports;
    default:
        return 0;
    }
}

static void write_ghc(struct qv_ahci *hba, uint32_t v)
{
    if (v & GHC_HR) {
        if (!(hba->hold & HOLD_HBA_RESET)) {
            hold(hba, HOLD_HBA_RESET);
        }
        return;
    }
    if ((v ^ hba->ghc) & GHC_IE) {
        hba->ghc ^= GHC_IE;
        if ((hba->ghc & GHC_IE) && hba->is != 0) {
            qv_pci_notify(hba->fn, 0);
        }
        pin_update(hba);
    }
}

static void hba_write(struct qv_ahci *hba, uint64_t reg, uint32_t v)
{
    if (reg >= HBA_PORTS) {
        unsigned i = (unsigned)(reg - HBA_PORTS) / HBA_PORT_SIZE;

        if (i < hba->port_count) {
            ahci_port_write(&hba->ports[i], reg % HBA_PORT_SIZE, v);
        }
        return;
    }
    switch (reg) {
    case HBA_GHC:
        write_ghc(hba, v);
        break;
    case HBA_IS:
        /* Ports that still have something to say set their bit again. */
        hba->is &= ~v;
        ahci_irq_update(hba);
        break;
    case HBA_CCC_CTL:
        ccc_write(hba, v);
        break;
    case HBA_CCC_PORTS:
        hba->ccc_ports = v & UINT32_MAX >> (QV_AHCI_PORTS_MAX - hba->port_count);
        break;
    default:
        break;
    }
}

/* Registers are 32 bits wide; other accesses see parts of them, or two. */
static uint64_t bar_read(struct qv_pci_function *fn, unsigned bar, uint64_t offset, unsigned size)
{
    uint64_t v = hba_read(hba_of(fn), offset & ~UINT64_C(3));

    if (size == 8) {
        return v | (uint64_t)hba_read(hba_of(fn), offset + 4) << 32;
    }
    return (v >> (8 * (offset & 3))) & (UINT64_MAX >> (64 - 8 * size));
}

/* Registers where a 1 acts and a 0 does nothing. */
static bool acts_by_ones(uint64_t reg)
{
    uint64_t px = reg % HBA_PORT_SIZE;

    return reg < HBA_PORTS ? reg == HBA_IS
                           : px == PX_IS || px == PX_SERR || px == PX_CI || px == PX_SACT;
}

static void bar_write(struct qv_pci_function *fn, unsigned bar, uint64_t offset, uint64_t value,
                      unsigned size)
{
    struct qv_ahci *hba = hba_of(fn);
    uint64_t reg = offset & ~UINT64_C(3);
    unsigned shift = 8 * (offset & 3);
    uint32_t mask;

    if (size >= 4) {
        hba_write(hba, reg, (uint32_t)value);
        if (size == 8) {
            hba_write(hba, reg + 4, (uint32_t)(value >> 32));
        }
        return;
    }
    mask = (uint32_t)((1u << (8 * size)) - 1) << shift;
    hba_write(hba, reg,
              ((uint32_t)value << shift & mask) |
                  (acts_by_ones(reg) ? 0 : hba_read(hba, reg) & ~mask));
}

/* ---- the function ---- */

static void command_changed(struct qv_pci_function *fn)
{
    struct qv_ahci *hba = hba_of(fn);

    for (unsigned i = 0; i < hba->port_count; i++) {
        ahci_port_run(&hba->ports[i]);
    }
}

static void reset(struct qv_pci_function *fn)
{
    hold(hba_of(fn), HOLD_RESET);
}

static void memory_changed(struct qv_pci_function *fn)
{
    hold(hba_of(fn), HOLD_MEMORY);
}

static void quiesce(struct qv_pci_function *fn)
{
    struct qv_ahci *hba = hba_of(fn);

    hba->quiet_told = false;
    hold(hba, HOLD_QUIESCE);
}

static void resume(struct qv_pci_function *fn)
{
    struct qv_ahci *hba = hba_of(fn);

    hba->hold &= ~(unsigned)HOLD_QUIESCE;
    ahci_settle(hba);
}

static void destroy(struct qv_pci_function *fn)
{
    struct qv_ahci *hba = hba_of(fn);

    for (unsigned i = 0; i < hba->port_count; i++) {
        if (hba->ports[i].drive != NULL) {
            ahci_port_remove(&hba->ports[i]);
        }
    }
    qv_timer_cancel(&hba->ccc_timer);
    qv_timer_cancel(&hba->cancel_timer);
    qv_guest_view_retire(hba->view);
    qv_dirty_log_unref(hba->log);
    g_free(hba->name);
    g_free(hba);
}

static const struct qv_pci_model_ops model_ops = {
    .name = "ahci",
    .bar_read = bar_read,
    .bar_write = bar_write,
    .command_changed = command_changed,
    .reset = reset,
    .memory_changed = memory_changed,
    .quiesce = quiesce,
    .resume = resume,
    .save = ahci_save,
    .load = ahci_load,
    .destroy = destroy,
};

/* As an ICH9 in AHCI mode, which systems since 2007 know without asking for the class. */
static const struct qv_pci_identity identity = {
    .vendor = 0x8086,
    .device = 0x2922,
    .subsystem_vendor = 0x8086,
    .subsystem = 0x2922,
    .class_code = 0x01,
    .subclass = 0x06,
    .prog_if = 0x01,
    .revision = 0x02,
    .bars = {[5] = {.kind = QV_PCI_BAR_MEM32, .size = 8192, .shared = {.fd = -1}}},
    .intx = true,
    .msi_vectors = 1,
};

struct qv_pci_function *qv_ahci_new(const struct qv_ahci_opts *opts)
{
    struct qv_ahci *hba = g_new0(struct qv_ahci, 1);

    assert(opts->ports >= 1 && opts->ports <= QV_AHCI_PORTS_MAX);
    hba->name = g_strdup(opts->name);
    hba->port_count = opts->ports;
    hba->ghc = GHC_AE;
    hba->ccc_timer.fn = ccc_timer_fired;
    hba->cancel_timer.fn = cancel_timer_fired;
    hba->fn = qv_pci_function_new(&model_ops, &identity, hba);
    hba->view = qv_guest_view_new(qv_pci_memory(hba->fn));
    /* Map register: AHCI mode. Port enables: drivers for the ICH9 set them. */
    qv_pci_config_set(hba->fn, 0x90, 2, 0x0040, 0);
    qv_pci_config_set(hba->fn, 0x92, 2, 0x003f, 0x003f);
    for (unsigned i = 0; i < hba->port_count; i++) {
        ahci_port_init(&hba->ports[i], hba, i);
        if (opts->drives[i].disk != NULL) {
            ahci_port_insert(&hba->ports[i], &opts->drives[i]);
        }
    }
    return hba->fn;
}

/* ---- plugging ---- */

int qv_ahci_free_port(const struct qv_pci_function *fn)
{
    const struct qv_ahci *hba = hba_of(fn);

    for (unsigned i = 0; i < hba->port_count; i++) {
        if (hba->ports[i].drive == NULL) {
            return (int)i;
        }
    }
    return -1;
}

bool qv_ahci_attach(struct qv_pci_function *fn, unsigned port, const struct qv_ata_drive_opts *opts,
                    GError **error)
{
    struct qv_ahci *hba = hba_of(fn);

    if (port >= hba->port_count) {
        return qv_fail(error, QV_ERROR_USAGE, "%s: there is no port %u; it has %u", hba->name, port,
                       hba->port_count);
    }
    if (hba->ports[port].drive != NULL) {
        return qv_fail(error, QV_ERROR_IN_USE, "%s: port %u has a drive", hba->name, port);
    }
    ahci_port_insert(&hba->ports[port], opts);
    ahci_rest(&hba->ports[port]); /* where the whole adapter is at rest */
    return true;
}

bool qv_ahci_detach(struct qv_pci_function *fn, unsigned port, bool force, void (*done)(void *arg),
                    void *arg, GError **error)
{
    struct qv_ahci *hba = hba_of(fn);
    struct ahci_port *p = port < hba->port_count ? &hba->ports[port] : NULL;

    if (p == NULL || p->drive == NULL) {
        return qv_fail(error, QV_ERROR_NOT_FOUND, "%s: port %u has no drive", hba->name, port);
    }
    if (p->detach != DETACH_NONE && !force) {
        return qv_fail(error, QV_ERROR_IN_USE, "%s: port %u: a detach is pending", hba->name, port);
    }
    p->detach_done = done;
    p->detach_arg = arg;
    p->detach_force = force;
    if (p->detach == DETACH_WAIT) {
        ahci_port_detached(p);
        return true;
    }
    p->detach = DETACH_DRAIN;
    ahci_rest(p);
    ahci_port_settle(p);
    return true;
}

void qv_ahci_detach_rearm(struct qv_pci_function *fn, unsigned port, void (*done)(void *arg),
                          void *arg)
{
    struct qv_ahci *hba = hba_of(fn);

    if (port < hba->port_count && hba->ports[port].detach != DETACH_NONE) {
        hba->ports[port].detach_done = done;
        hba->ports[port].detach_arg = arg;
    }
}

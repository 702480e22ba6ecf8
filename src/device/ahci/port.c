/* SPDX-License-Identifier: Apache-2.0 */
/* A port: its registers, the link to the drive, resets. Source: AHCI 1.3.1, 3.3 and 10. */
#include <assert.h>

#include "device/ahci/ahci_int.h"

#define FIS_AREA_BYTES 256u

/* ---- the link ---- */

/* How a link moves: a drive comes: NONE -> RESET -> UP; COMRESET and the like: UP, OFFLINE ->
 * RESET; switched off: any but NONE -> OFFLINE; the drive goes: any -> NONE. */
static void port_set_link(struct ahci_port *p, enum ahci_link to)
{
    bool legal = true;

    switch (to) {
    case LINK_UP:
        legal = p->link == LINK_RESET;
        break;
    case LINK_OFFLINE:
    case LINK_RESET:
        legal = p->drive != NULL;
        break;
    case LINK_NONE:
        break;
    }
    assert(legal);
    p->link = to;
}

static uint32_t det(const struct ahci_port *p)
{
    return p->sctl & SCTL_DET;
}

static uint32_t ssts(const struct ahci_port *p)
{
    uint32_t limit = (p->sctl >> 4) & 0xf;

    if (p->link == LINK_UP) {
        return 0x103u | (limit != 0 && limit < 3 ? limit : 3) << 4;
    }
    return det(p) == SCTL_OFFLINE ? SSTS_OFFLINE : 0;
}

static void link_lost(struct ahci_port *p)
{
    p->tfd = TFD_NONE;
    p->sig = SIG_NONE;
    p->sig_pending = false;
}

/* The drive sends its signature, which waits in the adapter while there is nowhere to put it. */
static void post_signature(struct ahci_port *p, const struct qv_ata_tf *tf)
{
    p->sig = SIG_ATA;
    p->sig_pending = !(p->cmd & PXCMD_FRE);
    ahci_post_d2h(p, tf, false);
}

/* Once the link was reset, no COMRESET is on, and nothing of before is in flight. */
static void try_link_up(struct ahci_port *p, enum qv_ata_reset how)
{
    struct qv_ata_tf tf;

    if (p->link != LINK_RESET || det(p) != 0 || p->running != 0) {
        return;
    }
    port_set_link(p, LINK_UP);
    qv_ata_reset(p->drive, how, &tf);
    p->srst = false;
    p->serr |= SERR_DIAG_X | SERR_DIAG_N;
    post_signature(p, &tf);
    ahci_irq_update(p->hba);
}

void ahci_port_drop(struct ahci_port *p)
{
    p->ci = p->sact = p->redo = 0;
    ahci_port_forget(p);
    p->failed = p->halted = false;
    p->dropped = p->running;
    p->ccs = AHCI_SLOTS - 1; /* so that slot 0 is next */
    if (p->running != 0) {
        ahci_rest(p);
    }
}

static void link_reset(struct ahci_port *p)
{
    ahci_port_drop(p);
    link_lost(p);
    port_set_link(p, LINK_RESET);
}

/* ---- drives come and go ---- */

void ahci_port_insert(struct ahci_port *p, const struct qv_ata_drive_opts *opts)
{
    assert(p->drive == NULL);
    p->drive = qv_ata_drive_new(p->hba->name, opts, true, p->index);
    p->slots = g_new0(struct ahci_slot, AHCI_SLOTS);
    for (unsigned i = 0; i < AHCI_SLOTS; i++) {
        p->slots[i].port = p;
        p->slots[i].index = i;
    }
    p->paused = p->busy = false;
    port_set_link(p, det(p) == SCTL_OFFLINE ? LINK_OFFLINE : LINK_RESET);
    try_link_up(p, QV_ATA_HARD);
}

void ahci_port_remove(struct ahci_port *p)
{
    assert(p->running == 0 && !p->busy);
    ahci_port_forget(p);
    qv_ata_drive_free(p->drive);
    g_free(p->slots);
    p->drive = NULL;
    p->slots = NULL;
    port_set_link(p, LINK_NONE);
}

void ahci_port_pull(struct ahci_port *p)
{
    port_set_link(p, LINK_NONE);
    link_lost(p);
    p->serr |= SERR_DIAG_N;
    p->detach = DETACH_WAIT;
    ahci_irq_update(p->hba);
}

void ahci_port_detached(struct ahci_port *p)
{
    void (*done)(void *arg) = p->detach_done;

    ahci_port_remove(p);
    p->detach = DETACH_NONE;
    p->detach_done = NULL;
    if (done != NULL) {
        done(p->detach_arg);
    }
}

/* The driver did something that shows that it knows of the change. */
static void noticed(struct ahci_port *p)
{
    if (p->detach == DETACH_WAIT) {
        ahci_port_detached(p);
    }
}

/* ---- rest ---- */

bool ahci_port_quiet(const struct ahci_port *p)
{
    return p->running == 0 && p->finished == 0 && !p->flush_queued && !p->run_queued && !p->busy;
}

void ahci_port_settle(struct ahci_port *p)
{
    if (p->running != 0 || p->drive == NULL) {
        return;
    }
    try_link_up(p, QV_ATA_HARD);
    if (p->detach == DETACH_DRAIN && ahci_port_quiet(p)) {
        bool waits = (p->cmd & PXCMD_ST) && !p->detach_force;

        ahci_port_pull(p);
        if (!waits) {
            ahci_port_detached(p);
        }
        return;
    }
    if (p->paused && p->detach == DETACH_NONE && p->hba->hold == 0) {
        p->paused = false;
        qv_ata_go_on(p->drive);
    }
    ahci_port_run(p);
}

void ahci_port_remap(struct ahci_port *p)
{
    p->list = NULL; /* looked up when needed */
    p->fis =
        p->cmd & PXCMD_FRE ? qv_guest_view_ptr(p->hba->view, p->fb, FIS_AREA_BYTES, true) : NULL;
}

/* ---- registers ---- */

void ahci_port_init(struct ahci_port *p, struct qv_ahci *hba, unsigned index)
{
    p->hba = hba;
    p->index = index;
    p->sig = SIG_NONE;
    p->tfd = TFD_NONE;
    p->ccs = AHCI_SLOTS - 1;
    ahci_port_works_init(p);
}

void ahci_port_reset(struct ahci_port *p, bool power_on)
{
    assert(p->running == 0);
    ahci_port_drop(p);
    if (power_on) {
        p->clb = p->fb = 0;
    }
    p->is = p->ie = p->cmd = p->sctl = p->serr = 0;
    p->srst = false;
    p->list = p->fis = NULL;
    link_lost(p);
    noticed(p);
    if (p->drive != NULL && p->detach == DETACH_NONE) {
        port_set_link(p, LINK_RESET);
        try_link_up(p, power_on ? QV_ATA_POWER_ON : QV_ATA_HARD);
    }
}

uint32_t ahci_port_is(const struct ahci_port *p)
{
    return p->is | (p->serr & SERR_DIAG_X ? PXIS_PCS : 0) | (p->serr & SERR_DIAG_N ? PXIS_PRCS : 0);
}

static uint32_t read_cmd(const struct ahci_port *p)
{
    uint32_t v = p->cmd | PXCMD_SUD | PXCMD_POD | PXCMD_HPCP | (p->ccs % AHCI_SLOTS) << 8;

    v |= p->cmd & PXCMD_FRE ? PXCMD_FR : 0;
    return v | ((p->cmd & PXCMD_ST) || p->running != 0 ? PXCMD_CR : 0);
}

uint32_t ahci_port_read(struct ahci_port *p, uint32_t reg)
{
    switch (reg) {
    case PX_CLB:
        return (uint32_t)p->clb;
    case PX_CLBU:
        return (uint32_t)(p->clb >> 32);
    case PX_FB:
        return (uint32_t)p->fb;
    case PX_FBU:
        return (uint32_t)(p->fb >> 32);
    case PX_IS:
        return ahci_port_is(p);
    case PX_IE:
        return p->ie;
    case PX_CMD:
        return read_cmd(p);
    case PX_TFD:
        return p->tfd;
    case PX_SIG:
        return p->sig;
    case PX_SSTS:
        return ssts(p);
    case PX_SCTL:
        return p->sctl;
    case PX_SERR:
        return p->serr;
    case PX_SACT:
        return p->sact;
    case PX_CI:
        return p->ci;
    default:
        return 0; /* PxSNTF, PxFBS, PxDEVSLP, vendor's: not there */
    }
}

static void write_cmd(struct ahci_port *p, uint32_t v)
{
    uint32_t was = p->cmd;

    p->cmd = v & (PXCMD_ST | PXCMD_FRE | 0x03000000u); /* the rest is fixed, or acts at once */
    if ((v & PXCMD_CLO) && !(p->cmd & PXCMD_ST)) {
        p->tfd &= ~(uint32_t)(QV_ATA_S_BSY | QV_ATA_S_DRQ);
    }
    if ((was ^ p->cmd) & PXCMD_FRE) {
        ahci_port_remap(p);
        if (p->sig_pending && (p->cmd & PXCMD_FRE)) {
            struct qv_ata_tf tf = {.count = 1, .lba = 1, .error = 1, .status = (uint8_t)p->tfd};

            post_signature(p, &tf);
        }
    }
    if ((was & PXCMD_ST) && !(p->cmd & PXCMD_ST)) {
        ahci_port_drop(p);
        noticed(p);
    } else if (!(was & PXCMD_ST) && (p->cmd & PXCMD_ST)) {
        p->list = NULL;
        ahci_port_run(p);
    }
}

static void write_sctl(struct ahci_port *p, uint32_t v)
{
    uint32_t was = det(p);

    p->sctl = v & 0xfff;
    if (det(p) == was) {
        return;
    }
    if (p->detach == DETACH_WAIT) {
        noticed(p);
    } else if (p->drive != NULL) {
        if (det(p) == SCTL_OFFLINE) {
            ahci_port_drop(p);
            link_lost(p);
            port_set_link(p, LINK_OFFLINE);
        } else if (det(p) != 0 || p->link == LINK_OFFLINE) {
            link_reset(p);
        }
        try_link_up(p, QV_ATA_HARD);
    }
}

/* Halves of an address; the low bits are fixed zeros. */
static void write_address(uint64_t *address, bool upper, uint32_t v, uint32_t align)
{
    if (upper) {
        *address = (*address & UINT32_MAX) | (uint64_t)v << 32;
    } else {
        *address = (*address & ~(uint64_t)UINT32_MAX) | (v & ~(align - 1));
    }
}

void ahci_port_write(struct ahci_port *p, uint32_t reg, uint32_t v)
{
    switch (reg) {
    case PX_CLB:
    case PX_CLBU:
        write_address(&p->clb, reg == PX_CLBU, v, 1024);
        p->list = NULL;
        break;
    case PX_FB:
    case PX_FBU:
        write_address(&p->fb, reg == PX_FBU, v, 256);
        ahci_port_remap(p);
        break;
    case PX_IS:
        p->is &= ~v;
        ahci_irq_update(p->hba);
        break;
    case PX_IE:
        p->ie = v & PXIE_MASK;
        ahci_irq_update(p->hba);
        break;
    case PX_CMD:
        write_cmd(p, v);
        break;
    case PX_SCTL:
        write_sctl(p, v);
        break;
    case PX_SERR:
        p->serr &= ~v;
        ahci_irq_update(p->hba);
        break;
    case PX_SACT:
        p->sact |= p->cmd & PXCMD_ST ? v : 0;
        break;
    case PX_CI:
        p->ci |= p->cmd & PXCMD_ST ? v : 0;
        ahci_port_arrived(p, (unsigned)__builtin_popcount(v));
        ahci_port_run(p);
        break;
    default:
        break;
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The adapter's state as bytes, for migration. It is at rest: nothing runs. Commands that a stopped
 * disk gave back are slots to begin anew. */
#include <assert.h>
#include <string.h>

#include "base/endian.h"
#include "base/error.h"
#include "device/ahci/ahci_int.h"

#define STATE_VERSION 1u

struct hba_state {
    qv_le32 version, port_count;
    qv_le32 ghc, is, ccc_ctl, ccc_ports;
};

struct port_state {
    qv_le64 clb, fb;
    qv_le32 is, ie, cmd, tfd, sig, sctl, serr, sact, ci, redo;
    uint8_t link, ccs, halted, srst, sig_pending, has_drive, rest[2];
};
static_assert(sizeof(struct port_state) == 64, "no padding");

/* ---- save ---- */

static void save_port(const struct ahci_port *p, GByteArray *out)
{
    /* A drive that is being pulled does not travel. */
    bool has_drive = p->drive != NULL && p->detach != DETACH_WAIT;
    struct port_state st = {
        .clb = qv_le64_make(p->clb),
        .fb = qv_le64_make(p->fb),
        .is = qv_le32_make(p->is),
        .ie = qv_le32_make(p->ie),
        .cmd = qv_le32_make(p->cmd),
        .tfd = qv_le32_make(p->tfd),
        .sig = qv_le32_make(p->sig),
        .sctl = qv_le32_make(p->sctl),
        .serr = qv_le32_make(p->serr),
        .sact = qv_le32_make(p->sact),
        .ci = qv_le32_make(p->ci),
        .redo = qv_le32_make(p->redo),
        .link = (uint8_t)p->link,
        .ccs = (uint8_t)p->ccs,
        .halted = p->halted,
        .srst = p->srst,
        .sig_pending = p->sig_pending,
        .has_drive = has_drive,
    };

    g_byte_array_append(out, (const uint8_t *)&st, sizeof(st));
    if (has_drive) {
        qv_ata_save(p->drive, out);
    }
}

void ahci_save(struct qv_pci_function *fn, GByteArray *out)
{
    const struct qv_ahci *hba = qv_pci_model(fn);
    struct hba_state st = {
        .version = qv_le32_make(STATE_VERSION),
        .port_count = qv_le32_make(hba->port_count),
        .ghc = qv_le32_make(hba->ghc),
        .is = qv_le32_make(hba->is),
        .ccc_ctl = qv_le32_make(hba->ccc_ctl),
        .ccc_ports = qv_le32_make(hba->ccc_ports),
    };

    g_byte_array_append(out, (const uint8_t *)&st, sizeof(st));
    for (unsigned i = 0; i < hba->port_count; i++) {
        save_port(&hba->ports[i], out);
    }
}

/* ---- load ---- */

static bool port_ok(const struct ahci_port *p, const struct port_state *st)
{
    bool drive = st->has_drive;
    uint32_t cmd = qv_le32_get(st->cmd), active = qv_le32_get(st->sact) | qv_le32_get(st->ci);

    if (st->has_drive > 1 || st->halted > 1 || st->srst > 1 || st->sig_pending > 1 ||
        drive != (p->drive != NULL) || st->link > LINK_UP || drive == (st->link == LINK_NONE) ||
        st->ccs >= AHCI_SLOTS) {
        return false;
    }
    return !(cmd & ~(PXCMD_ST | PXCMD_FRE | 0x03000000u)) && !(qv_le32_get(st->ie) & ~PXIE_MASK) &&
           !(qv_le32_get(st->sctl) & ~0xfffu) && qv_le64_get(st->clb) % 1024 == 0 &&
           qv_le64_get(st->fb) % 256 == 0 && ((cmd & PXCMD_ST) || active == 0) &&
           !(qv_le32_get(st->redo) & ~active);
}

static void load_regs(struct ahci_port *p, const struct port_state *st)
{
    p->clb = qv_le64_get(st->clb);
    p->fb = qv_le64_get(st->fb);
    p->is = qv_le32_get(st->is);
    p->ie = qv_le32_get(st->ie);
    p->cmd = qv_le32_get(st->cmd);
    p->tfd = qv_le32_get(st->tfd);
    p->sig = qv_le32_get(st->sig);
    p->sctl = qv_le32_get(st->sctl);
    p->serr = qv_le32_get(st->serr);
    p->sact = qv_le32_get(st->sact);
    p->ci = qv_le32_get(st->ci);
    p->redo = qv_le32_get(st->redo);
    p->link = st->link;
    p->ccs = st->ccs;
    p->halted = st->halted;
    p->srst = st->srst;
    p->sig_pending = st->sig_pending;
    ahci_port_remap(p);
}

static bool load_port(struct ahci_port *p, const uint8_t **bytes, size_t *len, GError **error)
{
    struct port_state st;

    if (*len < sizeof(st)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%s: the saved state is too short", p->hba->name);
    }
    memcpy(&st, *bytes, sizeof(st));
    *bytes += sizeof(st);
    *len -= sizeof(st);
    if (!port_ok(p, &st)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%s: the saved state does not fit port %u",
                       p->hba->name, p->index);
    }
    if (p->drive != NULL && !qv_ata_load(p->drive, bytes, len, error)) {
        return false;
    }
    load_regs(p, &st);
    return true;
}

bool ahci_load(struct qv_pci_function *fn, const uint8_t *bytes, size_t len, GError **error)
{
    struct qv_ahci *hba = qv_pci_model(fn);
    struct hba_state st;

    if (len < sizeof(st)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%s: the saved state is too short", hba->name);
    }
    memcpy(&st, bytes, sizeof(st));
    bytes += sizeof(st);
    len -= sizeof(st);
    if (qv_le32_get(st.version) != STATE_VERSION || qv_le32_get(st.port_count) != hba->port_count ||
        (qv_le32_get(st.ghc) & ~(GHC_AE | GHC_IE))) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%s: the saved state is not of such an adapter",
                       hba->name);
    }
    for (unsigned i = 0; i < hba->port_count; i++) {
        if (!load_port(&hba->ports[i], &bytes, &len, error)) {
            return false;
        }
    }
    if (len != 0) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%s: the saved state is too long", hba->name);
    }
    hba->ghc = qv_le32_get(st.ghc) | GHC_AE;
    hba->is = qv_le32_get(st.is);
    hba->pin = (hba->ghc & GHC_IE) && hba->is != 0; /* the function keeps the level itself */
    if (hba->port_count < QV_AHCI_PORTS_MAX) {
        hba->ccc_ctl = qv_le32_get(st.ccc_ctl) & (CCC_EN | 0xffffff00u);
        hba->ccc_ports = qv_le32_get(st.ccc_ports);
    }
    return true;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Accesses to BARs: cut into naturally aligned pieces and handed to the model, but for the MSI-X
 * table and the pending bits.
 *
 * The table is memory only. Who masks vectors and writes messages is the client: it gives us an
 * event for each vector, and keeps table and pending bits itself (QEMU does not even pass writes of
 * the table on). So vectors are never masked here, and pending bits read as zeros.
 */
#include "device/pci/function_int.h"

#include <string.h>

#include "base/maths.h"

#define MSIX_ENTRY      16u
#define MSIX_ENTRY_CTRL 12u

void pci_msix_table_init(struct qv_pci_function *fn)
{
    fn->msix_table_len = (uint64_t)fn->id->msix_vectors * MSIX_ENTRY;
    fn->msix_pba_len = qv_div_up(fn->id->msix_vectors, 64) * 8;
    fn->msix_table = g_malloc0(fn->msix_table_len);
    pci_msix_table_reset(fn);
}

void pci_msix_table_reset(struct qv_pci_function *fn)
{
    if (fn->msix_table_len == 0) {
        return; /* no MSI-X, no table */
    }
    memset(fn->msix_table, 0, fn->msix_table_len);
    for (uint64_t at = MSIX_ENTRY_CTRL; at < fn->msix_table_len; at += MSIX_ENTRY) {
        fn->msix_table[at] = 1; /* masked */
    }
}

enum piece_kind { PIECE_MODEL, PIECE_TABLE, PIECE_PBA };

static enum piece_kind piece_of(const struct qv_pci_function *fn, unsigned bar, uint64_t offset)
{
    if (fn->id->msix_vectors > 0 && bar == fn->id->msix_bar) {
        if (offset - fn->id->msix_table < fn->msix_table_len) {
            return PIECE_TABLE;
        }
        if (offset - fn->id->msix_pba < fn->msix_pba_len) {
            return PIECE_PBA;
        }
    }
    return PIECE_MODEL;
}

/* The largest naturally aligned access at @offset of at most @len bytes. */
static unsigned piece_size(uint64_t offset, uint64_t len)
{
    unsigned size = 8;

    while (size > len || !qv_is_aligned(offset, size)) {
        size /= 2;
    }
    return size;
}

static bool inside(const struct qv_pci_function *fn, unsigned bar, uint64_t offset, uint64_t len)
{
    return bar < QV_PCI_BARS && fn->id->bars[bar].kind != QV_PCI_BAR_NONE &&
           qv_range_inside(offset, len, fn->id->bars[bar].size);
}

bool qv_pci_bar_read(struct qv_pci_function *fn, unsigned bar, uint64_t offset, void *buf,
                     uint64_t len)
{
    uint8_t *to = buf;

    if (!inside(fn, bar, offset, len)) {
        return false;
    }
    fn->accesses++;
    while (len > 0) {
        unsigned size = piece_size(offset, len);
        uint64_t value = 0;

        switch (piece_of(fn, bar, offset)) {
        case PIECE_MODEL:
            value = GUINT64_TO_LE(fn->ops->bar_read(fn, bar, offset, size));
            break;
        case PIECE_TABLE:
            memcpy(&value, fn->msix_table + (offset - fn->id->msix_table), size);
            break;
        case PIECE_PBA:
            break;
        }
        memcpy(to, &value, size);
        to += size;
        offset += size;
        len -= size;
    }
    return true;
}

bool qv_pci_bar_write(struct qv_pci_function *fn, unsigned bar, uint64_t offset, const void *buf,
                      uint64_t len)
{
    const uint8_t *from = buf;

    if (!inside(fn, bar, offset, len)) {
        return false;
    }
    fn->accesses++;
    while (len > 0) {
        unsigned size = piece_size(offset, len);
        uint64_t value = 0;

        memcpy(&value, from, size);
        switch (piece_of(fn, bar, offset)) {
        case PIECE_MODEL:
            fn->ops->bar_write(fn, bar, offset, GUINT64_FROM_LE(value), size);
            break;
        case PIECE_TABLE:
            memcpy(fn->msix_table + (offset - fn->id->msix_table), from, size);
            break;
        case PIECE_PBA:
            break; /* read-only */
        }
        from += size;
        offset += size;
        len -= size;
    }
    return true;
}

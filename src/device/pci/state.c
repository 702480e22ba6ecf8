/* SPDX-License-Identifier: Apache-2.0 */
/* A function's state as bytes, for live migration and snapshots. */
#include <inttypes.h>
#include <string.h>

#include "base/endian.h"
#include "base/error.h"
#include "device/pci/function_int.h"

#define STATE_MAGIC   0x46505651u /* "QVPF" */
#define STATE_VERSION 1u

/* What stands before the MSI-X table and the model's own bytes. */
struct state_header {
    qv_le32 magic, version;
    qv_le32 ids; /* vendor and device */
    qv_le32 table_len;
    qv_le32 model_len;
    qv_le32 intx_level;
    uint8_t config[QV_PCI_CONFIG_SIZE];
};

void qv_pci_save(struct qv_pci_function *fn, GByteArray *out)
{
    struct state_header head = {
        .magic = qv_le32_make(STATE_MAGIC),
        .version = qv_le32_make(STATE_VERSION),
        .ids = qv_le32_make(fn->id->vendor | (uint32_t)fn->id->device << 16),
        .table_len = qv_le32_make((uint32_t)fn->msix_table_len),
        .intx_level = qv_le32_make(pci_intx_level(fn)),
    };
    g_autoptr(GByteArray) model = g_byte_array_new();

    fn->ops->save(fn, model);
    head.model_len = qv_le32_make(model->len);
    memcpy(head.config, fn->config, sizeof(head.config));
    g_byte_array_append(out, (const uint8_t *)&head, sizeof(head));
    g_byte_array_append(out, fn->msix_table, (unsigned)fn->msix_table_len);
    g_byte_array_append(out, model->data, model->len);
}

/* Bits that no guest can change must be those that we have: else it was another device's. */
static bool same_device(const struct qv_pci_function *fn, const uint8_t *config)
{
    for (unsigned i = 0; i < QV_PCI_CONFIG_SIZE; i++) {
        uint8_t fixed = (uint8_t)~fn->writable[i];

        if (((config[i] ^ fn->initial[i]) & fixed) != 0 && !fn->own[i]) {
            return false;
        }
    }
    return true;
}

bool qv_pci_load(struct qv_pci_function *fn, const uint8_t *bytes, size_t len, GError **error)
{
    struct state_header head;
    size_t table_len = (size_t)fn->msix_table_len;

    if (len < sizeof(head)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "device state: %zu bytes are too few", len);
    }
    memcpy(&head, bytes, sizeof(head));
    if (qv_le32_get(head.magic) != STATE_MAGIC || qv_le32_get(head.version) != STATE_VERSION) {
        return qv_fail(error, QV_ERROR_CORRUPT, "device state: not of this version");
    }
    if (qv_le32_get(head.ids) != (fn->id->vendor | (uint32_t)fn->id->device << 16) ||
        qv_le32_get(head.table_len) != table_len || !same_device(fn, head.config)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "device state: of another device");
    }
    if (len - sizeof(head) < table_len ||
        len - sizeof(head) - table_len != qv_le32_get(head.model_len)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "device state: %zu bytes are not what it says",
                       len);
    }
    if (!fn->ops->load(fn, bytes + sizeof(head) + table_len, qv_le32_get(head.model_len), error)) {
        g_prefix_error(error, "device state: ");
        return false;
    }
    memcpy(fn->config, head.config, sizeof(fn->config));
    if (table_len > 0) {
        memcpy(fn->msix_table, bytes + sizeof(head), table_len);
    }
    pci_config_changed(fn);
    qv_pci_intx_set(fn, qv_le32_get(head.intx_level) != 0);
    return true;
}

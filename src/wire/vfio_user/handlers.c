/* SPDX-License-Identifier: Apache-2.0 */
/* The table of messages, and the handlers of those that need no file of their own. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "base/maths.h"
#include "wire/vfio_user/session_int.h"

void vfu_copy(const struct vfu_session *ses, void *to, size_t size)
{
    memcpy(to, ses->msg.payload, size);
}

/* ---- VERSION ---- */

/* What we say of ourselves, of that which the client has spoken of. */
static json_t *capabilities(const json_t *theirs)
{
    static const struct {
        const char *name;
        json_int_t value;
    } numbers[] = {{"max_msg_fds", VFU_FDS_MAX},
                   {"max_data_xfer_size", VFU_XFER_MAX},
                   {"max_dma_maps", QV_GUEST_REGIONS_MAX},
                   {"pgsizes", 4096}};
    json_t *ours = json_object();

    for (size_t i = 0; i < G_N_ELEMENTS(numbers); i++) {
        if (json_object_get(theirs, numbers[i].name) != NULL) {
            json_object_set_new(ours, numbers[i].name, json_integer(numbers[i].value));
        }
    }
    if (json_is_true(json_object_get(theirs, "write_multiple"))) {
        json_object_set_new(ours, "write_multiple", json_true());
    }
    return ours;
}

static void reply_version(struct vfu_session *ses, uint16_t minor, const json_t *data)
{
    struct vfu_version version = {.major = VFU_MAJOR, .minor = MIN(minor, VFU_MINOR)};
    g_autoptr(GByteArray) payload = g_byte_array_new();
    g_autoptr(json_t) reply =
        json_pack("{s:o}", "capabilities", capabilities(json_object_get(data, "capabilities")));
    char *text = json_dumps(reply, JSON_COMPACT);

    g_byte_array_append(payload, (const uint8_t *)&version, sizeof(version));
    g_byte_array_append(payload, (const uint8_t *)text, (unsigned)strlen(text) + 1);
    free(text);
    vfu_session_reply(ses, payload->data, payload->len, -1);
}

static int handle_version(struct vfu_session *ses, GError **error)
{
    size_t len = vfu_message_size(&ses->msg) - sizeof(struct vfu_version);
    const char *text = (const char *)ses->msg.payload + sizeof(struct vfu_version);
    g_autoptr(json_t) data = NULL;
    struct vfu_version version;

    vfu_copy(ses, &version, sizeof(version));
    if (ses->negotiated || version.major != VFU_MAJOR) {
        qv_fail(error, QV_ERROR_FAILED, "version %u.%u", version.major, version.minor);
        return VFU_MALFORMED;
    }
    if (len > VFU_VERSION_DATA_MAX || (len > 0 && text[len - 1] != '\0')) {
        qv_fail(error, QV_ERROR_FAILED, "version data of %zu bytes", len);
        return VFU_MALFORMED;
    }
    if (len > 1 && !qv_json_parse(text, len - 1, &data, error)) {
        return VFU_MALFORMED;
    }
    ses->negotiated = true;
    reply_version(ses, version.minor, data);
    return 0;
}

/* ---- RESET ---- */

static void reset_done(void *arg)
{
    struct vfu_session *ses = arg;

    vfu_migration_reset(ses);
    vfu_session_reply(ses, NULL, 0, -1);
    vfu_session_done(ses);
}

static int handle_reset(struct vfu_session *ses, GError **error)
{
    vfu_session_wait(ses);
    qv_pci_reset(ses->fn, reset_done, ses);
    return VFU_PENDING;
}

/* ---- REGION_READ, _WRITE, _WRITE_MULTI ---- */

static bool config_access(struct vfu_session *ses, uint64_t offset, void *buf, uint32_t count,
                          bool write)
{
    uint64_t real;

    if (!qv_range_inside(offset, count, vfu_config_size(ses))) {
        return false;
    }
    real = offset < QV_PCI_CONFIG_SIZE ? qv_min_u64(count, QV_PCI_CONFIG_SIZE - offset) : 0;
    if (real > 0 && write) {
        qv_pci_config_write(ses->fn, (unsigned)offset, buf, (unsigned)real);
    } else if (real > 0) {
        qv_pci_config_read(ses->fn, (unsigned)offset, buf, (unsigned)real);
    }
    return true;
}

static bool region_access(struct vfu_session *ses, const struct vfu_region_access *a, void *buf,
                          bool write)
{
    if (a->count > VFU_XFER_MAX) {
        return false;
    }
    if (a->region == VFU_REGION_CONFIG) {
        return config_access(ses, a->offset, buf, a->count, write);
    }
    if (a->region >= QV_PCI_BARS) {
        return false;
    }
    return write ? qv_pci_bar_write(ses->fn, a->region, a->offset, buf, a->count)
                 : qv_pci_bar_read(ses->fn, a->region, a->offset, buf, a->count);
}

static int bad_access(const struct vfu_region_access *a, GError **error)
{
    qv_fail(error, QV_ERROR_FAILED, "access to region %u at 0x%" PRIx64 ", %u bytes", a->region,
            a->offset, a->count);
    return -EINVAL;
}

static int handle_region_read(struct vfu_session *ses, GError **error)
{
    uint8_t small[sizeof(struct vfu_region_access) + 64] = {0};
    g_autofree uint8_t *large = NULL;
    struct vfu_region_access a;
    uint8_t *reply = small;

    vfu_copy(ses, &a, sizeof(a));
    if (a.count > VFU_XFER_MAX) {
        return bad_access(&a, error);
    }
    if (a.count > sizeof(small) - sizeof(a)) {
        reply = large = g_malloc0(sizeof(a) + a.count);
    }
    if (!region_access(ses, &a, reply + sizeof(a), false)) {
        return bad_access(&a, error);
    }
    memcpy(reply, &a, sizeof(a));
    vfu_session_reply(ses, reply, sizeof(a) + a.count, -1);
    return 0;
}

static int handle_region_write(struct vfu_session *ses, GError **error)
{
    struct vfu_region_access a;

    vfu_copy(ses, &a, sizeof(a));
    if (a.count != vfu_message_size(&ses->msg) - sizeof(a)) {
        qv_fail(error, QV_ERROR_FAILED, "write of %u bytes with %zu", a.count,
                vfu_message_size(&ses->msg) - sizeof(a));
        return VFU_MALFORMED;
    }
    if (!region_access(ses, &a, ses->msg.payload + sizeof(a), true)) {
        return bad_access(&a, error);
    }
    vfu_session_reply(ses, &a, sizeof(a), -1);
    return 0;
}

static int handle_region_write_multi(struct vfu_session *ses, GError **error)
{
    uint64_t count, len = vfu_message_size(&ses->msg) - sizeof(count);

    vfu_copy(ses, &count, sizeof(count));
    if (count != len / sizeof(struct vfu_one_write) || len % sizeof(struct vfu_one_write) != 0) {
        qv_fail(error, QV_ERROR_FAILED, "%" PRIu64 " writes in %" PRIu64 " bytes", count, len);
        return VFU_MALFORMED;
    }
    for (uint64_t i = 0; i < count; i++) {
        struct vfu_one_write w;
        struct vfu_region_access a;

        memcpy(&w, ses->msg.payload + sizeof(count) + i * sizeof(w), sizeof(w));
        a = (struct vfu_region_access){.offset = w.offset, .region = w.region, .count = w.count};
        if (w.count > sizeof(w.data) || !region_access(ses, &a, w.data, true)) {
            return bad_access(&a, error);
        }
    }
    vfu_session_reply(ses, &count, sizeof(count), -1);
    return 0;
}

/* ---- the table ---- */

static const struct {
    int (*handle)(struct vfu_session *ses, GError **error);
    size_t min_size; /* of the payload */
    unsigned max_fds;
} table[VFU_COMMANDS] = {
    [VFU_VERSION] = {handle_version, sizeof(struct vfu_version), 0},
    [VFU_DMA_MAP] = {vfu_dma_map, sizeof(struct vfu_dma_map), 1},
    [VFU_DMA_UNMAP] = {vfu_dma_unmap, sizeof(struct vfu_dma_unmap), 0},
    [VFU_GET_INFO] = {vfu_get_info, sizeof(struct vfu_device_info), 0},
    [VFU_GET_REGION_INFO] = {vfu_get_region_info, sizeof(struct vfu_region_info), 0},
    [VFU_GET_IRQ_INFO] = {vfu_get_irq_info, sizeof(struct vfu_irq_info), 0},
    [VFU_SET_IRQS] = {vfu_set_irqs, sizeof(struct vfu_irq_set), VFU_FDS_MAX},
    [VFU_REGION_READ] = {handle_region_read, sizeof(struct vfu_region_access), 0},
    [VFU_REGION_WRITE] = {handle_region_write, sizeof(struct vfu_region_access), 0},
    [VFU_RESET] = {handle_reset, 0, 0},
    [VFU_REGION_WRITE_MULTI] = {handle_region_write_multi, sizeof(uint64_t), 0},
    [VFU_FEATURE] = {vfu_feature, sizeof(struct vfu_feature), 0},
    [VFU_MIG_DATA_READ] = {vfu_mig_data_read, sizeof(struct vfu_mig_data), 0},
    [VFU_MIG_DATA_WRITE] = {vfu_mig_data_write, sizeof(struct vfu_mig_data), 0},
};

int vfu_handle(struct vfu_session *ses, GError **error)
{
    unsigned command = ses->msg.header.command;

    if (!ses->negotiated && command != VFU_VERSION) {
        qv_fail(error, QV_ERROR_FAILED, "came before VERSION");
        return VFU_MALFORMED;
    }
    if (command >= VFU_COMMANDS || table[command].handle == NULL) {
        return -ENOTSUP; /* also GET_REGION_IO_FDS, which is optional */
    }
    if (vfu_message_size(&ses->msg) < table[command].min_size ||
        ses->msg.in.fd_count > table[command].max_fds) {
        qv_fail(error, QV_ERROR_FAILED, "%zu bytes and %u descriptors", vfu_message_size(&ses->msg),
                ses->msg.in.fd_count);
        return VFU_MALFORMED;
    }
    return table[command].handle(ses, error);
}

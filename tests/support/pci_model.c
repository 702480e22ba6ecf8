/* SPDX-License-Identifier: Apache-2.0 */
#include "pci_model.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"

static void note_release(struct pci_model *m)
{
    if (m->held > 0) {
        return;
    }
    if (m->wait_memory) {
        m->wait_memory = false;
        qv_pci_memory_done(m->fn);
    }
    if (m->wait_reset) {
        m->wait_reset = false;
        qv_pci_reset_done(m->fn);
    }
    if (m->wait_quiesce) {
        m->wait_quiesce = false;
        qv_pci_quiesced(m->fn);
    }
}

void pci_model_release(struct pci_model *m)
{
    struct qv_guest_view *view = m->held_view;

    m->held_view = NULL;
    for (; m->held > 0; m->held--) {
        qv_guest_view_leave(view);
    }
    note_release(m);
}

static void hold(struct pci_model *m)
{
    if (m->held > 0 && m->held_view != m->view) {
        m->status = 1; /* one map at a time is enough for a test */
        return;
    }
    qv_guest_view_enter(m->view);
    m->held_view = m->view;
    m->held++;
}

static void fill(struct pci_model *m)
{
    struct qv_dirty_log *log = qv_pci_dirty_log(m->fn);
    struct iovec iov[8];
    int n;

    m->status = 1;
    if (m->len == 0 || m->len > 65536 || !qv_pci_bus_master(m->fn)) {
        return;
    }
    n = qv_guest_view_iov(m->view, m->addr, m->len, true, iov, G_N_ELEMENTS(iov));
    if (n < 0) {
        return;
    }
    for (int i = 0; i < n; i++) {
        memset(iov[i].iov_base, 0xd5, iov[i].iov_len);
    }
    if (log != NULL) {
        qv_dirty_log_mark(log, m->addr, m->len);
    }
    m->status = 0;
}

static void command(struct pci_model *m, uint32_t value)
{
    m->status = 0;
    switch (value & 0xff) {
    case PCI_MODEL_FILL:
        fill(m);
        qv_pci_notify(m->fn, value >> 8);
        break;
    case PCI_MODEL_ASSERT:
        qv_pci_intx_set(m->fn, true);
        break;
    case PCI_MODEL_CLEAR:
        qv_pci_intx_set(m->fn, false);
        break;
    case PCI_MODEL_HOLD:
        hold(m);
        break;
    case PCI_MODEL_RELEASE:
        pci_model_release(m);
        break;
    case PCI_MODEL_NOTIFY:
        qv_pci_notify(m->fn, value >> 8);
        break;
    default:
        m->status = 1;
        break;
    }
}

static uint64_t model_bar_read(struct qv_pci_function *fn, unsigned bar, uint64_t offset,
                               unsigned size)
{
    struct pci_model *m = qv_pci_model(fn);
    uint64_t value = 0;

    m->last_size = size;
    if (bar == PCI_MODEL_IO_BAR) {
        memcpy(&value, m->io + offset, size);
        return value;
    }
    if (offset >= PCI_MODEL_SHARED && offset < PCI_MODEL_SHARED + 4096) {
        memcpy(&value, m->shared + (offset - PCI_MODEL_SHARED), size);
        return value;
    }
    switch (offset) {
    case PCI_MODEL_REG_ID:
        return PCI_MODEL_ID;
    case PCI_MODEL_REG_SCRATCH:
        return m->scratch;
    case PCI_MODEL_REG_STATUS:
        return m->status;
    default:
        return 0;
    }
}

static void model_bar_write(struct qv_pci_function *fn, unsigned bar, uint64_t offset,
                            uint64_t value, unsigned size)
{
    struct pci_model *m = qv_pci_model(fn);

    m->last_size = size;
    if (bar == PCI_MODEL_IO_BAR) {
        memcpy(m->io + offset, &value, size);
        return;
    }
    if (offset >= PCI_MODEL_SHARED && offset < PCI_MODEL_SHARED + 4096) {
        memcpy(m->shared + (offset - PCI_MODEL_SHARED), &value, size);
        return;
    }
    switch (offset) {
    case PCI_MODEL_REG_SCRATCH:
        m->scratch = value;
        break;
    case PCI_MODEL_REG_ADDR:
        m->addr = value;
        break;
    case PCI_MODEL_REG_LEN:
        m->len = value;
        break;
    case PCI_MODEL_REG_COMMAND:
        command(m, (uint32_t)value);
        break;
    default:
        break;
    }
}

static void model_command_changed(struct qv_pci_function *fn)
{
    struct pci_model *m = qv_pci_model(fn);

    m->commands++;
}

static void model_config_write(struct qv_pci_function *fn, unsigned offset, unsigned size)
{
    struct pci_model *m = qv_pci_model(fn);

    m->config_writes++;
}

static void model_reset(struct qv_pci_function *fn)
{
    struct pci_model *m = qv_pci_model(fn);

    m->resets++;
    m->scratch = m->addr = m->len = 0;
    m->status = 0;
    qv_pci_intx_set(fn, false);
    m->wait_reset = true;
    note_release(m);
}

static void model_memory_changed(struct qv_pci_function *fn)
{
    struct pci_model *m = qv_pci_model(fn);

    m->memory_changes++;
    qv_guest_view_retire(m->view);
    m->view = qv_guest_view_new(qv_pci_memory(fn));
    m->wait_memory = true;
    note_release(m);
}

static void model_quiesce(struct qv_pci_function *fn)
{
    struct pci_model *m = qv_pci_model(fn);

    m->quiesced++;
    m->wait_quiesce = true;
    note_release(m);
}

static void model_resume(struct qv_pci_function *fn)
{
    struct pci_model *m = qv_pci_model(fn);

    m->resumed++;
}

static void model_save(struct qv_pci_function *fn, GByteArray *out)
{
    struct pci_model *m = qv_pci_model(fn);

    g_byte_array_append(out, (const uint8_t *)&m->scratch, sizeof(m->scratch));
}

static bool model_load(struct qv_pci_function *fn, const uint8_t *bytes, size_t len, GError **error)
{
    struct pci_model *m = qv_pci_model(fn);

    if (len != sizeof(m->scratch)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%zu bytes", len);
    }
    memcpy(&m->scratch, bytes, len);
    return true;
}

static void model_destroy(struct qv_pci_function *fn)
{
    struct pci_model *m = qv_pci_model(fn);

    qv_guest_view_retire(m->view);
    munmap(m->shared, 4096);
    close(m->shared_fd);
    if (m->destroyed != NULL) {
        *m->destroyed = true;
    }
    g_free(m);
}

static const struct qv_pci_model_ops ops = {
    .name = "test model",
    .bar_read = model_bar_read,
    .bar_write = model_bar_write,
    .command_changed = model_command_changed,
    .config_write = model_config_write,
    .reset = model_reset,
    .memory_changed = model_memory_changed,
    .quiesce = model_quiesce,
    .resume = model_resume,
    .save = model_save,
    .load = model_load,
    .destroy = model_destroy,
};

struct pci_model *pci_model_new(void)
{
    struct pci_model *m = g_new0(struct pci_model, 1);

    m->shared_fd = memfd_create("pci-model", MFD_CLOEXEC);
    if (m->shared_fd < 0 || ftruncate(m->shared_fd, PCI_MODEL_SHARED + 4096) < 0) {
        abort();
    }
    m->shared =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, m->shared_fd, PCI_MODEL_SHARED);
    if (m->shared == MAP_FAILED) {
        abort();
    }
    m->id = (struct qv_pci_identity){
        .vendor = 0x1b36,
        .device = 0x0e0e,
        .subsystem_vendor = 0x1b36,
        .subsystem = 0x1100,
        .class_code = 0xff,
        .revision = 3,
        .bars = {[0] = {.kind = QV_PCI_BAR_MEM64,
                        .size = PCI_MODEL_BAR_SIZE,
                        .shared = {.offset = PCI_MODEL_SHARED,
                                   .size = 4096,
                                   .fd = m->shared_fd,
                                   .fd_offset = PCI_MODEL_SHARED}},
                 [PCI_MODEL_IO_BAR] = {.kind = QV_PCI_BAR_IO, .size = 16, .shared = {.fd = -1}}},
        .intx = true,
        .msi_vectors = 4,
        .msix_vectors = PCI_MODEL_VECTORS,
        .msix_bar = 0,
        .msix_table = PCI_MODEL_TABLE,
        .msix_pba = PCI_MODEL_PBA,
        .express = true,
    };
    m->fn = qv_pci_function_new(&ops, &m->id, m);
    m->view = qv_guest_view_new(qv_pci_memory(m->fn));
    qv_pci_config_set(m->fn, PCI_MODEL_OWN, 4, 0x12345678, 0x0000ff00);
    return m;
}

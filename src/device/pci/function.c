/* SPDX-License-Identifier: Apache-2.0 */
/* The life of a function: birth, memory, reset, quiescing, end. */
#include "device/pci/function_int.h"

#include <assert.h>

#include "base/maths.h"

static void check_identity(const struct qv_pci_identity *id)
{
    for (unsigned i = 0; i < QV_PCI_BARS; i++) {
        const struct qv_pci_bar *bar = &id->bars[i];

        if (bar->kind == QV_PCI_BAR_NONE) {
            continue;
        }
        assert(qv_is_pow2(bar->size));
        assert(bar->kind == QV_PCI_BAR_IO ? bar->size >= 4 && bar->size <= 256 : bar->size >= 4096);
        assert(bar->kind != QV_PCI_BAR_MEM64 ||
               (i + 1 < QV_PCI_BARS && id->bars[i + 1].kind == QV_PCI_BAR_NONE));
        if (bar->shared.fd >= 0 && bar->shared.size > 0) {
            assert(qv_range_inside(bar->shared.offset, bar->shared.size, bar->size));
            assert(qv_is_aligned(bar->shared.offset | bar->shared.size, 4096));
            /* Clients map at "file offset of the BAR's start, plus offset in the BAR". */
            assert(bar->shared.fd_offset >= bar->shared.offset);
        }
    }
    assert(id->msi_vectors == 0 || (qv_is_pow2(id->msi_vectors) && id->msi_vectors <= 32));
    assert(id->msix_vectors <= QV_PCI_MSIX_MAX);
}

struct qv_pci_function *qv_pci_function_new(const struct qv_pci_model_ops *ops,
                                            const struct qv_pci_identity *identity, void *model)
{
    struct qv_pci_function *fn = g_new0(struct qv_pci_function, 1);

    check_identity(identity);
    fn->ops = ops;
    fn->id = identity;
    fn->model = model;
    if (!qv_guest_map_new(NULL, 0, &fn->map, NULL)) {
        g_assert_not_reached(); /* an empty map has nothing that could fail */
    }
    pci_irq_init(fn);
    pci_msix_table_init(fn);
    pci_config_init(fn);
    return fn;
}

void qv_pci_function_free(struct qv_pci_function *fn)
{
    if (fn == NULL) {
        return;
    }
    assert(fn->reset_done == NULL && fn->memory_done == NULL && fn->quiesce_done == NULL);
    fn->ops->destroy(fn);
    qv_guest_map_unref(fn->map);
    qv_dirty_log_unref(fn->log);
    pci_irq_destroy(fn);
    g_free(fn->msix_table);
    g_free(fn);
}

void *qv_pci_model(const struct qv_pci_function *fn)
{
    return fn->model;
}

const struct qv_pci_identity *qv_pci_identity(const struct qv_pci_function *fn)
{
    return fn->id;
}

struct qv_guest_map *qv_pci_memory(const struct qv_pci_function *fn)
{
    return fn->map;
}

struct qv_dirty_log *qv_pci_dirty_log(const struct qv_pci_function *fn)
{
    return fn->log;
}

/* Ends what @done stands for; the callback may begin the next one. */
static void finish(void (**done)(void *arg), void *arg)
{
    void (*call)(void *arg) = *done;

    assert(call != NULL);
    *done = NULL;
    call(arg);
}

/* ---- memory ---- */

void qv_pci_change_memory(struct qv_pci_function *fn, struct qv_guest_map *map,
                          struct qv_dirty_log *log, void (*done)(void *arg), void *arg)
{
    struct qv_guest_map *old_map = fn->map;
    struct qv_dirty_log *old_log = fn->log;

    assert(fn->memory_done == NULL && fn->reset_done == NULL);
    fn->memory_done = done;
    fn->memory_arg = arg;
    fn->map = qv_guest_map_ref(map);
    fn->log = log != NULL ? qv_dirty_log_ref(log) : NULL;
    fn->ops->memory_changed(fn);
    /* What still uses them has references of its own. */
    qv_guest_map_unref(old_map);
    qv_dirty_log_unref(old_log);
}

void qv_pci_memory_done(struct qv_pci_function *fn)
{
    finish(&fn->memory_done, fn->memory_arg);
}

/* ---- reset ---- */

void qv_pci_reset(struct qv_pci_function *fn, void (*done)(void *arg), void *arg)
{
    assert(fn->memory_done == NULL && fn->reset_done == NULL);
    fn->reset_done = done;
    fn->reset_arg = arg;
    pci_config_reset(fn); /* first: without bus mastering the model begins no DMA */
    pci_msix_table_reset(fn);
    fn->ops->reset(fn);
}

void qv_pci_reset_done(struct qv_pci_function *fn)
{
    finish(&fn->reset_done, fn->reset_arg);
}

/* ---- quiescing ---- */

void qv_pci_quiesce(struct qv_pci_function *fn, void (*done)(void *arg), void *arg)
{
    assert(fn->quiesce_done == NULL);
    fn->quiesce_done = done;
    fn->quiesce_arg = arg;
    fn->ops->quiesce(fn);
}

void qv_pci_quiesced(struct qv_pci_function *fn)
{
    finish(&fn->quiesce_done, fn->quiesce_arg);
}

void qv_pci_resume(struct qv_pci_function *fn)
{
    fn->ops->resume(fn);
}

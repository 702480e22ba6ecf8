/* SPDX-License-Identifier: Apache-2.0 */
#include "virtq_env.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

void open_fixture(struct fixture *f, const struct driver_kind *kind, uint32_t num)
{
    struct qv_virtq_layout l;

    qv_fake_vm_init(&f->vm, BASE, 2, 1 << 20);
    driver_init(&f->d, &f->vm, num, kind->packed, kind->event_idx);
    f->area = g_malloc0(qv_virtq_inflight_size(num));
    f->view = qv_guest_view_new(f->vm.map);
    l = driver_layout(&f->d, f->area);
    assert_true(qv_virtq_start(&f->vq, &l, f->vm.map, NULL, NULL));
}

void close_fixture(struct fixture *f)
{
    qv_virtq_stop(&f->vq);
    qv_guest_view_retire(f->view);
    qv_fake_vm_destroy(&f->vm);
    g_free(f->area);
}

int pop(struct fixture *f, struct qv_virtq_chain *chain)
{
    memset(chain, 0, sizeof(*chain));
    chain->iov = f->iov;
    chain->iov_max = G_N_ELEMENTS(f->iov);
    chain->final = true;
    return qv_virtq_pop(&f->vq, f->view, chain);
}

int add(struct fixture *f, unsigned out, unsigned in, bool indirect)
{
    struct driver_buf bufs[32];

    for (unsigned i = 0; i < out + in; i++) {
        bufs[i] = (struct driver_buf){BASE + 0x80000 + i * 64, 64, i >= out};
    }
    return driver_add(&f->d, bufs, out + in, indirect);
}

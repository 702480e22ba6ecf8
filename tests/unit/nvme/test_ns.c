/* SPDX-License-Identifier: Apache-2.0 */
/* Namespaces that appear and vanish; shadow doorbells and the doorbell page; changes of guest
 * memory. NVMe 1.4, 5.2, 5.7, 6.1. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/log.h"
#include "driver.h"

#define DNR      0x4000u
#define NS_EVENT (4u << 16 | 0u << 8 | 2u) /* log page 4, namespace attribute changed, notice */

struct ns_call {
    struct drv *d;
    uint32_t nsid;
    unsigned disk;
    bool ok;
    atomic_bool done;
};

static void do_add(void *arg)
{
    struct ns_call *call = arg;
    struct qv_nvme_ns_opts opts = {.nsid = call->nsid, .disk = call->d->disk[call->disk]};
    g_autoptr(GError) error = NULL;

    call->ok = qv_nvme_add(call->d->fn, &opts, &call->nsid, &error);
}

static bool add(struct drv *d, uint32_t *nsid, unsigned disk)
{
    struct ns_call call = {.d = d, .nsid = *nsid, .disk = disk};

    qv_thread_call(d->home, do_add, &call);
    *nsid = call.nsid;
    return call.ok;
}

static void is_removed(void *arg)
{
    atomic_store(&((struct ns_call *)arg)->done, true);
}

static void do_remove(void *arg)
{
    struct ns_call *call = arg;

    qv_nvme_remove(call->d->fn, call->nsid, is_removed, call);
}

static void do_force(void *arg)
{
    struct ns_call *call = arg;

    qv_nvme_remove_force(call->d->fn, call->nsid);
}

static void do_cancel(void *arg)
{
    struct ns_call *call = arg;

    call->ok = qv_nvme_remove_cancel(call->d->fn, call->nsid);
}

static void do_resized(void *arg)
{
    struct ns_call *call = arg;

    qv_nvme_resized(call->d->fn, call->nsid);
}

static uint16_t send_aer(struct drv *d)
{
    struct cmd cmd = {.opcode = 12};
    uint16_t cid = drv_put(d, 0, &cmd);

    drv_ring(d, 0);
    drv_meet(d);
    return cid;
}

/* Waits for the event, reads the list of changed namespaces: its first two entries. */
static void await_change(struct drv *d, uint16_t cid, uint32_t first, uint32_t second)
{
    struct cqe cqe = drv_await(d, 0);
    uint32_t *list = drv_ptr(d, d->admin_page);

    assert_int_equal(cqe.cid, cid);
    assert_int_equal(cqe.dw0, NS_EVENT);
    assert_int_equal(drv_admin(d,
                               (struct cmd){.opcode = 2,
                                            .nsid = UINT32_MAX,
                                            .prp1 = d->admin_page,
                                            .dw10 = 4 | 1023 << 16},
                               NULL),
                     0);
    assert_int_equal(list[0], first);
    assert_int_equal(list[1], second);
}

static unsigned active(struct drv *d, uint32_t *list)
{
    unsigned n = 0;

    assert_int_equal(
        drv_admin(d, (struct cmd){.opcode = 6, .prp1 = d->admin_page, .dw10 = 2}, NULL), 0);
    memcpy(list, drv_ptr(d, d->admin_page), 4096);
    while (n < 1024 && list[n] != 0) {
        n++;
    }
    return n;
}

static void test_add_and_resize(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    uint32_t nsid = 0, list[1024];
    uint16_t cid;

    drv_queues(d, 1);
    cid = send_aer(d);
    assert_int_equal(drv_do(d, 1, drv_rw(d, 2, 2, 0, 8, DRV_BASE)), 2 | DNR);
    assert_true(add(d, &nsid, 1));
    assert_int_equal(nsid, 2);
    await_change(d, cid, 2, 0);
    assert_int_equal(active(d, list), 2);
    assert_int_equal(drv_do(d, 1, drv_rw(d, 2, 2, 0, 8, DRV_BASE)), 0);
    nsid = 256;
    cid = send_aer(d);
    assert_true(add(d, &nsid, 2));
    await_change(d, cid, 256, 0);
    assert_int_equal(drv_do(d, 1, drv_rw(d, 2, 256, 0, 8, DRV_BASE)), 0);
    nsid = 257;
    assert_false(add(d, &nsid, 3));
    nsid = 2;
    assert_false(add(d, &nsid, 3));
    /* events that no request waits for are kept; of many changes there is one list */
    for (uint32_t i = 1; i <= 2; i++) {
        struct ns_call call = {.d = d, .nsid = i};

        qv_thread_call(d->home, do_resized, &call);
    }
    drv_none(d, 0);
    cid = send_aer(d);
    await_change(d, cid, 1, 2);
    /* and a guest that does not want to know is not told */
    assert_int_equal(drv_admin(d, (struct cmd){.opcode = 9, .dw10 = 0xb}, NULL), 0);
    cid = send_aer(d);
    nsid = 7;
    assert_true(add(d, &nsid, 4));
    drv_none(d, 0);
    drv_free(d);
}

/* The guest is told, reads the list, writes back what it has, and then the namespace goes. */
static void test_remove_with_the_guests_consent(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){.disks = 3});
    struct ns_call call = {.d = d, .nsid = 2};
    struct cmd read = drv_rw(d, 2, 2, 0, 8, DRV_BASE + 4096);
    uint32_t list[1024];
    uint16_t cid;

    drv_queues(d, 2);
    atomic_store(&d->ctl[1].hold, true);
    drv_put(d, 2, &read); /* one in flight, so that the guest has not let go yet */
    drv_ring(d, 2);
    drv_held(d, 1, 1);
    atomic_store(&d->ctl[1].hold, false);
    cid = send_aer(d);
    qv_thread_call(d->home, do_remove, &call);
    await_change(d, cid, 2, 0);
    usleep(300000);
    assert_false(atomic_load(&call.done)); /* it has not read the list of active ones */
    assert_int_equal(active(d, list), 2);
    assert_int_equal(list[1], 3);
    assert_int_equal(drv_do(d, 1, drv_rw(d, 1, 2, 0, 8, DRV_BASE)), 0); /* still served */
    usleep(300000);
    assert_false(atomic_load(&call.done));
    drv_release(d, 1);
    assert_int_equal(drv_await(d, 2).status >> 1, 0);
    drv_wait(&call.done);
    assert_int_equal(drv_do(d, 1, drv_rw(d, 1, 2, 0, 8, DRV_BASE)), 2 | DNR);
    assert_true(add(d, &call.nsid, 1)); /* and it may come back */
    assert_int_equal(drv_do(d, 1, drv_rw(d, 1, 2, 0, 8, DRV_BASE)), 0);
    drv_free(d);
}

static void test_remove_from_a_controller_that_is_off(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){.disks = 3});
    struct ns_call a = {.d = d, .nsid = 2}, b = {.d = d, .nsid = 3}, c = {.d = d, .nsid = 99};

    qv_thread_call(d->home, do_remove, &a);
    drv_wait(&a.done);
    drv_queues(d, 1);
    qv_thread_call(d->home, do_remove, &b);
    drv_meet(d);
    assert_false(atomic_load(&b.done));
    drv_disable(d); /* the guest is gone */
    drv_wait(&b.done);
    qv_thread_call(d->home, do_remove, &c); /* there is none */
    drv_wait(&c.done);
    drv_free(d);
}

static void test_remove_force_and_cancel(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){.disks = 3});
    struct ns_call call = {.d = d, .nsid = 2};
    struct cmd cmd = drv_rw(d, 2, 2, 0, 8, DRV_BASE);
    uint32_t list[1024];

    drv_queues(d, 1);
    qv_thread_call(d->home, do_remove, &call);
    assert_int_equal(active(d, list), 2);
    qv_thread_call(d->home, do_cancel, &call);
    assert_true(call.ok);
    assert_int_equal(active(d, list), 3);
    qv_thread_call(d->home, do_cancel, &call);
    assert_false(call.ok);
    /* with a request in flight */
    atomic_store(&d->ctl[1].hold, true);
    drv_put(d, 1, &cmd);
    drv_ring(d, 1);
    drv_held(d, 1, 1);
    qv_thread_call(d->home, do_remove, &call);
    qv_thread_call(d->home, do_force, &call);
    drv_meet(d);
    assert_false(atomic_load(&call.done));
    assert_false(add(d, &call.nsid, 1)); /* still in use */
    atomic_store(&d->ctl[1].hold, false);
    drv_release(d, 1);
    drv_wait(&call.done);
    assert_int_equal(drv_await(d, 1).status >> 1, 0);
    assert_int_equal(drv_do(d, 1, cmd), 2 | DNR);
    drv_free(d);
}

/* Requests that a stopped disk keeps do not hold up a forced removal. */
static void test_remove_force_of_a_stopped_disk(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){.disks = 2, .stop_on_error = true});
    struct ns_call call = {.d = d, .nsid = 2};
    struct cmd cmd = drv_rw(d, 1, 2, 0, 8, DRV_BASE);

    drv_queues(d, 1);
    atomic_store(&d->ctl[1].fail, EIO);
    drv_put(d, 1, &cmd);
    drv_ring(d, 1);
    for (int i = 0; i < 50000 && atomic_load(&d->stopped_err) != EIO; i++) {
        usleep(100);
    }
    qv_thread_call(d->home, do_remove, &call);
    qv_thread_call(d->home, do_force, &call);
    drv_wait(&call.done);
    assert_int_equal(drv_await(d, 1).status >> 1, 2 | DNR);
    drv_free(d);
}

/* A namespace comes, is used and goes, while a request of another one, in the same queue, does not
 * end; and other requests to that other one end meanwhile, as always. */
static void test_others_do_not_wait(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    struct ns_call call = {.d = d, .nsid = 2};
    struct cmd held = drv_rw(d, 2, 1, 0, 8, DRV_BASE + 4096);
    uint32_t nsid = 2, list[1024];
    uint16_t cid;

    drv_queues(d, 1);
    atomic_store(&d->ctl[0].hold, true);
    drv_put(d, 1, &held);
    drv_ring(d, 1);
    drv_held(d, 0, 1);
    atomic_store(&d->ctl[0].hold, false);
    cid = send_aer(d);
    assert_true(add(d, &nsid, 1));
    assert_int_equal(drv_do(d, 1, drv_rw(d, 1, 1, 8, 8, DRV_BASE)), 0);
    await_change(d, cid, 2, 0);
    assert_int_equal(drv_do(d, 1, drv_rw(d, 1, 2, 0, 8, DRV_BASE)), 0);
    cid = send_aer(d);
    qv_thread_call(d->home, do_remove, &call);
    assert_int_equal(drv_do(d, 1, drv_rw(d, 1, 1, 8, 8, DRV_BASE)), 0);
    await_change(d, cid, 2, 0);
    assert_int_equal(active(d, list), 1);
    drv_wait(&call.done);
    assert_int_equal(drv_do(d, 1, drv_rw(d, 1, 1, 8, 8, DRV_BASE)), 0);
    assert_int_equal(drv_do(d, 1, drv_rw(d, 1, 2, 0, 8, DRV_BASE)), 2 | DNR);
    drv_none(d, 1);
    drv_release(d, 0);
    assert_int_equal(drv_await(d, 1).status >> 1, 0);
    drv_free(d);
}

/* What Linux 6.1 does to a namespace that comes while it resets the controller: a request into a
 * queue that is deleted already. It is no reason to fail, and the next driver finds all. */
static void test_add_amid_a_reset(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    struct cmd read = drv_rw(d, 2, 2, 0, 8, DRV_BASE);
    uint32_t nsid = 2, list[1024];

    drv_queues(d, 1);
    assert_true(add(d, &nsid, 1));
    assert_int_equal(drv_admin(d, (struct cmd){.opcode = 0, .dw10 = 1}, NULL), 0);
    drv_put(d, 1, &read);
    drv_ring(d, 1);
    assert_int_equal(drv_csts(d), 1); /* ready, no fatal status */
    drv_none(d, 1);
    drv_disable(d);
    drv_queues(d, 1);
    assert_int_equal(active(d, list), 2);
    assert_int_equal(drv_do(d, 1, read), 0);
    drv_free(d);
}

static void test_all_namespaces(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    uint32_t list[1024], nsid;

    drv_queues(d, 1);
    for (unsigned i = 2; i <= 256; i++) {
        nsid = 0;
        assert_true(add(d, &nsid, 1 + i % 7));
        assert_int_equal(nsid, i);
    }
    nsid = 0;
    assert_false(add(d, &nsid, 1));
    assert_int_equal(active(d, list), 256);
    for (unsigned i = 1; i <= 256; i += 15) {
        assert_int_equal(drv_do(d, 1, drv_rw(d, 2, i, 8, 8, DRV_BASE)), 0);
    }
    assert_int_equal(drv_do(d, 1, (struct cmd){.opcode = 0, .nsid = UINT32_MAX}), 0);
    drv_free(d);
}

/* ---- shadow doorbells ---- */

static void use_shadows(struct drv *d)
{
    d->shadows = drv_alloc(d, 4096);
    d->events = drv_alloc(d, 4096);
    assert_int_equal(
        drv_admin(d, (struct cmd){.opcode = 0x7c, .prp1 = d->shadows, .prp2 = d->events}, NULL), 0);
    d->shadow = true;
}

static void test_shadow_doorbells(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    struct cmd flush = {.opcode = 0, .nsid = 1};
    unsigned was;

    drv_queues(d, 2);
    assert_int_equal(drv_do(d, 1, flush), 0);
    use_shadows(d); /* of queues that are there... */
    assert_int_equal(drv_create_cq(d, 3, 16, 3), 0);
    assert_int_equal(drv_create_sq(d, 3, 16, 3), 0); /* ...and that come later */
    was = d->doorbells;
    for (unsigned i = 0; i < 300; i++) {
        assert_int_equal(drv_do(d, 1 + i % 3, flush), 0);
    }
    /* One write for each command at most; those of completion queues are spared. */
    assert_true(d->doorbells - was <= 300 + 300 / 8);
    drv_disable(d);
    drv_queues(d, 1); /* without them again */
    assert_int_equal(drv_do(d, 1, flush), 0);
    drv_free(d);
}

/* Bursts: no command is forgotten, whoever sleeps when. */
static void test_shadow_doorbells_lose_nothing(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    struct cmd flush = {.opcode = 0, .nsid = 1};
    unsigned sent = 0, got = 0;

    drv_queues(d, 1);
    use_shadows(d);
    while (got < 3000) {
        struct cqe cqe;

        for (unsigned n = sent % 5 + 1; n > 0 && sent - got < DRV_ENTRIES - 1; n--) {
            drv_put(d, 1, &flush);
            drv_ring(d, 1);
            sent++;
        }
        if (sent % 3 == 0) {
            cqe = drv_await(d, 1);
            got++;
        }
        while (drv_get(d, 1, &cqe)) {
            got++;
        }
        drv_head(d, 1);
    }
    while (got < sent) {
        drv_await(d, 1);
        got++;
    }
    drv_free(d);
}

/* The same of completion queues that are full all the time, and of the pin, whose level must fall
 * when the last completion is taken. */
static void test_shadow_heads_lose_nothing(void **state)
{
    for (int pin = 0; pin < 2; pin++) {
        struct drv *d = drv_new(&(struct drv_opts){0});
        struct cmd flush = {.opcode = 0, .nsid = 1};
        unsigned sent = 0, got = 0;
        uint16_t status = 8;

        drv_msix(d, !pin);
        drv_enable(d);
        use_shadows(d);
        assert_int_equal(drv_create_cq(d, 1, 4, pin ? 0 : 1), 0);
        assert_int_equal(drv_create_sq(d, 1, 64, 1), 0);
        while (got < 2000) {
            struct cqe cqe;

            while (sent - got < 40) {
                drv_put(d, 1, &flush);
                sent++;
            }
            drv_ring(d, 1);
            for (unsigned n = got % 3 + 1; n > 0; n--) {
                for (int i = 0; i < 50000 && !drv_get(d, 1, &cqe); i++) {
                    usleep(i < 1000 ? 1 : 100);
                }
                assert_int_equal(cqe.status >> 1, 0);
                got++;
            }
            drv_head(d, 1);
        }
        while (got < sent) {
            drv_await(d, 1);
            got++;
        }
        for (int i = 0; i < 1000 && (status & 8); i++) {
            drv_meet(d);
            qv_pci_config_read(d->fn, 6, &status, 2);
        }
        assert_false(status & 8);
        drv_free(d);
    }
}

static void test_bad_shadow_doorbells(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    uint64_t page = drv_alloc(d, 4096);

    drv_queues(d, 1);
    for (unsigned i = 0; i < 2; i++) {
        static const uint64_t bad[] = {0, 0x1000, DRV_BASE + 8, UINT64_MAX - 4095};

        for (unsigned j = 0; j < G_N_ELEMENTS(bad); j++) {
            assert_int_equal(drv_admin(d,
                                       (struct cmd){.opcode = 0x7c,
                                                    .prp1 = i == 0 ? bad[j] : page,
                                                    .prp2 = i == 1 ? bad[j] : page},
                                       NULL),
                             2 | DNR);
        }
    }
    use_shadows(d);
    d->shadow = false;
    *(uint32_t *)drv_ptr(d, d->shadows + 8) = 99999; /* a tail that is not one */
    drv_write(d, REG_DB + 8, 1, 4);
    drv_none(d, 1);
    assert_int_equal(drv_csts(d), 1);
    drv_free(d);
}

/* ---- the doorbell page ---- */

static void test_doorbell_page(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){.page = true});
    const struct qv_pci_shared *shared = &qv_pci_identity(d->fn)->bars[0].shared;
    struct cmd flush = {.opcode = 0, .nsid = 1};
    uint32_t *page;
    struct cqe cqe;

    assert_int_equal(shared->offset, 0x1000);
    page =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, shared->fd, (off_t)shared->fd_offset);
    assert_true(page != MAP_FAILED);
    drv_queues(d, 2); /* by register writes, as far as the client makes some */
    for (unsigned i = 0; i < 200; i++) {
        unsigned qid = 1 + i % 2;

        drv_put(d, qid, &flush);
        __atomic_store_n(&page[2 * qid], d->q[qid].tail, __ATOMIC_RELEASE);
        for (int t = 0; t < 50000 && !drv_get(d, qid, &cqe); t++) {
            usleep(20);
        }
        assert_int_equal(cqe.status >> 1, 0);
        assert_int_equal(cqe.sqid, qid);
        __atomic_store_n(&page[2 * qid + 1], d->q[qid].head, __ATOMIC_RELEASE);
        if (i == 100) {
            usleep(20000); /* it sleeps longer and longer */
        }
    }
    /* Nonsense on all doorbells. */
    for (unsigned i = 0; i < 1024; i++) {
        page[i] = i * 2654435761u;
    }
    usleep(5000);
    drv_disable(d);
    assert_int_equal(drv_csts(d), 0);
    munmap(page, 4096);
    drv_free(d);
}

/* ---- guest memory ---- */

static struct qv_guest_map *the_map;

static void memory_done(void *arg)
{
    atomic_store(&((struct drv *)arg)->flag, true);
}

static void change_memory(struct drv *d)
{
    qv_pci_change_memory(d->fn, the_map, NULL, memory_done, d);
}

static void new_memory(struct drv *d, struct qv_guest_map *map)
{
    the_map = map;
    atomic_store(&d->flag, false);
    drv_call(d, change_memory);
}

/* Memory that goes stays mapped until the last request is done with it. */
static void test_memory_changes_under_load(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    struct cmd cmd = drv_rw(d, 2, 1, 0, 8, DRV_BASE + DRV_MEMORY);
    struct qv_guest_map *half;

    assert_true(qv_guest_map_without(d->vm.map, d->vm.specs[1].gpa, d->vm.specs[1].user_addr,
                                     d->vm.specs[1].size, &half, NULL));
    drv_queues(d, 2);
    memset(d->ctl[0].data, 0x5a, 4096);
    atomic_store(&d->ctl[0].hold, true);
    drv_put(d, 1, &cmd);
    drv_ring(d, 1);
    drv_held(d, 0, 1);
    new_memory(d, half);
    drv_meet(d);
    assert_false(atomic_load(&d->flag)); /* a request holds it */
    atomic_store(&d->ctl[0].hold, false);
    drv_release(d, 0);
    drv_wait(&d->flag);
    assert_int_equal(drv_await(d, 1).status >> 1, 0);
    assert_int_equal(*(uint8_t *)drv_ptr(d, DRV_BASE + DRV_MEMORY), 0x5a);
    assert_int_equal(drv_do(d, 1, cmd), 4 | DNR); /* it is gone */
    new_memory(d, d->vm.map);
    drv_wait(&d->flag);
    assert_int_equal(drv_do(d, 1, cmd), 0);
    qv_guest_map_unref(half);
    drv_free(d);
}

/* What a stopped disk keeps does not hold up a change of memory, and runs on afterwards. */
static void test_memory_changes_with_a_stopped_disk(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){.stop_on_error = true});
    struct cmd cmd = drv_rw(d, 1, 1, 0, 8, DRV_BASE);

    drv_queues(d, 1);
    atomic_store(&d->ctl[0].fail, EIO);
    for (unsigned i = 0; i < 3; i++) {
        drv_put(d, 1, &cmd);
    }
    drv_ring(d, 1);
    for (int i = 0; i < 50000 && atomic_load(&d->stopped_err) != EIO; i++) {
        usleep(100);
    }
    new_memory(d, d->vm.map);
    drv_wait(&d->flag);
    drv_none(d, 1);
    atomic_store(&d->ctl[0].fail, 0);
    qv_disk_retry(d->disk[0]);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(drv_await(d, 1).status >> 1, 0);
    }
    drv_none(d, 1);
    drv_free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_add_and_resize),
        cmocka_unit_test(test_remove_with_the_guests_consent),
        cmocka_unit_test(test_remove_from_a_controller_that_is_off),
        cmocka_unit_test(test_remove_force_and_cancel),
        cmocka_unit_test(test_remove_force_of_a_stopped_disk),
        cmocka_unit_test(test_others_do_not_wait),
        cmocka_unit_test(test_add_amid_a_reset),
        cmocka_unit_test(test_all_namespaces),
        cmocka_unit_test(test_shadow_doorbells),
        cmocka_unit_test(test_shadow_doorbells_lose_nothing),
        cmocka_unit_test(test_shadow_heads_lose_nothing),
        cmocka_unit_test(test_bad_shadow_doorbells),
        cmocka_unit_test(test_doorbell_page),
        cmocka_unit_test(test_memory_changes_under_load),
        cmocka_unit_test(test_memory_changes_with_a_stopped_disk),
    };

    qv_log_init("test", QV_LOG_SILENT);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

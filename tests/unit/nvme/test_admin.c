/* SPDX-License-Identifier: Apache-2.0 */
/* Admin commands: every one of them and its errors. NVMe 1.4, 5. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "driver.h"

enum { GET_LOG = 2, IDENTIFY = 6, ABORT = 8, SET = 9, GET = 10, AER = 12 };
#define DNR 0x4000u

static unsigned identify(struct drv *d, unsigned cns, uint32_t nsid)
{
    memset(drv_ptr(d, d->admin_page), 0xee, 4096);
    return drv_admin(
        d, (struct cmd){.opcode = IDENTIFY, .nsid = nsid, .prp1 = d->admin_page, .dw10 = cns},
        NULL);
}

static uint64_t field(struct drv *d, unsigned at, unsigned size)
{
    uint64_t value = 0;

    memcpy(&value, (uint8_t *)drv_ptr(d, d->admin_page) + at, size);
    return value;
}

static void test_identify_controller(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    const char *text = drv_ptr(d, d->admin_page);

    drv_enable(d);
    assert_int_equal(identify(d, 1, 0), 0);
    assert_memory_equal(text + 4, "serial-0123456789   ", 20);
    assert_memory_equal(text + 24, "QuantaVirt NVMe ", 16);
    assert_int_equal(field(d, 77, 1), 9);       /* MDTS */
    assert_int_equal(field(d, 80, 4), 0x10400); /* VER */
    assert_int_equal(field(d, 92, 4), 1 << 8);  /* OAES */
    assert_int_equal(field(d, 256, 2), 1 << 8); /* OACS: Doorbell Buffer Config */
    assert_int_equal(field(d, 259, 1), 3);      /* AERL */
    assert_int_equal(field(d, 512, 1), 0x66);
    assert_int_equal(field(d, 513, 1), 0x44);
    assert_int_equal(field(d, 516, 4), 256); /* NN */
    assert_int_equal(field(d, 520, 2), 0xdd);
    assert_int_equal(field(d, 525, 1), 7); /* VWC */
    assert_int_equal(field(d, 536, 4), 0x50001);
    assert_memory_equal(text + 768, "nqn.2014-08.org.nvmexpress:uuid:", 32);
    assert_int_equal(strlen(text + 768), 68);
    drv_free(d);
}

static void test_write_cache_is_what_the_disk_says(void **state)
{
    for (int through = 0; through < 2; through++) {
        struct drv *d = drv_new(&(struct drv_opts){.writethrough = through});
        uint32_t dw0;

        drv_enable(d);
        assert_int_equal(identify(d, 1, 0), 0);
        assert_int_equal(field(d, 525, 1) & 1, !through);
        assert_int_equal(drv_admin(d, (struct cmd){.opcode = GET, .dw10 = 6}, &dw0),
                         through ? 2 | DNR : 0);
        assert_int_equal(dw0, !through);
        assert_int_equal(drv_admin(d, (struct cmd){.opcode = SET, .dw10 = 6, .dw11 = 0}, NULL),
                         through ? 2 | DNR : 0);
        drv_free(d);
    }
}

/* Linux takes it from there for all namespaces. */
static void test_dataset_management_is_what_the_disk_says(void **state)
{
    for (int off = 0; off < 2; off++) {
        struct drv *d = drv_new(&(struct drv_opts){.no_discard = off});

        drv_enable(d);
        assert_int_equal(identify(d, 1, 0), 0);
        assert_int_equal(field(d, 520, 2), off ? 0xd9 : 0xdd);
        assert_int_equal(identify(d, 0, 1), 0);
        assert_int_equal(field(d, 33, 1), off ? 0 : 9);
        drv_free(d);
    }
}

static void test_identify_namespace(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){.disks = 2});

    drv_enable(d);
    assert_int_equal(identify(d, 0, 1), 0);
    assert_int_equal(field(d, 0, 8), DRV_DISK / 512);
    assert_int_equal(field(d, 8, 8), DRV_DISK / 512);
    assert_int_equal(field(d, 33, 1), 9);   /* DLFEAT */
    assert_int_equal(field(d, 36, 2), 7);   /* NAWUPF: 4 KiB */
    assert_int_equal(field(d, 64, 2), 7);   /* NPWG */
    assert_int_equal(field(d, 68, 2), 127); /* NPDG: 64 KiB */
    assert_int_equal(field(d, 99, 1), 0);   /* NSATTR */
    assert_int_equal(field(d, 128, 4), 9 << 16);
    assert_true(field(d, 104, 8) != 0 && field(d, 120, 8) != 0);
    assert_int_equal(identify(d, 0, 3), 0); /* inactive: zeros */
    for (unsigned i = 0; i < 4096; i += 8) {
        assert_int_equal(field(d, i, 8), 0);
    }
    assert_int_equal(identify(d, 0, 0), 0xb | DNR);
    assert_int_equal(identify(d, 0, 257), 0xb | DNR);
    assert_int_equal(identify(d, 0, UINT32_MAX), 0xb | DNR);
    assert_int_equal(identify(d, 0x11, 2), 0);
    assert_int_equal(field(d, 0, 8), DRV_DISK / 16 / 512);
    drv_free(d);
}

static void test_identify_lists(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){.disks = 4});

    drv_enable(d);
    assert_int_equal(identify(d, 2, 0), 0);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(field(d, 4 * i, 4), i + 1);
    }
    assert_int_equal(field(d, 16, 4), 0);
    assert_int_equal(identify(d, 0x10, 2), 0);
    assert_int_equal(field(d, 0, 4), 3);
    assert_int_equal(field(d, 8, 4), 0);
    assert_int_equal(identify(d, 2, 0xfffffffe), 0xb | DNR);
    /* descriptors: EUI-64, NGUID, UUID */
    assert_int_equal(identify(d, 3, 1), 0);
    assert_int_equal(field(d, 0, 2), 8 << 8 | 1);
    assert_int_equal(field(d, 12, 2), 16 << 8 | 2);
    assert_int_equal(field(d, 32, 2), 16 << 8 | 3);
    assert_int_equal(field(d, 52, 2), 0);
    assert_int_equal(identify(d, 3, 9), 2 | DNR);
    assert_int_equal(identify(d, 3, 0), 0xb | DNR);
    /* controllers: this one */
    assert_int_equal(identify(d, 0x13, 0), 0);
    assert_int_equal(field(d, 0, 4), 1);
    assert_int_equal(identify(d, 0x13 | 1 << 16, 0), 0);
    assert_int_equal(field(d, 0, 4), 0);
    assert_int_equal(identify(d, 0x12, 1), 0);
    assert_int_equal(field(d, 0, 4), 1);
    assert_int_equal(identify(d, 6, 0), 0);
    assert_int_equal(identify(d, 4, 0), 2 | DNR);
    assert_int_equal(identify(d, 0xff, 0), 2 | DNR);
    drv_free(d);
}

/* ---- features ---- */

static unsigned get(struct drv *d, uint32_t dw10, uint32_t dw11, uint32_t *value)
{
    return drv_admin(
        d, (struct cmd){.opcode = GET, .prp1 = d->admin_page, .dw10 = dw10, .dw11 = dw11}, value);
}

static unsigned set(struct drv *d, uint32_t dw10, uint32_t dw11)
{
    return drv_admin(
        d, (struct cmd){.opcode = SET, .prp1 = d->admin_page, .dw10 = dw10, .dw11 = dw11}, NULL);
}

static void test_features_keep_their_values(void **state)
{
    static const struct {
        uint32_t fid, set, get, initial;
    } cases[] = {
        {1, 0x01020307, 0x01020307, 0}, {2, 0x20, 0x20, 0},       {4, 0x160, 0x160, 343},
        {4, 0x100100, 0x100, 343},      {5, 0x1234, 0x1234, 0},   {6, 0, 0, 1},
        {8, 0x0a07, 0x0a07, 0},         {9, 0x10002, 0x10002, 0}, {0xa, 1, 1, 0},
        {0xb, 0xff02, 0x102, 0x100},
    };
    struct drv *d = drv_new(&(struct drv_opts){0});
    uint32_t value;

    drv_enable(d);
    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        uint32_t fid = cases[i].fid, dw11 = fid == 4 || fid == 9 ? cases[i].set : 0;

        assert_int_equal(set(d, fid, cases[i].set), 0);
        assert_int_equal(get(d, fid, dw11, &value), 0);
        assert_int_equal(value, cases[i].get);
        assert_int_equal(get(d, fid | 3 << 8, dw11, &value), 0); /* what can be done with it */
        assert_int_equal(value, 4);
        assert_int_equal(set(d, fid | 1u << 31, cases[i].set), 0x10d | DNR);
        if (fid != 9 && cases[i].set >> 20 == 0) {
            assert_int_equal(get(d, fid | 1 << 8, 0, &value), 0);
            assert_int_equal(value, cases[i].initial);
            assert_int_equal(get(d, fid | 2 << 8, 0, &value), 0);
            assert_int_equal(value, cases[i].initial);
        }
    }
    drv_disable(d);
    drv_enable(d);
    assert_int_equal(get(d, 6, 0, &value), 0);
    assert_int_equal(value, 1); /* defaults again */
    drv_free(d);
}

static void test_features_refused(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    uint32_t value;

    drv_enable(d);
    assert_int_equal(get(d, 0, 0, NULL), 2 | DNR);
    assert_int_equal(get(d, 3, 0, NULL), 2 | DNR);
    assert_int_equal(get(d, 0xc, 0, NULL), 2 | DNR);
    assert_int_equal(get(d, 0x80, 0, NULL), 2 | DNR);
    assert_int_equal(get(d, 1 | 4 << 8, 0, NULL), 2 | DNR);
    assert_int_equal(set(d, 0xc, 0), 2 | DNR);
    assert_int_equal(set(d, 2, 1), 2 | DNR);       /* a power state we have not */
    assert_int_equal(set(d, 4, 1 << 16), 2 | DNR); /* a sensor we have not */
    assert_int_equal(set(d, 5, 1 << 16), 2 | DNR); /* DULBE */
    assert_int_equal(set(d, 9, DRV_QUEUES + 1), 2 | DNR);
    assert_int_equal(get(d, 9, 99, NULL), 2 | DNR);
    assert_int_equal(set(d, 7, 0xffff), 2 | DNR);
    assert_int_equal(drv_admin(d, (struct cmd){.opcode = SET, .nsid = 1, .dw10 = 1}, NULL),
                     0x10f | DNR);
    assert_int_equal(drv_admin(d, (struct cmd){.opcode = SET, .dw10 = 7, .dw11 = 0x70007}, &value),
                     0);
    assert_int_equal(value, (DRV_QUEUES - 1) << 16 | (DRV_QUEUES - 1));
    assert_int_equal(drv_create_cq(d, 1, 8, 1), 0);
    assert_int_equal(set(d, 7, 0x70007), 0xc | DNR); /* too late */
    drv_free(d);
}

static void test_timestamp(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    uint64_t value = UINT64_C(0x0000123456789abc), now;

    drv_enable(d);
    assert_int_equal(get(d, 0xe, 0, NULL), 0);
    assert_int_equal(field(d, 6, 1), 0); /* origin: since the reset */
    memcpy(drv_ptr(d, d->admin_page), &value, 8);
    assert_int_equal(set(d, 0xe, 0), 0);
    assert_int_equal(get(d, 0xe, 0, NULL), 0);
    now = field(d, 0, 6);
    assert_true(now >= value && now < value + 60000);
    assert_int_equal(field(d, 6, 1), 1 << 1);
    drv_free(d);
}

/* Without the cache, writes are durable when they complete; what was cached goes out first. */
static void test_write_cache_off(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){.disks = 2});
    struct cmd cmd = drv_rw(d, 1, 1, 0, 8, drv_alloc(d, 4096));

    drv_queues(d, 1);
    assert_int_equal(set(d, 6, 0), 0);
    assert_int_equal(atomic_load(&d->ctl[0].ops[QV_OP_FLUSH]), 1);
    assert_int_equal(atomic_load(&d->ctl[1].ops[QV_OP_FLUSH]), 1);
    assert_int_equal(drv_do(d, 1, cmd), 0);
    assert_int_equal(atomic_load(&d->ctl[0].flags[QV_OP_WRITE]), QV_IO_FUA);
    assert_int_equal(set(d, 6, 1), 0);
    assert_int_equal(drv_do(d, 1, cmd), 0);
    assert_int_equal(atomic_load(&d->ctl[0].flags[QV_OP_WRITE]), 0);
    drv_free(d);
}

static void test_interrupt_coalescing(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    struct cmd flush = {.opcode = 0, .nsid = 1};
    unsigned was;

    drv_queues(d, 2);
    assert_int_equal(set(d, 8, 0xff00 | 3), 0);  /* 4 completions, or 25 ms */
    assert_int_equal(set(d, 9, 1 << 16 | 2), 0); /* not on vector 2 */
    was = atomic_load(&d->irq[1].count);
    for (unsigned i = 0; i < 41; i++) {
        assert_int_equal(drv_do(d, 1, flush), 0);
    }
    drv_meet(d);
    /* Ten or so; one for each only if all of them took longer than the time. */
    assert_true(atomic_load(&d->irq[1].count) < was + 41);
    was = atomic_load(&d->irq[1].count);
    assert_int_equal(drv_do(d, 1, flush), 0);
    for (int i = 0; i < 50000 && atomic_load(&d->irq[1].count) == was; i++) {
        usleep(100);
    }
    assert_true(atomic_load(&d->irq[1].count) > was); /* told after the time */
    was = atomic_load(&d->irq[2].count);
    assert_int_equal(drv_do(d, 2, flush), 0);
    drv_meet(d);
    assert_int_equal(atomic_load(&d->irq[2].count), was + 1);
    drv_free(d);
}

/* ---- log pages ---- */

static unsigned get_log(struct drv *d, unsigned lid, uint32_t nsid, uint32_t len, uint64_t offset)
{
    uint32_t numd = len / 4 - 1;

    memset(drv_ptr(d, d->admin_page), 0xee, 4096);
    return drv_admin(d,
                     (struct cmd){.opcode = GET_LOG,
                                  .nsid = nsid,
                                  .prp1 = d->admin_page,
                                  .dw10 = lid | numd << 16,
                                  .dw11 = numd >> 16,
                                  .dw12 = (uint32_t)offset,
                                  .dw13 = (uint32_t)(offset >> 32)},
                     NULL);
}

static void test_log_pages(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});

    drv_queues(d, 1);
    assert_int_equal(drv_do(d, 1, drv_rw(d, 2, 1, 0, 2048, drv_alloc(d, 1 << 20))), 0);
    assert_int_equal(get_log(d, 2, UINT32_MAX, 512, 0), 0);
    assert_int_equal(field(d, 0, 1), 0);
    assert_int_equal(field(d, 1, 2), 308);
    assert_int_equal(field(d, 3, 1), 100);
    assert_int_equal(field(d, 32, 8), 3); /* units of 512,000 bytes, rounded up */
    assert_int_equal(field(d, 64, 8), 1);
    assert_int_equal(field(d, 112, 8), 1);
    assert_int_equal(field(d, 512, 1), 0xee); /* no more than asked for */
    assert_int_equal(get_log(d, 2, 1, 512, 0), 2 | DNR);
    assert_int_equal(get_log(d, 3, 0, 512, 0), 0);
    assert_int_equal(field(d, 0, 1), 1);
    assert_true(field(d, 8, 1) != ' ');
    assert_int_equal(get_log(d, 5, 0, 4096, 0), 0);
    assert_int_equal(field(d, 4 * 6, 4), 1);        /* Identify */
    assert_int_equal(field(d, 4 * 0x80, 4), 0);     /* Format NVM: not there */
    assert_int_equal(field(d, 1024 + 4 * 1, 4), 3); /* Write changes data */
    assert_int_equal(get_log(d, 5, 0, 8, 1024), 0); /* from an offset */
    assert_int_equal(field(d, 4, 4), 3);
    assert_int_equal(get_log(d, 5, 0, 8, 4096), 0);
    assert_int_equal(field(d, 0, 4), 0); /* the end */
    assert_int_equal(get_log(d, 5, 0, 8, 4100), 2 | DNR);
    assert_int_equal(get_log(d, 5, 0, 8, 2), 2 | DNR);
    assert_int_equal(get_log(d, 2, 0, 512, UINT64_C(1) << 40), 2 | DNR);
    assert_int_equal(get_log(d, 5, 0, 4u << 20, 0), 2 | DNR);
    assert_int_equal(get_log(d, 0, 0, 4, 0), 0x109 | DNR);
    assert_int_equal(get_log(d, 6, 0, 4, 0), 0x109 | DNR);
    assert_int_equal(get_log(d, 0xc0, 0, 4, 0), 0x109 | DNR);
    drv_free(d);
}

static void test_error_log(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    struct cmd bad = drv_rw(d, 2, 1, DRV_DISK, 8, drv_alloc(d, 4096));
    uint64_t count;

    drv_queues(d, 1);
    assert_int_equal(drv_do(d, 1, bad), 0x80 | DNR);
    assert_int_equal(get_log(d, 1, 0, 128, 0), 0);
    count = field(d, 0, 8);
    assert_true(count >= 1);
    assert_int_equal(field(d, 8, 2), 1);
    assert_int_equal(field(d, 10, 2), d->next_cid - 1);
    assert_int_equal(field(d, 12, 2), (0x80 | DNR) << 1);
    assert_int_equal(field(d, 16, 8), DRV_DISK);
    assert_int_equal(field(d, 24, 4), 1);
    for (unsigned i = 0; i < 100; i++) {
        assert_int_equal(drv_do(d, 1, bad), 0x80 | DNR);
    }
    assert_int_equal(get_log(d, 1, 0, 4096, 0), 0);
    assert_int_equal(field(d, 0, 8), count + 100);
    assert_int_equal(field(d, 64 * 63, 8), count + 37);
    drv_free(d);
}

/* ---- queues ---- */

static unsigned create(struct drv *d, uint8_t opcode, uint32_t dw10, uint32_t dw11, uint64_t prp)
{
    return drv_admin(d, (struct cmd){.opcode = opcode, .prp1 = prp, .dw10 = dw10, .dw11 = dw11},
                     NULL);
}

static void test_create_and_delete_queues(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    uint64_t ring = drv_alloc(d, 65536);

    drv_enable(d);
    /* completion queues */
    assert_int_equal(create(d, 5, 15 << 16 | 0, 3, ring), 0x101 | DNR);
    assert_int_equal(create(d, 5, 15 << 16 | (DRV_QUEUES + 1), 3, ring), 0x101 | DNR);
    assert_int_equal(create(d, 5, 0 << 16 | 1, 3, ring), 0x102 | DNR);
    assert_int_equal(create(d, 5, 1024u << 16 | 1, 3, ring), 0x102 | DNR);
    assert_int_equal(create(d, 5, 15 << 16 | 1, 2, ring), 2 | DNR); /* not contiguous */
    assert_int_equal(create(d, 5, 15 << 16 | 1, 3, ring + 64), 0x13 | DNR);
    assert_int_equal(create(d, 5, 15 << 16 | 1, (DRV_QUEUES + 1) << 16 | 3, ring), 0x108 | DNR);
    assert_int_equal(create(d, 5, 15 << 16 | 1, 1 << 16 | 3, ring), 0);
    assert_int_equal(create(d, 5, 15 << 16 | 1, 1 << 16 | 3, ring), 0x101 | DNR); /* exists */
    /* submission queues */
    assert_int_equal(create(d, 1, 15 << 16 | 1, 0 << 16 | 1, ring), 0x100 | DNR);
    assert_int_equal(create(d, 1, 15 << 16 | 1, 2 << 16 | 1, ring), 0x100 | DNR);
    assert_int_equal(create(d, 1, 15 << 16 | 1, 99 << 16 | 1, ring), 0x100 | DNR);
    assert_int_equal(create(d, 1, 15 << 16 | 0, 1 << 16 | 1, ring), 0x101 | DNR);
    assert_int_equal(create(d, 1, 15 << 16 | 9, 1 << 16 | 1, ring), 0x101 | DNR);
    assert_int_equal(create(d, 1, 0 << 16 | 1, 1 << 16 | 1, ring), 0x102 | DNR);
    assert_int_equal(create(d, 1, 1024u << 16 | 1, 1 << 16 | 1, ring), 0x102 | DNR);
    assert_int_equal(create(d, 1, 15 << 16 | 1, 1 << 16, ring), 2 | DNR);
    assert_int_equal(create(d, 1, 15 << 16 | 1, 1 << 16 | 1, ring + 8), 0x13 | DNR);
    assert_int_equal(create(d, 1, 15 << 16 | 1, 1 << 16 | 1, ring + 4096), 0);
    assert_int_equal(create(d, 1, 15 << 16 | 1, 1 << 16 | 1, ring + 4096), 0x101 | DNR);
    /* deletion */
    assert_int_equal(create(d, 4, 1, 0, 0), 0x10c | DNR); /* in use */
    assert_int_equal(create(d, 4, 0, 0, 0), 0x101 | DNR);
    assert_int_equal(create(d, 4, 2, 0, 0), 0x101 | DNR);
    assert_int_equal(create(d, 0, 0, 0, 0), 0x101 | DNR);
    assert_int_equal(create(d, 0, 2, 0, 0), 0x101 | DNR);
    assert_int_equal(create(d, 0, 1, 0, 0), 0);
    assert_int_equal(create(d, 0, 1, 0, 0), 0x101 | DNR);
    assert_int_equal(create(d, 4, 1, 0, 0), 0);
    assert_int_equal(create(d, 4, 1, 0, 0), 0x101 | DNR);
    drv_free(d);
}

#ifndef __has_feature
#define __has_feature(x) 0
#endif

/* Rings that share memory with each other, or with the data, are the guest's own problem. (The
 * thread sanitizer would report it: it gets one thread.) */
static void test_overlapping_queues(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){.shared_thread = __has_feature(thread_sanitizer)});

    drv_enable(d);
    for (unsigned i = 1; i <= 2; i++) {
        assert_int_equal(create(d, 5, 31 << 16 | i, i << 16 | 3, d->q[0].sq), 0);
        assert_int_equal(create(d, 1, 31 << 16 | i, i << 16 | 1, d->q[0].sq), 0);
    }
    for (unsigned i = 0; i < 100; i++) {
        drv_write(d, REG_DB + 8, i * 7 % 32, 4);
        drv_write(d, REG_DB + 16, i * 5 % 32, 4);
        drv_write(d, REG_DB, i * 3 % DRV_ENTRIES, 4);
        drv_write(d, REG_DB + 12, i % 32, 4);
    }
    drv_disable(d);
    drv_queues(d, 1);
    assert_int_equal(drv_do(d, 1, (struct cmd){.opcode = 0, .nsid = 1}), 0);
    drv_free(d);
}

static void test_refused_admin_commands(void **state)
{
    /* Firmware, Format, Security, Sanitize, Namespace Management, Keep Alive, Self-test, ... */
    static const uint8_t opcodes[] = {0x03, 0x07, 0x0b, 0x0d, 0x10, 0x11, 0x14, 0x15, 0x18,
                                      0x19, 0x1a, 0x1c, 0x1d, 0x80, 0x81, 0x82, 0x84, 0xff};
    struct drv *d = drv_new(&(struct drv_opts){0});

    drv_enable(d);
    for (unsigned i = 0; i < G_N_ELEMENTS(opcodes); i++) {
        assert_int_equal(drv_admin(d, (struct cmd){.opcode = opcodes[i], .nsid = 1}, NULL),
                         1 | DNR);
    }
    /* SGLs and fused operations are not for admin commands */
    assert_int_equal(
        drv_admin(
            d, (struct cmd){.opcode = IDENTIFY, .flags = 1 << 6, .prp1 = d->admin_page, .dw10 = 1},
            NULL),
        2 | DNR);
    assert_int_equal(drv_admin(d, (struct cmd){.opcode = GET, .flags = 2, .dw10 = 7}, NULL),
                     2 | DNR);
    assert_int_equal(
        drv_admin(d, (struct cmd){.opcode = IDENTIFY, .prp1 = 0x1000, .dw10 = 1}, NULL), 4 | DNR);
    assert_int_equal(
        drv_admin(d, (struct cmd){.opcode = IDENTIFY, .prp1 = d->admin_page + 3, .dw10 = 1}, NULL),
        0x13 | DNR);
    drv_free(d);
}

/* ---- asynchronous events ---- */

static uint16_t send_aer(struct drv *d)
{
    struct cmd cmd = {.opcode = AER};
    uint16_t cid = drv_put(d, 0, &cmd);

    drv_ring(d, 0);
    drv_meet(d);
    return cid;
}

static void test_aer_limit_and_abort(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    uint16_t cid[4];
    uint32_t dw0;
    struct cmd cmd = {.opcode = ABORT};
    struct cqe a, b;

    drv_enable(d);
    for (unsigned i = 0; i < 4; i++) {
        cid[i] = send_aer(d);
    }
    drv_none(d, 0);
    assert_int_equal(drv_admin(d, (struct cmd){.opcode = AER}, NULL), 0x105 | DNR);
    cmd.dw10 = (uint32_t)cid[2] << 16;
    drv_put(d, 0, &cmd);
    drv_ring(d, 0);
    a = drv_await(d, 0);
    b = drv_await(d, 0);
    assert_int_equal(a.cid, cid[2]);
    assert_int_equal(a.status >> 1, 7 | DNR);
    assert_int_equal(b.status >> 1, 0);
    assert_int_equal(b.dw0, 0);
    assert_int_equal(drv_admin(d, cmd, &dw0), 0);
    assert_int_equal(dw0, 1); /* gone by now */
    cmd.dw10 = 7 << 16 | 3;   /* a queue that is not there */
    assert_int_equal(drv_admin(d, cmd, &dw0), 0);
    assert_int_equal(dw0, 1);
    drv_disable(d); /* the others vanish without a word */
    drv_none(d, 0);
    drv_free(d);
}

static void test_temperature_event(void **state)
{
    struct drv *d = drv_new(&(struct drv_opts){0});
    uint16_t cid;
    struct cqe cqe[2];

    drv_enable(d);
    cid = send_aer(d);
    assert_int_equal(set(d, 0xb, 0x102), 0);
    {
        struct cmd cmd = {.opcode = SET, .dw10 = 4, .dw11 = 300}; /* below what we claim to be */

        drv_put(d, 0, &cmd);
        drv_ring(d, 0);
        cqe[0] = drv_await(d, 0);
        cqe[1] = drv_await(d, 0);
    }
    assert_int_equal(cqe[0].cid, cid);
    assert_int_equal(cqe[0].dw0, 2 << 16 | 1 << 8 | 1);
    assert_int_equal(cqe[1].status >> 1, 0);
    assert_int_equal(get_log(d, 2, 0, 512, 0), 0);
    assert_int_equal(field(d, 0, 1), 2);
    drv_free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_identify_controller),
        cmocka_unit_test(test_write_cache_is_what_the_disk_says),
        cmocka_unit_test(test_dataset_management_is_what_the_disk_says),
        cmocka_unit_test(test_identify_namespace),
        cmocka_unit_test(test_identify_lists),
        cmocka_unit_test(test_features_keep_their_values),
        cmocka_unit_test(test_features_refused),
        cmocka_unit_test(test_timestamp),
        cmocka_unit_test(test_write_cache_off),
        cmocka_unit_test(test_interrupt_coalescing),
        cmocka_unit_test(test_log_pages),
        cmocka_unit_test(test_error_log),
        cmocka_unit_test(test_create_and_delete_queues),
        cmocka_unit_test(test_overlapping_queues),
        cmocka_unit_test(test_refused_admin_commands),
        cmocka_unit_test(test_aer_limit_and_abort),
        cmocka_unit_test(test_temperature_event),
    };

    qv_log_init("test", QV_LOG_SILENT);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

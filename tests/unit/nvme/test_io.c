/* SPDX-License-Identifier: Apache-2.0 */
/* NVM commands: every one of them, its data pointers, its errors. NVMe 1.4, 4.3, 4.4, 6. */
#include "opcodes.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/log.h"
#include "driver.h"

static void fill(void *to, size_t len, unsigned seed)
{
    uint32_t *words = to;

    for (size_t i = 0; i < len / 4; i++) {
        seed = seed * 1664525u + 1013904223u;
        words[i] = seed;
    }
}

/* Writes and reads back @blocks at @lba, from and to memory @off bytes into a page. */
static void round_trip(struct drv *d, unsigned qid, uint64_t lba, uint32_t blocks, unsigned off)
{
    unsigned size = d->opts.block_size == 4096 ? 4096 : 512;
    uint64_t len = (uint64_t)blocks * size, a = drv_alloc(d, len + 4096) + off;
    uint64_t b = drv_alloc(d, len + 4096) + off;

    fill(drv_ptr(d, a), len, (unsigned)lba + blocks);
    assert_int_equal(drv_do(d, qid, drv_rw(d, WRITE, 1, lba, blocks, a)), 0);
    assert_memory_equal(d->ctl[0].data + lba * size, drv_ptr(d, a), len);
    assert_int_equal(drv_do(d, qid, drv_rw(d, READ, 1, lba, blocks, b)), 0);
    assert_memory_equal(drv_ptr(d, a), drv_ptr(d, b), len);
    assert_int_equal(drv_do(d, qid, drv_rw(d, COMPARE, 1, lba, blocks, a)), 0);
    assert_int_equal(drv_do(d, qid, drv_rw(d, VERIFY, 1, lba, blocks, 0)), 0);
}

static void test_read_write_compare(void **state)
{
    struct drv *d = drv_started(&(struct drv_opts){0});

    round_trip(d, 1, 0, 1, 0);
    round_trip(d, 2, 1, 8, 0);
    round_trip(d, 1, 77, 8, 512);      /* two pages */
    round_trip(d, 2, 1000, 16, 4);     /* three: a list */
    round_trip(d, 1, 3000, 1024, 0);   /* 512 KiB */
    round_trip(d, 2, 5000, 4096, 0);   /* 2 MiB: all that MDTS allows, and a list of a full page */
    round_trip(d, 1, 10000, 4096, 12); /* and a list of two pages */
    drv_free(d);
}

static void test_read_write_4k_blocks(void **state)
{
    struct drv *d = drv_started(&(struct drv_opts){.block_size = 4096});

    round_trip(d, 1, 0, 1, 0);
    round_trip(d, 1, DRV_DISK / 4096 - 1, 1, 0);
    round_trip(d, 1, 5, 512, 0);
    assert_int_equal(drv_do(d, 1, drv_rw(d, READ, 1, DRV_DISK / 4096, 1, DRV_BASE)), 0x80 | DNR);
    assert_int_equal(drv_do(d, 1, drv_rw(d, READ, 1, 0, 513, DRV_BASE)), 2 | DNR);
    drv_free(d);
}

/* Scattered pages, more than fit into a request, in both regions of guest memory. */
static void test_scattered_pages(void **state)
{
    struct drv *d = drv_started(&(struct drv_opts){0});
    struct cmd cmd = drv_rw(d, WRITE, 1, 0, 8 * 200, DRV_BASE);
    uint64_t area = DRV_BASE + DRV_MEMORY / 2, *list = drv_ptr(d, cmd.prp2);

    cmd.prp1 = area;
    for (unsigned i = 0; i < 199; i++) {
        list[i] = area + 4096 * ((i * 7 + 3) % 200 + 1) * 16; /* 16 pages apart */
    }
    fill(drv_ptr(d, area), 4096 * 201 * 16 + 4096, 5);
    assert_int_equal(drv_do(d, 1, cmd), 0);
    for (unsigned i = 0; i < 200; i++) {
        assert_memory_equal(d->ctl[0].data + 4096 * i, drv_ptr(d, i == 0 ? area : list[i - 1]),
                            4096);
    }
    drv_free(d);
}

/* A page across the border of two regions that are mapped apart. */
static void test_buffer_across_regions(void **state)
{
    struct drv *d = drv_started(&(struct drv_opts){0});
    uint64_t at = DRV_BASE + DRV_MEMORY - 4096;

    fill(drv_ptr(d, at), 8192, 9);
    assert_int_equal(drv_do(d, 1, drv_rw(d, WRITE, 1, 40, 16, at)), 0);
    assert_memory_equal(d->ctl[0].data + 40 * 512, drv_ptr(d, at), 8192);
    drv_free(d);
}

static void test_bad_prps(void **state)
{
    struct drv *d = drv_started(&(struct drv_opts){0});
    uint64_t page = drv_alloc(d, 4096);
    struct cmd one = drv_rw(d, READ, 1, 0, 8, page), two = drv_rw(d, READ, 1, 0, 16, page);
    struct cmd many = drv_rw(d, WRITE, 1, 0, 64, page), cmd;
    uint64_t *list = drv_ptr(d, many.prp2);

    cmd = one, cmd.prp1 = 0x1000;
    assert_int_equal(drv_do(d, 1, cmd), 4 | DNR); /* no memory */
    cmd = one, cmd.prp1 = UINT64_MAX - 4095;
    assert_int_equal(drv_do(d, 1, cmd), 4 | DNR);
    cmd = one, cmd.prp1 = page + 1;
    assert_int_equal(drv_do(d, 1, cmd), 0x13 | DNR); /* offset */
    cmd = two, cmd.prp2 = page + 512;
    assert_int_equal(drv_do(d, 1, cmd), 0x13 | DNR);
    cmd = two, cmd.prp2 = 0;
    assert_int_equal(drv_do(d, 1, cmd), 4 | DNR);
    cmd = many, cmd.prp2 = many.prp2 + 4;
    assert_int_equal(drv_do(d, 1, cmd), 0x13 | DNR);
    cmd = many, cmd.prp2 = 0x1000;
    assert_int_equal(drv_do(d, 1, cmd), 4 | DNR);
    list[3] = page + 8;
    assert_int_equal(drv_do(d, 1, many), 0x13 | DNR);
    list[3] = 0x5000;
    assert_int_equal(drv_do(d, 1, many), 4 | DNR);
    /* a list that begins at the end of a page: its last entry points on, to nowhere */
    cmd = many, cmd.prp2 = page + 4088;
    *(uint64_t *)drv_ptr(d, page + 4088) = 0x10;
    assert_int_equal(drv_do(d, 1, cmd), 0x13 | DNR);
    *(uint64_t *)drv_ptr(d, page + 4088) = many.prp2;
    list[3] = page;
    assert_int_equal(drv_do(d, 1, cmd), 0); /* and to somewhere */
    assert_int_equal(drv_do(d, 1, one), 0);
    drv_free(d);
}

/* ---- SGLs ---- */

struct sgl {
    uint64_t at;
    uint32_t len;
    uint8_t reserved[3], type;
};

static void set_sgl(struct cmd *cmd, uint64_t at, uint32_t len, uint8_t type)
{
    struct sgl sgl = {.at = at, .len = len, .type = type};

    cmd->flags = 1 << 6;
    memcpy(&cmd->prp1, &sgl, sizeof(sgl));
}

static void test_sgl_one_block(void **state)
{
    struct drv *d = drv_started(&(struct drv_opts){0});
    uint64_t at = drv_alloc(d, 65536);
    struct cmd cmd = drv_rw(d, WRITE, 1, 3, 100, at);

    fill(drv_ptr(d, at), 65536, 3);
    set_sgl(&cmd, at + 3, 51200, 0); /* any alignment */
    assert_int_equal(drv_do(d, 1, cmd), 0);
    assert_memory_equal(d->ctl[0].data + 3 * 512, drv_ptr(d, at + 3), 51200);
    set_sgl(&cmd, at, 51201, 0); /* more than needed is allowed */
    assert_int_equal(drv_do(d, 1, cmd), 0);
    set_sgl(&cmd, at, 51199, 0);
    assert_int_equal(drv_do(d, 1, cmd), 0xf | DNR);
    set_sgl(&cmd, 0x1000, 51200, 0);
    assert_int_equal(drv_do(d, 1, cmd), 4 | DNR);
    set_sgl(&cmd, at, 51200, 1); /* sub type: an offset */
    assert_int_equal(drv_do(d, 1, cmd), 0x11 | DNR);
    set_sgl(&cmd, at, 51200, 0x40); /* keyed */
    assert_int_equal(drv_do(d, 1, cmd), 0x11 | DNR);
    cmd.flags = 3 << 6;
    assert_int_equal(drv_do(d, 1, cmd), 2 | DNR);
    drv_free(d);
}

static void test_sgl_segments(void **state)
{
    struct drv *d = drv_started(&(struct drv_opts){0});
    uint64_t at = drv_alloc(d, 65536), table = drv_alloc(d, 8192);
    struct sgl *s = drv_ptr(d, table);
    struct cmd cmd = drv_rw(d, READ, 1, 0, 8, at);

    fill(d->ctl[0].data, 4096, 8);
    s[0] = (struct sgl){at, 1000, {0}, 0x00};
    s[1] = (struct sgl){0, 500, {0}, 0x10}; /* bit bucket */
    s[2] = (struct sgl){table + 256, 48, {0}, 0x20};
    s[16] = (struct sgl){at + 2000, 500, {0}, 0x00};
    s[17] = (struct sgl){at, 0, {0}, 0x00};
    s[18] = (struct sgl){table + 4096, 16, {0}, 0x30};
    s[256] = (struct sgl){at + 4000, 2096, {0}, 0x00};
    set_sgl(&cmd, table, 48, 0x20);
    assert_int_equal(drv_do(d, 1, cmd), 0);
    assert_memory_equal(drv_ptr(d, at), d->ctl[0].data, 1000);
    assert_memory_equal(drv_ptr(d, at + 2000), d->ctl[0].data + 1500, 500);
    assert_memory_equal(drv_ptr(d, at + 4000), d->ctl[0].data + 2000, 2096);
    /* a segment behind the last one */
    s[256] = (struct sgl){table, 16, {0}, 0x30};
    assert_int_equal(drv_do(d, 1, cmd), 0xd | DNR);
    /* a segment descriptor that is not the last of its segment */
    s[17] = (struct sgl){table, 16, {0}, 0x20};
    assert_int_equal(drv_do(d, 1, cmd), 0xd | DNR);
    /* too short, a wrong length, no memory */
    s[17] = s[16];
    s[256] = (struct sgl){at + 4000, 96, {0}, 0x00};
    assert_int_equal(drv_do(d, 1, cmd), 0xf | DNR);
    set_sgl(&cmd, table, 47, 0x20);
    assert_int_equal(drv_do(d, 1, cmd), 0xd | DNR);
    set_sgl(&cmd, 0x1000, 48, 0x30);
    assert_int_equal(drv_do(d, 1, cmd), 4 | DNR);
    drv_free(d);
}

/* A list without end costs a bounded time. */
static void test_sgl_endless(void **state)
{
    struct drv *d = drv_started(&(struct drv_opts){0});
    uint64_t table = drv_alloc(d, 4096);
    struct sgl *s = drv_ptr(d, table);
    struct cmd cmd = drv_rw(d, READ, 1, 0, 8, table);

    s[0] = (struct sgl){table, 0, {0}, 0x00};
    s[1] = (struct sgl){table, 32, {0}, 0x20};
    set_sgl(&cmd, table, 32, 0x20);
    assert_int_equal(drv_do(d, 1, cmd), 0xe | DNR);
    drv_free(d);
}

/* ---- the other commands ---- */

static void test_flush(void **state)
{
    struct drv *d = drv_started(&(struct drv_opts){.disks = 3});

    assert_int_equal(drv_do(d, 1, (struct cmd){.opcode = FLUSH, .nsid = 2}), 0);
    assert_int_equal(atomic_load(&d->ctl[0].ops[QV_OP_FLUSH]), 0);
    assert_int_equal(atomic_load(&d->ctl[1].ops[QV_OP_FLUSH]), 1);
    assert_int_equal(drv_do(d, 1, (struct cmd){.opcode = FLUSH, .nsid = UINT32_MAX}), 0);
    assert_int_equal(atomic_load(&d->ctl[0].ops[QV_OP_FLUSH]), 1);
    assert_int_equal(atomic_load(&d->ctl[1].ops[QV_OP_FLUSH]), 2);
    assert_int_equal(atomic_load(&d->ctl[2].ops[QV_OP_FLUSH]), 1);
    drv_free(d);
}

static void test_fua(void **state)
{
    struct drv *d = drv_started(&(struct drv_opts){0});
    struct cmd cmd = drv_rw(d, WRITE, 1, 0, 8, drv_alloc(d, 4096));

    assert_int_equal(drv_do(d, 1, cmd), 0);
    assert_int_equal(atomic_load(&d->ctl[0].flags[QV_OP_WRITE]) & QV_IO_FUA, 0);
    cmd.dw12 |= FUA;
    assert_int_equal(drv_do(d, 1, cmd), 0);
    assert_int_equal(atomic_load(&d->ctl[0].flags[QV_OP_WRITE]) & QV_IO_FUA, QV_IO_FUA);
    /* a read with FUA: what is cached goes to the medium first */
    cmd.opcode = READ;
    assert_int_equal(atomic_load(&d->ctl[0].ops[QV_OP_FLUSH]), 0);
    assert_int_equal(drv_do(d, 1, cmd), 0);
    assert_int_equal(atomic_load(&d->ctl[0].ops[QV_OP_FLUSH]), 1);
    drv_free(d);
}

static void test_write_zeroes(void **state)
{
    struct drv *d = drv_started(&(struct drv_opts){0});
    struct cmd cmd = drv_rw(d, ZEROES, 1, 8, 8, 0);

    memset(d->ctl[0].data, 1, 12288);
    assert_int_equal(drv_do(d, 1, cmd), 0);
    assert_int_equal(d->ctl[0].data[4095], 1);
    assert_int_equal(d->ctl[0].data[4096], 0);
    assert_int_equal(d->ctl[0].data[8191], 0);
    assert_int_equal(d->ctl[0].data[8192], 1);
    assert_int_equal(atomic_load(&d->ctl[0].flags[QV_OP_ZERO]) & QV_IO_MAY_UNMAP, 0);
    cmd.dw12 |= 1 << 25 | FUA; /* DEAC */
    assert_int_equal(drv_do(d, 1, cmd), 0);
    assert_int_equal(atomic_load(&d->ctl[0].flags[QV_OP_ZERO]), QV_IO_MAY_UNMAP | QV_IO_FUA);
    cmd = drv_rw(d, ZEROES, 1, 0, 65536, 0); /* all that its field can say */
    assert_int_equal(drv_do(d, 1, cmd), 0);
    cmd.dw10 = DRV_DISK / 512 - 65535;
    assert_int_equal(drv_do(d, 1, cmd), 0x80 | DNR);
    drv_free(d);
}

struct range {
    uint32_t attributes, blocks;
    uint64_t lba;
};

static void test_dataset_management(void **state)
{
    struct drv *d = drv_started(&(struct drv_opts){0});
    uint64_t page = drv_alloc(d, 4096);
    struct range *r = drv_ptr(d, page);
    struct cmd cmd = {.opcode = DSM, .nsid = 1, .prp1 = page, .dw10 = 2, .dw11 = 4};

    memset(d->ctl[0].data, 1, 65536);
    r[0] = (struct range){0, 8, 8};
    r[1] = (struct range){0, 0, 3}; /* empty */
    r[2] = (struct range){0, 1, 100};
    assert_int_equal(drv_do(d, 1, cmd), 0);
    assert_int_equal(atomic_load(&d->ctl[0].ops[QV_OP_DISCARD]), 2);
    assert_int_equal(d->ctl[0].data[4096], 0);
    assert_int_equal(d->ctl[0].data[8192], 1);
    assert_int_equal(d->ctl[0].data[51200], 0);
    cmd.dw11 = 3; /* hints only */
    assert_int_equal(drv_do(d, 1, cmd), 0);
    assert_int_equal(atomic_load(&d->ctl[0].ops[QV_OP_DISCARD]), 2);
    /* one bad range: nothing is done */
    cmd.dw11 = 4;
    r[2].lba = DRV_DISK / 512;
    assert_int_equal(drv_do(d, 1, cmd), 0x80 | DNR);
    r[2] = (struct range){0, UINT32_MAX, UINT64_MAX};
    assert_int_equal(drv_do(d, 1, cmd), 0x80 | DNR);
    assert_int_equal(atomic_load(&d->ctl[0].ops[QV_OP_DISCARD]), 2);
    /* 256 ranges are the most: a page */
    for (unsigned i = 0; i < 256; i++) {
        r[i] = (struct range){0, 1, 2 * i};
    }
    cmd.dw10 = 255;
    assert_int_equal(drv_do(d, 1, cmd), 0);
    assert_int_equal(atomic_load(&d->ctl[0].ops[QV_OP_DISCARD]), 258);
    cmd.prp1 = 0;
    assert_int_equal(drv_do(d, 1, cmd), 4 | DNR);
    drv_free(d);
}

static void test_discard_is_refused_quietly_where_it_is_off(void **state)
{
    struct drv *d = drv_started(&(struct drv_opts){.no_discard = true});
    uint64_t page = drv_alloc(d, 4096);

    *(struct range *)drv_ptr(d, page) = (struct range){0, 8, 0};
    assert_int_equal(drv_do(d, 1, (struct cmd){.opcode = DSM, .nsid = 1, .prp1 = page, .dw11 = 4}),
                     0);
    assert_int_equal(atomic_load(&d->ctl[0].ops[QV_OP_DISCARD]), 0);
    drv_free(d);
}

static void test_compare_finds_one_byte(void **state)
{
    struct drv *d = drv_started(&(struct drv_opts){0});
    uint64_t at = drv_alloc(d, 1 << 20);
    struct cmd cmd = drv_rw(d, COMPARE, 1, 0, 2048, at);

    fill(drv_ptr(d, at), 1 << 20, 1);
    memcpy(d->ctl[0].data, drv_ptr(d, at), 1 << 20);
    assert_int_equal(drv_do(d, 1, cmd), 0);
    d->ctl[0].data[(1 << 20) - 1] ^= 1;
    assert_int_equal(drv_do(d, 1, cmd), 0x285 | DNR);
    d->ctl[0].data[(1 << 20) - 1] ^= 1;
    *(uint8_t *)drv_ptr(d, at) ^= 1;
    assert_int_equal(drv_do(d, 1, cmd), 0x285 | DNR);
    drv_free(d);
}

/* More compares and verifies than there are buffers for them. */
static void test_many_compares(void **state)
{
    struct drv *d = drv_started(&(struct drv_opts){0});
    uint64_t at = drv_alloc(d, 1 << 20);
    struct cqe cqe;

    atomic_store(&d->ctl[0].hold, true);
    for (unsigned i = 0; i < 60; i++) {
        struct cmd cmd = drv_rw(d, i % 2 ? COMPARE : VERIFY, 1, 0, 1024, at);

        drv_put(d, 1, &cmd);
    }
    drv_ring(d, 1);
    drv_held(d, 0, 16); /* as many as there are buffers */
    drv_meet(d);
    atomic_store(&d->ctl[0].hold, false);
    drv_release(d, 0);
    for (unsigned i = 0; i < 60; i++) {
        cqe = drv_await(d, 1);
        assert_int_equal(cqe.status >> 1, 0);
    }
    drv_free(d);
}

static void test_refused_commands(void **state)
{
    static const uint8_t opcodes[] = {0x04, 0x0d, 0x0e, 0x11, 0x15, 0x7f, 0x80, 0xff};
    struct drv *d = drv_started(&(struct drv_opts){0});
    struct cmd cmd = drv_rw(d, READ, 1, 0, 8, drv_alloc(d, 4096)), c;

    for (unsigned i = 0; i < G_N_ELEMENTS(opcodes); i++) {
        c = cmd, c.opcode = opcodes[i];
        assert_int_equal(drv_do(d, 1, c), 1 | DNR);
    }
    c = cmd, c.nsid = 0;
    assert_int_equal(drv_do(d, 1, c), 0xb | DNR);
    c = cmd, c.nsid = 257;
    assert_int_equal(drv_do(d, 1, c), 0xb | DNR);
    c = cmd, c.nsid = UINT32_MAX;
    assert_int_equal(drv_do(d, 1, c), 0xb | DNR);
    c = cmd, c.nsid = 2; /* inactive */
    assert_int_equal(drv_do(d, 1, c), 2 | DNR);
    c = cmd, c.flags = 1; /* fused */
    assert_int_equal(drv_do(d, 1, c), 2 | DNR);
    c = cmd, c.dw10 = DRV_DISK / 512 - 7;
    assert_int_equal(drv_do(d, 1, c), 0x80 | DNR);
    c = cmd, c.dw11 = UINT32_MAX;
    assert_int_equal(drv_do(d, 1, c), 0x80 | DNR);
    c = cmd, c.dw12 = 4096; /* above MDTS */
    assert_int_equal(drv_do(d, 1, c), 2 | DNR);
    drv_free(d);
}

static void test_readonly(void **state)
{
    struct drv *d = drv_started(&(struct drv_opts){.readonly = true});
    uint64_t page = drv_alloc(d, 4096);

    assert_int_equal(drv_do(d, 1, drv_rw(d, READ, 1, 0, 8, page)), 0);
    assert_int_equal(drv_do(d, 1, drv_rw(d, WRITE, 1, 0, 8, page)), 0x20 | DNR);
    assert_int_equal(drv_do(d, 1, drv_rw(d, ZEROES, 1, 0, 8, 0)), 0x20 | DNR);
    *(struct range *)drv_ptr(d, page) = (struct range){0, 8, 0};
    assert_int_equal(drv_do(d, 1, (struct cmd){.opcode = DSM, .nsid = 1, .prp1 = page, .dw11 = 4}),
                     0x20 | DNR);
    assert_int_equal(drv_do(d, 1, (struct cmd){.opcode = FLUSH, .nsid = 1}), 0);
    drv_free(d);
}

static void test_errors_of_the_disk(void **state)
{
    static const struct {
        int err;
        unsigned status;
    } cases[] = {{EIO, 0x280}, {EBADMSG, 0x280 | DNR}, {EUCLEAN, 0x280 | DNR}, {EROFS, 0x20 | DNR}};
    struct drv *d = drv_started(&(struct drv_opts){0});
    struct cmd cmd = drv_rw(d, WRITE, 1, 0, 8, drv_alloc(d, 4096));

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        atomic_store(&d->ctl[0].fail, cases[i].err);
        assert_int_equal(drv_do(d, 1, cmd), cases[i].status);
    }
    atomic_store(&d->ctl[0].fail, 0);
    assert_int_equal(drv_do(d, 1, cmd), 0);
    drv_free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_write_compare),
        cmocka_unit_test(test_read_write_4k_blocks),
        cmocka_unit_test(test_scattered_pages),
        cmocka_unit_test(test_buffer_across_regions),
        cmocka_unit_test(test_bad_prps),
        cmocka_unit_test(test_sgl_one_block),
        cmocka_unit_test(test_sgl_segments),
        cmocka_unit_test(test_sgl_endless),
        cmocka_unit_test(test_flush),
        cmocka_unit_test(test_fua),
        cmocka_unit_test(test_write_zeroes),
        cmocka_unit_test(test_dataset_management),
        cmocka_unit_test(test_discard_is_refused_quietly_where_it_is_off),
        cmocka_unit_test(test_compare_finds_one_byte),
        cmocka_unit_test(test_many_compares),
        cmocka_unit_test(test_refused_commands),
        cmocka_unit_test(test_readonly),
        cmocka_unit_test(test_errors_of_the_disk),
    };

    qv_log_init("test", QV_LOG_SILENT);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

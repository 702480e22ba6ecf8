/* SPDX-License-Identifier: Apache-2.0 */
#include "driver.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define ABAR 5

static uint64_t list_gpa(const struct ahci *a)
{
    return RIG_BASE + 0x10000 + a->port * UINT64_C(0x20000);
}

static uint64_t fis_gpa(const struct ahci *a)
{
    return list_gpa(a) + 0x400;
}

static uint64_t table_gpa(const struct ahci *a, unsigned slot)
{
    return list_gpa(a) + 0x1000 + slot * UINT64_C(0x800);
}

uint32_t ahci_r(struct ahci *a, uint32_t reg)
{
    return rig_read(&a->rig, ABAR, 0x100 + a->port * 0x80 + reg, 4);
}

void ahci_w(struct ahci *a, uint32_t reg, uint32_t value)
{
    rig_write(&a->rig, ABAR, 0x100 + a->port * 0x80 + reg, value, 4);
}

uint32_t ahci_hr(struct ahci *a, uint32_t reg)
{
    return rig_read(&a->rig, ABAR, reg, 4);
}

void ahci_hw(struct ahci *a, uint32_t reg, uint32_t value)
{
    rig_write(&a->rig, ABAR, reg, value, 4);
}

uint32_t *ahci_header(struct ahci *a, unsigned slot)
{
    return qv_fake_vm_ptr(&a->rig.vm, list_gpa(a) + 32 * slot);
}

uint8_t *ahci_table(struct ahci *a, unsigned slot)
{
    return qv_fake_vm_ptr(&a->rig.vm, table_gpa(a, slot));
}

uint8_t *ahci_fis(struct ahci *a, unsigned at)
{
    return (uint8_t *)qv_fake_vm_ptr(&a->rig.vm, fis_gpa(a)) + at;
}

uint8_t *ahci_data(struct ahci *a)
{
    return qv_fake_vm_ptr(&a->rig.vm, DATA_GPA);
}

struct make {
    struct ahci *a;
    struct qv_ahci_opts opts;
};

static void make(void *arg)
{
    struct make *m = arg;

    m->a->rig.fn = qv_ahci_new(&m->opts);
}

void ahci_init(struct ahci *a, const struct rig_how *how, unsigned ports, bool msi)
{
    struct make m = {.a = a, .opts = {.name = "test", .ports = ports}};

    rig_init(&a->rig, how);
    a->port = 0;
    for (unsigned i = 0; i < how->disks; i++) {
        m.opts.drives[i] = (struct qv_ata_drive_opts){
            .disk = a->rig.disk[i], .serial = "SN-1", .model = "TEST MODEL", .firmware = "FW1"};
    }
    rig_call(&a->rig, make, &m);
    rig_start(&a->rig, msi);
    ahci_hw(a, GHC, 0x80000002);
    if (how->disks > 0) {
        ahci_up(a);
    }
}

void ahci_destroy(struct ahci *a)
{
    rig_destroy(&a->rig);
}

void ahci_up(struct ahci *a)
{
    ahci_w(a, CLB, (uint32_t)list_gpa(a));
    ahci_w(a, CLB + 4, (uint32_t)(list_gpa(a) >> 32));
    ahci_w(a, FB, (uint32_t)fis_gpa(a));
    ahci_w(a, FB + 4, (uint32_t)(fis_gpa(a) >> 32));
    ahci_w(a, CMD, 0x10);
    ahci_w(a, SERR, 0xffffffff);
    ahci_w(a, PIS, 0xffffffff);
    ahci_w(a, PIE, 0x7dc0007f);
    ahci_w(a, CMD, 0x11);
}

static void put32(uint8_t *to, uint32_t v)
{
    memcpy(to, &v, 4);
}

/* The PRDT; returns its number of entries. */
static uint32_t build_prdt(uint8_t *t, const struct ahci_cmd *c)
{
    uint64_t gpa = c->gpa != 0 ? c->gpa : DATA_GPA;
    uint32_t cut = c->cut != 0 ? c->cut : 4u << 20, n = 0;

    for (uint32_t done = 0; done < c->len; n++) {
        uint32_t part = c->len - done < cut ? c->len - done : cut;

        assert_true(n < TABLES_PRDS);
        put32(t + 0x80 + 16 * n, (uint32_t)(gpa + done));
        put32(t + 0x84 + 16 * n, (uint32_t)((gpa + done) >> 32));
        put32(t + 0x88 + 16 * n, 0);
        put32(t + 0x8c + 16 * n, part - 1);
        done += part;
    }
    return n;
}

void ahci_build(struct ahci *a, unsigned slot, const struct ahci_cmd *c)
{
    uint8_t *t = ahci_table(a, slot);
    uint32_t *h = ahci_header(a, slot);

    memset(t, 0, 0x80);
    t[0] = 0x27;
    t[1] = 0x80;
    t[2] = c->command;
    t[3] = (uint8_t)c->feature;
    for (unsigned i = 0; i < 3; i++) {
        t[4 + i] = (uint8_t)(c->lba >> (8 * i));
        t[8 + i] = (uint8_t)(c->lba >> (24 + 8 * i));
    }
    t[7] = c->device;
    t[11] = (uint8_t)(c->feature >> 8);
    t[12] = (uint8_t)c->count;
    t[13] = (uint8_t)(c->count >> 8);
    h[0] = 5 | (c->write ? 0x40u : 0) | build_prdt(t, c) << 16;
    h[1] = 0xdeadbeef;
    h[2] = (uint32_t)table_gpa(a, slot);
    h[3] = (uint32_t)(table_gpa(a, slot) >> 32);
}

void ahci_issue(struct ahci *a, uint32_t slots, bool queued)
{
    if (queued) {
        ahci_w(a, SACT, slots);
    }
    ahci_w(a, CI, slots);
}

void ahci_wait_clear(struct ahci *a, uint32_t slots)
{
    for (int i = 0; i < 50000; i++) {
        if (((ahci_r(a, SACT) | ahci_r(a, CI)) & slots) == 0) {
            return;
        }
        usleep(100);
    }
    fail_msg("commands do not end: SACT %x, CI %x", ahci_r(a, SACT), ahci_r(a, CI));
}

void ahci_wait_is(struct ahci *a, uint32_t bits)
{
    for (int i = 0; i < 50000; i++) {
        if (ahci_r(a, PIS) & bits) {
            return;
        }
        usleep(100);
    }
    fail_msg("no such interrupt: PxIS %x", ahci_r(a, PIS));
}

void ahci_recover(struct ahci *a)
{
    ahci_w(a, CMD, 0x10);
    for (int i = 0; i < 50000 && (ahci_r(a, CMD) & 0x8000); i++) {
        usleep(100);
    }
    assert_false(ahci_r(a, CMD) & 0x8000);
    ahci_w(a, SERR, 0xffffffff);
    ahci_w(a, PIS, 0xffffffff);
    ahci_hw(a, IS, 1u << a->port);
    ahci_w(a, CMD, 0x11);
}

uint32_t ahci_run(struct ahci *a, const struct ahci_cmd *c)
{
    uint32_t tfd, is;

    ahci_w(a, PIS, 0xffffffff);
    ahci_build(a, 0, c);
    ahci_issue(a, 1, false);
    for (int i = 0; i < 50000 && ahci_r(a, PIS) == 0; i++) {
        usleep(100);
    }
    is = ahci_r(a, PIS);
    tfd = ahci_r(a, TFD);
    if (is & 0x40000000) {
        assert_int_equal(ahci_r(a, CI) & 1, 1); /* shows which one failed */
        ahci_recover(a);
    } else {
        assert_int_not_equal(is, 0);
        assert_int_equal(ahci_r(a, CI) & 1, 0);
    }
    return tfd;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Encrypted images that somebody has changed. Each sector reads as it was, as it once was at the
 * same place of the same disk, as zeros, or as an error; or the image is refused with a reason.
 * Never anything else, never a crash: opened for reading, and for writing.
 *
 *   test_enc_tamper             some bits of the metadata
 *   test_enc_tamper --every N   one of N bits of bytes that are not zero and of small structures, a
 *                               few others
 *   test_enc_tamper --all       every bit, for hours
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <errno.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "base/maths.h"
#include "enc_image.h"
#include "tamper.h"

/* How thoroughly: one of so many. */
static struct {
    unsigned used;    /* bits of bytes that are not zero */
    unsigned unused;  /* bits of zero bytes */
    unsigned writing; /* of those tried, through a node open for writing too */
    unsigned area;    /* bits of the key area */
    unsigned small;   /* bits of zero bytes of small structures: of all but tables by cluster */
} every = {25, 1500, 4, 150, 1500};

static struct mem_file closed, crashed;
static GRand *rng;

static bool one_of(unsigned n)
{
    return n <= 1 || g_rand_int_range(rng, 0, (gint32)n) == 0;
}

static int version_at_end(unsigned sector)
{
    return sector < TAMPER_NEW ? 3 : sector < TAMPER_FULL ? 1 : 0;
}

static void flip(struct mem_file *file, uint64_t bit)
{
    file->data[bit / 8] ^= (uint8_t)(1u << bit % 8);
}

static void copy_of(const struct mem_file *file, struct mem_file *copy)
{
    *copy = (struct mem_file){0};
    mem_file_set(copy, file->data, file->size);
}

/* ---- the image itself ---- */

static void must_be_whole(struct mem_file *file)
{
    struct tamper_look look;

    tamper_look(file, 'd', NULL, &look);
    assert_true(look.opened);
    for (unsigned i = 0; i < TAMPER_SECTORS; i++) {
        assert_int_equal(look.version[i], version_at_end(i));
    }
    tamper_look_clear(&look);
    tamper_look(file, 'd', "snap", &look);
    assert_true(look.opened);
    for (unsigned i = 0; i < TAMPER_SECTORS; i++) {
        assert_int_equal(look.version[i], i < TAMPER_FULL ? 1 : 0);
    }
    tamper_look_clear(&look);
}

static void test_untouched(void **state)
{
    struct mem_file copy;
    struct tamper_look look;

    (void)state;
    must_be_whole(&closed);
    must_be_whole(&crashed);
    copy_of(&crashed, &copy);
    tamper_look_writing(&copy, 'd', &look);
    assert_false(look.foreign || look.lost);
    assert_int_equal(look.version[1], TAMPER_MENDED);
    tamper_look_clear(&look);
    mem_file_clear(&copy);
}

/* ---- single bits of metadata ---- */

#define SNAPSHOT     "reading the snapshot"
#define HEADER_BYTES 112u
#define SMALL_BYTES  1024u

static struct {
    unsigned tried, refused, error, older, zero, same, writing;
} count;

static void judge(const struct tamper_look *look, const char *what, uint64_t bit, const char *how)
{
    bool snapshot = strcmp(how, SNAPSHOT) == 0;
    bool error = false, older = false, zero = false;

    if (look->foreign || look->lost) {
        fail_msg("%s: bit %u of byte 0x%" G_GINT64_MODIFIER "x, opened for %s: %s", what,
                 (unsigned)(bit % 8), bit / 8, how,
                 look->foreign ? "something else is shown" : "a durable write is lost");
    }
    if (!look->opened) {
        assert_non_null(look->error);
        assert_true(strlen(look->error) > 10);
        count.refused++;
        return;
    }
    for (unsigned i = 0; i < TAMPER_SECTORS; i++) {
        error |= look->version[i] < 0;
        zero |= look->version[i] == 0 && version_at_end(i) != 0;
        older |= !snapshot && look->version[i] > 0 && look->version[i] < version_at_end(i);
    }
    count.error += error;
    count.older += older && !error;
    count.zero += zero && !older && !error;
    count.same += !zero && !older && !error;
}

static void try_bit(const struct mem_file *file, const char *what, uint64_t bit)
{
    struct tamper_look look;
    struct mem_file copy;

    copy_of(file, &copy);
    flip(&copy, bit);
    tamper_look(&copy, 'd', NULL, &look);
    judge(&look, what, bit, "reading");
    tamper_look_clear(&look);
    count.tried++;
    if (one_of(every.writing)) {
        tamper_look(&copy, 'd', "snap", &look);
        judge(&look, what, bit, SNAPSHOT);
        tamper_look_clear(&look);
        tamper_check(&copy);
        tamper_look_writing(&copy, 'd', &look);
        judge(&look, what, bit, "writing");
        tamper_look_clear(&look);
        count.writing++;
    }
    mem_file_clear(&copy);
}

static void try_all_bits(const struct mem_file *file, const char *which)
{
    struct tamper_parts parts;

    memset(&count, 0, sizeof(count));
    tamper_parts(file, &parts);
    for (guint i = 0; i < parts.meta->len; i++) {
        const struct tamper_part *p = &g_array_index(parts.meta, struct tamper_part, i);
        unsigned unused = p->len <= SMALL_BYTES ? every.small : every.unused;

        for (uint64_t bit = p->at * 8; bit < (p->at + p->len) * 8 && bit < file->size * 8; bit++) {
            if (one_of(file->data[bit / 8] != 0 ? every.used : unused)) {
                try_bit(file, p->name, bit);
            }
        }
    }
    tamper_parts_clear(&parts);
    printf("%s: %u bits: %u refused, %u errors, %u older, %u zeros, %u as before; %u also for "
           "writing\n",
           which, count.tried, count.refused, count.error, count.older, count.zero, count.same,
           count.writing);
    assert_true(count.tried > 100 && count.refused > 0 && count.error > 0 && count.writing > 0);
}

/* What every other byte is read by. */
static void test_every_bit_of_the_header(void **state)
{
    unsigned writing = every.writing;

    (void)state;
    every.writing = 1;
    for (uint64_t bit = 0; bit < UINT64_C(8) * HEADER_BYTES; bit++) {
        try_bit(&closed, "header", bit);
    }
    every.writing = writing;
}

static void test_bits_of_metadata(void **state)
{
    (void)state;
    try_all_bits(&closed, "closed");
}

static void test_bits_of_metadata_with_a_log(void **state)
{
    (void)state;
    try_all_bits(&crashed, "crashed");
}

/* ---- the key area ---- */

static void parts_of(const struct mem_file *file, struct qcow2_seal_ext *ext)
{
    struct tamper_parts parts;

    tamper_parts(file, &parts);
    *ext = parts.h.seal;
    tamper_parts_clear(&parts);
}

/* Every bit of one copy makes it no key area: the checksum finds it before anything is believed. */
static void test_bits_of_the_key_area(void **state)
{
    struct qcow2_seal_ext ext;
    struct enc_area area;
    uint8_t *buf;
    size_t used, tried = 0;

    (void)state;
    parts_of(&closed, &ext);
    buf = closed.data + ext.area_offset[0];
    assert_true(enc_area_parse(buf, ext.area_size, &area, NULL));
    used = ENC_AREA_EPOCHS + area.nb_epochs * sizeof(struct enc_epoch_disk);
    enc_area_clear(&area);
    for (size_t bit = 0; bit < used * 8; bit++) {
        if (!one_of(buf[bit / 8] != 0 ? every.used : every.area)) {
            continue;
        }
        buf[bit / 8] ^= (uint8_t)(1u << bit % 8);
        if (enc_area_parse(buf, ext.area_size, &area, NULL)) {
            fail_msg("bit %zu of the key area goes unnoticed", bit);
        }
        buf[bit / 8] ^= (uint8_t)(1u << bit % 8);
        tried++;
    }
    printf("key area: %zu of %zu bits\n", tried, used * 8);
    assert_true(tried > 500);
    must_be_whole(&closed);
}

/* The other copy serves; with a bit of both, nobody opens it. */
static void test_one_copy_of_the_key_area_serves(void **state)
{
    struct qcow2_seal_ext ext;
    struct tamper_look look;

    (void)state;
    parts_of(&closed, &ext);
    for (unsigned i = 0; i < 400; i++) {
        uint64_t span = (uint64_t)(ENC_AREA_SLOTS + ENC_SLOT_SIZE) * 8;
        uint64_t bit = (uint64_t)g_rand_int_range(rng, 0, (gint32)span);
        struct mem_file copy;
        unsigned which = i % 3;

        copy_of(&closed, &copy);
        if (which != 1) {
            flip(&copy, ext.area_offset[0] * 8 + bit);
        }
        if (which != 0) {
            flip(&copy, ext.area_offset[1] * 8 + bit);
        }
        tamper_look(&copy, 'd', NULL, &look);
        assert_int_equal(look.opened, which != 2);
        assert_true(which == 2 || look.one_copy_damaged);
        judge(&look, "key area", bit, "reading");
        tamper_look_clear(&look);
        if (i % 8 == 0) {
            tamper_look_writing(&copy, 'd', &look);
            assert_int_equal(look.opened, which != 2);
            judge(&look, "key area", bit, "writing");
            assert_true(which == 2 || look.version[1] == TAMPER_MENDED);
            assert_false(look.one_copy_damaged); /* beginning an epoch has written both */
            tamper_look_clear(&look);
        }
        mem_file_clear(&copy);
    }
}

/* A MAC that somebody without the data key has made: the plain checksum fits. */
static void test_a_forged_key_area_is_refused(void **state)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *other = enc_test_secret('x');
    struct qcow2_seal_ext ext;
    struct tamper_look look;
    struct enc_area area;
    struct mem_file copy;
    size_t used;

    (void)state;
    copy_of(&closed, &copy);
    parts_of(&copy, &ext);
    assert_true(enc_area_parse(copy.data + ext.area_offset[0], ext.area_size, &area, NULL));
    area.generation += 10;
    area.epochs[0].salt[0] ^= 1;
    for (unsigned i = 0; i < 2; i++) {
        QV_CLEANUP(qv_freep) uint8_t *buf = enc_area_serialize(&area, other, &used, NULL);

        memcpy(copy.data + ext.area_offset[i], buf, used);
        tamper_look(&copy, 'd', NULL, &look);
        assert_int_equal(look.opened, i == 0); /* the other copy serves */
        assert_true(i == 1 || look.version[0] == 3);
        tamper_look_clear(&look);
    }
    enc_area_clear(&area);
    mem_file_clear(&copy);
}

/* ---- data ---- */

/* These two sectors, and no other. */
static void expect_bad(struct mem_file *file, unsigned bad, unsigned also, const char *snapshot)
{
    struct tamper_look look;

    tamper_look(file, 'd', snapshot, &look);
    assert_true(look.opened);
    for (unsigned i = 0; i < TAMPER_SECTORS; i++) {
        assert_int_equal(look.version[i], i == bad || i == also ? -EBADMSG
                                          : snapshot == NULL    ? version_at_end(i)
                                          : i < TAMPER_FULL     ? 1
                                                                : 0);
    }
    tamper_look_clear(&look);
}

static void test_bits_of_data(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 300; i++) {
        unsigned sector = (unsigned)g_rand_int_range(rng, 0, TAMPER_FULL);
        uint64_t bit = (uint64_t)g_rand_int_range(rng, 0, (gint32)ENC_SECTOR * 8);
        struct tamper_look look;
        struct mem_file copy;

        copy_of(&closed, &copy);
        flip(&copy, tamper_host(&copy, sector, false) * 8 + bit);
        expect_bad(&copy, sector, sector, NULL);
        if (i % 10 == 0) {
            tamper_look_writing(&copy, 'd', &look);
            assert_false(look.foreign || look.lost);
            assert_int_equal(look.version[sector], sector == 1 ? (int)TAMPER_MENDED : -EBADMSG);
            tamper_look_clear(&look);
        }
        mem_file_clear(&copy);
    }
}

/* Standard error while @fn runs. */
static char *said_by(void (*fn)(struct mem_file *file, const char *snapshot), struct mem_file *file,
                     const char *snapshot)
{
    FILE *f = tmpfile();
    int saved = dup(STDERR_FILENO);
    char *text = g_malloc0(65536);

    assert_non_null(f);
    dup2(fileno(f), STDERR_FILENO);
    qv_log_init("test", QV_LOG_ERROR);
    fn(file, snapshot);
    qv_log_init("test", QV_LOG_SILENT);
    dup2(saved, STDERR_FILENO);
    close(saved);
    rewind(f);
    assert_true(fread(text, 1, 65535, f) < 65535);
    fclose(f);
    return text;
}

static void expect_seven_bad(struct mem_file *file, const char *snapshot)
{
    expect_bad(file, 7, 7, snapshot);
}

static void test_the_log_names_image_sector_and_snapshot(void **state)
{
    g_autofree char *disk = NULL;
    g_autofree char *snap = NULL;
    struct mem_file copy;

    (void)state;
    copy_of(&closed, &copy);
    assert_int_not_equal(tamper_host(&copy, 7, false), tamper_host(&copy, 7, true));
    flip(&copy, tamper_host(&copy, 7, false) * 8);
    disk = said_by(expect_seven_bad, &copy, NULL);
    assert_non_null(strstr(disk, "tampered: sector 7 (guest offset 0x7000"));
    assert_null(strstr(disk, "snapshot"));
    mem_file_clear(&copy);
    copy_of(&closed, &copy);
    flip(&copy, tamper_host(&copy, 7, true) * 8);
    snap = said_by(expect_seven_bad, &copy, "snap");
    assert_non_null(strstr(snap, "tampered: sector 7 (guest offset 0x7000"));
    assert_non_null(strstr(snap, "of snapshot snap fails authentication"));
    mem_file_clear(&copy);
}

/* ---- sectors that change places ---- */

static void swap_bytes(struct mem_file *file, uint64_t a, uint64_t b, uint64_t len)
{
    for (uint64_t i = 0; i < len; i++) {
        uint8_t byte = file->data[a + i];

        file->data[a + i] = file->data[b + i];
        file->data[b + i] = byte;
    }
}

static void swap_sectors(struct mem_file *file, uint64_t a, uint64_t b, bool entries)
{
    swap_bytes(file, a, b, ENC_SECTOR);
    if (entries) {
        swap_bytes(file, tamper_entry(file, a), tamper_entry(file, b), sizeof(struct enc_entry));
    }
}

/* All pairs: within a cluster and across; the ciphertext alone, and with its entry. */
static void test_swapped_sectors(void **state)
{
    (void)state;
    for (unsigned a = 0; a < TAMPER_FULL; a++) {
        for (unsigned b = a + 1; b < TAMPER_FULL; b++) {
            for (unsigned entries = 0; entries < 2; entries++) {
                struct mem_file copy;

                copy_of(&closed, &copy);
                swap_sectors(&copy, tamper_host(&copy, a, false), tamper_host(&copy, b, false),
                             entries != 0);
                expect_bad(&copy, a, b, NULL);
                mem_file_clear(&copy);
            }
        }
    }
}

/* Between the disk and its snapshot: the ciphertext alone opens nowhere. With its entry it is an
 * older version of the same sector, which docs/encrypted-image.md says is not protected; at another
 * place it opens nowhere. */
static void test_clusters_swapped_with_the_snapshot(void **state)
{
    unsigned n = TAMPER_CLUSTER / ENC_SECTOR;
    struct tamper_look look;
    struct mem_file copy;

    (void)state;
    for (unsigned entries = 0; entries < 2; entries++) {
        copy_of(&closed, &copy);
        assert_int_not_equal(tamper_host(&copy, 0, false), tamper_host(&copy, 0, true));
        for (unsigned i = 0; i < n; i++) {
            swap_sectors(&copy, tamper_host(&copy, i, false), tamper_host(&copy, i, true),
                         entries != 0);
        }
        tamper_look(&copy, 'd', NULL, &look);
        for (unsigned i = 0; i < TAMPER_SECTORS; i++) {
            assert_int_equal(look.version[i], i >= n ? version_at_end(i) : entries ? 1 : -EBADMSG);
        }
        tamper_look_clear(&look);
        tamper_look(&copy, 'd', "snap", &look);
        for (unsigned i = 0; i < n; i++) {
            assert_int_equal(look.version[i], entries ? 3 : -EBADMSG);
        }
        tamper_look_clear(&look);
        mem_file_clear(&copy);
    }
    copy_of(&closed, &copy); /* the snapshot's first cluster where the disk's second is */
    for (unsigned i = 0; i < n; i++) {
        swap_sectors(&copy, tamper_host(&copy, n + i, false), tamper_host(&copy, i, true), true);
    }
    tamper_look(&copy, 'd', NULL, &look);
    for (unsigned i = 0; i < n; i++) {
        assert_int_equal(look.version[n + i], -EBADMSG);
    }
    tamper_look_clear(&look);
    mem_file_clear(&copy);
}

/* ---- other images ---- */

/* The first @n sectors of @from, as they lie there with their entries, in place of @to's. */
static void transplant(struct mem_file *to, const struct mem_file *from, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        uint64_t dest = tamper_host(to, i, false), source = tamper_host(from, i, false);

        memcpy(to->data + dest, from->data + source, ENC_SECTOR);
        memcpy(to->data + tamper_entry(to, dest), from->data + tamper_entry(from, source),
               sizeof(struct enc_entry));
    }
}

static void expect_first_bad(struct mem_file *file, unsigned n)
{
    struct tamper_look look;

    tamper_look(file, 'd', NULL, &look);
    assert_true(look.opened);
    for (unsigned i = 0; i < TAMPER_SECTORS; i++) {
        assert_int_equal(look.version[i], i < n ? -EBADMSG : version_at_end(i));
    }
    tamper_look_clear(&look);
}

/* The same guest sectors of an image with another UUID, with another data key, with both the same
 * (made twice), and of a copy of this very file that was written to elsewhere. */
static void test_sectors_of_other_images(void **state)
{
    static const uint8_t other_uuid[QV_ENC_UUID_SIZE] = "another image id";
    const struct {
        uint8_t dek;
        const uint8_t *uuid;
    } images[] = {{'d', other_uuid}, {'e', enc_test_uuid}, {'e', other_uuid}, {'d', enc_test_uuid}};
    struct mem_file copy;

    (void)state;
    for (unsigned i = 0; i < G_N_ELEMENTS(images); i++) {
        struct mem_file other = {0};

        tamper_make(&other, TAMPER_CLOSED, images[i].dek, images[i].uuid);
        copy_of(&closed, &copy);
        transplant(&copy, &other, TAMPER_FULL);
        expect_first_bad(&copy, TAMPER_FULL);
        mem_file_clear(&other);
        mem_file_clear(&copy);
    }
    {
        struct mem_file twin, here;

        copy_of(&closed, &twin);
        copy_of(&closed, &here);
        tamper_write(&twin, 'd', TAMPER_NEW, 2);
        tamper_write(&here, 'd', TAMPER_NEW,
                     3); /* the same epoch, counter and place; another key */
        transplant(&here, &twin, TAMPER_NEW);
        expect_first_bad(&here, TAMPER_NEW);
        mem_file_clear(&twin);
        mem_file_clear(&here);
    }
}

/* With the key area, header and all of another image in front of this one's data. */
static void test_the_key_area_of_another_image(void **state)
{
    static const uint8_t other_uuid[QV_ENC_UUID_SIZE] = "another image id";
    struct mem_file other = {0}, copy;
    struct qcow2_seal_ext ext;
    struct tamper_look look;

    (void)state;
    tamper_make(&other, TAMPER_CLOSED, 'd', other_uuid);
    parts_of(&other, &ext);
    copy_of(&closed, &copy);
    for (unsigned i = 0; i < 2; i++) {
        memcpy(copy.data + ext.area_offset[i], other.data + ext.area_offset[i], ext.area_size);
    }
    tamper_look(&copy, 'd', NULL, &look); /* the UUID in the header is not the area's */
    assert_false(look.opened);
    assert_non_null(strstr(look.error, "another image"));
    tamper_look_clear(&look);
    memcpy(copy.data, other.data, TAMPER_CLUSTER); /* its header, too */
    tamper_look(&copy, 'd', NULL, &look);
    assert_false(look.foreign);
    for (unsigned i = 0; look.opened && i < TAMPER_FULL; i++) {
        assert_int_equal(look.version[i], -EBADMSG);
    }
    tamper_look_clear(&look);
    mem_file_clear(&other);
    mem_file_clear(&copy);
}

/* ---- older bytes ---- */

/* What is promised, and what not: an older ciphertext alone is an error; with its entry it is what
 * the sector once held. */
static void test_rolled_back_sectors(void **state)
{
    struct mem_file now, mixed;
    struct tamper_look look;
    uint64_t at, entry;

    (void)state;
    copy_of(&closed, &now);
    tamper_write(&now, 'd', TAMPER_NEW, 2);
    at = tamper_host(&now, 2, false);
    assert_int_equal(at, tamper_host(&closed, 2, false)); /* overwritten in place */
    entry = tamper_entry(&now, at);
    for (unsigned what = 1; what < 4; what++) {
        copy_of(&now, &mixed);
        if ((what & 1) != 0) {
            memcpy(mixed.data + at, closed.data + at, ENC_SECTOR);
        }
        if ((what & 2) != 0) {
            memcpy(mixed.data + entry, closed.data + entry, sizeof(struct enc_entry));
        }
        tamper_look(&mixed, 'd', NULL, &look);
        assert_true(look.opened);
        for (unsigned i = 0; i < TAMPER_NEW; i++) {
            assert_int_equal(look.version[i], i != 2 ? 2 : what == 3 ? 3 : -EBADMSG);
        }
        tamper_look_clear(&look);
        mem_file_clear(&mixed);
    }
    mem_file_clear(&now);
}

/* ---- shorter and longer files ---- */

static void try_size(const struct mem_file *file, uint64_t size, bool garbage)
{
    struct tamper_look look;
    struct mem_file copy;

    copy_of(file, &copy);
    assert_int_equal(mem_file_resize(&copy, size), 0);
    for (uint64_t i = file->size; garbage && i < size; i++) {
        copy.data[i] = (uint8_t)g_rand_int(rng);
    }
    tamper_look(&copy, 'd', NULL, &look);
    judge(&look, "size", size * 8, "reading");
    if (size > file->size) {
        for (unsigned i = 0; i < TAMPER_SECTORS; i++) {
            assert_int_equal(look.version[i], version_at_end(i));
        }
    }
    tamper_look_clear(&look);
    tamper_check(&copy);
    if (size > file->size || one_of(every.writing)) {
        tamper_look_writing(&copy, 'd', &look);
        judge(&look, "size", size * 8, "writing");
        assert_true(size < file->size || look.version[1] == TAMPER_MENDED);
        tamper_look_clear(&look);
    }
    mem_file_clear(&copy);
}

static void test_shorter_and_longer_files(void **state)
{
    const uint64_t more[] = {1, 511, 512, 4095, 4096, 5000, TAMPER_CLUSTER, 1000000};

    (void)state;
    for (unsigned which = 0; which < 2; which++) {
        const struct mem_file *file = which != 0 ? &crashed : &closed;

        for (uint64_t size = 0; size < file->size; size += 512) {
            if (one_of(every.used / 2) || file->size - size < 8192) {
                try_size(file, size - (size > 0 && one_of(4) ? 100 : 0), false);
            }
        }
        for (unsigned i = 0; i < G_N_ELEMENTS(more); i++) {
            try_size(file, file->size + more[i], false);
            try_size(file, file->size + more[i], true);
        }
    }
}

/* ---- main ---- */

static int setup(void **state)
{
    (void)state;
    enc_test_nonces_record(); /* thousands of copies of two files, written to */
    qv_log_init("test", QV_LOG_SILENT);
    rng = g_rand_new_with_seed(20);
    if (!tamper_start()) {
        return 1;
    }
    tamper_make(&closed, TAMPER_CLOSED, 'd', enc_test_uuid);
    tamper_make(&crashed, TAMPER_CRASHED, 'd', enc_test_uuid);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tamper_end();
    assert_true(enc_test_nonces_count() > 1000);
    mem_file_clear(&closed);
    mem_file_clear(&crashed);
    g_rand_free(rng);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_untouched),
        cmocka_unit_test(test_every_bit_of_the_header),
        cmocka_unit_test(test_bits_of_metadata),
        cmocka_unit_test(test_bits_of_metadata_with_a_log),
        cmocka_unit_test(test_bits_of_the_key_area),
        cmocka_unit_test(test_one_copy_of_the_key_area_serves),
        cmocka_unit_test(test_a_forged_key_area_is_refused),
        cmocka_unit_test(test_bits_of_data),
        cmocka_unit_test(test_the_log_names_image_sector_and_snapshot),
        cmocka_unit_test(test_swapped_sectors),
        cmocka_unit_test(test_clusters_swapped_with_the_snapshot),
        cmocka_unit_test(test_sectors_of_other_images),
        cmocka_unit_test(test_the_key_area_of_another_image),
        cmocka_unit_test(test_rolled_back_sectors),
        cmocka_unit_test(test_shorter_and_longer_files),
    };

    if (argc > 1 && strcmp(argv[1], "--all") == 0) {
        every.used = every.unused = every.writing = every.area = every.small = 1;
    } else if (argc > 2 && strcmp(argv[1], "--every") == 0) {
        every.used = (unsigned)MAX(1, atoi(argv[2]));
        every.unused = 200 * every.used;
        every.area = 30 * every.used;
        every.small = every.used;
        every.writing = 10;
    }
    return cmocka_run_group_tests(tests, setup, teardown);
}

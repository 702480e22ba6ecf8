/* SPDX-License-Identifier: Apache-2.0 */
/* `check --data`: several threads authenticate every sector once, and name those that are bad. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/log.h"
#include "enc_image.h"
#include "format/encrypted/enc_int.h"
#include "format/encrypted/verify.h"
#include "mem_node.h"

#define SIZE    (UINT64_C(8) << 20)
#define SECTORS (SIZE / 4096)
#define THREADS 3u

static const uint64_t bad[] = {0, 777, SECTORS - 1};

static struct qv_thread *threads[THREADS];
static struct mem_file file; /* only read while several threads are there */
static struct qv_node *node;

/* Coroutines run on a thread of their own, where cmocka cannot end a test: g_assert ends the
 * program. */
static void co_open(void *readonly)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *dek = enc_test_secret('d');
    struct qv_enc_open_opts opts = {.qcow2 = {.name = "a", .readonly = readonly != NULL},
                                    .dek = dek};

    g_assert_true(qv_enc_co_open(mem_node_new(&file, readonly != NULL), &opts, &node, NULL));
}

static void co_close(void *arg)
{
    (void)arg;
    g_assert_cmpint(qv_node_co_close_tree(node), ==, 0);
}

static void co_make(void *arg)
{
    struct qv_enc_create_opts opts = {.qcow2 = {.size = SIZE}};
    struct qv_node *bytes = mem_node_new(&file, false);
    g_autofree uint8_t *content = g_malloc(SIZE);
    uint64_t host[G_N_ELEMENTS(bad)];

    (void)arg;
    g_assert_true(enc_test_co_create(bytes, &opts, NULL));
    qv_node_co_close_tree(bytes);
    co_open(NULL);
    memset(content, 7, SIZE);
    g_assert_cmpint(qv_co_pwrite(node, 0, content, SIZE), ==, 0);
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        struct qv_extent extent;

        g_assert_cmpint(qv_node_co_status(node, bad[i] * 4096, 4096, &extent), ==, 0);
        host[i] = extent.host;
    }
    co_close(NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        file.data[host[i] + 1000 * i] ^= 0x20;
    }
}

static uint64_t last;

static void progress(void *arg, uint64_t done, uint64_t total)
{
    (void)arg;
    assert_int_equal(total, SIZE);
    assert_in_range(done, last, total);
    last = done;
}

static bool is_listed(const GArray *listed, uint64_t sector)
{
    for (guint i = 0; i < listed->len; i++) {
        if (g_array_index(listed, struct qv_enc_bad, i).guest == sector) {
            return true;
        }
    }
    return false;
}

static void test_every_sector_once_and_the_bad_ones_by_name(void **state)
{
    struct qv_enc_verify v = {.progress = progress};

    (void)state;
    qv_thread_run_co(threads[0], co_make, NULL);
    qv_thread_run_co(threads[0], co_open, &file);
    assert_true(qv_enc_verify(&v, node, NULL, threads, THREADS, NULL));
    assert_int_equal(v.checked, SECTORS);
    assert_int_equal(v.bad, G_N_ELEMENTS(bad));
    assert_int_equal(v.listed->len, G_N_ELEMENTS(bad));
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        assert_true(is_listed(v.listed, bad[i]));
    }
    /* Seen already: a snapshot that shares them adds nothing. */
    last = 0;
    assert_true(qv_enc_verify(&v, node, "s", threads, THREADS, NULL));
    assert_int_equal(v.checked, SECTORS);
    assert_int_equal(v.bad, G_N_ELEMENTS(bad));
    qv_enc_verify_clear(&v);
    qv_thread_run_co(threads[0], co_close, NULL);
    mem_file_clear(&file);
}

static int setup(void **state)
{
    (void)state;
    qv_log_init("test", QV_LOG_SILENT);
    for (unsigned i = 0; i < THREADS; i++) {
        threads[i] = qv_thread_new("test", NULL);
        if (threads[i] == NULL) {
            return -1;
        }
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (unsigned i = 0; i < THREADS; i++) {
        qv_thread_free(threads[i]);
    }
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_sector_once_and_the_bad_ones_by_name),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}

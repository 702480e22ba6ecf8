/* SPDX-License-Identifier: Apache-2.0 */
#include "base/secret.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* The VmFlags line of the mapping that holds @data, from /proc/self/smaps. */
static void mapping_flags(const void *data, char *flags, int len)
{
    FILE *smaps = fopen("/proc/self/smaps", "re");
    char line[512];
    bool here = false;

    assert_non_null(smaps);
    flags[0] = '\0';
    while (fgets(line, sizeof(line), smaps) != NULL) {
        unsigned long from, to;

        if (sscanf(line, "%lx-%lx ", &from, &to) == 2) {
            here = (unsigned long)data >= from && (unsigned long)data < to;
        } else if (here && strncmp(line, "VmFlags:", 8) == 0) {
            g_strlcpy(flags, line, (gsize)len);
        }
    }
    fclose(smaps);
}

static void test_secret_is_zero_and_kept_out_of_dumps(void **state)
{
    QV_CLEANUP(qv_secret_freep) struct qv_secret *secret = qv_secret_new(32);
    static const uint8_t zero[32];
    char flags[512];

    (void)state;
    assert_non_null(secret);
    assert_int_equal(secret->len, 32);
    assert_memory_equal(secret->data, zero, 32);
    mapping_flags(secret->data, flags, sizeof(flags));
    assert_non_null(strstr(flags, " dd")); /* do not dump */
}

static void test_lengths_out_of_range_give_no_secret(void **state)
{
    (void)state;
    assert_null(qv_secret_new(0));
    assert_null(qv_secret_new(SIZE_MAX));
}

static void test_equal_compares_every_byte(void **state)
{
    (void)state;
    assert_true(qv_secret_equal("abcd", "abcd", 4));
    assert_false(qv_secret_equal("abcd", "abce", 4));
    assert_false(qv_secret_equal("Abcd", "abcd", 4));
    assert_true(qv_secret_equal("x", "y", 0));
}

static void test_wipe_clears(void **state)
{
    char text[] = "secret";

    (void)state;
    qv_secret_wipe(text, sizeof(text));
    assert_memory_equal(text, "\0\0\0\0\0\0\0", sizeof(text));
}

/* In a child, which ends with 0 when all is as it must be. */
static void test_a_process_that_forbids_dumps_has_none(void **state)
{
    int status;
    pid_t pid = fork();

    (void)state;
    if (pid == 0) {
        char text[32] = "";
        struct rlimit core = {1, 1};
        FILE *filter;

        qv_secret_forbid_dumps();
        filter = fopen("/proc/self/coredump_filter", "re");
        if (filter == NULL || fgets(text, sizeof(text), filter) == NULL) {
            _exit(1);
        }
        fclose(filter);
        _exit(strtoul(text, NULL, 16) != 0 || getrlimit(RLIMIT_CORE, &core) != 0 ||
              core.rlim_cur != 0 || core.rlim_max != 0 || prctl(PR_GET_DUMPABLE) != 0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_secret_is_zero_and_kept_out_of_dumps),
        cmocka_unit_test(test_lengths_out_of_range_give_no_secret),
        cmocka_unit_test(test_equal_compares_every_byte),
        cmocka_unit_test(test_wipe_clears),
        cmocka_unit_test(test_a_process_that_forbids_dumps_has_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

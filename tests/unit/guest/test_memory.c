/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "guest/dirty_log.h"
#include "guest/fake_vm.h"

#define BASE   UINT64_C(0x100000)
#define REGION UINT64_C(0x10000)

static int setup(void **state)
{
    struct qv_fake_vm *vm = g_new0(struct qv_fake_vm, 1);

    qv_fake_vm_init(vm, BASE, 3, REGION);
    *state = vm;
    return 0;
}

static int teardown(void **state)
{
    qv_fake_vm_destroy(*state);
    g_free(*state);
    return 0;
}

static void test_iov_spans_regions(void **state)
{
    struct qv_fake_vm *vm = *state;
    struct qv_guest_view *view = qv_guest_view_new(vm->map);
    struct iovec iov[4];

    assert_int_equal(qv_guest_view_iov(view, BASE + REGION - 100, REGION + 200, true, iov, 4), 3);
    assert_int_equal(iov[0].iov_len, 100);
    assert_int_equal(iov[1].iov_len, REGION);
    assert_int_equal(iov[2].iov_len, 100);
    *(uint8_t *)iov[2].iov_base = 0x5a;
    assert_int_equal(*(uint8_t *)qv_fake_vm_ptr(vm, BASE + 2 * REGION), 0x5a);
    assert_int_equal(qv_guest_view_iov(view, BASE + REGION - 100, 200, true, iov, 1), -E2BIG);
    qv_guest_view_retire(view);
}

static void test_addresses_outside_are_refused(void **state)
{
    struct qv_fake_vm *vm = *state;
    struct qv_guest_view *view = qv_guest_view_new(vm->map);
    struct iovec iov[8];
    uint8_t byte;

    assert_null(qv_guest_view_ptr(view, BASE - 1, 1, false));
    assert_null(qv_guest_view_ptr(view, BASE + 3 * REGION, 1, false));
    assert_null(qv_guest_view_ptr(view, BASE + REGION - 1, 2, false));
    assert_null(qv_guest_view_ptr(view, BASE, UINT64_MAX, false));
    assert_int_equal(qv_guest_view_iov(view, BASE, UINT64_MAX, false, iov, 8), -EFAULT);
    assert_int_equal(qv_guest_view_iov(view, UINT64_MAX, 2, false, iov, 8), -EFAULT);
    assert_int_equal(qv_guest_view_iov(view, BASE + 3 * REGION - 1, 2, false, iov, 8), -EFAULT);
    assert_int_equal(qv_guest_view_read(view, BASE + 3 * REGION - 1, &byte, 1), 0);
    assert_int_equal(qv_guest_view_read(view, 0, &byte, 1), -EFAULT);
    qv_guest_view_retire(view);
}

static void test_user_addresses_and_back(void **state)
{
    struct qv_fake_vm *vm = *state;
    uint64_t user = vm->specs[1].user_addr, gpa = 0;
    uint8_t *ptr = qv_guest_map_user_ptr(vm->map, user + 8, REGION - 8);

    assert_non_null(ptr);
    assert_true(qv_guest_map_gpa_of(vm->map, ptr, &gpa));
    assert_int_equal(gpa, BASE + REGION + 8);
    assert_null(qv_guest_map_user_ptr(vm->map, user + 8, REGION));
    assert_null(qv_guest_map_user_ptr(vm->map, BASE, 1));
    assert_false(qv_guest_map_gpa_of(vm->map, &gpa, &gpa));
}

static void test_file_must_cover_the_region(void **state)
{
    struct qv_fake_vm *vm = *state;
    struct qv_guest_region *region = NULL;
    struct qv_guest_region_spec spec = {.gpa = 0, .size = REGION + 1, .fd = vm->fd};
    int pipes[2];

    spec.fd_offset = 2 * REGION;
    assert_false(qv_guest_region_new(&spec, &region, NULL));
    spec.fd_offset = UINT64_MAX;
    assert_false(qv_guest_region_new(&spec, &region, NULL));
    spec.fd_offset = 0;
    spec.gpa = UINT64_MAX;
    assert_false(qv_guest_region_new(&spec, &region, NULL));
    spec.gpa = 0;
    spec.size = 0;
    assert_false(qv_guest_region_new(&spec, &region, NULL));
    assert_int_equal(pipe(pipes), 0);
    spec.size = 1;
    spec.fd = pipes[0];
    assert_false(qv_guest_region_new(&spec, &region, NULL));
    close(pipes[0]);
    close(pipes[1]);
    assert_null(region);
}

static void test_maps_grow_and_shrink_while_views_last(void **state)
{
    struct qv_fake_vm *vm = *state;
    struct qv_guest_map *less = NULL, *more = NULL, *same = NULL;
    struct qv_guest_view *view = qv_guest_view_new(vm->map);
    uint8_t *ptr = qv_guest_view_ptr(view, BASE + REGION, 1, true);

    qv_guest_view_enter(view);
    assert_true(qv_guest_map_without(vm->map, vm->specs[1].gpa, vm->specs[1].user_addr, REGION,
                                     &less, NULL));
    assert_int_equal(less->count, 2);
    assert_false(
        qv_guest_map_without(less, vm->specs[1].gpa, vm->specs[1].user_addr, REGION, &same, NULL));
    assert_true(qv_guest_map_with(less, vm->map->regions[1], &more, NULL));
    assert_int_equal(more->count, 3);
    assert_int_equal(more->regions[1]->gpa, BASE + REGION);
    assert_false(qv_guest_map_with(more, vm->map->regions[1], &same, NULL));
    /* The request's pointer stays good after everyone else has let go of the map. */
    qv_guest_view_retire(view);
    qv_guest_map_unref(vm->map);
    qv_guest_map_unref(more);
    vm->map = less;
    *ptr = 1;
    qv_guest_view_leave(view);
}

static void test_readonly_region_is_not_writable(void **state)
{
    struct qv_fake_vm *vm = *state;
    struct qv_guest_region_spec spec = vm->specs[0];
    struct qv_guest_region *region;
    struct qv_guest_map *map;
    struct qv_guest_view *view;
    struct iovec iov;

    spec.readonly = true;
    assert_true(qv_guest_region_new(&spec, &region, NULL));
    assert_true(qv_guest_map_new(&region, 1, &map, NULL));
    view = qv_guest_view_new(map);
    assert_null(qv_guest_view_ptr(view, BASE, 1, true));
    assert_non_null(qv_guest_view_ptr(view, BASE, 1, false));
    assert_int_equal(qv_guest_view_iov(view, BASE, 1, true, &iov, 1), -EFAULT);
    assert_null(qv_guest_map_user_ptr(map, spec.user_addr, 1));
    qv_guest_view_retire(view);
    qv_guest_map_unref(map);
    qv_guest_region_unref(region);
}

static void test_truncated_memory_breaks_the_map_not_the_process(void **state)
{
    struct qv_fake_vm vm;
    struct qv_guest_view *view;
    volatile uint8_t *ptr;

    (void)state;
    qv_fake_vm_init(&vm, BASE, 3, REGION); /* here, since cmocka takes SIGBUS before each test */
    view = qv_guest_view_new(vm.map);
    ptr = qv_guest_view_ptr(view, BASE + 2 * REGION, 1, true);
    assert_false(qv_guest_map_broken(vm.map));
    assert_int_equal(ftruncate(vm.fd, 2 * REGION), 0);
    ptr[5000] = 7;
    assert_int_equal(ptr[5000], 7);
    assert_int_equal(ptr[0], 0);
    assert_true(qv_guest_map_broken(vm.map));
    qv_guest_view_retire(view);
    qv_fake_vm_destroy(&vm);
}

static void test_dirty_log_marks_pages(void **state)
{
    int fd = memfd_create("log", MFD_CLOEXEC);
    struct qv_dirty_log *log = NULL;
    uint8_t *bits;

    (void)state;
    assert_int_equal(ftruncate(fd, 8192), 0);
    bits = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, 0);
    assert_false(qv_dirty_log_new(fd, 8192, 1, &log, NULL));
    assert_true(qv_dirty_log_new(fd, 4096, 4, &log, NULL));
    qv_dirty_log_mark(log, 4095, 2);
    assert_int_equal(bits[4096], 0x03);
    qv_dirty_log_mark(log, 9 * 4096, 1);
    assert_int_equal(bits[4097], 0x02);
    qv_dirty_log_mark(log, 31 * 4096, 100 * 4096); /* runs past the log */
    assert_int_equal(bits[4099], 0x80);
    assert_int_equal(bits[4100], 0);
    qv_dirty_log_mark(log, UINT64_MAX, 2);
    qv_dirty_log_mark(log, 0, 0);
    qv_dirty_log_unref(log);
    munmap(bits, 8192);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_iov_spans_regions, setup, teardown),
        cmocka_unit_test_setup_teardown(test_addresses_outside_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_user_addresses_and_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file_must_cover_the_region, setup, teardown),
        cmocka_unit_test_setup_teardown(test_maps_grow_and_shrink_while_views_last, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_readonly_region_is_not_writable, setup, teardown),
        cmocka_unit_test(test_truncated_memory_breaks_the_map_not_the_process),
        cmocka_unit_test(test_dirty_log_marks_pages),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

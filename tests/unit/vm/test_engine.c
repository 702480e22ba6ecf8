/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdbool.h>
#include <stdint.h>

#include "vm/engine.h"

static void test_versions(void **state)
{
    (void)state;
    assert_int_equal(
        vm_engine_version_parse("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\n"),
        VM_ENGINE_VERSION(7, 2));
    assert_int_equal(vm_engine_version_parse("11.1.3\n"), VM_ENGINE_VERSION(11, 1));
    assert_int_equal(vm_engine_version_parse("QEMU emulator version 10.0"),
                     VM_ENGINE_VERSION(10, 0));
    assert_int_equal(vm_engine_version_parse("version x"), 0);
    assert_int_equal(vm_engine_version_parse(""), 0);
    assert_true(VM_ENGINE_VERSION(7, 2) < VM_ENGINE_VERSION(10, 1));
}

static void test_processor_flags(void **state)
{
    (void)state;
    assert_true(vm_cpuinfo_has_virt("processor\t: 0\nflags\t\t: fpu vme vmx de\nbugs\t: \n"));
    assert_true(vm_cpuinfo_has_virt("flags\t\t: fpu svm\n"));
    assert_true(vm_cpuinfo_has_virt("flags : svm fpu"));
    assert_false(vm_cpuinfo_has_virt("flags\t\t: fpu vmx_x xsvm svm_lock\n"));
    assert_false(vm_cpuinfo_has_virt("model name\t: vmx svm\nflags\t\t: fpu\nvmx flags\t: vnmi\n"));
    assert_false(vm_cpuinfo_has_virt(""));
}

static void test_auto_says_why_it_is_not_kvm(void **state)
{
    const char *why = "untouched";

    (void)state;
    if (vm_accel_auto(&why) == VM_ACCEL_KVM) {
        assert_null(why);
    } else {
        assert_non_null(why);
        assert_string_not_equal(why, "untouched");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_versions),
        cmocka_unit_test(test_processor_flags),
        cmocka_unit_test(test_auto_says_why_it_is_not_kvm),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

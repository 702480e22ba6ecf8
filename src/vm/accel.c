/* SPDX-License-Identifier: Apache-2.0 */
/* KVM or TCG? /dev/kvm alone says little: it exists in containers and guests where it does not
 * work.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/atomic_file.h"
#include "base/cleanup.h"
#include "vm/engine.h"

#define CPUINFO_MAX (16u << 20) /* some 5 KiB a processor */

const char *vm_accel_name(enum vm_accel accel)
{
    return accel == VM_ACCEL_KVM ? "kvm" : "tcg";
}

/* Whether the line holds @word between blanks. */
static bool line_has_word(const char *line, size_t len, const char *word)
{
    size_t n = strlen(word);

    for (size_t i = 0; i + n <= len; i++) {
        bool starts = i > 0 && (line[i - 1] == ' ' || line[i - 1] == '\t');
        bool ends = i + n == len || line[i + n] == ' ';

        if (starts && ends && memcmp(line + i, word, n) == 0) {
            return true;
        }
    }
    return false;
}

bool vm_cpuinfo_has_virt(const char *text)
{
    while (*text != '\0') {
        size_t len = strcspn(text, "\n");

        if (strncmp(text, "flags", strlen("flags")) == 0) {
            return line_has_word(text, len, "vmx") || line_has_word(text, len, "svm");
        }
        text += len + (text[len] == '\n');
    }
    return false;
}

/* Makes a VM with one processor, and lets it go. */
static bool kvm_works(void)
{
    QV_CLEANUP(qv_close_fd) int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    QV_CLEANUP(qv_close_fd) int vm = -1;
    QV_CLEANUP(qv_close_fd) int vcpu = -1;

    if (kvm < 0 || ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) {
        return false;
    }
    vm = ioctl(kvm, KVM_CREATE_VM, 0);
    vcpu = vm < 0 ? -1 : ioctl(vm, KVM_CREATE_VCPU, 0);
    return vcpu >= 0;
}

enum vm_accel vm_accel_auto(const char **why)
{
    g_autofree char *text = NULL;
    size_t len;

    if (!qv_file_read("/proc/cpuinfo", CPUINFO_MAX, &text, &len, NULL) ||
        !vm_cpuinfo_has_virt(text)) {
        *why = "the processor offers neither vmx nor svm";
        return VM_ACCEL_TCG;
    }
    if (!kvm_works()) {
        *why = "/dev/kvm does not make a working VM";
        return VM_ACCEL_TCG;
    }
    *why = NULL;
    return VM_ACCEL_KVM;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/argv.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>

#include "base/json.h"
#include "base/maths.h"
#include "vm/topology.h"

/* A lost I/O process is back after some 50 ms. QEMU before 9.2 counts whole seconds. */
#define RECONNECT_MS_SINCE VM_ENGINE_VERSION(9, 2)
#define RECONNECT_MS       "reconnect-ms=50"
#define RECONNECT_S        "reconnect=1"

/* Since then, -mon is deprecated. */
#define MONITOR_OBJECT_SINCE VM_ENGINE_VERSION(11, 1)

static void add(GPtrArray *argv, const char *text)
{
    g_ptr_array_add(argv, g_strdup(text));
}

static void addf(GPtrArray *argv, const char *option, const char *format, ...) G_GNUC_PRINTF(3, 4);

static void addf(GPtrArray *argv, const char *option, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    add(argv, option);
    g_ptr_array_add(argv, g_strdup_vprintf(format, args));
    va_end(args);
}

/* An option whose value is JSON: nothing in it needs escaping. */
static void add_json(GPtrArray *argv, const char *option, json_t *value)
{
    char *text = json_dumps(value, JSON_COMPACT);

    add(argv, option);
    g_ptr_array_add(argv, g_strdup(text));
    free(text);
    json_decref(value);
}

char *vm_disk_socket(unsigned index)
{
    return g_strdup_printf("d%u", index);
}

static void add_machine(GPtrArray *argv, const struct vm_launch *launch)
{
    const struct qv_vm_config *config = launch->config;
    bool uefi = config->kernel == NULL && config->firmware == QV_FIRMWARE_UEFI;

    addf(argv, "-name", "guest=%s,debug-threads=on", config->name);
    addf(argv, "-machine", "q35,memory-backend=mem,usb=off,vmport=off%s%s",
         launch->serial_fd >= 0 ? ",graphics=off" : "",
         uefi ? ",pflash0=uefi-code,pflash1=uefi-vars" : "");
    add(argv, "-accel");
    add(argv, launch->accel == VM_ACCEL_KVM ? "kvm" : "tcg,thread=multi");
    add(argv, "-cpu");
    add(argv, launch->accel == VM_ACCEL_KVM ? "host" : "max");
    addf(argv, "-smp", "%" PRIu32, config->cpus);
    addf(argv, "-m", "%" PRIu64 "M", config->memory / QV_MIB);
    addf(argv, "-object", "memory-backend-memfd,id=mem,size=%" PRIu64 ",share=on", config->memory);
    if (uefi) {
        add_json(argv, "-blockdev",
                 json_pack("{s:s, s:s, s:s, s:b}", "driver", "file", "node-name", "uefi-code",
                           "filename", launch->uefi_code, "read-only", 1));
        add_json(argv, "-blockdev",
                 json_pack("{s:s, s:s, s:s}", "driver", "file", "node-name", "uefi-vars",
                           "filename", launch->uefi_vars));
    }
}

static void add_boot(GPtrArray *argv, const struct qv_vm_config *config)
{
    /* Also with a kernel: SeaBIOS then leaves disks alone that it is not to boot, which is most of
     * the time it takes with hundreds of them. */
    addf(argv, "-boot", "strict=on");
    if (config->kernel == NULL) {
        return;
    }
    addf(argv, "-kernel", "%s", config->kernel);
    if (config->initrd != NULL) {
        addf(argv, "-initrd", "%s", config->initrd);
    }
    if (config->cmdline != NULL) {
        addf(argv, "-append", "%s", config->cmdline);
    }
}

static void add_ports(GPtrArray *argv, unsigned disks)
{
    unsigned ports = vm_topology_ports(disks);

    for (unsigned i = 0; i < ports; i++) {
        g_autofree char *addr = vm_topology_port_addr(i);

        addf(argv, "-device",
             "pcie-root-port,id=port%u,bus=pcie.0,addr=%s,chassis=1,slot=%u,io-reserve=0%s%s", i,
             addr, i, i % VM_FUNCTIONS == 0 ? ",multifunction=on" : "",
             disks > VM_PORT_DISKS_MAX ? ",hotplug=off" : "");
    }
}

/* The firmware boots the disk with the lowest boot_index; the first one where none has any. */
static int64_t boot_index(const struct qv_vm_config *config, unsigned i)
{
    for (guint d = 0; d < config->disks->len; d++) {
        const struct qv_vm_disk *disk = config->disks->pdata[d];

        if (disk->boot_index != QV_BOOT_NOT_SET) {
            return ((const struct qv_vm_disk *)config->disks->pdata[i])->boot_index;
        }
    }
    return i == 0 ? 0 : QV_BOOT_NOT_SET;
}

static void add_disk(GPtrArray *argv, const struct vm_launch *launch, unsigned i,
                     const struct vm_seat *seat)
{
    const struct qv_vm_disk *disk = launch->config->disks->pdata[i];
    g_autofree char *socket = vm_disk_socket(i);
    int64_t boot = boot_index(launch->config, i);
    GString *device = g_string_new(NULL);

    addf(argv, "-chardev", "socket,id=chr-%s,path=%s,%s", socket, socket,
         launch->engine->version >= RECONNECT_MS_SINCE ? RECONNECT_MS : RECONNECT_S);
    g_string_append_printf(device,
                           "vhost-user-blk-pci,id=%s,chardev=chr-%s,bus=port%u,addr=0.%u,"
                           "num-queues=%" PRIu32 ",vectors=%u,disable-legacy=on",
                           socket, socket, seat->port, seat->function, disk->queues, seat->vectors);
    if (launch->config->disks->len > VM_PORT_DISKS_MAX) {
        g_string_append(device, ",multifunction=on");
    }
    if (boot != QV_BOOT_NOT_SET && launch->config->kernel == NULL) {
        g_string_append_printf(device, ",bootindex=%" PRId64, boot);
    }
    add(argv, "-device");
    g_ptr_array_add(argv, g_string_free(device, FALSE));
}

static void add_disks(GPtrArray *argv, const struct vm_launch *launch)
{
    unsigned n = launch->config->disks->len;
    g_autofree struct vm_seat *seats = g_new0(struct vm_seat, n);
    g_autofree uint32_t *queues = g_new0(uint32_t, n);

    for (unsigned i = 0; i < n; i++) {
        const struct qv_vm_disk *disk = launch->config->disks->pdata[i];

        seats[i] = vm_topology_seat(i, n);
        queues[i] = disk->queues;
    }
    vm_topology_vectors(seats, queues, n, launch->config->cpus);
    add_ports(argv, n);
    for (unsigned i = 0; i < n; i++) {
        add_disk(argv, launch, i, &seats[i]);
    }
}

GPtrArray *vm_argv(const struct vm_launch *launch)
{
    GPtrArray *argv = g_ptr_array_new_with_free_func(g_free);

    add(argv, launch->engine->program);
    add(argv, "-nodefaults");
    add(argv, "-no-user-config");
    addf(argv, "-display", "none");
    addf(argv, "-sandbox",
         "on,obsolete=deny,elevateprivileges=deny,spawn=deny,"
         "resourcecontrol=deny");
    add(argv, "-S"); /* runs when the supervisor says so */
    add_machine(argv, launch);
    add_boot(argv, launch->config);
    addf(argv, "-chardev", "socket,id=chr-qmp,fd=%d", launch->qmp_fd);
    if (launch->engine->version >= MONITOR_OBJECT_SINCE) {
        addf(argv, "-object", "monitor-qmp,id=qmp,chardev=chr-qmp");
    } else {
        addf(argv, "-mon", "chardev=chr-qmp,mode=control");
    }
    addf(argv, "-device", "pvpanic");
    if (launch->serial_fd >= 0) {
        addf(argv, "-chardev", "socket,id=chr-serial,fd=%d", launch->serial_fd);
        addf(argv, "-device", "isa-serial,chardev=chr-serial");
    }
    add_disks(argv, launch);
    g_ptr_array_add(argv, NULL);
    return argv;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/argv.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>

#include "base/json.h"
#include "base/maths.h"
#include "vm/topology.h"
#include "vm/units.h"

/* A lost I/O process is back after some 50 ms. QEMU before 9.2 counts whole seconds. */
#define RECONNECT_MS_SINCE VM_ENGINE_VERSION(9, 2)
#define RECONNECT_MS       "reconnect-ms=50"
#define RECONNECT_S        "reconnect=1"

/* Places on the root bus. */
#define AHCI_ADDR "1d.0"
#define IDE_ADDR  "1e.0"

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

static void add_machine(GPtrArray *argv, const struct vm_launch *launch)
{
    const struct qv_vm_config *config = launch->config;
    bool uefi = config->kernel == NULL && config->firmware == QV_FIRMWARE_UEFI;

    addf(argv, "-name", "guest=%s,debug-threads=on", config->name);
    addf(argv, "-machine", "q35,memory-backend=mem,usb=off,sata=off,vmport=off%s%s",
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
    addf(argv, "-boot", "strict=%s", vm_boot_by_order(config) ? "off" : "on");
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

/* Ports for @devices devices, and some for those that come later. */
static void add_ports(GPtrArray *argv, unsigned devices)
{
    unsigned used = vm_topology_ports(devices);

    for (unsigned i = 0; i < used + VM_SPARE_PORTS; i++) {
        g_autofree char *addr = vm_topology_port_addr(i);
        bool shared = i < used && devices > VM_PORT_DISKS_MAX;

        addf(argv, "-device",
             "pcie-root-port,id=port%u,bus=pcie.0,addr=%s,chassis=1,slot=%u,io-reserve=0%s%s", i,
             addr, i, i % VM_FUNCTIONS == 0 ? ",multifunction=on" : "",
             shared ? ",hotplug=off" : "");
    }
}

/* The lowest boot_index of the unit's disks. The firmware boots the lowest of all; the first disk
 * where none has any. */
static int64_t boot_index(const struct qv_vm_config *config, const struct vm_unit *unit)
{
    int64_t lowest = INT64_MAX;
    bool any = false;

    for (guint d = 0; d < config->disks->len; d++) {
        any = any ||
              ((const struct qv_vm_disk *)config->disks->pdata[d])->boot_index != QV_BOOT_NOT_SET;
    }
    for (guint i = 0; i < unit->disks->len; i++) {
        guint d = g_array_index(unit->disks, guint, i);
        const struct qv_vm_disk *disk = config->disks->pdata[d];

        if (disk->boot_index != QV_BOOT_NOT_SET) {
            lowest = MIN(lowest, disk->boot_index);
        } else if (!any && d == 0) {
            lowest = 0;
        }
    }
    return lowest == INT64_MAX || config->kernel != NULL || vm_boot_by_order(config)
               ? QV_BOOT_NOT_SET
               : lowest;
}

static void add_virtio_blk(GPtrArray *argv, const struct vm_launch *launch,
                           const struct vm_unit *unit, const struct vm_seat *seat, bool shared)
{
    int64_t boot = boot_index(launch->config, unit);
    GString *device = g_string_new(NULL);

    addf(argv, "-chardev", "socket,id=chr-%s,path=%s,%s", unit->id, unit->id,
         launch->engine->version >= RECONNECT_MS_SINCE ? RECONNECT_MS : RECONNECT_S);
    g_string_append_printf(device,
                           "vhost-user-blk-pci,id=%s,chardev=chr-%s,bus=port%u,addr=0.%u,"
                           "num-queues=%" PRIu32 ",vectors=%u,disable-legacy=on",
                           unit->id, unit->id, seat->port, seat->function, unit->queues,
                           seat->vectors);
    if (shared) {
        g_string_append(device, ",multifunction=on");
    }
    if (boot != QV_BOOT_NOT_SET) {
        g_string_append_printf(device, ",bootindex=%" PRId64, boot);
    }
    add(argv, "-device");
    g_ptr_array_add(argv, g_string_free(device, FALSE));
}

json_t *vm_controller_device(const char *id, const char *bus, const char *addr)
{
    return json_pack("{s:s, s:s, s:{s:s, s:s}, s:s, s:s}", "driver", "vfio-user-pci", "id", id,
                     "socket", "type", "unix", "path", id, "bus", bus, "addr", addr);
}

static void add_controller(GPtrArray *argv, const struct vm_launch *launch,
                           const struct vm_unit *unit, const struct vm_seat *seat, bool shared)
{
    g_autofree char *bus = g_strdup_printf("port%u", seat != NULL ? seat->port : 0);
    g_autofree char *addr = g_strdup_printf("0.%u", seat != NULL ? seat->function : 0);
    int64_t boot = boot_index(launch->config, unit);
    json_t *device;

    /* AHCI and IDE sit where chipsets have them; behind a port there would be no I/O space. */
    device = seat != NULL ? vm_controller_device(unit->id, bus, addr)
                          : vm_controller_device(unit->id, "pcie.0",
                                                 unit->type == QV_DISK_AHCI ? AHCI_ADDR : IDE_ADDR);
    if (shared && seat != NULL) {
        json_object_set_new(device, "multifunction", json_true());
    }
    if (boot != QV_BOOT_NOT_SET) {
        json_object_set_new(device, "bootindex", json_integer(boot));
    }
    add_json(argv, "-device", device);
}

static void add_units(GPtrArray *argv, const struct vm_launch *launch)
{
    g_autoptr(GPtrArray) units = vm_units_of(launch->config);
    g_autofree struct vm_seat *seats = g_new0(struct vm_seat, units->len + 1);
    g_autofree uint32_t *queues = g_new0(uint32_t, units->len + 1);
    unsigned n = 0, at = 0;

    for (guint i = 0; i < units->len; i++) {
        const struct vm_unit *unit = units->pdata[i];

        if (vm_unit_on_port(unit->type)) {
            queues[n++] = unit->queues;
        }
    }
    for (unsigned i = 0; i < n; i++) {
        seats[i] = vm_topology_seat(i, n);
    }
    vm_topology_vectors(seats, queues, n, launch->config->cpus);
    add_ports(argv, n);
    for (guint i = 0; i < units->len; i++) {
        const struct vm_unit *unit = units->pdata[i];
        const struct vm_seat *seat = vm_unit_on_port(unit->type) ? &seats[at++] : NULL;

        if (seat != NULL && unit->type == QV_DISK_VIRTIO_BLK) {
            add_virtio_blk(argv, launch, unit, seat, n > VM_PORT_DISKS_MAX);
        } else {
            add_controller(argv, launch, unit, seat, n > VM_PORT_DISKS_MAX);
        }
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
    add_units(argv, launch);
    g_ptr_array_add(argv, NULL);
    return argv;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "catalog/config.h"

#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "base/maths.h"
#include "catalog/catalog.h"

#define CONFIG_BYTES_MAX (1u << 20)
#define MEMORY_MIN       (16 * QV_MIB)
#define BOOT_INDEX_MAX   100000u /* far above the number of disks */

/* Word lists follow the order of the enums in config.h. */
static const char *const type_words[] = {"virtio-blk", "nvme", "ahci", "ide", NULL};
/* AUTO, the first, is not written: it is the key's absence. */
static const char *const cache_words[] = {"auto", "none", "writeback", "writethrough", NULL};
static const char *const io_words[] = {"io_uring", "native", "threads", NULL};
static const char *const on_error_words[] = {"report", "stop", NULL};
static const char *const on_enospc_words[] = {"pause", "report", NULL};
static const char *const doorbells_words[] = {"registers", "page", NULL};
static const char *const firmware_words[] = {"bios", "uefi", NULL};
static const char *const format_words[] = {"raw", "qcow2", "encrypted", NULL};
static const char *const prealloc_words[] = {"off", "metadata", "falloc", "full", NULL};

/* What one VM holds: the disks that fit, and what they are called in messages. */
static const struct {
    unsigned max;
    const char *what;
} type_limits[QV_DISK_TYPES] = {
    [QV_DISK_VIRTIO_BLK] = {256, "virtio-blk disks"},
    [QV_DISK_NVME] = {256, "NVMe namespaces"},
    [QV_DISK_AHCI] = {32, "AHCI ports"},
    [QV_DISK_IDE] = {4, "IDE drives"},
};

const char *qv_disk_type_name(enum qv_disk_type type)
{
    return type_words[type];
}

const char *qv_disk_cache_name(enum qv_disk_cache cache)
{
    return cache_words[cache];
}

const char *qv_disk_io_name(enum qv_disk_io io)
{
    return io_words[io];
}

unsigned qv_disk_type_max(enum qv_disk_type type)
{
    return type_limits[type].max;
}

static void disk_free(void *ptr)
{
    struct qv_vm_disk *disk = ptr;

    if (disk != NULL) {
        g_free(disk->path);
        g_free(disk->format);
        g_free(disk->serial);
        g_free(disk->prealloc);
        g_free(disk);
    }
}

static void disk_freep(struct qv_vm_disk **disk)
{
    disk_free(*disk);
}

void qv_vm_config_free(struct qv_vm_config *config)
{
    if (config != NULL) {
        g_ptr_array_free(config->disks, TRUE);
        g_free(config->name);
        g_free(config->kernel);
        g_free(config->initrd);
        g_free(config->cmdline);
        g_free(config);
    }
}

void qv_vm_config_freep(struct qv_vm_config **config)
{
    qv_vm_config_free(*config);
    *config = NULL;
}

static bool missing(const char *where, const char *key, GError **error)
{
    g_autofree char *at = qv_json_where(where, key);

    return qv_fail(error, QV_ERROR_USAGE, "%s: is missing", at);
}

/* A text of 1..@max bytes, copied; *@out stays NULL when the key is absent. */
static bool read_copy(const json_t *object, const char *where, const char *key, size_t max,
                      char **out, GError **error)
{
    const char *text = NULL;

    if (!qv_json_read_text(object, where, key, &text, error)) {
        return false;
    }
    if (text == NULL) {
        return true;
    }
    if (*text == '\0' || strlen(text) > max) {
        g_autofree char *at = qv_json_where(where, key);

        return qv_fail(error, QV_ERROR_USAGE, "%s: must be 1 to %zu characters", at, max);
    }
    *out = g_strdup(text);
    return true;
}

/* As qv_json_read_word, giving the word itself; *@out stays NULL when the key is absent. */
static bool read_word_copy(const json_t *object, const char *where, const char *key,
                           const char *const *words, char **out, GError **error)
{
    unsigned index = UINT32_MAX;

    if (!qv_json_read_word(object, where, key, words, &index, error)) {
        return false;
    }
    *out = index == UINT32_MAX ? NULL : g_strdup(words[index]);
    return true;
}

static bool read_prealloc(const json_t *object, const char *where, struct qv_vm_disk *disk,
                          GError **error)
{
    const json_t *value = json_object_get(object, "prealloc");

    if (json_is_boolean(value)) {
        disk->prealloc = g_strdup(json_is_true(value) ? "falloc" : "off");
        return true;
    }
    if (value != NULL && !json_is_string(value)) {
        return qv_fail(error, QV_ERROR_USAGE,
                       "%s.prealloc: must be true, false, or one of off, metadata, falloc, full",
                       where);
    }
    return read_word_copy(object, where, "prealloc", prealloc_words, &disk->prealloc, error);
}

static bool check_path(const struct qv_vm_disk *disk, const char *where, GError **error)
{
    g_auto(GStrv) parts = NULL;

    if (disk->path[0] == '/') {
        if (disk->format == NULL) {
            qv_fail(error, QV_ERROR_USAGE, "%s.format: is missing", where);
            qv_error_hint(error, "the format of a file or device is never guessed");
            return false;
        }
        if (disk->size != 0) {
            return qv_fail(error, QV_ERROR_USAGE,
                           "%s.size: only images of the catalogue are created, not %s", where,
                           disk->path);
        }
        return true;
    }
    parts = g_strsplit(disk->path, "/", 3);
    for (unsigned i = 0; parts[i] != NULL; i++) {
        if (i > 1 || !qv_name_valid(parts[i])) {
            qv_fail(error, QV_ERROR_USAGE,
                    "%s.path: \"%s\" is neither an image's name nor an absolute path", where,
                    disk->path);
            return false;
        }
    }
    return true;
}

static bool read_disk_words(const json_t *object, const char *where, struct qv_vm_disk *disk,
                            GError **error)
{
    unsigned type = 0, cache = UINT32_MAX, io = 0, on_error = 0, on_enospc = 0;
    bool discard = false;

    if (!qv_json_read_word(object, where, "type", type_words, &type, error) ||
        !qv_json_read_word(object, where, "cache", cache_words + 1, &cache, error) ||
        !qv_json_read_word(object, where, "io", io_words, &io, error) ||
        !qv_json_read_word(object, where, "on_error", on_error_words, &on_error, error) ||
        !qv_json_read_word(object, where, "on_enospc", on_enospc_words, &on_enospc, error) ||
        !qv_json_read_bool(object, where, "discard", &discard, error) ||
        !qv_json_read_bool(object, where, "readonly", &disk->readonly, error)) {
        return false;
    }
    disk->type = (enum qv_disk_type)type;
    disk->cache = cache == UINT32_MAX ? QV_DISK_CACHE_AUTO : (enum qv_disk_cache)(cache + 1);
    disk->io = (enum qv_disk_io)io;
    disk->on_error = (enum qv_on_error)on_error;
    disk->on_enospc = (enum qv_on_enospc)on_enospc;
    if (json_object_get(object, "discard") != NULL) {
        disk->discard = discard ? QV_DISK_DISCARD_ON : QV_DISK_DISCARD_OFF;
    }
    return true;
}

static bool read_disk_texts(const json_t *object, const char *where, struct qv_vm_disk *disk,
                            GError **error)
{
    if (!read_copy(object, where, "path", 4095, &disk->path, error) ||
        !read_word_copy(object, where, "format", format_words, &disk->format, error) ||
        !read_copy(object, where, "serial", QV_SERIAL_MAX, &disk->serial, error)) {
        return false;
    }
    for (const char *c = disk->serial; c != NULL && *c != '\0'; c++) {
        if ((unsigned char)*c >= 0x7f) { /* controllers take ASCII, 20 bytes */
            return qv_fail(error, QV_ERROR_USAGE, "%s.serial: must be ASCII", where);
        }
    }
    return disk->path != NULL || missing(where, "path", error);
}

static bool read_queues(const json_t *object, const char *where, uint32_t cpus,
                        struct qv_vm_disk *disk, GError **error)
{
    bool single = disk->type == QV_DISK_AHCI || disk->type == QV_DISK_IDE;
    uint64_t queues = single ? 1 : MIN(cpus, QV_QUEUES_USUAL);

    if (!qv_json_read_count(object, where, "queues", 1, QV_QUEUES_MAX, &queues, error)) {
        return false;
    }
    if (single && queues != 1) {
        return qv_fail(error, QV_ERROR_USAGE, "%s.queues: %s disks have one queue", where,
                       qv_disk_type_name(disk->type));
    }
    disk->queues = (uint32_t)queues;
    return true;
}

static bool read_doorbells(const json_t *object, const char *where, struct qv_vm_disk *disk,
                           GError **error)
{
    unsigned word = 0;

    if (!qv_json_read_word(object, where, "doorbells", doorbells_words, &word, error)) {
        return false;
    }
    if (json_object_get(object, "doorbells") != NULL && disk->type != QV_DISK_NVME) {
        return qv_fail(error, QV_ERROR_USAGE, "%s.doorbells: %s disks have none", where,
                       qv_disk_type_name(disk->type));
    }
    disk->doorbell_page = word == 1;
    return true;
}

static bool read_disk_numbers(const json_t *object, const char *where, struct qv_vm_disk *disk,
                              GError **error)
{
    uint64_t boot_index = 0;

    if (!qv_json_read_count(object, where, "boot_index", 0, BOOT_INDEX_MAX, &boot_index, error) ||
        !qv_json_read_size(object, where, "size", &disk->size, error) ||
        !read_prealloc(object, where, disk, error)) {
        return false;
    }
    if (json_object_get(object, "boot_index") != NULL) {
        disk->boot_index = (int64_t)boot_index;
    }
    if (json_object_get(object, "size") != NULL && disk->size == 0) {
        return qv_fail(error, QV_ERROR_USAGE, "%s.size: must be at least 512", where);
    }
    if (disk->prealloc != NULL && disk->size == 0) {
        return qv_fail(error, QV_ERROR_USAGE, "%s.prealloc: is for new images, and size is missing",
                       where);
    }
    return true;
}

static bool disk_parse(const json_t *object, const char *where, uint32_t cpus,
                       struct qv_vm_disk **out, GError **error)
{
    static const char *const keys[] = {"type",     "path",       "format",    "cache",
                                       "io",       "queues",     "discard",   "readonly",
                                       "serial",   "boot_index", "size",      "prealloc",
                                       "on_error", "on_enospc",  "doorbells", NULL};
    QV_CLEANUP(disk_freep) struct qv_vm_disk *disk = g_new0(struct qv_vm_disk, 1);

    disk->boot_index = QV_BOOT_NOT_SET;
    if (!qv_json_only_keys(object, where, keys, error)) {
        return false;
    }
    if (json_object_get(object, "type") == NULL) {
        return missing(where, "type", error);
    }
    if (!read_disk_words(object, where, disk, error) ||
        !read_disk_texts(object, where, disk, error) ||
        !read_queues(object, where, cpus, disk, error) ||
        !read_doorbells(object, where, disk, error) ||
        !read_disk_numbers(object, where, disk, error) || !check_path(disk, where, error)) {
        return false;
    }
    *out = g_steal_pointer(&disk);
    return true;
}

static bool storage_parse(const json_t *list, const char *where, struct qv_vm_config *config,
                          GError **error)
{
    if (list == NULL) {
        return true;
    }
    if (!json_is_array(list)) {
        return qv_fail(error, QV_ERROR_USAGE, "%s: must be a list", where);
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        g_autofree char *at = g_strdup_printf("%s[%zu]", where, i);
        struct qv_vm_disk *disk = NULL;

        if (!disk_parse(json_array_get(list, i), at, config->cpus, &disk, error)) {
            return false;
        }
        g_ptr_array_add(config->disks, disk);
    }
    return true;
}

static bool devices_parse(const json_t *devices, struct qv_vm_config *config, GError **error)
{
    static const char *const keys[] = {"storage", NULL};

    if (devices == NULL) {
        return true;
    }
    return qv_json_only_keys(devices, "devices", keys, error) &&
           storage_parse(json_object_get(devices, "storage"), "devices.storage", config, error);
}

/* "default/a" and "a" are the same image. */
static const char *plain_name(const char *path)
{
    return g_str_has_prefix(path, QV_POOL_DEFAULT "/") ? path + strlen(QV_POOL_DEFAULT "/") : path;
}

/* What concerns several disks: limits, and things that only one of them may have. */
static bool check_disks(const struct qv_vm_config *config, GError **error)
{
    g_autoptr(GHashTable) paths = g_hash_table_new(g_str_hash, g_str_equal);
    g_autoptr(GHashTable) boots = g_hash_table_new(g_int64_hash, g_int64_equal);
    unsigned counts[QV_DISK_TYPES] = {0};

    for (guint i = 0; i < config->disks->len; i++) {
        struct qv_vm_disk *disk = config->disks->pdata[i];

        counts[disk->type]++;
        if (!g_hash_table_add(paths, (void *)(uintptr_t)plain_name(disk->path))) {
            return qv_fail(error, QV_ERROR_USAGE, "storage: %s stands there twice", disk->path);
        }
        if (disk->boot_index != QV_BOOT_NOT_SET && !g_hash_table_add(boots, &disk->boot_index)) {
            return qv_fail(error, QV_ERROR_USAGE,
                           "storage: boot_index %" PRId64 " stands there twice", disk->boot_index);
        }
    }
    for (unsigned t = 0; t < QV_DISK_TYPES; t++) {
        if (counts[t] > type_limits[t].max) {
            return qv_fail(error, QV_ERROR_USAGE, "storage: %u %s, a VM holds at most %u",
                           counts[t], type_limits[t].what, type_limits[t].max);
        }
    }
    return true;
}

static bool cpu_parse(const json_t *cpu, struct qv_vm_config *config, GError **error)
{
    static const char *const keys[] = {"count", NULL};
    uint64_t count = 1;

    if (cpu != NULL &&
        (!qv_json_only_keys(cpu, "cpu", keys, error) ||
         !qv_json_read_count(cpu, "cpu", "count", 1, QV_VM_CPUS_MAX, &count, error))) {
        return false;
    }
    config->cpus = (uint32_t)count;
    return true;
}

static bool memory_parse(const json_t *memory, struct qv_vm_config *config, GError **error)
{
    static const char *const keys[] = {"size", NULL};

    config->memory = QV_VM_MEMORY_DEF;
    if (memory != NULL && (!qv_json_only_keys(memory, "memory", keys, error) ||
                           !qv_json_read_size(memory, "memory", "size", &config->memory, error))) {
        return false;
    }
    if (config->memory < MEMORY_MIN || config->memory % QV_MIB != 0) {
        return qv_fail(error, QV_ERROR_USAGE, "memory.size: must be whole MiB, at least 16M");
    }
    return true;
}

static bool boot_path(const json_t *boot, const char *key, char **out, GError **error)
{
    if (!read_copy(boot, "boot", key, 4095, out, error)) {
        return false;
    }
    if (*out != NULL && **out != '/') {
        return qv_fail(error, QV_ERROR_USAGE, "boot.%s: must be an absolute path", key);
    }
    return true;
}

static bool boot_parse(const json_t *boot, struct qv_vm_config *config, GError **error)
{
    static const char *const keys[] = {"kernel", "initrd", "cmdline", NULL};

    if (boot == NULL) {
        return true;
    }
    if (!qv_json_only_keys(boot, "boot", keys, error) ||
        !boot_path(boot, "kernel", &config->kernel, error) ||
        !boot_path(boot, "initrd", &config->initrd, error)) {
        return false;
    }
    if (g_strcmp0(json_string_value(json_object_get(boot, "cmdline")), "") != 0 &&
        !read_copy(boot, "boot", "cmdline", QV_CMDLINE_MAX, &config->cmdline, error)) {
        return false;
    }
    return config->kernel != NULL || missing("boot", "kernel", error);
}

static bool console_parse(const json_t *console, struct qv_vm_config *config, GError **error)
{
    static const char *const keys[] = {"type", NULL};
    static const char *const words[] = {"serial", "none", NULL};
    unsigned type = 0;

    if (console != NULL && (!qv_json_only_keys(console, "console", keys, error) ||
                            !qv_json_read_word(console, "console", "type", words, &type, error))) {
        return false;
    }
    config->serial_console = type == 0;
    return true;
}

static bool name_parse(const json_t *json, struct qv_vm_config *config, GError **error)
{
    if (!read_copy(json, "", "name", QV_NAME_MAX, &config->name, error)) {
        return false;
    }
    if (config->name == NULL) {
        return missing("", "name", error);
    }
    if (!qv_name_check("VM", config->name, error)) {
        g_prefix_error(error, "name: ");
        return false;
    }
    return true;
}

bool qv_vm_config_parse(const json_t *json, struct qv_vm_config **out, GError **error)
{
    static const char *const keys[] = {"name",    "cpu",      "memory",  "storage", "boot",
                                       "console", "firmware", "devices", NULL};
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *config = g_new0(struct qv_vm_config, 1);
    unsigned firmware = QV_FIRMWARE_BIOS;

    config->disks = g_ptr_array_new_with_free_func(disk_free);
    if (!qv_json_only_keys(json, "", keys, error) || !name_parse(json, config, error) ||
        !cpu_parse(json_object_get(json, "cpu"), config, error) ||
        !memory_parse(json_object_get(json, "memory"), config, error) ||
        !boot_parse(json_object_get(json, "boot"), config, error) ||
        !console_parse(json_object_get(json, "console"), config, error) ||
        !qv_json_read_word(json, "", "firmware", firmware_words, &firmware, error) ||
        !storage_parse(json_object_get(json, "storage"), "storage", config, error) ||
        !devices_parse(json_object_get(json, "devices"), config, error) ||
        !check_disks(config, error)) {
        return false;
    }
    config->firmware = (enum qv_firmware)firmware;
    *out = g_steal_pointer(&config);
    return true;
}

bool qv_vm_config_load(const char *path, struct qv_vm_config **out, GError **error)
{
    g_autoptr(json_t) json = NULL;

    if (!qv_json_load(path, CONFIG_BYTES_MAX, &json, error)) {
        return false;
    }
    if (!qv_vm_config_parse(json, out, error)) {
        g_prefix_error(error, "%s: ", path);
        return false;
    }
    return true;
}

static void set_text(json_t *object, const char *key, const char *text)
{
    if (text != NULL) {
        json_object_set_new(object, key, json_string(text));
    }
}

static json_t *disk_json(const struct qv_vm_disk *disk)
{
    json_t *object = json_object();

    set_text(object, "type", type_words[disk->type]);
    set_text(object, "path", disk->path);
    set_text(object, "format", disk->format);
    if (disk->cache != QV_DISK_CACHE_AUTO) {
        set_text(object, "cache", cache_words[disk->cache]);
    }
    set_text(object, "io", io_words[disk->io]);
    json_object_set_new(object, "queues", json_integer(disk->queues));
    if (disk->doorbell_page) {
        set_text(object, "doorbells", doorbells_words[1]);
    }
    if (disk->discard != QV_DISK_DISCARD_AUTO) {
        json_object_set_new(object, "discard", json_boolean(disk->discard == QV_DISK_DISCARD_ON));
    }
    json_object_set_new(object, "readonly", json_boolean(disk->readonly));
    set_text(object, "serial", disk->serial);
    if (disk->boot_index != QV_BOOT_NOT_SET) {
        json_object_set_new(object, "boot_index", json_integer(disk->boot_index));
    }
    if (disk->size != 0) {
        json_object_set_new(object, "size", qv_json_u64(disk->size));
    }
    set_text(object, "prealloc", disk->prealloc);
    set_text(object, "on_error", on_error_words[disk->on_error]);
    set_text(object, "on_enospc", on_enospc_words[disk->on_enospc]);
    return object;
}

json_t *qv_vm_config_json(const struct qv_vm_config *config)
{
    json_t *object = json_object();
    json_t *disks = json_array();

    set_text(object, "name", config->name);
    json_object_set_new(object, "cpu", json_pack("{s:I}", "count", (json_int_t)config->cpus));
    json_object_set_new(object, "memory", json_pack("{s:I}", "size", (json_int_t)config->memory));
    for (guint i = 0; i < config->disks->len; i++) {
        json_array_append_new(disks, disk_json(config->disks->pdata[i]));
    }
    json_object_set_new(object, "storage", disks);
    if (config->kernel != NULL) {
        json_t *boot = json_object();

        set_text(boot, "kernel", config->kernel);
        set_text(boot, "initrd", config->initrd);
        set_text(boot, "cmdline", config->cmdline);
        json_object_set_new(object, "boot", boot);
    }
    json_object_set_new(object, "firmware", json_string(firmware_words[config->firmware]));
    json_object_set_new(object, "console",
                        json_pack("{s:s}", "type", config->serial_console ? "serial" : "none"));
    return object;
}
